"""Takes in the reports of ranks, each of which may speak of the rows that it was given, once.

A report goes to the walk, which knows what a batch holds in all; what one rank holds of it is known here, as long as
the batch is in memory.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from mixer.errors import FeedbackError
from mixer.losses import SourceLosses
from service.runs.cache import BuiltBatches
from service.runs.context import RunContext
from service.runs.given import GivenBatches
from service.runs.phases import UndecidedError


class Reports:
    """The reports of one run.

    Args:
        parts: of the run.
        given: who was given which steps.
        built: gives what holds the batch of a step, if it is in memory.
    """

    def __init__(self, parts: RunContext, given: GivenBatches, built: Callable[[int], BuiltBatches | None]) -> None:
        self._walk, self._decisions, self._names = parts.walk, parts.decisions, parts.curriculum.names
        self._given, self._built = given, built
        self._first_own = parts.served.given  # nobody was given a step from there on before this process began

    def take(self, step: int, losses: SourceLosses, world_size: int | None) -> bool:
        """Take in a report; False if that rank had reported the step before. See ``Engine.report``."""
        given, rank = self._given, losses.rank
        if self._walk.has_report(step, rank) or not given.knows(step):
            return self._walk.report(step, losses, has_own_draws=self._may_be_own(step))
        world = given.world_of(step, rank, world_size, is_sure=step >= self._first_own)
        built = self._built(step)
        if world is not None and built is not None:
            self._check_share(step, losses, world, built)
        is_new = self._walk.report(step, losses)
        given.count(step, world)
        return is_new

    def _may_be_own(self, step: int) -> bool:
        """Return whether a step that nobody is known to have been given may be of a trainer that draws by itself."""
        if step < self._first_own:
            return True
        try:
            return self._given.has_weights(self._decisions.at(step).start)
        except UndecidedError:  # the walk says so
            return False

    def _check_share(self, step: int, losses: SourceLosses, world: int, built: BuiltBatches) -> None:
        """Raise FeedbackError for more rows of a source than a rank was given, one of ``world``."""
        batches = built.batches
        source_ids = batches.source_ids[batches.steps.index(step)][losses.rank :: world]
        mine = np.bincount(source_ids, minlength=len(self._names))
        if (losses.rows > mine).any():
            i = int(np.argmax(losses.rows > mine))
            raise FeedbackError(
                f"step {step}: rank {losses.rank} of {world} reports {losses.rows[i]} rows of {self._names[i]}, but it "
                f"was given {mine[i]}; check the order of the sources in the report, its step and its rank"
            )
