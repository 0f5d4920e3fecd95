"""The processes that train one model together, as ``torchrun`` starts them; one process is a world of its own."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist


@dataclass(frozen=True)
class World:
    """This process among those that train together."""

    rank: int
    world_size: int
    device: torch.device
    group: Any = None
    """Of processors, for what is agreed on beside the GPUs; None without others."""

    @property
    def is_first(self) -> bool:
        """Whether this process writes and talks for all."""
        return self.rank == 0

    def any_of(self, flags: Sequence[bool]) -> list[bool]:
        """Return, flag by flag, whether some process has raised it; all ask at once."""
        if self.world_size == 1:
            return list(flags)
        raised = torch.tensor(flags, dtype=torch.int32)
        dist.all_reduce(raised, op=dist.ReduceOp.MAX, group=self.group)
        return [bool(flag) for flag in raised.tolist()]

    def gathered(self, value: Any) -> list[Any]:
        """Return what every process gives, by rank; all ask at once."""
        if self.world_size == 1:
            return [value]
        found: list[Any] = [None] * self.world_size
        dist.all_gather_object(found, value, group=self.group)
        return found

    def wait(self) -> None:
        """Wait until every process is here."""
        if self.world_size > 1:
            dist.barrier(group=self.group)


@contextmanager
def joined_world() -> Iterator[World]:
    """Join the processes that ``torchrun`` started, or stand alone; each has its GPU where there are any."""
    has_gpu = torch.cuda.is_available()
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    device = torch.device("cuda", local_rank) if has_gpu else torch.device("cpu")
    if has_gpu:
        torch.cuda.set_device(device)
    if "WORLD_SIZE" not in os.environ or "RANK" not in os.environ:  # torchrun sets both
        yield World(0, 1, device)
        return
    dist.init_process_group("nccl" if has_gpu else "gloo")
    try:
        group = dist.new_group(backend="gloo") if has_gpu else dist.group.WORLD
        yield World(dist.get_rank(), dist.get_world_size(), device, group)
    finally:
        dist.destroy_process_group()
