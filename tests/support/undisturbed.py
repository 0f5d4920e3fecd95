"""Runs that nothing befalls, to compare others with."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from mixer.config.curriculum import Curriculum
from mixer.delivery.batch import RowBatch
from service.runs.engine import Engine
from service.settings import Settings
from service.storage.store import Store
from service.wire.batches import decode
from tests.support.fleet import digest_of
from tests.support.serving import Served, get, losses_of

Records = list[dict[str, Any]]


@contextmanager
def engine_in(folder: Path, curriculum: Curriculum, **settings: Any) -> Iterator[Engine]:
    """Run an engine in this process, which takes no time to start; it waits for every rank: timing shapes nothing."""
    with closing(Store.open(f"sqlite:///{folder / 'service.db'}")) as store:
        engine = Engine("run", curriculum, store, Settings(folder=folder, feedback_wait_s=600, **settings))
        engine.start()
        try:
            yield engine
        finally:
            engine.stop()


def rows_of(engine: Engine, step: int, rank: int, num_ranks: int, *, wait_s: float = 60.0) -> RowBatch:
    body = asyncio.run(engine.batches.body(step, rank, num_ranks, wait_s))
    return decode(body.data, step=step, phase=0)


def undisturbed(config: Path, folder: Path, num_ranks: int) -> tuple[dict[tuple[int, int], str], Records]:
    """Return the digest of every batch by step and rank, and the journal, of a run that nothing befalls."""
    curriculum = Curriculum.from_yaml(config)
    digests = {}
    with engine_in(folder, curriculum) as engine:
        for step in range(curriculum.total_steps):
            for rank in range(num_ranks):
                rows = rows_of(engine, step, rank, num_ranks)
                digests[step, rank] = digest_of(rows)
                engine.report(step, losses_of(rows, rank))
    return digests, [json.loads(line) for line in engine.journal_lines()]


def journal_of(server: Served) -> Records:
    return [json.loads(line) for line in get(server.url + "/walk").content.splitlines()]


def what_was_decided(records: Records) -> Records:
    """Return all but the reports, without what depends on the order in which these came, or on the clock."""
    decided = [record for record in records if record["type"] != "feedback"]
    return [{key: value for key, value in record.items() if key not in ("number", "chain", "at")} for record in decided]


def what_was_reported(records: Records) -> Records:
    reports = [record for record in records if record["type"] == "feedback"]
    kept = [{key: value for key, value in record.items() if key not in ("number", "chain")} for record in reports]
    return sorted(kept, key=lambda record: (record["step"], record["rank"]))
