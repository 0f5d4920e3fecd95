"""Per-source losses from the per-token losses of a batch, summed in float64 where the losses lie.

The sum of each row is brought to a grid, so that sums over rows, ranks and steps are exact: they do not depend on how
many ranks there are, nor on the order in which reports come.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mixer.errors import FeedbackError
from mixer.rewards import SQUARE_GRID, SUM_GRID, SourceLosses, add_losses


def source_losses(
    source_ids: Tensor, token_losses: Tensor, *, num_sources: int, rank: int = 0, mask: Tensor | None = None
) -> SourceLosses:
    """Return what a batch taught about each source.

    Args:
        source_ids: the source of each row, int [B].
        token_losses: loss of each token in nats, [B, T], on any device; needs no gradient.
        num_sources: K.
        rank: who reports.
        mask: tokens that count, bool [B, T]; all by default.

    Raises:
        FeedbackError: shapes that do not belong together.
    """
    losses = token_losses.detach()
    if losses.ndim != 2 or losses.shape[0] != source_ids.shape[0]:
        raise FeedbackError(
            f"token losses have shape {list(losses.shape)} for a batch of {source_ids.shape[0]} rows; "
            "report one loss per token, [B, T] (cross_entropy with reduction='none')"
        )
    if mask is not None and mask.shape != losses.shape:
        raise FeedbackError(f"the mask has shape {list(mask.shape)}, the token losses {list(losses.shape)}")
    if losses.device.type == "mps":  # Apple's GPUs have no float64
        losses = losses.cpu()
    if mask is None:
        row_sums = losses.sum(dim=1, dtype=torch.float64)
        row_tokens = torch.full_like(row_sums, losses.shape[1])
    else:
        kept = mask.to(losses.device)
        row_sums = torch.where(kept, losses, torch.zeros_like(losses)).sum(dim=1, dtype=torch.float64)
        row_tokens = kept.sum(dim=1, dtype=torch.float64)
    row_sums = _on_grid(row_sums, SUM_GRID)
    counted = (row_tokens > 0).to(torch.float64)  # a row without a token that counts is no observation
    row_squares = _on_grid((row_sums / row_tokens.clamp(min=1)) ** 2, SQUARE_GRID)
    columns = torch.stack([counted, row_tokens, row_sums, counted * row_squares])
    sums = torch.zeros((4, num_sources), dtype=torch.float64)  # one transfer, then sums in row order on the CPU
    sums.index_add_(1, source_ids.cpu(), columns.cpu())
    rows, tokens, loss_sums, square_sums = sums.numpy()
    return SourceLosses(rows=rows, tokens=tokens, loss_sums=loss_sums, square_sums=square_sums, rank=rank)


class Reports:
    """Losses of this rank's steps, put together from the parts that a trainer reports.

    Args:
        rows_per_step: rows of one step on this rank; a step is whole once so many were reported.
    """

    def __init__(self, rows_per_step: int) -> None:
        self.rows_per_step = rows_per_step
        self._parts: dict[int, list[SourceLosses]] = {}
        self._num_rows: dict[int, int] = {}

    def add(
        self, batch: Mapping[str, Any], token_losses: Tensor, mask: Tensor | None, *, num_sources: int
    ) -> list[tuple[int, SourceLosses]]:
        """Take in the losses of a batch or a part of one; return the steps that are now whole, with their losses.

        A step of which some rows are missing is given as it is once a later step is reported.

        Raises:
            FeedbackError: not a batch as it was yielded, or shapes that do not belong together.
        """
        try:
            steps, source_ids = torch.as_tensor(batch["step"]), torch.as_tensor(batch["source_ids"])
        except (KeyError, TypeError) as error:
            raise FeedbackError("report needs the batch as it was yielded, with `step` and `source_ids`") from error
        if steps.ndim == 0 or bool((steps == steps[0]).all()):
            step = int(steps if steps.ndim == 0 else steps[0])
            self._add(step, source_ids, source_losses(source_ids, token_losses, num_sources=num_sources, mask=mask))
            return self._whole(step)
        whole = []
        for step in torch.unique(steps).tolist():  # rows of several steps, collated together
            mine = steps == step
            part = {"step": step, "source_ids": source_ids[mine]}
            here = mine.to(token_losses.device)
            part_mask = None if mask is None else mask[mine.to(mask.device)]
            whole += self.add(part, token_losses[here], part_mask, num_sources=num_sources)
        return whole

    def _add(self, step: int, source_ids: Tensor, losses: SourceLosses) -> None:
        self._parts.setdefault(step, []).append(losses)
        self._num_rows[step] = self._num_rows.get(step, 0) + len(source_ids)

    def _whole(self, newest: int) -> list[tuple[int, SourceLosses]]:
        whole = [step for step, num in self._num_rows.items() if step < newest or num >= self.rows_per_step]
        for step in whole:
            del self._num_rows[step]
        return [(step, add_losses(self._parts.pop(step))) for step in sorted(whole)]


def _on_grid(values: Tensor, grid: float) -> Tensor:
    return torch.round(values / grid) * grid
