"""Exactly uniform points, and the volume, of a box cut by the plane of a fixed sum.

The slice is ``{y in R^k : 0 <= y_i <= c_i, sum y = s}``. Tilted rejection: propose all coordinates but one from
exponentials truncated to their boxes, tilted by one ``lam`` so that their means sum to ``s``; let the last coordinate
be what is left; accept it in proportion to its own tilted density. The product of tilted densities is constant on the
slice, so what is accepted is exactly uniform for every ``lam``; ``lam`` only sets the acceptance rate, which is at
least 1 / (9.42 sqrt k) for all bounds and typically 0.39 / sqrt k.

Sources: probabilistic divide-and-conquer with a deterministic second half (Arratia and DeSalvo, arXiv 1110.3856;
DeSalvo, 1411.6698), with Cramer's tilting. Volume: inclusion and exclusion over the caps; characteristic functions.
"""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from mixer.types import Array

EXACT_VOLUME_SOURCES = 12  # inclusion-exclusion has 2^k terms: 4,096 big integers take a few ms
CHUNK_VALUES = 1 << 17  # proposals are made at most this many numbers at a time: 1 MiB stays in the cache
FEW_VALUES = 512  # and at least this many: a call costs about as much as 1,000 numbers


class BoxSlice:
    """The set ``{y : 0 <= y <= c, sum y = s}`` with ``0 < s < sum c``, every ``c_i > 0``, k >= 2.

    Args:
        c: room of each coordinate, [k]; tight, as a region's bounds are (``c_i <= s`` and ``c_i <= sum c - s``), or the
            tilt misses the sum and fewer proposals are accepted; the draws are uniform either way.
        s: the fixed sum.
    """

    def __init__(self, c: Array, s: float) -> None:
        total = math.fsum(c)
        self.is_reflected = 2 * s > total  # y -> c - y, so that the tilt is never negative
        self._mirror = c
        self.s = total - s if self.is_reflected else s
        self.c = np.minimum(c, self.s)
        self.lam = _tilt(self.c, self.s)
        variances = _variance(self.lam, self.c)
        self.last = int(variances.argmax())  # the coordinate that is what the others leave
        self.sd = math.sqrt(math.fsum(variances))
        self._others = np.delete(np.arange(c.size), self.last)
        self._mass = _mass(self.lam, self.c)  # integral of exp(-lam x) on [0, c_i]
        self._rooms = self.c[self._others]
        self._minus_quantile = np.expm1(-self.lam * self._rooms)
        # saddlepoint estimate of the acceptance rate; it only sets how many proposals are made at once
        self.acceptance = min(1.0, float(self._mass[self.last]) / (math.sqrt(2 * math.pi) * self.sd))

    def sample(self, rng: np.random.Generator, num: int) -> Array:
        """Return exactly uniform points of the slice, [num, k]."""
        points = np.empty((num, self.c.size))
        done = 0
        while done < num:
            wanted = max(
                (num - done - 0.5) / self.acceptance, FEW_VALUES / self.c.size
            )  # too few costs less than too many
            proposals, last = self._propose(rng, max(1, min(math.ceil(wanted), CHUNK_VALUES // self.c.size)))
            chosen = np.flatnonzero(self._accepts(rng, last))[: num - done]
            block = points[done : done + chosen.size]
            block[:, self._others] = proposals[chosen]
            block[:, self.last] = last[chosen]
            done += chosen.size
        return self._mirror - points if self.is_reflected else points

    def _propose(self, rng: np.random.Generator, num: int) -> tuple[Array, Array]:
        """Return tilted draws of all coordinates but one, [num, k - 1], and what they leave for it, [num]."""
        draws = rng.random((num, self._others.size))
        if self.lam > 0:
            draws *= self._minus_quantile
            np.log1p(draws, out=draws)
            draws /= -self.lam
            np.minimum(draws, self._rooms, out=draws)
        else:
            draws *= self._rooms
        return draws, self.s - draws.sum(axis=1)

    def _accepts(self, rng: np.random.Generator, last: Array) -> npt.NDArray[np.bool_]:
        kept: npt.NDArray[np.bool_] = (last >= 0) & (last <= self.c[self.last])
        kept &= rng.random(last.size) < np.exp(-self.lam * np.maximum(last, 0.0))
        return kept

    def log_volume(self) -> float:
        """Return ln of the (k - 1)-dimensional volume in the coordinates of any k - 1 of the k axes.

        Exact in rationals for k <= 12; above, by Fourier inversion of the tilted sum's density, relative error about
        1e-9 unless one coordinate has nearly all the room.
        """
        if self.c.size <= EXACT_VOLUME_SOURCES:
            return _exact_log_volume(self.c, self.s)
        density = _density_at(self.lam, self.c, self._mass, self.s, self.sd)
        return self.lam * self.s + float(np.log(self._mass).sum()) + math.log(density)


def _tilt(c: Array, s: float) -> float:
    """Return lam >= 0 with ``sum of tilted means = s``, by Newton's method from 0 (the sum is convex in lam)."""
    lam = 0.0
    for _ in range(100):
        excess = float(_mean(lam, c).sum()) - s
        change = excess / max(float(_variance(lam, c).sum()), 1e-300)
        lam = max(0.0, lam + change)
        if abs(change) <= 1e-9 * lam:
            break
    return lam


def _mean(lam: float, c: Array) -> Array:
    """Mean of the exponential of rate lam truncated to [0, c]: ``1/lam - c / (e^(lam c) - 1)``."""
    z = lam * c
    small = z < 1e-2
    safe = np.where(small, 1.0, np.minimum(z, 700.0))
    exact = 1.0 / np.where(small, 1.0, z) - 1.0 / np.expm1(safe)
    return c * np.where(small, 0.5 - z / 12.0, exact)  # the next term of the series is z^3 / 720


def _variance(lam: float, c: Array) -> Array:
    """Variance of the same: ``c^2 (1/z^2 - 1/(4 sinh^2(z/2)))`` with ``z = lam c``."""
    z = lam * c
    small = z < 1e-2
    safe = np.where(small, 1.0, z)
    exact = 1.0 / safe**2 - 1.0 / (4.0 * np.sinh(np.minimum(safe, 700.0) / 2.0) ** 2)
    return c**2 * np.where(small, 1.0 / 12.0 - z**2 / 240.0, exact)


def _mass(lam: float, c: Array) -> Array:
    """Integral of ``exp(-lam x)`` on [0, c]."""
    return -np.expm1(-lam * c) / lam if lam > 0 else c.copy()


def _exact_log_volume(c: Array, s: float) -> float:
    """``sum over subsets J of (-1)^|J| max(0, s - c(J))^(k-1) / (k-1)!``, in rationals: the terms cancel badly."""
    rooms = [Fraction(float(room)) for room in c]
    scale = max(room.denominator for room in (*rooms, Fraction(s)))  # powers of two: everything becomes an integer
    left = [(int(Fraction(s) * scale), 1)]
    for room in rooms:
        taken = int(room * scale)
        left += [(rest - taken, -sign) for rest, sign in left if rest > taken]
    signed = sum(sign * rest ** (c.size - 1) for rest, sign in left)
    return math.log(signed) - (c.size - 1) * math.log(scale) - math.lgamma(c.size)


def _density_at(lam: float, c: Array, mass: Array, s: float, sd: float) -> float:
    """Density at s of the sum of the tilted coordinates, from its Fourier series on a period of 40 sd.

    The sum is log-concave with mean s, so what wraps around from outside the period is below e^-38 of it.
    """
    period = min(math.fsum(c), 40.0 * sd)
    total, chunk = 0.5, max(1, CHUNK_VALUES // 16 // c.size)
    for start in range(1, 1 << 22, chunk):
        t = 2 * math.pi / period * np.arange(start, start + chunk)
        rate = lam - 1j * t[:, None]
        factors = -np.expm1(-rate * c) / (rate * mass)
        terms = np.prod(factors, axis=1) * np.exp(-1j * t * s)
        total += float(terms.real.sum())
        if float(np.abs(terms[-16:]).max()) < 1e-13 or start * c.size > 1 << 24:
            break
    return 2.0 * total / period
