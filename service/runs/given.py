"""Which ranks were given the batches of the newest steps, so that a rank reports what it was given, and each row once.

Memory alone: of steps that were given before this process began nothing is known. A trainer that draws by the weights
itself asks for those, and for no batch.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from mixer.errors import FeedbackError, RepeatedRowsError
from mixer.journal.records import losses_to_record
from mixer.losses import SourceLosses

KEPT_STEPS = 4096
KEPT_REPORTS = 1 << 16  # 1,024 steps of 64 ranks


class GivenBatches:
    """The ranks that were given each step, as ranks of how many, and whose reports of it count."""

    def __init__(self) -> None:
        self._ranks: OrderedDict[int, dict[int, int]] = OrderedDict()  # step -> world size -> its ranks, as bits
        self._counted: OrderedDict[int, int] = OrderedDict()  # step -> world size
        self._drawn_by: OrderedDict[int, None] = OrderedDict()  # first steps of phases whose weights trainers asked for

    def note(self, steps: range, rank: int, world_size: int) -> None:
        """Note that a rank was given the batches of some steps."""
        bit = 1 << rank
        for step in steps:
            ranks = self._ranks.setdefault(step, {})
            ranks[world_size] = ranks.get(world_size, 0) | bit
        while len(self._ranks) > KEPT_STEPS:
            self._ranks.popitem(last=False)

    def note_weights(self, start: int) -> None:
        """Note that a trainer asked for the weights of the phase from a step."""
        self._drawn_by[start] = None
        while len(self._drawn_by) > KEPT_STEPS:
            self._drawn_by.popitem(last=False)

    def has_weights(self, start: int) -> bool:
        """Return whether a trainer asked for the weights of the phase from a step."""
        return start in self._drawn_by

    def knows(self, step: int) -> bool:
        """Return whether anybody is known to have been given a step."""
        return step in self._ranks

    def world_of(self, step: int, rank: int, said: int | None, *, is_sure: bool) -> int | None:
        """Return of how many ranks one is that reports a step; None if that is not known, or was not said.

        Args:
            step: that is reported.
            rank: who reports.
            said: of how many ranks it says that it is.
            is_sure: whether nobody can have been given the step without being known here.

        Raises:
            FeedbackError: that rank was not given the step.
            RepeatedRowsError: ranks of another number have reported it.
        """
        worlds = dict(self._ranks.get(step, {}))
        mine = [world for world, ranks in worlds.items() if ranks >> rank & 1 and said in (None, world)]
        if not mine:
            if not is_sure or not worlds:
                return None
            whose = f"rank {rank}" if said is None else f"rank {rank} of {said}"
            raise FeedbackError(
                f"step {step} was not given to {whose}, but to ranks of {', '.join(map(str, sorted(worlds)))}; a rank "
                "reports the batch that it asked for, under the rank that it asked as"
            )
        counted = self._counted.get(step)
        if counted is not None and counted not in mine:
            raise RepeatedRowsError(
                f"step {step} was reported by ranks of {counted} before; rank {rank} of {mine[0]} was not counted, for "
                "its rows would count twice"
            )
        return counted or (mine[0] if len(mine) == 1 else None)

    def count(self, step: int, world_size: int | None) -> None:
        """Note that a report of a step was taken in."""
        if world_size is not None:
            self._counted.setdefault(step, world_size)
            while len(self._counted) > KEPT_STEPS:
                self._counted.popitem(last=False)


class Said:
    """What the newest reports say, as far as it takes to tell whether another of that rank and step says the same."""

    def __init__(self) -> None:
        self._gists: OrderedDict[tuple[int, int], int] = OrderedDict()  # by step and rank

    def note(self, report: Mapping[str, Any]) -> None:
        """Take in the journal's line of a report."""
        self._gists[report["step"], report["rank"]] = _gist(report)
        if len(self._gists) > KEPT_REPORTS:
            self._gists.popitem(last=False)

    def differs(self, step: int, losses: SourceLosses) -> bool | None:
        """Return whether a report says something else than the one that counts; None if that is not known."""
        said = self._gists.get((step, losses.rank))
        return None if said is None else said != _gist(losses_to_record(losses.on_grid()))


def _gist(report: Mapping[str, Any]) -> int:
    return hash(tuple(tuple(report[key]) for key in ("sources", "rows", "tokens", "loss_sums", "square_sums")))
