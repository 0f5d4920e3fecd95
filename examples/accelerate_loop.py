"""A loop with accelerate: prepare the model and the optimizer, but not the loader.

Given an ``IterableDataset``, ``prepare`` lets rank 0 read for all ranks (``dispatch_batches``) or makes every rank read
everything (``IterableDatasetShard``, which also hides ``state_dict``). A ``MixtureDataset`` has its rank's rows.
"""

from __future__ import annotations

from pathlib import Path

import torch
from accelerate import Accelerator

from examples import tiny
from mixer import MixtureDataset
from mixer.adapters.loading import MixtureLoader


def train(folder: Path, until: int) -> None:
    """Train this rank up to step ``until``, from the checkpoint in ``folder`` if there is one."""
    accelerator = Accelerator(cpu=True)  # sets torch.distributed up, so that the data set finds its rank
    dataset = MixtureDataset(tiny.curriculum(folder), provenance=True)
    loader = MixtureLoader(dataset)
    model = tiny.TinyModel()
    model, optimizer = accelerator.prepare(model, torch.optim.AdamW(model.parameters(), lr=1e-2))
    accelerator.register_for_checkpointing(loader)  # rank 0 writes the state, which has every rank's place
    checkpoint = folder / "checkpoint"
    if checkpoint.exists():
        accelerator.load_state(str(checkpoint))

    for batch in loader:
        input_ids, labels = (batch[name].to(accelerator.device) for name in ("input_ids", "labels"))
        losses = tiny.token_losses(model(input_ids), labels)
        accelerator.backward(losses.mean())
        optimizer.step()
        optimizer.zero_grad()
        dataset.report(batch, losses)
        tiny.log(folder / f"log-{dataset.rank}.jsonl", batch, losses, dataset.rank)
        if dataset.step == until:
            break

    accelerator.save_state(str(checkpoint))
    accelerator.end_training()


def main() -> None:
    """Train on two ranks, stop in the middle, and go on in two new processes."""
    tiny.in_two_sittings(lambda folder, until: tiny.on_ranks(2, train, folder, until))


if __name__ == "__main__":
    main()
