"""What the Hugging Face ``Trainer`` needs to resume exactly: the data set's state in every checkpoint.

By itself the ``Trainer`` resumes by drawing and dropping every batch of the run so far, which would also tell the walk
nothing of their losses. With ``ignore_data_skip=True`` it does not, and this callback saves and restores the state.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from mixer.cache import written_whole
from mixer.dataset import MixtureDataset
from mixer.errors import ConfigError, StateMismatchError


class MixtureCallback(TrainerCallback):  # type: ignore[misc]  # transformers is not typed here
    """Saves the state of a data set as ``mixture-RANK.json`` in every checkpoint of a Hugging Face ``Trainer``.

    To resume, call ``load(checkpoint)`` and give ``trainer.train`` the same checkpoint.

    Args:
        dataset: what the trainer trains on.
    """

    def __init__(self, dataset: MixtureDataset) -> None:
        self.dataset = dataset

    def load(self, checkpoint: str | Path) -> None:
        """Go on from a checkpoint's state.

        Raises:
            StateMismatchError: no state there, one of another run, or of streams read by another number of ranks.
        """
        file = Path(checkpoint) / f"mixture-{self.dataset.rank}.json"
        if not file.exists() and self.dataset.curriculum.prepared is not None:  # there every rank's is the same
            file = file.with_name("mixture-0.json")
        if not file.exists():
            raise StateMismatchError(
                f"{checkpoint} holds no {file.name}, so it was saved without MixtureCallback or by fewer ranks; "
                "give the trainer the callback from the first step on, and the number of ranks that it had"
            )
        self.dataset.load_state_dict(json.loads(file.read_bytes()))

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Refuse to resume where the batches would not be those after the checkpoint's.

        Raises:
            ConfigError: the trainer would skip batches by itself.
            StateMismatchError: the data set stands elsewhere.
        """
        if state.global_step and not args.ignore_data_skip:
            raise ConfigError(
                "the trainer would draw and drop the batches of the run so far; set ignore_data_skip=True, "
                "MixtureCallback.load has brought the data set to its place"
            )
        step = state.global_step * args.gradient_accumulation_steps
        if self.dataset.step != step:
            raise StateMismatchError(
                f"the trainer begins at batch {step}, but the data set stands at step {self.dataset.step}; "
                "call MixtureCallback.load with the checkpoint that trainer.train resumes from"
            )

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Write the state into the checkpoint that was just saved."""
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        with written_whole(folder / f"mixture-{self.dataset.rank}.json") as file:
            json.dump(self.dataset.state_dict(), file)
