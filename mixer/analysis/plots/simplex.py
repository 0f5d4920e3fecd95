"""A simplex on paper: a ternary plot for three sources, a regular polygon for more.

Each source is a corner of a regular polygon and a mixture lies at the mean of the corners, weighted by it. For three
sources that is exact. For more it is a shadow: straight lines stay straight and a region's shadow is the convex hull of
its corners' shadows, but different mixtures may fall on one point.
"""

from __future__ import annotations

import numpy as np

from mixer.region.region import Region
from mixer.types import Array

NUM_DIRECTIONS = 360  # in which a region's outline is asked for; a corner seen under less than 1 degree is cut off
EXACT_SOURCES = 6  # up to here the corners of a region are listed instead


def corners(num_sources: int) -> Array:
    """Return the corner of each source on the unit circle, the first at the top, clockwise, [K, 2]."""
    angles = np.pi / 2 - 2 * np.pi * np.arange(num_sources) / num_sources
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def outline(region: Region, at: Array) -> Array:
    """Return the region's outline on paper, closed, counter-clockwise, [points, 2]: one point or a line if it is flat.

    Args:
        region: of K sources.
        at: the corners, [K, 2].

    The farthest point of the shadow in direction d is that of the vertex that is best for the scores ``at @ d``.
    """
    if len(region.names) <= EXACT_SOURCES:
        points = region.vertices() @ at
    else:
        angles = 2 * np.pi * np.arange(NUM_DIRECTIONS) / NUM_DIRECTIONS
        scores = np.stack([np.cos(angles), np.sin(angles)], axis=1) @ at.T
        points = np.array([region.best_vertex(score) for score in scores]) @ at
    return convex_hull(points)


def convex_hull(points: Array) -> Array:
    """Return the hull of points [N, 2], counter-clockwise and closed (Andrew's monotone chain)."""
    distinct = np.unique(np.round(points, 12), axis=0)
    if len(distinct) < 3:
        return np.concatenate([distinct, distinct[:1]])

    def chain(ordered: Array) -> list[Array]:
        kept: list[Array] = []
        for point in ordered:
            while len(kept) > 1 and _turn(kept[-2], kept[-1], point) <= 1e-12:
                kept.pop()
            kept.append(point)
        return kept[:-1]

    hull = np.array([*chain(distinct), *chain(distinct[::-1])])
    return np.concatenate([hull, hull[:1]])


def _turn(a: Array, b: Array, c: Array) -> float:
    """Twice the area of the triangle a, b, c: above 0 for a turn to the left."""
    return float((b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0]))
