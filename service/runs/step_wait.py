"""Waiting until a step of a run may be handed out: decided or built, and claimed, so that no pivot changes it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from mixer.errors import MixerError
from service.errors import NotReadyError, RequestError, RunEndedError, RunStateError, StallError, lasts
from service.runs.builder import Builder
from service.runs.context import RunContext
from service.runs.waiting import resolve


class StepWait:
    """Lets requests wait for the steps of one run.

    Args:
        parts: of the run.
        builder: who decides and builds.
    """

    def __init__(self, parts: RunContext, builder: Builder) -> None:
        self._parts, self._bell, self._builder = parts, parts.bell, builder
        self._decisions, self._patience = parts.decisions, parts.patience
        self._is_draining = False

    def drain(self) -> None:
        """Let nobody wait any more."""
        self._is_draining = True
        self._bell.ring()

    def is_coming(self, step: int) -> bool:
        """Whether a step is not built yet, but will be in a moment."""
        return self._builder.next <= step < self._builder.run_end and self._builder.is_coming(step)

    async def moment(self, step: int, most_s: float) -> None:
        """Wait until a step is built, or something else has changed that may matter to it, ``most_s`` at most."""
        ticket = self._bell.ticket(step)
        late = ticket.get_loop().call_later(most_s, resolve, ticket)
        try:
            if step >= self._builder.next:
                await ticket
        finally:
            late.cancel()
            self._bell.forget(ticket)

    async def until(self, is_there: Callable[[], bool], step: int, wait_s: float, *, claims: bool) -> None:
        """Wait until a step is there and, if it is to be handed out, no pivot can change it any more."""
        if step < 0:
            raise RequestError(f"step is {step}; steps count from 0")
        deadline = time.monotonic() + min(wait_s, self._parts.settings.max_wait_s)
        while True:
            # one beyond reach is to be wanted again whenever others have come nearer
            ticket = self._bell.ticket(step if step <= self._builder.wanted else -1)
            try:
                if step >= self._builder.run_end:
                    end = self._builder.end
                    if end is None or await self._claim(end):  # it ends there for every rank
                        raise self._ended(step)
                elif is_there() and not self._builder.is_paused and (not claims or await self._claim(step)):
                    return
                left = deadline - time.monotonic()
                problem = self._builder.problem
                if left <= 0 or self._is_draining or (problem is not None and lasts(problem)):
                    raise self.not_yet(step)
                late = ticket.get_loop().call_later(left, resolve, ticket)
                try:
                    await ticket
                finally:
                    late.cancel()
                self._builder.want(step)
            finally:
                self._bell.forget(ticket)

    def not_yet(self, step: int) -> MixerError:
        """Return the error that says why a step is not there."""
        name, problem = self._parts.name, self._builder.problem
        if self._builder.is_paused:
            return RunStateError(f"run {name} is paused", retry_after_s=1)
        if problem is not None:
            return StallError(f"run {name} cannot go on: {problem}", cause=problem)
        frontier, reach = self._decisions.frontier, self._patience.reach
        why = f"step {step} is not there yet: steps below {self._builder.next} are built and below {frontier} decided"
        if frontier > reach and self._parts.walk.looks_at_losses:
            why += (
                f"; the newest report is of step {self._patience.newest_report}, and no phase that rests on losses is "
                f"decided beyond step {reach} before there is a newer one: report the steps in between"
            )
        return NotReadyError(why, retry_after_s=0.2)

    async def _claim(self, step: int) -> bool:
        """Claim a step; False while a pivot is cutting."""
        served = self._parts.served
        while not served.claim(step):
            if served.is_leased(step):
                return served.claim(step)  # it may have been leased just now
            await asyncio.shield(asyncio.wrap_future(served.extending(step)))
        return True

    def _ended(self, step: int) -> RunEndedError:
        why = "its sources have no more rows" if self._builder.end is not None else "that is its total_steps"
        return RunEndedError(
            f"step {step} was asked for, but run {self._parts.name} ends before step {self._builder.run_end}: {why}"
        )
