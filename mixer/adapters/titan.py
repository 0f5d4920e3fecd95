"""What torchtitan's trainer and checkpointer use, without importing torchtitan: a loader, and a loss that keeps losses.

Ranks that differ only in tensor, pipeline or context parallelism must see the same rows: make the data set with
``mesh=``. torchtitan refuses another data-parallel size; over prepared rows this loader goes on.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from mixer.adapters.loading import MixtureLoader
from mixer.dataset import MixtureDataset
from mixer.delivery.tensors import Batch
from mixer.errors import FeedbackError, StateMismatchError

STATE_VERSION = 1


class ExhaustedError(RuntimeError):
    """The run is over; raised in place of torchtitan's own error unless that is passed."""


class TitanLoader:
    """Yields ``({"input": ids [b, T]}, labels [b, T])``, and is saved and restored by torchtitan's checkpointer.

    Args:
        dataset: made with ``mesh=``, the mesh of all ranks.
        num_workers: processes that compose batches.
        exhausted: what to raise when the run is over; torchtitan's ``DataloaderExhaustedError``.
    """

    def __init__(
        self, dataset: MixtureDataset, *, num_workers: int = 0, exhausted: type[Exception] = ExhaustedError
    ) -> None:
        self.dataset = dataset
        self.batch: Batch = {}  # the newest that was yielded
        self._unreported: deque[Batch] = deque()  # in the order in which they were yielded
        self._loader = MixtureLoader(dataset, num_workers=num_workers)
        self._exhausted = exhausted

    @property
    def _key(self) -> str:
        """Where the state lies in a checkpoint, which has no key for ranks that were not there when it was saved."""
        is_on_disk = self.dataset.curriculum.is_on_disk
        return "every_dp_rank" if is_on_disk else f"dp_rank_{self.dataset.rank}"

    def __iter__(self) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
        """Yield inputs and labels; every rank ends at the same step, with the exhausted error."""
        self._unreported.clear()
        for batch in self._loader:
            self.batch = batch
            self._unreported.append(batch)
            yield {"input": batch["input_ids"]}, batch["labels"]
        raise self._exhausted(f"all {self.dataset.curriculum.total_steps} steps were delivered; raise total_steps")

    def report(self, token_losses: Tensor | None) -> bool:
        """Report the losses of the oldest batch that was not reported, on every rank that is to decide alike.

        torchtitan takes all batches that it accumulates before it trains on the first, so report each, in their order.

        Args:
            token_losses: of each token in nats, [b, T] or [b * T]; None where other ranks of the mesh have them.

        Raises:
            FeedbackError: no batch is left to report, or losses that cannot be.
        """
        if not self._unreported:
            raise FeedbackError("every batch that was yielded is reported already; report the losses of each once")
        was_new = self.dataset.report(self._unreported[0], token_losses)
        self._unreported.popleft()
        return was_new

    def state_dict(self) -> dict[str, Any]:
        """Return this rank's state, over prepared rows everybody's; bytes, since a checkpoint flattens nested data."""
        state = json.dumps(self._loader.dataset.state_dict()).encode()
        return {self._key: state, "world_size": self.dataset.world_size, "version": STATE_VERSION}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on from a state; an empty one is the beginning.

        Raises:
            StateMismatchError: a state of another version or run, or of streams read at another data-parallel size.
        """
        if not state_dict:
            return
        if state_dict.get("version") != STATE_VERSION:
            raise StateMismatchError(
                f"the loader's state has version {state_dict.get('version')!r}, but this one reads version "
                f"{STATE_VERSION}; load it with the release that saved it"
            )
        saved = state_dict.get(self._key)
        if saved is None:
            raise StateMismatchError(
                f"the loader's state of {state_dict.get('world_size')} data-parallel ranks has no {self._key}; "
                "use as many as it was saved with, or prepare the sources (`mixer prepare`), which any number can share"
            )
        self._loader.load_state_dict(json.loads(saved))


class KeptLosses:
    """A loss of torchtitan that also keeps the loss of every token, without gradients, until they are taken.

    Args:
        loss: it is called with logits [b, t, V] and labels [b, t], for a batch or for parts of it along t.
    """

    def __init__(self, loss: Callable[..., Any]) -> None:
        self._loss = loss
        self._kept: list[Tensor] = []

    def __call__(self, pred: Tensor, labels: Tensor, *more: Any, **options: Any) -> Any:
        """Return what the loss returns; validation, which wants no gradient, keeps nothing."""
        if pred.requires_grad:
            with torch.no_grad():  # a row at a time: a float32 copy of all logits would be as large as they are
                rows = zip(pred.detach(), labels, strict=True)
                self._kept.append(torch.stack([cross_entropy(p.float(), y, reduction="none") for p, y in rows]))
        return self._loss(pred, labels, *more, **options)

    def taken(self) -> Tensor:
        """Return the losses of the newest batch in nats, float32 [b, T], and forget them.

        Raises:
            FeedbackError: none were computed.
        """
        if not self._kept:
            raise FeedbackError("the trainer's loss was not called with logits that train, so no losses are known")
        kept, self._kept = self._kept, []
        return torch.cat(kept, dim=1)
