"""A loader for trainers that save and restore the loader, and that may fetch batches before they train on them.

Lightning and accelerate fetch one batch ahead, workers several. A state that counted those batches would skip them
when it is restored; this one counts the batches that were reported, so that nothing is skipped or repeated. Both save
what rank 0 returns, and give it to every rank; each reads other documents of a stream, so the state has all places.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch.utils.data import DataLoader

from mixer.dataset import MixtureDataset
from mixer.delivery.ranks import is_up
from mixer.delivery.tensors import Batch
from mixer.errors import RankMismatchError

PLACE = ("step", "row", "world_size", "readers")  # of a state: what differs between ranks, or must not


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
        """Return the state of all ranks, plain data, the same on each.

        Over streams the ranks tell each other where they stand: call it on every rank, as accelerate and Lightning do,
        though one alone writes. Over prepared rows nothing is sent. Without ``torch.distributed`` the state is of this
        rank alone.

        Raises:
            RankMismatchError: the ranks stand at different steps.
        """
        state, dataset = self.dataset.state_dict(), self.dataset
        if dataset.curriculum.is_on_disk or dataset.world_size == 1 or not is_up():
            return state
        place = {key: state.pop(key) for key in PLACE}
        places = dataset._main.ranks.gathered(place)
        steps = [(place["step"], place["row"]) for place in places]
        if len({*steps}) > 1:
            raise RankMismatchError(
                f"the ranks stand at different steps (step, row): {steps}; save after every rank has reported the same"
            )
        return {**state, "ranks": places}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from ``state``; call it before iterating.

        Raises:
            StateMismatchError: a state of another run, or of streams read by another number of ranks.
        """
        places = state.get("ranks")
        if places is None:
            self.dataset.load_state_dict(state)
            return
        # of another number of ranks the data set says so itself
        place = places[self.dataset.rank % len(places)]
        self.dataset.load_state_dict({**{key: value for key, value in state.items() if key != "ranks"}, **place})
