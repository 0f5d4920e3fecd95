"""Claim: a service that is started again reads the phases of its run and the newest reports, not every report.

A walk over 16 sources is simulated, one report a step, and its journal opened as ``mixer serve`` opens it, each time in
a process of its own: without any snapshot, after SIGTERM, and after a kill that left the newest lines to be driven
again. ``--steps N`` makes a shorter walk, ``--database URL`` puts the journal into PostgreSQL.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.common import head, say
from benchmarks.record import argument
from mixer.analysis.simulate import SyntheticLearner
from mixer.config.curriculum import Curriculum
from mixer.sampling.draws import phase_counts
from mixer.sources.prepared.prepare import prepare
from service.runs.engine import Engine
from service.settings import Settings
from service.storage.store import Store

NUM_SOURCES = 16
OPENED = """
import json, sys, time
from pathlib import Path
from benchmarks.restart import opened
from service.web.memory import disable_collections
disable_collections()
start = time.perf_counter()
engine = opened(Path(sys.argv[1]), sys.argv[2] or None)
print(json.dumps([time.perf_counter() - start, engine.decisions.frontier, engine.walk.frontier]))
{end}
"""


def curriculum_in(folder: Path, num_steps: int) -> Curriculum:
    """Return the run, its rows prepared."""
    names = [f"s{i}" for i in range(NUM_SOURCES)]
    for name in names:
        lines = [json.dumps({"text": f"{name} has {n} words " * 5}) for n in range(20)]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    plan = {
        "total_steps": num_steps,
        "batch_rows": 64,
        "sequence_length": 16,
        "tokenizer": {"train_vocab_size": 300},
        "sources": [{"name": name, "data_files": f"{name}.jsonl"} for name in names],
        "prepared": "rows",
        "feedback_lag": 4,
    }
    return Curriculum.from_data(plan, base_dir=folder)


def opened(folder: Path, database: str | None) -> Engine:
    """Return the run as it stands after a start of the server, before anything is decided or built."""
    num_steps = json.loads((folder / "steps.json").read_text())
    settings = Settings(folder=folder / "runs", database=database)
    return Engine("run", curriculum_in(folder, num_steps), Store.open(settings.database_url), settings)


def trained(engine: Engine, end: int) -> None:
    """Let a simulated trainer report every step up to one, as fast as the walk takes it."""
    curriculum = engine.curriculum
    learner = SyntheticLearner(NUM_SOURCES, seed=curriculum.seed, sequence_length=curriculum.sequence_length)
    while engine.decisions.frontier < end:
        start = engine.decisions.frontier
        engine.builder.wanted = start
        engine.builder._decide(start)  # which takes snapshots, too
        phase = engine.walk.phase_at(start)
        counts, _ = phase_counts(phase, seed=curriculum.seed, method="systematic", batch_rows=curriculum.batch_rows)
        for step in range(start, phase.end):
            engine.report(step, learner.learn(step, counts[step - start]))


def start_s(folder: Path, database: str | None, *, end: str) -> float:
    """Return how long a start takes; ``end`` is what is done then."""
    command = [sys.executable, "-c", OPENED.format(end=end), str(folder), database or ""]
    spent, *frontiers = json.loads(subprocess.check_output(command, text=True))
    assert frontiers[0] == frontiers[1] > 0
    return float(spent)


def main() -> None:
    """Make the run, then start it again in several ways."""
    num_steps = argument("--steps", 200_000)
    database = sys.argv[sys.argv.index("--database") + 1] if "--database" in sys.argv else None
    head()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "steps.json").write_text(json.dumps(num_steps + 10_000))
        prepare(curriculum_in(folder, num_steps + 10_000), folder / "rows")
        engine = opened(folder, database)
        trained(engine, num_steps)
        num_lines = engine.journal.position.line
        engine.journal.close()
        without = """
import sqlalchemy as sa
from service.storage import tables
with engine._parts.store.transaction() as connection:
    connection.execute(sa.delete(tables.snapshots))
engine.journal.close()
"""
        killed = start_s(folder, database, end="engine.stop()")
        stopped = [start_s(folder, database, end="engine.stop()") for _ in range(3)]
        start_s(folder, database, end=without)
        alone = start_s(folder, database, end="")
    rows = [("after a kill", killed), ("after SIGTERM", sorted(stopped)[1]), ("without a snapshot", alone)]
    say(f"{num_steps:,} steps, {num_lines:,} lines", ["a start", "s"], rows)


if __name__ == "__main__":
    main()
