"""Batches as trainers get them: dicts of tensors, whole or row by row."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from mixer.delivery.batch import TokenBatch

Batch = dict[str, Any]


def tensors_of(batch: TokenBatch, *, provenance: bool) -> Batch:
    """Return a batch as tensors of its own, as a trainer may mask labels in place.

    Args:
        batch: of memory that nobody else writes to, but for sources and row numbers, which are copied.
        provenance: add ``row_numbers``.
    """
    tensors: Batch = {
        "input_ids": torch.from_numpy(batch.inputs),
        "labels": torch.from_numpy(batch.labels),
        "source_ids": torch.from_numpy(batch.source_ids.copy()),
        "step": batch.step,
        "phase": batch.phase,
    }
    if provenance:
        tensors["row_numbers"] = torch.from_numpy(batch.row_numbers.copy())
    return tensors


def single_rows(batch: Batch, first: int, following: int, stand_at: Callable[[int, int], None]) -> Iterator[Batch]:
    """Yield the rows of a batch one by one; ``source_ids`` becomes a scalar, so that they collate to a batch again.

    Args:
        batch: as it is yielded whole.
        first: row to begin with.
        following: the step after it.
        stand_at: told before each row where the next one is: step and row.
    """
    num_rows = len(batch["source_ids"])
    for row in range(first, num_rows):
        stand_at(*((batch["step"], row + 1) if row + 1 < num_rows else (following, 0)))
        yield type(batch)((key, value[row] if isinstance(value, Tensor) else value) for key, value in batch.items())
