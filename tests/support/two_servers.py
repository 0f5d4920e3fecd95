"""Two real servers over one PostgreSQL database: the older one is stopped for a while, and goes on unaware.

``python -m tests.support.two_servers TRIALS`` tries it often and prints how many steps were given with two contents.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from service.client.client import MixerClient
from service.wire.batches import decode
from tests.support.fleet import digest_of
from tests.support.postgres import Postgres, postgres
from tests.support.serving import STEPS, Served, get, losses_of, post, write_run

BEYOND = 40  # steps after its newest one that a rank asks the older server for
OPTIONS = ("--feedback-wait-s", "0", "--ahead-steps", "64")


class Seen:
    """What was given of each step, whichever server gave it."""

    def __init__(self) -> None:
        self.digests: dict[int, set[str]] = defaultdict(set)

    def ask(self, server: Served, step: int, *, wait_s: float = 0) -> int:
        """Ask a server for a step, note what it gives, and return the status."""
        answer = get(f"{server.url}/batches/{step}", params={"wait_s": wait_s}, timeout=30)
        if answer.status_code == 200:
            headers = answer.headers
            rows = decode(answer.content, step=int(headers["x-mixer-step"]), phase=int(headers["x-mixer-phase"]))
            self.digests[step].add(f"{rows.phase} {digest_of(rows)}")
        return answer.status_code

    @property
    def differing(self) -> list[int]:
        """The steps that were given with two contents."""
        return sorted(step for step, digests in self.digests.items() if len(digests) > 1)


def trial(folder: Path, database: str, *, stopped_s: float, seed: int) -> tuple[list[int], list[int]]:
    """Return the steps that were given with two contents, and how the older server answered after it went on."""
    rng = random.Random(seed)
    config = write_run(folder, total_steps=1000, phases={"initial_random": 2, "min_steps": 7, "max_steps": 42})
    seen, answers = Seen(), []
    older = Served(config, folder / "older", *OPTIONS, "--name", "run", "--database", database)
    newer = Served(config, folder / "newer", *OPTIONS, "--name", "run", "--database", database)
    with older, MixerClient(older.url, patience_s=30) as client:
        names = tuple(client.config()["names"])
        newest = rng.randrange(5, STEPS)
        for step in range(newest):
            rows = client.batch(step)
            seen.ask(older, step)
            client.report(step, losses_of(rows, 0), names)
        assert older.process is not None
        time.sleep(rng.random())
        older.process.send_signal(signal.SIGSTOP)
        begin = time.monotonic()
        try:
            with newer:
                for number in range(2):
                    pivoted = post(
                        newer.url + "/pivots",
                        json={"name": f"cut-{number}", "exclude": [f"s{1 + number}"], "at": "now"},
                    )
                    assert pivoted.status_code == 201, pivoted.text
                    at_step = pivoted.json()["at_step"]
                    for step in range(newest, at_step + 5):
                        seen.ask(newer, step, wait_s=10)
                time.sleep(max(0.0, begin + stopped_s - time.monotonic()))
                older.process.send_signal(signal.SIGCONT)
                asked = range(newest, at_step + BEYOND)
                answers = [seen.ask(older, step, wait_s=0.5 if step < newest + 3 else 0) for step in asked]
                for step in asked:
                    seen.ask(newer, step, wait_s=10)
        finally:
            older.process.send_signal(signal.SIGCONT)
    return seen.differing, answers


def trials(
    num: int, *, stopped_s: float = 10.0, seed: int = 0, at_once: int = 1
) -> Iterator[tuple[int, list[int], list[int]]]:
    """Yield the seed and what came of each trial, each on a database of its own."""
    with postgres() as database, tempfile.TemporaryDirectory() as folder:
        os.environ.setdefault("MIXER_CACHE", f"{folder}/cache")
        for begin in range(seed, seed + num, at_once):
            found: dict[int, Any] = {}
            threads = [
                threading.Thread(target=_into, args=(found, Path(folder), database, each, stopped_s))
                for each in range(begin, min(begin + at_once, seed + num))
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            for each, (differing, answers) in sorted(found.items()):
                yield each, differing, answers


def _into(found: dict[int, Any], folder: Path, database: Postgres, seed: int, stopped_s: float) -> None:
    here = folder / str(seed)
    here.mkdir()
    found[seed] = trial(here, database.new_database(), stopped_s=stopped_s, seed=seed)


if __name__ == "__main__":
    num, first = int(sys.argv[1]), int((sys.argv[2:] or ["0"])[0])
    failed = 0
    for seed, differing, answers in trials(num, seed=first, at_once=2):
        failed += bool(differing)
        statuses = {status: answers.count(status) for status in sorted(set(answers))}
        print(f"trial {seed}: steps with two contents: {differing}; the older server answered {statuses}", flush=True)
    print(f"{num} trials, {failed} with a step of two contents")
