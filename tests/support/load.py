"""Many ranks in one process: each asks for its rows, reports, and goes on to the next step."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from mixer.errors import MixerError
from service.client.client import AsyncMixerClient
from service.wire.schemas import Feedback
from tests.support.serving import losses_of


@dataclass
class Load:
    """What came of it: steps that every rank took, errors, and what ``sample`` said each second."""

    steps: int = 0
    errors: list[str] = field(default_factory=list)
    samples: list[int] = field(default_factory=list)


def simulate_ranks(url: str, *, num_ranks: int, until: float, sample: Callable[[], int]) -> Load:
    """Train with so many ranks until a moment of the monotonic clock."""
    load = Load()

    async def one_rank(client: AsyncMixerClient, rank: int, names: tuple[str, ...], taken: list[int]) -> None:
        while time.monotonic() < until:
            try:
                rows = await client.batch(taken[rank], rank, num_ranks)
                await client.feedback(Feedback.of(taken[rank], losses_of(rows, rank), names))
            except MixerError as error:
                load.errors.append(f"rank {rank}: {error}")
                return
            taken[rank] += 1

    async def watch() -> None:
        while time.monotonic() < until:
            load.samples.append(sample())
            await asyncio.sleep(1)

    async def run() -> None:
        taken = [0] * num_ranks
        async with AsyncMixerClient(url, patience_s=60) as client:
            names = tuple((await client.config())["names"])
            await asyncio.gather(watch(), *(one_rank(client, rank, names, taken) for rank in range(num_ranks)))
        load.steps = min(taken)

    asyncio.run(run())
    return load
