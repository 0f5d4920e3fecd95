"""Losses by source on text that is never trained on: a few rows of each source, the same ones every time."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from andrea.train import Trainer
from andrea.world import World
from mixer.config.curriculum import Curriculum
from mixer.errors import EmptySourceError, SourceExhaustedError
from mixer.sources.base import EndOfSource, RowSource
from mixer.sources.opening import open_sources
from mixer.sources.prepared.rows import Prepared
from mixer.sources.tokenizer import TextTokenizer
from mixer.types import TokenArray


class HeldOut:
    """Held-out rows, shared out among the ranks.

    Args:
        rows: int64 [n, T + 1].
        source_ids: whose each is, int64 [n].
        names: of the sources.
        world: every W-th row is this rank's.
        rows_at_once: of one forward pass.
    """

    def __init__(
        self, rows: Tensor, source_ids: Tensor, names: tuple[str, ...], *, world: World, rows_at_once: int
    ) -> None:
        mine = slice(world.rank, None, world.world_size)
        self._rows, self._source_ids = rows[mine], source_ids[mine]
        self.names = names
        self._world, self._rows_at_once = world, rows_at_once

    def losses(self, trainer: Trainer) -> dict[str, float]:
        """Return the mean loss of each source that has rows, nats a token; every rank asks at once."""
        sums, counts, size = np.zeros(len(self.names)), np.zeros(len(self.names)), self._rows_at_once
        parts = zip(torch.split(self._rows, size), torch.split(self._source_ids, size), strict=True)
        for rows, ids in parts:
            losses = trainer.losses({"input_ids": rows[:, :-1], "labels": rows[:, 1:]}).double().mean(dim=1)
            np.add.at(sums, ids.numpy(), losses.numpy())
            np.add.at(counts, ids.numpy(), 1)
        sums, counts = (sum(part) for part in zip(*self._world.gathered((sums, counts)), strict=True))
        return {name: float(sums[i] / counts[i]) for i, name in enumerate(self.names) if counts[i]}


def losses_of_probe(probe: dict[str, Any], token_losses: Tensor, names: tuple[str, ...]) -> dict[str, float]:
    """Return the mean loss of each source of a probe, nats a token, of this rank's rows."""
    means, ids = token_losses.double().mean(dim=1), probe["source_ids"]
    return {name: float(means[ids == i].mean()) for i, name in enumerate(names) if bool((ids == i).any())}


def read_held_out(curriculum: Curriculum, tokenizer: TextTokenizer, *, num_rows: int, world: World) -> HeldOut | None:
    """Return the first ``num_rows`` held-out rows of each source, fewer of a source that has fewer.

    None if the curriculum holds nothing out. Of streamed sources only the beginning is read.
    """
    if not curriculum.holdout:
        return None
    if curriculum.prepared is not None:
        prepared = Prepared.open(curriculum.resolve(curriculum.prepared))
        splits = [prepared.held_out(name) for name in curriculum.names]
        found = [split.gather(np.arange(min(num_rows, split.num_rows))) for split in splits]
    else:
        sources = open_sources(curriculum, tokenizer, held_out=True)
        found = [_first_rows(source, num_rows, curriculum.sequence_length + 1) for source in sources]
    rows = torch.from_numpy(np.concatenate(found).astype(np.int64))
    ids = torch.from_numpy(np.repeat(np.arange(len(found)), [len(part) for part in found]))
    rank_rows = curriculum.rows_of_rank(world.world_size)
    return HeldOut(rows, ids, curriculum.names, world=world, rows_at_once=rank_rows) if len(rows) else None


def _first_rows(source: RowSource, num_rows: int, row_length: int) -> TokenArray:
    """Return the first rows of one epoch of a source, uint32 [n, T + 1]."""
    found: list[TokenArray] = []
    try:
        while len(found) < num_rows:
            row = source.take(1)
            if source.progress.epoch and found:  # it has begun again
                break
            found.append(row)
    except (EndOfSource, EmptySourceError, SourceExhaustedError):
        pass  # as many as there are: a small source may hold nothing out
    return np.concatenate(found) if found else np.empty((0, row_length), dtype=np.uint32)
