"""Losses as trainers report them, by source: counts and sums on a grid, so that they add up exactly in any order."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Self

import numpy as np
import numpy.typing as npt

from mixer.errors import FeedbackError, InvalidLossError
from mixer.types import Array, IntArray

# sums on these grids add up exactly in float64, in any order, up to 10^11 nats or 5 * 10^8 nats squared a phase
SUM_GRID = 2.0**-16  # nats, 10^-8 of the loss of a row of 1,000 tokens
SQUARE_GRID = 2.0**-24  # nats squared
MOST_COUNT = 2**53  # rows or tokens: whole numbers beyond are not exact in float64


@dataclass(frozen=True, eq=False)
class SourceLosses:
    """What one rank saw in one step, by source.

    Attributes:
        rows: rows of each source, [K].
        tokens: tokens of each source that carried a loss, [K].
        loss_sums: sum of their losses in nats, [K].
        square_sums: sum over rows of the squared mean loss of a row, [K]; zeros if the trainer does not say.
        rank: who reports.
    """

    rows: IntArray
    tokens: IntArray
    loss_sums: Array
    square_sums: Array = field(default_factory=lambda: np.zeros(0))
    rank: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "rows", _counts("rows", self.rows))
        object.__setattr__(self, "tokens", _counts("tokens", self.tokens))
        object.__setattr__(self, "rank", operator.index(self.rank))  # plain data, also if numpy gave it
        object.__setattr__(self, "loss_sums", np.asarray(self.loss_sums, dtype=np.float64))
        squares = np.asarray(self.square_sums, dtype=np.float64)
        object.__setattr__(self, "square_sums", squares if squares.size else np.zeros(self.rows.shape))

    def on_grid(self) -> Self:
        """Return the same with its sums brought to the grids on which adding is exact."""
        new = object.__new__(type(self))  # the rest is sound already; once per report
        new.__dict__.update(
            self.__dict__,
            loss_sums=np.rint(self.loss_sums / SUM_GRID) * SUM_GRID,
            square_sums=np.rint(self.square_sums / SQUARE_GRID) * SQUARE_GRID,
        )
        return new

    @classmethod
    def from_means(
        cls,
        names: Sequence[str],
        means: Mapping[str, float],
        *,
        rows: Mapping[str, int],
        tokens_per_row: int,
        rank: int = 0,
    ) -> Self:
        """Build from mean losses in nats per token by source name, for trainers that keep no sums."""
        counts = np.array([rows.get(name, 0) for name in names], dtype=np.int64)
        unknown = sorted((set(means) | set(rows)) - set(names))
        if unknown:
            raise FeedbackError(f"losses of unknown source {unknown[0]!r}; the sources are {', '.join(names)}")
        losses = np.array([means.get(name, 0.0) for name in names])
        tokens = counts * tokens_per_row
        return cls(rows=counts, tokens=tokens, loss_sums=losses * tokens, square_sums=losses**2 * counts, rank=rank)

    def first(self, num_sources: int) -> SourceLosses:
        """Return those of the first ``num_sources``: the sources of a probe, without its targets."""
        if self.rows.size == num_sources:
            return self
        fields = ("rows", "tokens", "loss_sums", "square_sums")
        return SourceLosses(**{name: getattr(self, name)[:num_sources] for name in fields}, rank=self.rank)

    def goal(self, wanted: Array) -> float | None:
        """Return the mean loss of a probe over what is wanted, as far as that has rows; None where nothing has.

        Args:
            wanted: weight of each of the K sources and M targets, >= 0, [K + M].
        """
        means, weights = self.means(), np.where(self.tokens > 0, wanted, 0.0)
        total = float(weights.sum())
        return float(weights @ np.where(weights > 0, means, 0.0)) / total if total > 0 else None

    def means(self) -> Array:
        """Return the mean loss per token of each source, nats, [K]; NaN where there is none."""
        means = np.full(self.tokens.size, np.nan)
        np.divide(self.loss_sums, self.tokens, out=means, where=self.tokens > 0)
        return means


def _counts(what: str, values: npt.ArrayLike) -> IntArray:
    given = np.asarray(values)
    if given.dtype == np.int64:  # the usual case, once per report
        return given.copy()
    is_number = given.dtype.kind in "iufb"  # Python integers that no type of NumPy holds are none
    if not is_number or not ((abs(given) <= MOST_COUNT) & (given == np.rint(given))).all():  # also NaN
        raise FeedbackError(f"{what} are {given.tolist()}; they are whole numbers, at most 2^53")
    return given.astype(np.int64)


def check_losses(losses: SourceLosses, names: Sequence[str], *, step: int) -> None:
    """Raise unless every number can be learned from; the message names the source, the step and the value."""
    rows, tokens, sums, squares = losses.rows, losses.tokens, losses.loss_sums, losses.square_sums
    shape = (len(names),)
    if losses.rank >= 0 and rows.shape == tokens.shape == sums.shape == squares.shape == shape:
        is_sound = (rows >= 0) & (tokens >= rows) & (sums >= 0) & (squares >= 0) & (np.maximum(sums, squares) < np.inf)
        if np.count_nonzero(rows) < rows.size:
            is_sound &= (rows > 0) | (sums + tokens <= 0)
        if np.count_nonzero(is_sound) == rows.size:
            return  # nearly always; what follows finds the words, if there are any
    check_shapes(losses, names, step=step)
    if losses.rank < 0:
        raise FeedbackError(f"step {step}: rank is {losses.rank}; ranks count from 0")
    bad_sums = ~np.isfinite(losses.loss_sums) | (losses.loss_sums < 0)
    bad_squares = ~np.isfinite(losses.square_sums) | (losses.square_sums < 0)
    for i in np.flatnonzero(bad_sums | bad_squares)[:1]:
        value = losses.loss_sums[i] if bad_sums[i] else losses.square_sums[i]
        raise InvalidLossError(
            f"step {step}: loss of {names[i]} is {value}; losses are finite and not negative. "
            "Stop and look at the model: nothing was learned from this step"
        )
    for i in np.flatnonzero((losses.rows < 0) | (losses.tokens < losses.rows))[:1]:
        raise FeedbackError(
            f"step {step}: {names[i]} reports {losses.rows[i]} rows and {losses.tokens[i]} tokens; "
            "counts are not negative and a row has at least one token"
        )
    for i in np.flatnonzero((losses.rows == 0) & ((losses.loss_sums > 0) | (losses.tokens > 0)))[:1]:
        raise FeedbackError(f"step {step}: {names[i]} reports a loss of {losses.loss_sums[i]:.6g}, but no rows")


def check_shapes(losses: SourceLosses, names: Sequence[str], *, step: int) -> None:
    """Raise FeedbackError unless there is one number of each kind for each source."""
    for what in ("rows", "tokens", "loss_sums", "square_sums"):
        shape = getattr(losses, what).shape
        if shape != (len(names),):
            raise FeedbackError(f"step {step}: {what} have shape {shape}, but there are {len(names)} sources")


def add_losses(parts: Sequence[SourceLosses]) -> SourceLosses:
    """Return the sum of several reports, added in the order given so that every replay rounds alike."""
    if len(parts) == 1 and parts[0].rank == 0:
        return parts[0]
    names = ("rows", "tokens", "loss_sums", "square_sums")
    if len(parts) == 2:  # once per report; `np.sum` is for many
        return SourceLosses(**{name: getattr(parts[0], name) + getattr(parts[1], name) for name in names})
    return SourceLosses(**{name: np.sum([getattr(part, name) for part in parts], axis=0) for name in names})
