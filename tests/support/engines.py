"""Engines of a service in this process, killed as a process is: from one instant on nothing that they do lasts."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from mixer.config.curriculum import Curriculum
from mixer.delivery.batch import RowBatch
from service.errors import NotReadyError
from service.runs.engine import Engine
from service.settings import Settings
from service.storage.store import Store
from service.wire.batches import Body, decode
from tests.support.serving import losses_of


class KilledError(SystemExit):
    """Ends a thread without a word."""


class Killable(Engine):
    """An engine that can be killed before or after any of its durable writes."""

    kill_at = -1  # which write is the last, counted from when this was set
    is_after = False  # whether that one is done
    num_writes = 0
    is_dead = False

    def wire(self) -> Killable:
        """Let every durable write pass by ``_write``."""
        for owner, name in (
            (self._parts.store, "save"),
            (self._parts.store, "forget"),
            (self.journal._lines, "append"),
        ):
            setattr(owner, name, self._counted(getattr(owner, name)))
        return self

    def _counted(self, write: Any) -> Any:
        def counted(*arguments: Any, **keywords: Any) -> Any:
            if self.is_dead:
                raise KilledError
            is_last = self.num_writes == self.kill_at
            self.num_writes += 1
            self.is_dead = is_last
            if is_last and not self.is_after:
                raise KilledError
            result = write(*arguments, **keywords)
            if is_last:
                raise KilledError
            return result

        return counted

    def bury(self) -> None:
        """Let go of what the operating system would let go of."""
        self.is_dead = True
        self.builder._is_stopping = True
        self.builder.wake()
        if self.builder._thread.is_alive():
            self.builder._thread.join()
        self.journal.close()
        self._parts.store.close()


def opened(curriculum: Curriculum, folder: Path, **settings: Any) -> Killable:
    """Return an engine that goes on with what lies in the folder."""
    folder.mkdir(exist_ok=True)
    chosen = Settings(**{"folder": folder, "ahead_steps": 8, "place_steps": 4, "feedback_wait_s": 60.0, **settings})
    engine = Killable("run", curriculum, Store.open(chosen.database_url), chosen).wire()
    engine.start()
    return engine


@contextmanager
def running(curriculum: Curriculum, folder: Path, **settings: Any) -> Iterator[Killable]:
    """Give an engine that is stopped at the end as SIGTERM stops it."""
    engine = opened(curriculum, folder, **settings)
    try:
        yield engine
    finally:
        if not engine.is_dead:
            engine.stop()
            engine._parts.store.close()


def body(engine: Engine, step: int, rank: int = 0, world_size: int = 2) -> Body:
    """Return what a rank is given; the dead give nothing."""
    for _ in range(500):
        if getattr(engine, "is_dead", False):
            raise KilledError
        try:
            return engine.batches.held(step, rank, world_size) or asyncio.run(
                engine.batches.body(step, rank, world_size, 0.3)
            )
        except NotReadyError:
            continue
    raise AssertionError(f"step {step} did not come")


def rows_of(given: Body) -> RowBatch:
    """Return the rows of a body."""
    headers = dict(given.headers)
    return decode(given.data, step=int(headers[b"x-mixer-step"]), phase=int(headers[b"x-mixer-phase"]))


def train(engine: Killable, steps: range, world_size: int = 2) -> dict[tuple[int, int], bytes]:
    """Train on these steps, one rank after the other; return what each was given."""
    given = {}
    for step in steps:
        for rank in range(world_size):
            found = body(engine, step, rank, world_size)
            given[step, rank] = bytes(found.data)
            engine.report(step, losses_of(rows_of(found), rank))
    return given


def assert_each_row_once(engine: Killable, num_steps: int) -> None:
    """Every row of every source goes to exactly one place of one step, none is left out."""
    batches = [rows_of(body(engine, step, 0, 1)) for step in range(num_steps)]
    ids = np.concatenate([batch.source_ids for batch in batches])
    numbers = np.concatenate([batch.row_numbers for batch in batches])
    for source in range(len(engine.curriculum.names)):
        assert sorted(numbers[ids == source].tolist()) == list(range(int((ids == source).sum())))
