"""A weighted line through each source's losses, one observation at a time: means and centred sums, [K] each.

Centred sums are the six sums of a regression without their cancellation (West 1979).
"""

from __future__ import annotations

from mixer.types import Array

SUMS = ("weight", "sxx", "sxy")  # with the means, what a line needs; forgetting shrinks these and leaves the means


def with_point(line: dict[str, Array], *, x: Array, y: Array, m: Array) -> dict[str, Array]:
    """Return ``line`` with one more observation of each source.

    Args:
        line: weight, mean_x, mean_y, sxx, sxy and, if its spread is wanted, syy, [K]; other arrays are left alone.
        x: where the observation lies, [K]; finite.
        y: what was observed, [K]; finite.
        m: its weight, [K]; 0 leaves a source as it was.
    """
    old = line["weight"]
    total = old + m
    total[m == 0] = 1.0
    dx, dy = x - line["mean_x"], y - line["mean_y"]
    pull = old * m / total  # centred sums grow by this times the products of deviations
    new = {
        **line,
        "weight": old + m,
        "mean_x": line["mean_x"] + dx * m / total,
        "mean_y": line["mean_y"] + dy * m / total,
        "sxx": line["sxx"] + pull * dx * dx,
        "sxy": line["sxy"] + pull * dx * dy,
    }
    if "syy" in line:
        new["syy"] = line["syy"] + pull * dy * dy
    return new
