"""Lightning: a loader with ``state_dict`` is saved in every checkpoint and restored from it by Lightning itself.

Lightning fetches one batch ahead of training, so the loader's state must not count what was fetched: that of
``MixtureLoader`` counts what was reported. It is no ``DataLoader``, so Lightning adds no sampler of its own either.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning
import torch
from torch import Tensor

from examples import tiny
from mixer import MixtureDataset
from mixer.adapters.loading import MixtureLoader


class MixtureModule(lightning.LightningModule):  # type: ignore[misc]
    """A model that is trained on a mixture and reports its losses."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.model = tiny.TinyModel()
        self.folder = folder

    def train_dataloader(self) -> MixtureLoader:
        """Make the data set here, where torch.distributed is up and the rank is known."""
        self.mixture = MixtureDataset(tiny.curriculum(self.folder), provenance=True)
        return MixtureLoader(self.mixture)

    def training_step(self, batch: dict[str, Any]) -> Tensor:
        """Return the mean loss, and report the loss of every token."""
        losses = tiny.token_losses(self.model(batch["input_ids"]), batch["labels"])
        self.mixture.report(batch, losses)
        tiny.log(self.folder / f"log-{self.global_rank}.jsonl", batch, losses, self.global_rank)
        return losses.mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return the optimizer."""
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


def train(folder: Path, until: int, num_ranks: int = 1) -> None:
    """Train up to step ``until``, from the checkpoint in ``folder`` if there is one."""
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=num_ranks,
        strategy="ddp" if num_ranks > 1 else "auto",
        max_steps=until,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    checkpoint = folder / "last.ckpt"
    trainer.fit(MixtureModule(folder), ckpt_path=checkpoint if checkpoint.exists() else None)
    trainer.save_checkpoint(checkpoint)


def main() -> None:
    """Train, stop in the middle, and go on."""
    tiny.in_two_sittings(train)


if __name__ == "__main__":
    main()
