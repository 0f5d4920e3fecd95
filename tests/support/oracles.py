"""Slow second opinions in exact arithmetic, sharing no code with what they judge."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from itertools import combinations, pairwise

import numpy as np

from mixer.types import Array

KNOTS = 400  # exact values of a distribution function; straight lines between them are off by less than 1e-4


def exact_projection(point: Array, lower: Array, upper: Array) -> Array:
    """Return the nearest point of ``{lower <= w <= upper, sum w = 1}`` by trying every pair of kinks, in rationals."""
    v, low, high = ([Fraction(x) for x in values.tolist()] for values in (point, lower, upper))

    def weights(shift: Fraction) -> list[Fraction]:
        return [min(max(x - shift, a), b) for x, a, b in zip(v, low, high, strict=True)]

    kinks = sorted({x - bound for bounds in (low, high) for x, bound in zip(v, bounds, strict=True)})
    for left, right in pairwise(kinks):
        most, least = sum(weights(left)), sum(weights(right))
        if most >= 1 >= least:
            share = Fraction(most - 1) / Fraction(most - least) if most > least else Fraction(0)
            return np.array([float(w) for w in weights(left + (right - left) * share)])
    return np.array([float(w) for w in weights(kinks[0] if sum(high) <= 1 else kinks[-1])])


def exact_volume(rooms: Sequence[Fraction], left: Fraction) -> Fraction:
    """Return the volume of ``{0 <= y <= rooms, sum y = left}`` in the coordinates of all but one of its axes.

    ``sum over subsets J of (-1)^|J| max(0, left - rooms(J))^(k-1) / (k-1)!``
    """
    power = len(rooms) - 1
    total = Fraction(0)
    for size in range(len(rooms) + 1):
        for subset in combinations(rooms, size):
            total += (-1) ** size * max(Fraction(0), left - sum(subset)) ** power
    return total / math.factorial(power)


def exact_marginal_cdf(floors: Array, caps: Array, i: int) -> Callable[[Array], Array]:
    """Return the distribution function of coordinate i of a uniform draw; exact at 400 knots, straight between.

    ``P(y_i <= x)`` is the integral over t from 0 to x of the volume that y_i = t leaves to the others.
    """
    low, high = ([Fraction(x) for x in values.tolist()] for values in (floors, caps))
    left = 1 - sum(low)
    others = [b - a for j, (a, b) in enumerate(zip(low, high, strict=True)) if j != i and b > a]
    terms = [
        ((-1) ** size, left - sum(subset))
        for size in range(len(others) + 1)
        for subset in combinations(others, size)
        if sum(subset) < left
    ]
    scale = max(rest.denominator for _, rest in terms) << 60  # binary fractions: everything becomes an integer
    scaled = [(sign, int(rest * scale)) for sign, rest in terms]
    power = len(others)

    def integral_up_to(x: int) -> int:
        return sum(sign * (rest**power - max(0, rest - x) ** power) for sign, rest in scaled)

    least, most = max(Fraction(0), left - sum(others)), min(high[i] - low[i], left)
    knots = [int((least + (most - least) * step / KNOTS) * scale) for step in range(KNOTS + 1)]
    start, end = integral_up_to(knots[0]), integral_up_to(knots[-1])
    values = [float(Fraction(integral_up_to(knot) - start, end - start)) for knot in knots]
    places = [float(low[i] + Fraction(knot, scale)) for knot in knots]
    return lambda x: np.asarray(np.interp(x, places, values))


def rosenblatt(draws: Array, floors: Array, caps: Array) -> Array:
    """Return ``P(w_j <= drawn w_j | w_1 .. w_(j-1))`` for all coordinates but the last, [N, K - 1].

    Draws are uniform on the region exactly if these are independent and uniform on [0, 1]: a test of the whole joint
    distribution. Floats suffice for the few coordinates it is used with; every room must be positive.
    """
    rooms = caps - floors
    left = np.full(len(draws), 1.0 - floors.sum())
    columns = []
    for j in range(rooms.size - 1):
        y = draws[:, j] - floors[j]
        after = rooms[j + 1 :]
        whole = _ramp_sum(left, after)
        least = whole - _ramp_sum(left - y, after)
        most = whole - _ramp_sum(left - rooms[j], after)
        columns.append(np.divide(least, most, out=np.zeros_like(least), where=most > 0))  # 0 outside the region
        left = left - y
    return np.clip(np.stack(columns, axis=1), 0.0, 1.0)


def _ramp_sum(left: Array, rooms: Array) -> Array:
    """``sum over subsets J of (-1)^|J| max(0, left - rooms(J))^k``, k rooms, for each of ``left``."""
    total = np.zeros_like(left)
    for size in range(rooms.size + 1):
        for subset in combinations(rooms.tolist(), size):
            total += (-1) ** size * np.maximum(left - sum(subset), 0.0) ** rooms.size
    return total
