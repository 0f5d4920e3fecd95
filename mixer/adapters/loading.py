"""A loader for trainers that save and restore the loader, and that may fetch batches before they train on them.

Lightning and accelerate fetch one batch ahead, workers several. A state that counted those batches would skip them
when it is restored; this one counts the batches that were reported, so that nothing is skipped or repeated.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch.utils.data import DataLoader

from mixer.dataset import MixtureDataset
from mixer.delivery.tensors import Batch


class MixtureLoader:
    """The batches of a data set, with the state after the newest one that was trained on.

    A batch was trained on once it was reported (``dataset.report``), or said to be (``dataset.delivered``) by a
    trainer that has no losses. Fetched ahead, the first batches of a phase may be composed before the losses of the
    batches just before them are there; with a ``feedback_lag`` of the batches fetched ahead that changes nothing.

    Args:
        dataset: the run; its rank and world size are the loader's, so do not let a trainer shard it again.
        num_workers: processes that compose batches; over prepared rows none is needed.
        options: of ``torch.utils.data.DataLoader``: ``pin_memory``, ``prefetch_factor``, ``persistent_workers``, ...
    """

    def __init__(self, dataset: MixtureDataset, *, num_workers: int = 0, **options: Any) -> None:
        self.dataset = dataset
        self.num_workers = num_workers
        # without workers a copy composes in this process, so that here too the data set hears of batches by reports
        source = dataset if num_workers else copy.copy(dataset)
        # of its own, as a loader that begins draws a number: from torch's, it would change dropout after a resume
        options = {"generator": torch.Generator()} | options
        self._loader: DataLoader[Batch] = DataLoader(source, batch_size=None, num_workers=num_workers, **options)

    def __iter__(self) -> Iterator[Batch]:
        """Iterate from the batch after the newest that was trained on."""
        return iter(self._loader)

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the data set, plain data; over prepared rows the same on every rank."""
        return self.dataset.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from ``state``; call it before iterating.

        Raises:
            StateMismatchError: a state of another run.
        """
        self.dataset.load_state_dict(state)
