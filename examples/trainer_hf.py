"""Hugging Face ``Trainer``: ``MixtureTrainer`` with ``train_dataset=MixtureDataset(...)``, and any causal model.

The model gets labels that are shifted once, gradients are divided by all tokens of an optimizer step, losses are
reported, and checkpoints hold the data set's state: ``trainer.train(resume_from_checkpoint=True)`` goes on exactly.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import GPT2Config, GPT2LMHeadModel, TrainingArguments

from examples import tiny
from mixer import MixtureDataset
from mixer.adapters.trainer import MixtureTrainer


class LoggingTrainer(MixtureTrainer):
    """Writes down what it trains on, which only the tests of this example need."""

    def training_step(self, model: Any, inputs: Any, *more: Any) -> Any:
        """Train on a batch, and log it."""
        batch = dict(inputs)
        loss = super().training_step(model, inputs, *more)
        rank = self.train_dataset.rank
        tiny.log(Path(self.args.output_dir).parent / f"log-{rank}.jsonl", batch, loss, rank)
        return loss


def model() -> Any:
    """Return a small GPT-2, the same on every rank and in every run."""
    torch.manual_seed(0)
    ids = {"bos_token_id": 0, "eos_token_id": 0}
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=tiny.VOCABULARY, n_positions=16, n_embd=16, n_layer=1, n_head=2, **ids)
    )


def train(folder: Path, until: int) -> None:
    """Train up to step ``until``, from the newest checkpoint in ``folder`` if there is one."""
    arguments = TrainingArguments(
        output_dir=str(folder / "checkpoints"),
        max_steps=until,
        save_steps=6,
        lr_scheduler_type="constant",
        disable_tqdm=True,
        report_to=[],
        use_cpu=True,
    )  # sets torch.distributed up, so that the data set finds its rank
    dataset = MixtureDataset(tiny.curriculum(folder), provenance=True)
    trainer = LoggingTrainer(model=model(), args=arguments, train_dataset=dataset)
    trainer.train(resume_from_checkpoint=any((folder / "checkpoints").glob("checkpoint-*")))


def main() -> None:
    """Train, stop in the middle, and go on."""
    tiny.in_two_sittings(train)


if __name__ == "__main__":
    main()
