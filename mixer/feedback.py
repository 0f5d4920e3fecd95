"""Per-source losses from the per-token losses of a batch, summed in float64 where the losses lie.

The sum of each row is brought to a grid, so that sums over rows, ranks and steps are exact: they do not depend on how
many ranks there are, nor on the order in which reports come.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from mixer.errors import FeedbackError
from mixer.rewards import SQUARE_GRID, SUM_GRID, SourceLosses, add_losses

OverSlices = Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor, bool]]


def source_losses(
    source_ids: Tensor,
    token_losses: Tensor | None,
    *,
    num_sources: int,
    rank: int = 0,
    mask: Tensor | None = None,
    over_slices: OverSlices | None = None,
) -> SourceLosses | None:
    """Return what a batch taught about each source.

    Args:
        source_ids: the source of each row, int [B].
        token_losses: loss of each token in nats, [B, T], on any device; needs no gradient. None if others have them.
        num_sources: K.
        rank: who reports.
        mask: tokens that count, bool [B, T]; all by default.
        over_slices: given sums and tokens of each row, float64 [B], and how many tokens a row has here (0 without
            losses), returns those of whole rows and whether there are any.

    Raises:
        FeedbackError: shapes that do not belong together.
    """
    if token_losses is None:
        row_sums = row_tokens = torch.zeros(len(source_ids), dtype=torch.float64)
        width = 0
    else:
        row_sums, row_tokens = _sums_of_rows(source_ids, token_losses, mask)
        width = token_losses.shape[1]
    has_losses = width > 0
    if over_slices is not None:
        row_sums, row_tokens, has_losses = over_slices(row_sums.cpu(), row_tokens.cpu(), width)
    if not has_losses:
        return None
    row_sums = _on_grid(row_sums, SUM_GRID)
    counted = (row_tokens > 0).to(torch.float64)  # a row without a token that counts is no observation
    row_squares = _on_grid((row_sums / row_tokens.clamp(min=1)) ** 2, SQUARE_GRID)
    columns = torch.stack([counted, row_tokens, row_sums, counted * row_squares])
    sums = torch.zeros((4, num_sources), dtype=torch.float64)  # one transfer, then sums in row order on the CPU
    sums.index_add_(1, source_ids.cpu(), columns.cpu())
    rows, tokens, loss_sums, square_sums = sums.numpy()
    return SourceLosses(rows=rows, tokens=tokens, loss_sums=loss_sums, square_sums=square_sums, rank=rank)


def _sums_of_rows(source_ids: Tensor, token_losses: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the summed losses of each row and how many tokens count, float64 [B] both, where the losses lie."""
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
    return row_sums, row_tokens


class Reports:
    """Losses of this rank's steps, put together from the parts that a trainer reports.

    Args:
        rows_per_step: rows of one step on this rank; a step is whole once so many were reported.
        over_slices: as in ``source_losses``.
    """

    def __init__(self, rows_per_step: int, over_slices: OverSlices | None = None) -> None:
        self.rows_per_step = rows_per_step
        self._over_slices = over_slices
        self._parts: dict[int, list[SourceLosses | None]] = {}
        self._num_rows: dict[int, int] = {}

    def add(
        self, batch: Mapping[str, Any], token_losses: Tensor | None, mask: Tensor | None, *, num_sources: int
    ) -> list[tuple[int, SourceLosses | None]]:
        """Take in the losses of a batch or a part of one; return the steps that are now whole, with their losses.

        A step of which some rows are missing is given as it is once a later step is reported; None if it has no losses.

        Raises:
            FeedbackError: not a batch as it was yielded, or shapes that do not belong together.
        """
        try:
            steps, source_ids = torch.as_tensor(batch["step"]), torch.as_tensor(batch["source_ids"])
        except (KeyError, TypeError) as error:
            raise FeedbackError("report needs the batch as it was yielded, with `step` and `source_ids`") from error
        if steps.ndim == 0 or bool((steps == steps[0]).all()):
            step = int(steps if steps.ndim == 0 else steps[0])
            losses = source_losses(
                source_ids, token_losses, num_sources=num_sources, mask=mask, over_slices=self._over_slices
            )
            self._add(step, source_ids, losses)
            return self._whole(step)
        whole = []
        for step in torch.unique(steps).tolist():  # rows of several steps, collated together
            mine = steps == step
            part = {"step": step, "source_ids": source_ids[mine]}
            part_losses = None if token_losses is None else token_losses[mine.to(token_losses.device)]
            part_mask = None if mask is None else mask[mine.to(mask.device)]
            whole += self.add(part, part_losses, part_mask, num_sources=num_sources)
        return whole

    def _add(self, step: int, source_ids: Tensor, losses: SourceLosses | None) -> None:
        parts = self._parts.setdefault(step, [])
        if parts and (parts[0] is None) != (losses is None):
            raise FeedbackError(f"some parts of step {step} are reported with losses and some without (None)")
        parts.append(losses)
        self._num_rows[step] = self._num_rows.get(step, 0) + len(source_ids)

    def _whole(self, newest: int) -> list[tuple[int, SourceLosses | None]]:
        whole = [step for step, num in self._num_rows.items() if step < newest or num >= self.rows_per_step]
        for step in whole:
            del self._num_rows[step]
        return [(step, _added(self._parts.pop(step))) for step in sorted(whole)]


def _added(parts: list[SourceLosses | None]) -> SourceLosses | None:
    known = [part for part in parts if part is not None]
    return add_losses(known) if known else None


def _on_grid(values: Tensor, grid: float) -> Tensor:
    return torch.round(values / grid) * grid
