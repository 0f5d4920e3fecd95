"""Per-source losses from what a trainer says of a batch, summed in float64 where the losses lie.

The sum of each row is brought to a grid, so that sums over rows, ranks and steps are exact: they do not depend on how
many ranks there are, nor on the order in which reports come. Each report moves two numbers a row to the CPU, once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mixer.errors import FeedbackError, InvalidLossError
from mixer.losses import SQUARE_GRID, SUM_GRID, SourceLosses, add_losses
from mixer.sources.masks import IGNORED_LABEL

OverSlices = Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor, bool]]


class LossAccumulator:
    """Losses of this rank's steps, put together from the parts that a trainer reports.

    Args:
        rows_per_step: rows of one step on this rank; a step is whole once so many were reported.
        tokens_per_row: T, or the tokens of this rank's slice of a row in context parallelism.
        names: of the K sources.
        over_slices: given sums and tokens of each row, float64 [b], and how many tokens a row has here (0 without
            losses), returns those of whole rows and whether there are any; None if rows are whole here.
    """

    def __init__(
        self, rows_per_step: int, tokens_per_row: int, names: Sequence[str], over_slices: OverSlices | None = None
    ) -> None:
        self.rows_per_step, self.tokens_per_row, self.names = rows_per_step, tokens_per_row, tuple(names)
        self._over_slices = over_slices
        self.clear()

    def clear(self) -> None:
        """Forget the parts of steps that are not whole."""
        self._parts: dict[int, list[SourceLosses | None]] = {}
        self._num_rows: dict[int, int] = {}
        self._unsound: dict[int, str] = {}  # by step, which row has a loss that cannot be

    def add(
        self,
        batch: Mapping[str, Any],
        losses: Tensor | None,
        mask: Tensor | None = None,
        num_tokens: Tensor | None = None,
    ) -> list[tuple[int, SourceLosses | None]]:
        """Take in the losses of a batch or a part of one; return the steps that are now whole, with their losses.

        A step of which some rows are missing is given as it is once a later step is reported; None if it has no losses.

        Args:
            batch: with ``step``, ``source_ids`` int [b] and, if tokens are masked there, ``labels``.
            losses: of each token in nats, [b, T], [b * T] or [1, b * T], on any device; with ``num_tokens`` the sum
                of each row, [b].
            mask: tokens that count, in one of the same three shapes; those with a label of -100 never do.
            num_tokens: tokens that count in each row, int [b].

        Raises:
            FeedbackError: not a batch as it was yielded, or shapes and counts that do not belong together.
        """
        try:
            steps, sources = torch.as_tensor(batch["step"]).cpu(), torch.as_tensor(batch["source_ids"]).cpu()
        except (KeyError, TypeError) as error:
            raise FeedbackError("report needs the batch as it was yielded, with `step` and `source_ids`") from error
        if sources.ndim > 1 or (steps.ndim and steps.shape != sources.shape):
            raise FeedbackError(
                f"source_ids have shape {list(sources.shape)} and step {list(steps.shape)}; each row has one "
                "source, [b]: do not collate whole batches (DataLoader(dataset, batch_size=None))"
            )
        sources = sources.reshape(-1)
        if sources.numel() and not 0 <= int(sources.min()) <= int(sources.max()) < len(self.names):
            raise FeedbackError(
                f"source_ids are from {int(sources.min())} to {int(sources.max())}, but these are losses of "
                f"{len(self.names)} sources; report what was given out as it was"
            )
        sums, tokens, has_losses = self._sums(batch.get("labels"), losses, mask, num_tokens, len(sources))
        steps = steps.expand(len(sources))
        whole = []
        for step in torch.unique(steps).tolist():
            mine = steps == step
            self._add(step, sources[mine], sums[mine], tokens[mine], has_losses=has_losses)
            whole += self._whole(step)
        return whole

    def located(self, step: int, error: InvalidLossError) -> InvalidLossError:
        """Return an error about the losses of a step with the row that is the cause, if it is one of this rank's."""
        row = self._unsound.pop(step, None)
        return error if row is None else InvalidLossError(f"{error} ({row})")

    def _sums(
        self,
        labels: Tensor | None,
        losses: Tensor | None,
        mask: Tensor | None,
        num_tokens: Tensor | None,
        num_rows: int,
    ) -> tuple[Tensor, Tensor, bool]:
        """Return summed losses and tokens of each whole row, float64 [b] on the CPU, and whether there are losses."""
        if losses is None:
            sums = tokens = torch.zeros(num_rows, dtype=torch.float64)
            return (sums, tokens, False) if self._over_slices is None else self._over_slices(sums, tokens, 0)
        width = self.tokens_per_row
        if self._over_slices is not None and num_tokens is None and losses.ndim == 2 and len(losses) == num_rows:
            width = losses.shape[1]  # ranks add up theirs, so that all hear of a slice of another width
        kept = self._kept(labels, mask, num_rows, width)
        if num_tokens is None:
            sums, tokens = _sums_of_rows(_by_row("token losses", losses, num_rows, width), kept)
        else:
            sums, tokens = self._given_sums(losses, num_tokens, kept, num_rows)
        return (sums, tokens, True) if self._over_slices is None else self._over_slices(sums, tokens, width)

    def _kept(self, labels: Tensor | None, mask: Tensor | None, num_rows: int, width: int) -> Tensor | None:
        """Return which tokens count, bool [b, T]; None if all do."""
        kept = None
        is_slice = self._over_slices is not None
        if is_slice and labels is not None and labels.shape[-1:] != (width,):
            if mask is None and bool((labels == IGNORED_LABEL).any()):
                raise FeedbackError(
                    f"the batch has labels of {IGNORED_LABEL}, but this rank reports a slice of {width} tokens "
                    " of each row and does not say which; give the labels of the slice, or mask="
                )
            labels = None
        if labels is not None and labels.dtype.is_signed:  # compact labels hold no negative numbers
            kept = _by_row("labels", labels, num_rows, width) != IGNORED_LABEL
            if kept.device.type == "cpu" and bool(kept.all()):  # on a device that would have to be waited for
                kept = None
        if mask is None:
            return kept
        given = _by_row("the mask", mask, num_rows, width).to(torch.bool)
        return given if kept is None else given & kept.to(given.device)

    def _given_sums(
        self, sums: Tensor, num_tokens: Tensor, kept: Tensor | None, num_rows: int
    ) -> tuple[Tensor, Tensor]:
        """Return sums and counts of rows that a trainer has itself, float64 [b] on the CPU."""
        sums, counts = torch.as_tensor(sums).detach().cpu().double(), torch.as_tensor(num_tokens).cpu().double()
        if not tuple(sums.shape) == tuple(counts.shape) == (num_rows,):
            raise FeedbackError(
                f"the sums of rows have shape {list(sums.shape)} and num_tokens {list(counts.shape)}, but the batch "
                f"has {num_rows} rows; both are [{num_rows}]"
            )
        most = torch.full_like(counts, self.tokens_per_row) if kept is None else kept.sum(dim=1).cpu().double()
        for i in torch.nonzero((counts < 0) | (counts > most) | (counts != counts.round())).flatten()[:1].tolist():
            raise FeedbackError(
                f"row {i} reports {counts[i]:g} tokens, but {most[i]:g} of its {self.tokens_per_row} can count: those "
                "that are not masked, and whose label is not -100"
            )
        for i in torch.nonzero((counts == 0) & (sums != 0)).flatten()[:1].tolist():
            raise FeedbackError(f"row {i} reports a loss of {sums[i]:.6g}, but no tokens")
        return sums, counts

    def _add(self, step: int, sources: Tensor, row_sums: Tensor, row_tokens: Tensor, *, has_losses: bool) -> None:
        """Add rows of one step: their sources, int [b], summed losses and tokens that count, float64 [b]."""
        parts = self._parts.setdefault(step, [])
        if parts and (parts[0] is None) == has_losses:
            raise FeedbackError(f"some parts of step {step} are reported with losses and some without (None)")
        parts.append(self._by_source(step, sources, row_sums, row_tokens) if has_losses else None)
        self._num_rows[step] = self._num_rows.get(step, 0) + len(sources)

    def _by_source(self, step: int, sources: Tensor, row_sums: Tensor, row_tokens: Tensor) -> SourceLosses:
        row_sums = _on_grid(row_sums, SUM_GRID)
        for i in torch.nonzero(~torch.isfinite(row_sums) | (row_sums < 0)).flatten()[:1].tolist():
            row = self._num_rows.get(step, 0) + i
            self._unsound[step] = f"row {row} of this rank's, from {self.names[int(sources[i])]}: {float(row_sums[i])}"
        counted = (row_tokens > 0).double()  # a row without a token that counts is no observation
        row_squares = _on_grid((row_sums / row_tokens.clamp(min=1)) ** 2, SQUARE_GRID)
        sums = torch.zeros((4, len(self.names)), dtype=torch.float64)
        sums.index_add_(1, sources, torch.stack([counted, row_tokens, row_sums, counted * row_squares]))
        rows, tokens, loss_sums, square_sums = sums.numpy()
        return SourceLosses(rows=rows, tokens=tokens, loss_sums=loss_sums, square_sums=square_sums)

    def _whole(self, newest: int) -> list[tuple[int, SourceLosses | None]]:
        whole = [step for step, num in self._num_rows.items() if step < newest or num >= self.rows_per_step]
        for step in whole:
            del self._num_rows[step]
        return [(step, _added(self._parts.pop(step))) for step in sorted(whole)]


def _added(parts: list[SourceLosses | None]) -> SourceLosses | None:
    known = [part for part in parts if part is not None]
    return add_losses(known) if known else None


def _by_row(what: str, values: Tensor, num_rows: int, width: int) -> Tensor:
    """Return one value per token as [b, width].

    Raises:
        FeedbackError: values of another shape, which may be of other tokens.
    """
    values = torch.as_tensor(values).detach()
    if tuple(values.shape) not in ((num_rows, width), (num_rows * width,), (1, num_rows * width)):
        raise FeedbackError(
            f"{what} have shape {list(values.shape)}, but the batch has {num_rows} rows of {width} tokens; "
            f"give one value for each, as [{num_rows}, {width}], [{num_rows * width}] or [1, {num_rows * width}] "
            "(losses: cross_entropy with reduction='none', or the sum of each row and num_tokens=)"
        )
    return values.reshape(num_rows, width)


def _sums_of_rows(losses: Tensor, kept: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the sums of token losses [b, T] and how many tokens count, float64 [b] on the CPU: one transfer."""
    if losses.device.type == "mps":  # Apple's GPUs have no float64
        losses = losses.cpu()
    if kept is None:
        sums = losses.sum(dim=1, dtype=torch.float64).cpu()
        return sums, torch.full_like(sums, losses.shape[1])
    kept = kept.to(losses.device)
    sums = torch.where(kept, losses, torch.zeros_like(losses)).sum(dim=1, dtype=torch.float64)
    sums, tokens = torch.stack([sums, kept.sum(dim=1, dtype=torch.float64)]).cpu()
    return sums, tokens


def _on_grid(values: Tensor, grid: float) -> Tensor:
    return torch.round(values / grid) * grid
