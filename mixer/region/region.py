"""The simplex cut by floors and caps: what is feasible, the nearest point, the best vertex, a uniform draw.

A region is ``{w : sum w = 1, floor_i <= w_i <= cap_i}``. Excluded sources are pinned at 0. Everything here is exact up
to rounding: weights sum to 1 within 4 K eps and never leave their bounds. The one allowance is for decimals that binary
cannot hold: floors (or caps) may miss a sum of 1 by 1e-12 before they count as infeasible.
"""

from __future__ import annotations

import difflib
import math
import numbers
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property

import numpy as np
import numpy.typing as npt

from mixer.errors import ConfigError, InfeasibleRegionError, UnknownSourceError, WeightsError
from mixer.region.uniform import BoxSlice
from mixer.types import Array

ROUNDING = 1e-12  # how far decimals such as 0.1 + 0.2 + 0.7 may miss 1
NEARLY = 1e-9  # how far weights that were worked out elsewhere may miss a bound or a sum
MAX_VERTEX_SOURCES = 12  # 12 free sources have up to 5,544 vertices; the count doubles with each source


class Region:
    """The mixtures that may be reached: ``floor_i <= w_i <= cap_i``, ``sum w = 1``.

    Args:
        names: the K sources in declared order.
        floors, caps: smallest and largest weight by name; 0 and 1 where not named.
        exclude: sources pinned at 0.
        active: if given, the only sources that may be drawn: the others are pinned at 0 and their floors sleep.

    Attributes:
        names: tuple [K].
        floors, caps: the bounds as declared, with exclusions and sleeping floors applied, float64 [K].
        lower, upper: the tightest bounds: each value is attained by some mixture of the region, float64 [K].

    Raises:
        InfeasibleRegionError: no mixture keeps the bounds; carries the sum, the sources and the excess.
        UnknownSourceError: a bound names no source.
        ConfigError: duplicate names, or a bound that is not a number from 0 to 1.
    """

    names: tuple[str, ...]
    floors: Array
    caps: Array
    lower: Array
    upper: Array

    def __init__(
        self,
        names: Sequence[str],
        *,
        floors: Mapping[str, float] | None = None,
        caps: Mapping[str, float] | None = None,
        exclude: Iterable[str] = (),
        active: Iterable[str] | None = None,
    ) -> None:
        self.names = tuple(names)
        if not self.names:
            raise ConfigError("a region needs at least one source")
        if twice := [name for name, times in Counter(self.names).items() if times > 1]:
            raise ConfigError(f"sources are declared more than once: {', '.join(twice)}")
        self._declared = (dict(floors or {}), dict(caps or {}), tuple(exclude))
        self._active = self.names if active is None else tuple(self._known("active", active))
        asleep = set(self.names) - set(self._active)
        awake_floors = {name: floor for name, floor in self._declared[0].items() if name not in asleep}
        self.floors = self._values("floor", awake_floors, 0.0)
        self.caps = self._values("cap", self._declared[1], 1.0)
        for name in self._known("exclude", self._declared[2]):
            if awake_floors.get(name, 0.0) > 0:
                raise InfeasibleRegionError(
                    f"{name} is excluded but has a floor of {awake_floors[name]:.6g}; remove one of the two",
                    sources=[name],
                    excess=awake_floors[name],
                )
        index = {name: i for i, name in enumerate(self.names)}
        self.caps[[index[name] for name in (*self._declared[2], *sorted(asleep))]] = 0.0
        check_feasible(self.names, self.floors, self.caps)
        self.lower, self.upper = tighten(self.floors, self.caps)
        for array in (self.floors, self.caps, self.lower, self.upper):
            array.setflags(write=False)

    @classmethod
    def of(cls, names: Sequence[str], floors: Array, caps: Array) -> Region:
        """Return the region of these bounds, each [K] in the order of ``names``; raises as the constructor."""
        return cls(
            names,
            floors=dict(zip(names, floors.tolist(), strict=True)),
            caps=dict(zip(names, caps.tolist(), strict=True)),
        )

    def __repr__(self) -> str:
        return f"Region({len(self.names)} sources, {self.dimension} free dimensions)"

    @property
    def dimension(self) -> int:
        """Free dimensions: one less than the sources that are not pinned; 0 for a point."""
        return max(int(self._free.size) - 1, 0)

    @cached_property
    def _free(self) -> npt.NDArray[np.intp]:
        """Indices of the sources whose weight is not pinned by the bounds."""
        return np.flatnonzero(self.upper > self.lower)

    @cached_property
    def _nearly(self) -> tuple[Array, Array]:
        """The bounds with what weights may miss them by."""
        return self.floors - NEARLY, self.caps + NEARLY

    @cached_property
    def _room(self) -> Array:
        """What each source may have above its lower bound."""
        return self.upper - self.lower

    @cached_property
    def _left(self) -> float:
        """What the floors leave to be shared out."""
        return -_excess(self.lower)

    @cached_property
    def _slice(self) -> BoxSlice:
        """The free coordinates above their floors: ``0 <= y <= room``, ``sum y = what the floors leave``."""
        room = self._room[self._free]
        return BoxSlice(room, min(self._left, _sum(room)))

    def contains(self, weights: npt.ArrayLike, atol: float = NEARLY) -> bool:
        """Return whether ``weights``, [K], is a mixture of this region, each bound and the sum within ``atol``."""
        w = self._vector("weights", weights)
        least, most = self._nearly if atol == NEARLY else (self.floors - atol, self.caps + atol)
        num_inside = np.count_nonzero((w >= least) & (w <= most))  # what is not finite is not
        return num_inside == w.size and abs(float(w.sum()) - 1.0) <= atol

    def check(self, weights: npt.ArrayLike, atol: float = NEARLY) -> Array:
        """Return ``weights`` as float64 [K], or raise WeightsError saying which bound or sum they break."""
        w = self._vector("weights", weights)
        if self.contains(w, atol):
            return w
        for name, value, floor, cap in zip(self.names, w, self.floors, self.caps, strict=True):
            if not math.isfinite(value):
                raise WeightsError(f"weight of {name} is {value}; weights are finite")
            if not floor - atol <= value <= cap + atol:
                bound = f"below its floor {floor:.6g}" if value < floor else f"above its cap {cap:.6g}"
                raise WeightsError(f"weight of {name} is {value:.6g}, {bound}; project the weights on the region first")
        raise WeightsError(f"weights sum to {_sum(w):.9g}, not 1; they are not a point of the simplex")

    def project(self, point: npt.ArrayLike) -> Array:
        """Return the mixture nearest to ``point`` (Euclidean), float64 [K].

        Solves ``min |w - v|^2`` over the region: ``w = clip(v - t, lower, upper)`` for the shift ``t`` that makes the
        sum 1. The sum never rises with ``t`` and is linear between its 2 K kinks, so bisection among the sorted kinks
        finds the two around ``t``, and with them which coordinates slide: O(K log K), no tolerance. The continuous
        quadratic knapsack; without caps, Duchi et al., ICML 2008.

        Args:
            point: finite values of any size, [K]; they need not sum to 1.
        """
        v = self._vector("point", point)
        if not np.isfinite(v).all():
            raise WeightsError(f"the point to project has a value that is not finite: {v[~np.isfinite(v)][0]}")
        lower, upper = self.lower, self.upper
        with np.errstate(over="ignore"):  # values near 1e308
            values = np.sort(v)
            origin = values[_first_enough(values, v, lower, upper)]
            v = np.clip(v - origin, -2.0, 2.0)  # now -1 <= t <= 0, and what was further off stands at a bound anyway
        kinks = np.sort(np.concatenate([v - upper, v - lower]))
        k = max(_first_enough(kinks, v, lower, upper), 1)
        at_cap, at_floor = v - upper >= kinks[k], v - lower <= kinks[k - 1]
        weights = np.where(at_cap, upper, lower)
        slides = ~(at_cap | at_floor)
        if slides.any():
            shift = (_sum(v[slides]) + _sum(weights[~slides]) - 1.0) / np.count_nonzero(slides)
            weights[slides] = v[slides] - shift
        return self._settled(self._clipped(weights))

    def best_vertex(self, scores: npt.ArrayLike, ties: npt.ArrayLike | None = None) -> Array:
        """Return the vertex that maximises ``<scores, w>``, float64 [K]; O(K log K).

        The linear program over a region is solved by filling what the floors leave, best score first, up to each cap.

        Args:
            scores: [K]; +inf is allowed and comes first.
            ties: [K], optional: equal scores go to the smaller value here; then, always, to the declared order.
        """
        g = self._vector("scores", scores)
        if np.isnan(g).any():
            raise WeightsError(
                f"the score of {self.names[int(np.flatnonzero(np.isnan(g))[0])]} is nan; scores are numbers"
            )
        order = np.lexsort((np.zeros(g.size) if ties is None else self._vector("ties", ties), -g))
        filled = self._room[order].cumsum()
        num_full = min(int(filled.searchsorted(self._left)), g.size - 1)
        full, between = order[:num_full], order[num_full]
        vertex = self.lower.copy()
        vertex[full] = self.upper[full]
        vertex[between] = 0.0
        vertex[between] = min(max(1.0 - _sum(vertex), self.lower[between]), self.upper[between])
        return vertex

    def step(self, weights: npt.ArrayLike, towards: npt.ArrayLike, eta: float) -> Array:
        """Return ``(1 - eta) w + eta v``, which stays in the region because it is convex.

        Args:
            weights: where from, a mixture of the region, [K]; WeightsError if it is not.
            towards: where to, likewise.
            eta: how far to go, from 0 to 1.
        """
        if not 0.0 <= eta <= 1.0:  # also refuses NaN
            raise WeightsError(f"eta is {eta}; a step goes from 0 (stay) to 1 (arrive)")
        w, v = self.check(weights), self.check(towards)
        return self._settled(self._clipped((1.0 - eta) * w + eta * v))

    def sample(self, rng: np.random.Generator, size: int | None = None) -> Array:
        """Return exactly uniform mixtures of the region, [K], or [size, K] if ``size`` is given.

        Tilted rejection (``mixer/region/uniform.py``): no burn-in, no discretisation, expected O(K^1.5) for any bounds.
        """
        num = 1 if size is None else int(size)
        if num < 0:
            raise WeightsError(f"size is {num}; ask for 0 or more mixtures")
        if self._free.size == len(self.names) > 1:
            draws = self.lower + self._slice.sample(rng, num)
        else:
            draws = np.tile(self.lower, (num, 1))
            if self._free.size > 1:
                draws[:, self._free] += self._slice.sample(rng, num)
        draws = self._clipped(draws)  # a last bit of rounding
        return draws[0] if size is None else draws

    def vertices(self) -> Array:
        """Return the corners of the region, [V, K], in descending order; at most 12 sources may be free.

        At a vertex all coordinates but one stand at a bound, so each choice of bounds for the others gives at most one.
        """
        free = self._free
        if free.size > MAX_VERTEX_SOURCES:
            raise WeightsError(
                f"vertices of {free.size} free sources were asked for, at most {MAX_VERTEX_SOURCES} can be listed; "
                "use best_vertex(scores) to find one"
            )
        if free.size < 2:
            return self._settled(self.lower.copy())[None, :]
        lower, upper = self.lower[free], self.upper[free]
        left = 1.0 - _sum(np.delete(self.lower, free))  # what the pinned sources leave
        choices = (np.arange(2 ** (free.size - 1))[:, None] >> np.arange(free.size - 1)) & 1
        corners = []
        for j in range(free.size):
            others = np.where(choices == 1, np.delete(upper, j), np.delete(lower, j))
            rest = left - others.sum(axis=1)
            fits = (rest >= lower[j] - ROUNDING) & (rest <= upper[j] + ROUNDING)
            corners.append(np.insert(others[fits], j, np.clip(rest[fits], lower[j], upper[j]), axis=1))
        found = np.concatenate(corners)
        _, first = np.unique(np.round(found, 11), axis=0, return_index=True)  # each corner is met once per free way
        points = np.tile(self.lower, (first.size, 1))
        points[:, free] = found[first[::-1]]
        return np.stack([self._settled(point) for point in points])

    def restrict(self, names: Iterable[str]) -> Region:
        """Return the sub-simplex on ``names``: the other sources pinned at 0, their floors asleep.

        Restricting a second time keeps the names that both allow.
        """
        floors, caps, exclude = self._declared
        active = set(self._active).intersection(self._known("restrict", names))
        return Region(self.names, floors=floors, caps=caps, exclude=exclude, active=active)

    def log_volume(self) -> float:
        """Return ln of the volume in any ``dimension`` of the free coordinates; 0.0 for a point.

        ``1 / exp(log_volume)`` is the density of ``sample``: the propensity of a random phase.
        """
        return self._log_volume

    @cached_property
    def _log_volume(self) -> float:
        return self._slice.log_volume() if self._free.size > 1 else 0.0

    def _settled(self, weights: Array) -> Array:
        """Give what the sum lacks, or has too much, to the coordinates with most room for it; bounds stay kept."""
        for _ in range(weights.size):  # nearly always once; weights handed in may lack 1e-9, where rooms are smaller
            missing = -_excess(weights)
            if abs(missing) <= 2.0**-53:
                break
            room = self.upper - weights if missing > 0 else weights - self.lower
            widest = int(room.argmax())
            weights[widest] += math.copysign(min(abs(missing), room[widest]), missing)
        return self._clipped(weights)

    def _clipped(self, points: Array) -> Array:
        """Bring points within the bounds: ``np.clip`` takes three times as long over few sources."""
        return np.minimum(np.maximum(points, self.lower), self.upper)

    def _vector(self, what: str, values: npt.ArrayLike) -> Array:
        array = np.asarray(values, dtype=np.float64)
        if array.shape != (len(self.names),):
            raise WeightsError(f"{what} have shape {array.shape}, but there are {len(self.names)} sources")
        return array

    def _known(self, what: str, names: Iterable[str]) -> list[str]:
        known = set(self.names)
        for name in (names := list(names)):
            if name not in known:
                close = difflib.get_close_matches(name, self.names, n=1)
                hint = f"did you mean {close[0]!r}?" if close else f"the sources are {', '.join(self.names[:20])}"
                raise UnknownSourceError(f"{what}: unknown source {name!r}; {hint}")
        return names

    def _values(self, what: str, table: Mapping[str, float], default: float) -> Array:
        index = {name: i for i, name in enumerate(self.names)}
        values = np.full(len(self.names), default)
        for name in self._known(f"{what}s", table):
            value = table[name]
            if not (isinstance(value, (float, numbers.Real)) and 0.0 <= value <= 1.0):  # also refuses NaN
                raise ConfigError(f"{what} of {name} is {value!r}; a {what} is a number from 0 to 1")
            values[index[name]] = value
        return values


def check_feasible(names: Sequence[str], floors: Array, caps: Array) -> None:
    """Raise InfeasibleRegionError, with the certificate, unless some mixture keeps the bounds, each [K]."""
    over = np.flatnonzero(floors > caps)
    if over.size:
        i = int(over[0])
        excess = float(floors[i] - caps[i])
        raise InfeasibleRegionError(
            f"floor of {names[i]} is {floors[i]:.6g}, above its cap {caps[i]:.6g}; "
            f"lower the floor or raise the cap by {excess:.6g}",
            sources=[names[int(j)] for j in over],
            excess=excess,
        )
    floor_sum, cap_sum = _sum(floors), _sum(caps)
    if floor_sum > 1.0 + ROUNDING:
        _refuse("floors", names, floors, floor_sum, floor_sum - 1.0, "lower")
    if cap_sum < 1.0 - ROUNDING:
        _refuse("caps", names, caps, cap_sum, 1.0 - cap_sum, "raise")


def _refuse(what: str, names: Sequence[str], values: Array, total: float, excess: float, verb: str) -> None:
    involved = [(name, value) for name, value in zip(names, values, strict=True) if value > 0]
    listing = ", ".join(f"{name}={value:.6g}" for name, value in involved[:20])
    more = f" and {len(involved) - 20} more" if len(involved) > 20 else ""
    raise InfeasibleRegionError(
        f"{what} sum to {total:.6g}, but weights sum to 1: {listing or 'every source is at 0'}{more}; "
        f"{verb} them by {excess:.6g} in total",
        sources=[name for name, _ in involved] or list(names),
        excess=excess,
        total=total,
    )


def tighten(floors: Array, caps: Array) -> tuple[Array, Array]:
    """Return the tightest bounds with the same region: each is attained by some mixture of it.

    ``upper_i = min(cap_i, 1 - sum of the other floors)`` and ``lower_i = max(floor_i, 1 - sum of the other caps)``;
    one pass reaches the fixpoint. Bounds are feasible, [K].
    """
    room = -_excess(floors)  # what the floors leave
    surplus = _excess(caps)  # what the caps allow too much
    if room <= ROUNDING or surplus <= ROUNDING:  # a point: the largest weight takes the rounding
        point = floors.copy() if room <= ROUNDING else caps.copy()
        widest = int(point.argmax())
        point[widest] -= _excess(point)
        return point, point.copy()
    lower = np.maximum(floors, caps - surplus)
    upper = np.minimum(caps, floors + room)
    return np.minimum(lower, upper), upper


def _first_enough(shifts: Array, v: Array, lower: Array, upper: Array) -> int:
    """Return the index of the first of ``shifts`` (ascending) at which ``sum(clip(v - shift, lower, upper)) <= 1``."""

    def minus_sum(shift: float) -> float:
        return -float(np.minimum(np.maximum(v - shift, lower), upper).sum())

    return min(bisect_left(shifts, -1.0, key=minus_sum), shifts.size - 1)


def _excess(values: Array) -> float:
    """How far the sum is above 1, correctly rounded: no digits lost to the 1."""
    return math.fsum([*values.tolist(), -1.0])


def _sum(values: Array) -> float:
    """Correctly rounded sum."""
    return math.fsum(values.tolist())  # Python floats: 3 times faster than the array's own iterator
