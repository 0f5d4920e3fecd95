"""Per-source losses from the per-token losses of a batch, summed in float64 where the losses lie."""

from __future__ import annotations

import torch
from torch import Tensor

from mixer.errors import FeedbackError
from mixer.rewards import SourceLosses


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
    counted = (row_tokens > 0).to(torch.float64)  # a row without a token that counts is no observation
    columns = torch.stack([counted, row_tokens, row_sums, counted * (row_sums / row_tokens.clamp(min=1)) ** 2])
    sums = torch.zeros((4, num_sources), dtype=torch.float64)  # one transfer, then sums in row order on the CPU
    sums.index_add_(1, source_ids.cpu(), columns.cpu())
    rows, tokens, loss_sums, square_sums = sums.numpy()
    return SourceLosses(rows=rows, tokens=tokens, loss_sums=loss_sums, square_sums=square_sums, rank=rank)
