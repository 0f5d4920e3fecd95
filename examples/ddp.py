"""A plain loop on several ranks with DistributedDataParallel: report the losses, save the data set beside the model.

In your project: ``torchrun --nproc-per-node 8 train.py``. Each rank makes the data set after ``init_process_group`` and
gets its own rows of every global batch; ``report`` sums the losses over ranks, so that all decide alike.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from examples import tiny
from mixer import MixtureDataset


def train(folder: Path, until: int) -> None:
    """Train this rank up to step ``until``, from the checkpoint in ``folder`` if there is one."""
    dist.init_process_group("gloo")  # "nccl" on GPUs
    rank = dist.get_rank()
    dataset = MixtureDataset(tiny.curriculum(folder), provenance=True)
    model = DistributedDataParallel(tiny.TinyModel())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    checkpoint = folder / "checkpoint.pt"
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        dataset.load_state_dict(saved["data"])

    for batch in dataset:
        losses = tiny.token_losses(model(batch["input_ids"]), batch["labels"])
        losses.mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        dataset.report(batch, losses)
        tiny.log(folder / f"log-{rank}.jsonl", batch, losses, rank)
        if dataset.step == until:
            break

    if rank == 0:  # over prepared rows the state is the same on every rank, at any number of ranks
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "data": dataset.state_dict()}
        torch.save(state, checkpoint)
    dist.destroy_process_group()


def main() -> None:
    """Train on two ranks, stop in the middle, and go on in two new processes."""
    tiny.in_two_sittings(lambda folder, until: tiny.on_ranks(2, train, folder, until))


if __name__ == "__main__":
    main()
