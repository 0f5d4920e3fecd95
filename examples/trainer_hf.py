"""Hugging Face ``Trainer``: its own loader would shard again, its resume would skip batches; neither is wanted.

Three things to copy: ``get_train_dataloader`` (each rank's batches, as they are), ``compute_loss`` (reports the losses)
and ``MixtureCallback`` with ``ignore_data_skip`` (the data set's state in each checkpoint).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import Trainer, TrainingArguments

from examples import tiny
from mixer import MixtureDataset
from mixer.adapters.loading import MixtureLoader
from mixer.adapters.trainer import MixtureCallback


class MixtureTrainer(Trainer):  # type: ignore[misc]
    """A ``Trainer`` over a ``MixtureDataset``."""

    def __init__(self, dataset: MixtureDataset, logs: Path, **options: Any) -> None:
        super().__init__(**options)
        self.mixture, self.logs = dataset, logs

    def get_train_dataloader(self) -> MixtureLoader:
        """Return this rank's batches; not prepared by accelerate, which would share them out a second time."""
        return MixtureLoader(self.mixture)

    def compute_loss(self, model: Any, inputs: Any, **_: Any) -> Tensor:
        """Return the mean loss, and report the loss of every token."""
        losses = tiny.token_losses(model(inputs["input_ids"]), inputs["labels"])
        self.mixture.report(inputs, losses)
        tiny.log(self.logs / f"log-{self.mixture.rank}.jsonl", inputs, losses, self.mixture.rank)
        return losses.mean()


def train(folder: Path, until: int) -> None:
    """Train up to step ``until``, from the newest checkpoint in ``folder`` if there is one."""
    arguments = TrainingArguments(
        output_dir=str(folder / "checkpoints"),
        max_steps=until,
        save_steps=6,
        lr_scheduler_type="constant",
        ignore_data_skip=True,
        disable_tqdm=True,
        report_to=[],
        use_cpu=True,
    )  # sets torch.distributed up, so that the data set finds its rank
    dataset = MixtureDataset(tiny.curriculum(folder), provenance=True)
    callback = MixtureCallback(dataset)
    trainer = MixtureTrainer(dataset, folder, model=tiny.TinyModel(), args=arguments, callbacks=[callback])
    saved = sorted((folder / "checkpoints").glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    if saved:
        callback.load(saved[-1])
    trainer.train(resume_from_checkpoint=str(saved[-1]) if saved else None)


def main() -> None:
    """Train, stop in the middle, and go on."""
    tiny.in_two_sittings(train)


if __name__ == "__main__":
    main()
