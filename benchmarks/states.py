"""Claims: how large a saved state of 16 prepared sources is, under every policy and lag, and what it costs.

``--steps N`` (3,000 by default) is how far each run goes; the states of every step are measured at its beginning, in
its middle and at its end, as ``MixtureDataset.state_dict()`` gives them, in JSON. ``--costs`` prints the second table
alone, ``--sizes`` the first; names of policies choose some.
"""

from __future__ import annotations

import functools
import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import head, medians, say
from mixer.analysis.simulate import SyntheticLearner
from mixer.config.curriculum import Curriculum
from mixer.journal.file import Journal
from mixer.losses import SUM_GRID, SourceLosses
from mixer.sampling.draws import phase_counts
from mixer.types import IntArray
from mixer.walk.walk import Walk

NUM_SOURCES, ROWS, TOKENS = 16, 16, 1024
AROUND = 100  # steps measured at the beginning, in the middle and at the end
POLICIES: Mapping[str, Mapping[str, Any]] = {
    "ucb": {"name": "ucb"},
    "ucb, progress": {"name": "ucb", "reward": "progress"},
    "ucb, loss": {"name": "ucb", "reward": "loss"},
    "andrea": {"name": "andrea"},
    "odm": {"name": "odm"},
    "ado": {"name": "ado", "first_fit_step": 200, "refit_steps": 500},
    "static": {"name": "static"},
    "random": {"name": "random"},
}
LAGS = (0, 4, 8, 16, 42)
# what a data set of prepared rows has beside its walk
FINGERPRINT = f"{'0' * 32} with rows {'0' * 32}"
SHELL = {"version": 1, "fingerprint": FINGERPRINT, "step": 0, "row": 0, "world_size": None, "readers": []}


def a_run(policy: str, *, lag: int, guard: bool) -> Curriculum:
    """Return a curriculum of 16 sources of 16 rows a step."""
    sources = [{"name": f"source-{k:02d}", "local": "topics", "tokens": 10**9} for k in range(NUM_SOURCES)]
    return Curriculum(
        total_steps=200_000,
        batch_rows=ROWS,
        sequence_length=TOKENS,
        sources=sources,
        policy=POLICIES[policy],
        feedback_lag=lag,
        **({} if guard else {"guard": None}),
    )


def losses_of_rows(learner: SyntheticLearner, step: int, rows: IntArray) -> SourceLosses:
    """Return what a trainer reports: each row has a loss of its own."""
    rng = np.random.default_rng(step)
    is_there = np.arange(ROWS) < rows[:, None]
    means = np.maximum(0.01, learner.expected()[:, None] + 0.4 * rng.standard_normal((NUM_SOURCES, ROWS))) * is_there
    learner.tokens += rows * TOKENS
    sums = np.rint(means * TOKENS / SUM_GRID) * SUM_GRID  # as ``mixer.delivery.feedback`` has them
    return SourceLosses(rows, rows * TOKENS, sums.sum(axis=1), ((sums / TOKENS) ** 2).sum(axis=1))


def trained(walk: Walk, num_steps: int, *, ranks: int = 1) -> Iterator[int]:
    """Report losses for ``num_steps`` steps, and yield each step once it was reported."""
    learner = SyntheticLearner(NUM_SOURCES, seed=1, sequence_length=TOKENS)
    run = walk.curriculum
    counts = np.zeros((0, 0), dtype=np.int64)
    for step in range(num_steps):
        phase = walk.phase_at(step)
        if phase.start == step:
            counts, _ = phase_counts(phase, seed=run.seed, method=run.draws, batch_rows=run.batch_rows)
        losses = losses_of_rows(learner, step, counts[step - phase.start])
        share = losses.rows // ranks
        for rank in range(ranks):  # as a service is told: the first ranks report what is left over
            rows = share + (losses.rows - share * ranks) * (rank == 0)
            part = rows / np.maximum(losses.rows, 1)
            sums = losses.loss_sums * part
            alike = (sums / TOKENS) ** 2 / np.maximum(rows, 1)  # of rows with the same loss
            squares = losses.square_sums if ranks == 1 else alike
            walk.report(step, SourceLosses(rows, rows * TOKENS, sums, squares, rank))
        yield step


def size_of(walk: Walk, step: int) -> int:
    """Return the bytes of a data set's state before ``step``."""
    return len(json.dumps({**SHELL, "step": step, "walk": walk.state_dict(from_step=step)}))


def largest(policy: str, num_steps: int, *, lag: int, guard: bool = True, ranks: int = 1, folder: str = "") -> int:
    """Return the bytes of the largest state."""
    journal = Journal.create(Path(folder) / f"{policy}-{lag}.jsonl") if folder else None
    walk, found = Walk(a_run(policy, lag=lag, guard=guard), journal=journal), 0
    for step in trained(walk, num_steps, ranks=ranks):
        if step < AROUND or step >= num_steps - AROUND or abs(step - num_steps // 2) < AROUND // 2:
            found = max(found, size_of(walk, step + 1))
    if journal is not None:
        journal.close()
    return found


def sizes(num_steps: int, names: list[str]) -> None:
    """The largest states by policy and lag."""
    columns = ["policy", *(f"lag {lag}" for lag in LAGS), "lag 0, no guard", "lag 0, 8 ranks apart", "lag 0, journal"]
    rows: list[list[object]] = []
    for name in names:
        row: list[object] = [name, *(largest(name, num_steps, lag=lag) for lag in LAGS)]
        row.append(largest(name, num_steps, lag=0, guard=False))
        row.append(largest(name, num_steps // 4, lag=0, ranks=8))
        with tempfile.TemporaryDirectory() as folder:
            row.append(largest(name, num_steps // 4, lag=0, folder=folder))
        rows.append(row)
    say(f"Largest state in bytes, {num_steps} steps", columns, rows)


def costs(names: list[str]) -> None:
    """What taking and restoring one costs."""
    rows: list[list[object]] = []
    for name in names:
        for lag in (0, 16):
            run = a_run(name, lag=lag, guard=True)
            walk = Walk(run)
            step = 1 + list(trained(walk, 700))[-1]
            text, other = json.dumps(walk.state_dict(from_step=step)), Walk(run)
            work: dict[str, Callable[[], object]] = {
                "take": functools.partial(walk.state_dict, from_step=step),
                "restore": functools.partial(other.load_state_dict, json.loads(text)),
            }
            found = medians(work, rounds=200)
            rows.append([name, lag, found["take"] * 1e3, found["restore"] * 1e3, len(text)])
    say("Taking and restoring", ["policy", "lag", "take, ms", "restore, ms", "bytes"], rows)


def main() -> None:
    """Print both tables, of the policies named or of all."""
    num_steps = int(sys.argv[sys.argv.index("--steps") + 1]) if "--steps" in sys.argv else 3000
    names = [name for name in POLICIES if name in sys.argv] or list(POLICIES)
    head()
    if "--costs" not in sys.argv:
        sizes(num_steps, names)
    if "--sizes" not in sys.argv:
        costs(names)


if __name__ == "__main__":
    main()
