"""Many ranks in one process: each asks for its rows, reports, and goes on to the next step."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from mixer.errors import MixerError
from service.client.client import MixerClient
from tests.support.serving import losses_of


@dataclass
class Load:
    """What came of it: steps that every rank took, errors, and what ``sample`` said each second."""

    steps: int = 0
    errors: list[str] = field(default_factory=list)
    samples: list[int] = field(default_factory=list)


def simulate_ranks(url: str, *, num_ranks: int, until: float, sample: Callable[[], int]) -> Load:
    """Train with so many ranks, a thread each, until a moment of the monotonic clock."""
    load = Load()

    def train(rank: int) -> int:
        step = 0
        with MixerClient(url, patience_s=60) as client:
            names = tuple(client.config()["names"])
            while time.monotonic() < until:
                try:
                    client.report(step, losses_of(client.batch(step, rank, num_ranks), rank), names)
                except MixerError as error:
                    load.errors.append(f"rank {rank}: {error}")
                    break
                step += 1
        return step

    with ThreadPoolExecutor(num_ranks) as ranks:  # one thread each: a rank's call may wait for the reports of others
        taken = [ranks.submit(train, rank) for rank in range(num_ranks)]
        while time.monotonic() < until:
            load.samples.append(sample())
            time.sleep(1)
        load.steps = min(future.result() for future in taken)
    return load
