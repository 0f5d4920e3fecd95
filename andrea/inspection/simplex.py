"""The walk of the mixture, regime by regime: how large the region was, and how far and evenly the walk went in it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from mixer.analysis.plots.view import make_view
from mixer.journal.tables import JournalTables


@dataclass(frozen=True)
class Regime:
    """A span of the run with one region.

    Attributes:
        name: of the regime.
        start, end: its first step, and the first after it.
        num_phases: in it.
        dimension: free dimensions of its region.
        volume_share: the volume of the region as a share of the simplex of the same free sources.
        path_length: the sum of the moves from phase to phase, each half the sum of the weights' absolute changes, so
            that 1 is from one vertex to another.
        mean_effective_sources: the exponential of the entropy of the weights, over the steps: 1 at a vertex.
        largest_weight: the largest of any source in any phase, which is 1 at a vertex.
        random_share: of the steps that lie in random phases.
    """

    name: str
    start: int
    end: int
    num_phases: int
    dimension: int
    volume_share: float
    path_length: float
    mean_effective_sources: float
    largest_weight: float
    random_share: float


def regimes(story: JournalTables) -> list[Regime]:
    """Return the regimes of a walk in order; none if no phase has been decided."""
    if not story.phases:
        return []
    numbers, weights, lengths, is_random = story.regions(), story.weights(), story.lengths(), story.is_random()
    positive = np.where(weights > 0, weights, 1.0)  # 1 ln 1 = 0 ln 0
    effective = np.exp(-(positive * np.log(positive)).sum(axis=1))
    found = []
    for number, mark in enumerate(make_view(story).marks, start=1):
        here = np.flatnonzero(numbers == number)
        steps = lengths[here]
        moves = np.abs(np.diff(weights[here], axis=0)).sum(axis=1) / 2
        found.append(
            Regime(
                name=mark.name,
                start=mark.start,
                end=mark.start + int(steps.sum()),
                num_phases=len(here),
                dimension=mark.region.dimension,
                volume_share=math.exp(mark.region.log_volume() + math.lgamma(mark.region.dimension + 1)),
                path_length=float(moves.sum()),
                mean_effective_sources=float(np.average(effective[here], weights=steps)),
                largest_weight=float(weights[here].max()),
                random_share=float(np.average(is_random[here], weights=steps)),
            )
        )
    return found


def pivot_steps(story: JournalTables) -> list[int]:
    """The steps at which pivots took force, or will, ascending."""
    pivots = [*story.header["curriculum"].get("pivots", ()), *story.pivots]
    return sorted({int(pivot["at_step"]) for pivot in pivots})
