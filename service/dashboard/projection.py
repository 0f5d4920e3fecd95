"""The region and the walk on paper: sources at the corners of a regular polygon, mixtures at their weighted mean.

With three sources this is the ternary diagram and exact. With more it is a shadow: several mixtures share a point, but
what lies outside the outline lies outside the region.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np

from mixer.region.region import Region
from mixer.types import Array
from service.dashboard.columns import WalkColumns

NUM_DIRECTIONS = 360  # an outline with more corners than one per degree loses under 1e-4 of its width
MAX_PATH = 600  # points of the walk that are drawn; more hide each other


def corners(num_sources: int) -> Array:
    """Return where each source stands, [K, 2], on the unit circle, the first one on top, clockwise."""
    angles = math.pi / 2 - 2 * math.pi * np.arange(num_sources) / num_sources
    return np.column_stack([np.cos(angles), np.sin(angles)])


@lru_cache(256)  # a region is asked for again each time that a page looks
def outline(region: Region) -> Array:
    """Return the outline of a region's shadow in order around it, [N, 2]; N is 1 for a point.

    The point farthest in each direction is the shadow of the best vertex for scores that grow in that direction, so
    the outline needs no list of vertices and any number of sources will do.
    """
    places = corners(len(region.names))
    angles = 2 * math.pi * (np.arange(NUM_DIRECTIONS) + 0.5) / NUM_DIRECTIONS  # off the directions with ties
    farthest = [region.best_vertex(places @ (math.cos(a), math.sin(a))) @ places for a in angles]
    points = np.round(np.array(farthest), 9)
    is_new = np.any(points != np.roll(points, 1, axis=0), axis=1)
    return np.asarray(points[is_new] if is_new.any() else points[:1], dtype=np.float64)


def walk_on_paper(chronicle: WalkColumns) -> dict[str, Any]:
    """Return the corners, the outline of each regime and the walk as points, as plain data and arrays."""
    places = corners(len(chronicle.names))
    every = max(1, math.ceil(len(chronicle.starts) / MAX_PATH))
    picked = np.arange(len(chronicle.starts) - 1, -1, -every)[::-1]  # the newest is always among them
    points = chronicle.tables["weights"].rows[picked] @ places
    return {
        "names": list(chronicle.names),
        "corners": np.round(places, 6).tolist(),
        "is_exact": len(chronicle.names) <= 3,
        "regimes": [
            {"name": regime.name, "start": regime.start, "outline": outline(regime.region).round(6).tolist()}
            for regime in chronicle.regimes
        ],
        "steps": [chronicle.starts[i] for i in picked],
        "kinds": [chronicle.kinds[i] for i in picked],
        "points": points.round(6).tolist(),
    }
