"""torchdata's StatefulDataLoader with workers: save the data set's state beside the loader's.

The loader's state is where its workers stand; the walk, which learns from the losses, lives in this process. Restore
the data set first: the workers ask it for their phases, and refuse a walk that is not the one they were saved with.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torchdata.stateful_dataloader import StatefulDataLoader

from examples import tiny
from mixer import MixtureDataset


def train(folder: Path, until: int, num_workers: int = 2) -> None:
    """Train up to step ``until``, from the checkpoint in ``folder`` if there is one."""
    dataset = MixtureDataset(tiny.curriculum(folder), provenance=True)
    loader = StatefulDataLoader(dataset, batch_size=None, num_workers=num_workers)
    model = tiny.TinyModel()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    checkpoint = folder / "checkpoint.pt"
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        dataset.load_state_dict(saved["data"])
        loader.load_state_dict(saved["loader"])

    for batch in loader:
        losses = tiny.token_losses(model(batch["input_ids"]), batch["labels"])
        losses.mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        dataset.report(batch, losses)
        tiny.log(folder / "log-0.jsonl", batch, losses)
        if batch["step"] + 1 == until:
            state = {"data": dataset.state_dict(), "loader": loader.state_dict()}
            torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), **state}, checkpoint)
            break


def main() -> None:
    """Train, stop in the middle, and go on."""
    tiny.in_two_sittings(train)


if __name__ == "__main__":
    main()
