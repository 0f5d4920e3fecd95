"""Hands out the batches of a run to its ranks: those in memory at once, others once they are built."""

from __future__ import annotations

import asyncio
import time

from service.errors import RequestError
from service.runs.builder import Builder
from service.runs.cache import BuiltBatches
from service.runs.context import RunContext
from service.runs.given import GivenBatches
from service.runs.rebuilder import Rebuilder
from service.runs.step_wait import StepWait
from service.wire.batches import Body, Encoded


class Handout:
    """The batches of one run.

    Args:
        parts: of the run.
        builder: builds them ahead.
        waits: lets requests wait for a step.
        given: who was given which steps.
    """

    def __init__(self, parts: RunContext, builder: Builder, waits: StepWait, given: GivenBatches) -> None:
        self._parts, self._builder, self._waits, self._given = parts, builder, waits, given
        self._served, self._window, self._patience = parts.served, parts.window, parts.patience
        self._rebuilder = Rebuilder(parts, lambda: builder.oldest)

    @property
    def num_bytes(self) -> int:
        """Bytes of the batches in memory."""
        return self._window.num_bytes + self._rebuilder.num_bytes

    def check_ranks(self, rank: int, world_size: int) -> None:
        """Raise RequestError or TopologyError unless this rank can have a share of the global batch."""
        if not 0 <= rank < world_size:
            raise RequestError(f"rank {rank} of {world_size}: ranks count from 0 to world_size - 1")
        self._parts.curriculum.rows_of_rank(world_size)

    def held(self, step: int, rank: int, world_size: int) -> Body | None:
        """Return a rank's rows if they are encoded already, at no cost; note who asked."""
        taken = self.at_hand(range(step, step + 1), rank, world_size, 0)
        return None if taken is None else taken[0].body(step)

    def at_hand(self, steps: range, rank: int, world_size: int, room: int) -> tuple[Encoded, range] | None:
        """Return a rank's rows of the first of ``steps``, and which of those after it are with it; note who asked.

        None if they are not encoded, or may not be handed out at no cost.

        Args:
            steps: in order.
            rank: whose rows.
            world_size: of how many ranks.
            room: bytes, of which the last may exceed them.
        """
        built = self.built(steps[0])
        encoded = None if built is None else built.held(rank, world_size)
        if encoded is None or self._builder.is_paused:
            return None
        taken = encoded.among(steps, room)
        taken = taken[: self._served.claim_first(taken)]
        if not taken or self.built(steps[0]) is not built:  # what was there before a claim a pivot may have made void
            return None
        self._note_asked(taken, rank, world_size)
        self._given.note(taken, rank, world_size)
        return encoded, taken

    def note_range(self, steps: range) -> None:
        """Note that all of these steps are asked for, those after the first as they come."""
        self._builder.ask(steps[-1])

    def built(self, step: int) -> BuiltBatches | None:
        """Return what holds the batch of a step, if it is in memory."""
        return self._window.get(step) or self._rebuilder.held(step)

    async def encoded(self, step: int, rank: int, world_size: int, wait_s: float) -> Encoded:
        """Return what holds a rank's rows of a step, which may be handed out, waiting up to ``wait_s`` for them.

        Raises:
            RequestError, TopologyError: a rank that cannot be.
            NotReadyError, RunStateError, StallError: not yet; the same request will do later.
            StepGoneError, RunEndedError: not any more.
        """
        self.check_ranks(rank, world_size)
        self._note_asked(range(step, step + 1), rank, world_size)
        await self._waits.until(lambda: step < self._builder.next, step, wait_s, claims=True)
        built = self._window.get(step)
        if built is None:
            built = await asyncio.to_thread(self._rebuilder.read, step)
        encoded = built.held(rank, world_size)
        if encoded is None:
            encoded = await asyncio.to_thread(built.encoded, rank, world_size)
        self._given.note(range(step, step + 1), rank, world_size)
        return encoded

    async def body(self, step: int, rank: int, world_size: int, wait_s: float) -> Body:
        """Return a rank's rows of a step; see ``encoded``."""
        return (await self.encoded(step, rank, world_size, wait_s)).body(step)

    def note_served(self, num_batches: int, num_bytes: int, world_size: int) -> None:
        """Count batches that are handed out."""
        counters, curriculum = self._parts.counters, self._parts.curriculum
        counters.batches_served += num_batches
        counters.bytes_served += num_bytes
        counters.tokens_served += num_batches * curriculum.batch_tokens // world_size

    def note_alone(self, step: int) -> None:
        """Note that a batch was asked for alone, which takes headers: those of the next ones are better made ahead."""
        self._builder.headers_before = step + 2 * self._parts.settings.ahead_steps

    def _note_asked(self, steps: range, rank: int, world_size: int) -> None:
        self._patience.asked(steps[0], world_size)
        self._parts.counters.last_asked[rank] = (steps[-1], time.monotonic())
        if steps[-1] > self._builder.wanted:
            self._builder.want(steps[-1])
