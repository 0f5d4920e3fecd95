"""Hypothesis strategies for regions, points and scores.

Regions are feasible by construction: a point is drawn first, then bounds around it, so no example is thrown away.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from hypothesis import strategies as st

from mixer.region.region import Region
from mixer.types import Array

TENTH = 0.1  # ten of them sum to 1 in decimals, not in binary


@dataclass(frozen=True)
class Problem:
    """Bounds by name, the region they mean, and a point known to lie in it."""

    names: tuple[str, ...]
    floors: dict[str, float]
    caps: dict[str, float]
    exclude: tuple[str, ...]
    feasible: Array

    @property
    def region(self) -> Region:
        return Region(self.names, floors=self.floors, caps=self.caps, exclude=self.exclude)

    def permuted(self, order: Array | list[int]) -> Region:
        """Return the region with its sources declared in another order."""
        names = [self.names[int(i)] for i in order]
        return Region(names, floors=self.floors, caps=self.caps, exclude=self.exclude)


def source_names(num_sources: int) -> tuple[str, ...]:
    return tuple(f"source-{i}" for i in range(num_sources))


@st.composite
def decimal_points(draw: st.DrawFn, num_sources: int) -> Array:
    """Points of the simplex in short decimals, such as ten times 0.1: sums of 1 that binary only nearly holds."""
    if num_sources == 10 and draw(st.booleans()):
        return np.full(10, TENTH)
    parts = draw(st.sampled_from([10, 100, 1000]))
    cuts = sorted(draw(st.lists(st.integers(0, parts), min_size=num_sources - 1, max_size=num_sources - 1)))
    return np.diff([0, *cuts, parts]) / parts


@st.composite
def lopsided_points(draw: st.DrawFn, num_sources: int) -> Array:
    """Points of the simplex whose weights span up to six decades."""
    exponents = draw(st.lists(st.floats(-6, 0), min_size=num_sources, max_size=num_sources))
    weights = 10.0 ** np.array(exponents)
    return np.asarray(weights / weights.sum())


@st.composite
def problems(draw: st.DrawFn, min_sources: int = 1, max_sources: int = 12) -> Problem:
    """Feasible regions of every kind: whole simplices, points, pinned and excluded sources, wide and tiny bounds."""
    num_sources = draw(st.integers(min_sources, max_sources))
    point = draw(st.one_of(decimal_points(num_sources), lopsided_points(num_sources)))
    names = source_names(num_sources)
    floors: dict[str, float] = {}
    caps: dict[str, float] = {}
    exclude: list[str] = []
    all_floors_meet = draw(st.integers(0, 9)) == 0  # then the region is a point and the floors sum to 1
    for name, weight in zip(names, point.tolist(), strict=True):
        kind = "floor meets" if all_floors_meet else draw(st.sampled_from(KINDS))
        room = 10.0 ** draw(st.floats(-6, 0))
        if kind == "excluded" and weight == 0:
            exclude.append(name)
        if kind in ("floor", "both"):
            floors[name] = weight * (1 - room)
        if kind in ("cap", "both"):
            caps[name] = weight + (1 - weight) * room
        if kind in ("floor meets", "pinned"):
            floors[name] = weight
        if kind in ("cap meets", "pinned"):
            caps[name] = weight
    return Problem(names, floors, {name: min(cap, 1.0) for name, cap in caps.items()}, tuple(exclude), point)


KINDS = ("open", "floor", "cap", "both", "pinned", "excluded", "floor meets", "cap meets")

ordinary = st.floats(-2, 2)
extreme = st.floats(-1e300, 1e300)  # and everything between, 0.0 and subnormals included
few_values = st.integers(-2, 2).map(float)  # many ties


def points(num_sources: int) -> st.SearchStrategy[Array]:
    """Finite points, [K]: near the simplex, far away, huge and tiny, with ties."""
    huge = few_values.map(lambda value: value * 1e20)
    return _vectors(num_sources, ordinary, few_values, huge, extreme)


def scores(num_sources: int) -> st.SearchStrategy[Array]:
    """Scores, [K]: ordinary ones, many equal ones, and +inf for sources never tried."""
    return _vectors(num_sources, ordinary, few_values, st.one_of(few_values, st.just(float("inf"))))


def _vectors(num_sources: int, *elements: st.SearchStrategy[float]) -> st.SearchStrategy[Array]:
    mixed = (*elements, st.one_of(*elements))
    lists = [st.lists(element, min_size=num_sources, max_size=num_sources) for element in mixed]
    return st.one_of(*lists).map(lambda values: np.array(values, dtype=np.float64))


def random_problem(num_sources: int, rng: np.random.Generator) -> Problem:
    """Return a random feasible region of any size, with caps over six decades and a tenth of the sources pinned."""
    point = rng.dirichlet(np.full(num_sources, 10 ** rng.uniform(-1, 1)))
    floors = point * rng.random(num_sources) ** rng.choice([0.1, 1.0, 5.0])
    caps = np.minimum(point + 10 ** rng.uniform(-6, 0, num_sources), 1.0)
    is_pinned = rng.random(num_sources) < 0.1
    floors[is_pinned] = caps[is_pinned] = point[is_pinned]
    names = source_names(num_sources)
    return Problem(
        names, dict(zip(names, floors.tolist(), strict=True)), dict(zip(names, caps.tolist(), strict=True)), (), point
    )
