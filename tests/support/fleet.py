"""Ranks that train against a service, each in a process of its own that can be killed and goes on from its checkpoint.

``train`` is one rank. It logs the digest of each batch that it gets and each report that was acknowledged, and saves its
step now and then, so that some batches are asked for twice.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections import defaultdict
from pathlib import Path
from typing import Self

from mixer.delivery.batch import RowBatch
from service.client.client import MixerClient
from tests.support.forking import Forked
from tests.support.serving import losses_of

CHECKPOINT_STEPS = 4
PACE_S = 0.03  # a step takes so long, and the last ones wait, until the fleet may hurry
LAST_STEPS = 10


def digest_of(rows: RowBatch) -> str:
    """Return what tells one batch from another."""
    parts = (rows.rows, rows.source_ids, rows.row_numbers)
    return hashlib.sha256(b"".join(part.tobytes() for part in parts)).hexdigest()


class Fleet:
    """All ranks of one run.

    Args:
        url: of the service.
        folder: for logs and checkpoints.
        num_ranks: how many processes.
        num_steps: of the run.
    """

    def __init__(self, url: str, folder: Path, *, num_ranks: int, num_steps: int) -> None:
        self.num_ranks, self._url, self._folder, self._num_steps = num_ranks, url, folder, num_steps
        self._processes: dict[int, Forked] = {}
        folder.mkdir()

    def start(self, rank: int) -> None:
        """Start a rank, for the first time or again."""
        settings = (self._url, rank, self.num_ranks, self._num_steps, self._folder)
        self._processes[rank] = Forked(train, *settings, log=self._folder / f"{rank}.out")

    def kill(self, rank: int) -> None:
        """End a rank at once."""
        self._processes[rank].kill()
        self._processes[rank].wait()

    def finish(self, timeout_s: float) -> None:
        """Let all ranks hurry, and wait for them."""
        self._hurry.touch()
        deadline = time.monotonic() + timeout_s
        for rank, process in self._processes.items():
            code = process.wait(max(1.0, deadline - time.monotonic()))
            assert code == 0, (self._folder / f"{rank}.out").read_text()[-3000:]

    @property
    def is_training(self) -> bool:
        """Whether every rank is, or could be after a start, in the middle of the run."""
        return not self._hurry.exists() and all(process.poll() != 0 for process in self._processes.values())

    def digests(self) -> dict[tuple[int, int], set[str]]:
        """Return by step and rank every digest that a batch was seen with."""
        seen: dict[tuple[int, int], set[str]] = defaultdict(set)
        for rank in range(self.num_ranks):
            for kind, step, digest in self._logged(rank):
                if kind == "batch":
                    seen[step, rank].add(digest)
        return seen

    def acknowledged(self) -> set[tuple[int, int]]:
        """Return the steps and ranks whose report the server said it had."""
        logged = ((rank, *entry) for rank in range(self.num_ranks) for entry in self._logged(rank))
        return {(step, rank) for rank, kind, step, _ in logged if kind == "report"}

    @property
    def _hurry(self) -> Path:
        return self._folder / "hurry"

    def _logged(self, rank: int) -> list[tuple[str, int, str]]:
        lines = (self._folder / f"{rank}.log").read_text().splitlines()
        return [(kind, int(step), digest) for kind, step, digest in map(str.split, lines)]

    def __enter__(self) -> Self:
        for rank in range(self.num_ranks):
            self.start(rank)
        return self

    def __exit__(self, *_: object) -> None:
        for rank in self._processes:
            self.kill(rank)


def train(url: str, rank: int, num_ranks: int, num_steps: int, folder: Path) -> None:
    """Be one rank, from the step of its checkpoint to the end of the run."""
    checkpoint = folder / f"{rank}.step"
    begin = int(checkpoint.read_text()) if checkpoint.exists() else 0
    log = os.open(folder / f"{rank}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)  # one write a line: none is torn
    with MixerClient(url, patience_s=300) as client:
        names = tuple(client.config()["names"])
        for step in range(begin, num_steps):
            if step % CHECKPOINT_STEPS == 0:
                new = checkpoint.with_suffix(".new")
                new.write_text(str(step))
                new.replace(checkpoint)
            while not (folder / "hurry").exists():
                time.sleep(PACE_S)
                if step < num_steps - LAST_STEPS:
                    break
            rows = client.batch(step, rank, num_ranks)
            os.write(log, f"batch {step} {digest_of(rows)}\n".encode())
            client.report(step, losses_of(rows, rank), names)
            os.write(log, f"report {step} -\n".encode())
