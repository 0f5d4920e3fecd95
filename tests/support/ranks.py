"""Real ranks: forked processes with gloo on loopback."""

from __future__ import annotations

import multiprocessing
import os
import queue
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist


def in_ranks(world_size: int, job: Callable[[int, int], Any]) -> list[Any]:
    """Run a job on real ranks, in forked processes with gloo; return what each gave or raised.

    Args:
        world_size: how many.
        job: what a rank does, given its number and theirs.
    """
    context = multiprocessing.get_context("fork")
    results: Any = context.Queue()
    store = Path(os.environ["MIXER_CACHE"]).parent / f"store-{time.monotonic_ns()}"

    def run(rank: int) -> None:
        try:
            torch.set_num_threads(1)
            dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world_size)
            results.put((rank, job(rank, world_size)))
            dist.destroy_process_group()
        except Exception as error:
            results.put((rank, f"{type(error).__name__}: {error}"))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        processes = [context.Process(target=run, args=(rank,)) for rank in range(world_size)]
        for process in processes:
            process.start()
    try:
        given = dict(results.get(timeout=100) for _ in range(world_size))
    except queue.Empty:
        pytest.fail("a rank did not answer")
    finally:
        for process in processes:
            process.kill()
            process.join()
    return [given[rank] for rank in range(world_size)]
