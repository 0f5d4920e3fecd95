"""What a report of losses may say at most: what its batch can hold. Checked as a report comes in, never as it is read.

A number beyond these bounds is a mistake or worse, and one of them would turn the mixture for the rest of the run.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn, Self

import numpy as np

from mixer.config.curriculum import Curriculum
from mixer.errors import FeedbackError, InvalidLossError, RepeatedRowsError
from mixer.losses import SourceLosses
from mixer.types import IntArray

# of ln(vocabulary), what a model that knows nothing loses a token: tied embeddings that were left at unit variance
# begin with 40 to 70 times as much at a width of 768, and no other sound model is so wrong
MOST_LN_VOCAB = 100.0
LARGEST_VOCAB = 2**32  # of token ids in rows, where the curriculum does not say how many there are
SLACK = 0.01  # of square sums, which trainers may work out in bfloat16
LEAST_SLACK = 1e-3  # nats squared, rounding of losses near 0


@dataclass(frozen=True)
class Limits:
    """What the reports of one step of a run may say.

    Attributes:
        batch_rows: B, rows of the global batch; no rank has less than one, so ranks are below it.
        row_tokens: T, tokens of a row that may carry a loss.
        nats: largest mean loss of a token, and of a row.
    """

    batch_rows: int
    row_tokens: int
    nats: float

    @classmethod
    def of(cls, curriculum: Curriculum) -> Self:
        """Return the limits of a run."""
        trained = curriculum.tokenizer and curriculum.tokenizer.train_vocab_size
        vocab = curriculum.vocab_size or trained or LARGEST_VOCAB
        return cls(curriculum.batch_rows, curriculum.sequence_length, MOST_LN_VOCAB * math.log(max(vocab, 2)))

    def check(self, losses: SourceLosses, names: Sequence[str], *, step: int) -> None:
        """Raise unless the numbers of one report can be of one batch; it went through ``check_losses`` before.

        With n rows, N tokens, a loss sum S and a square sum Q, the rows have t tokens each, ``lo <= t <= hi``, where
        ``hi = min(T, N - n + 1)`` and ``lo = max(1, N - (n - 1) T)``. Then, by Cauchy and Schwarz,
        ``S^2 / (hi N) <= Q <= (S / lo)^2``, and no more than n times ``nats^2``. Q = 0 says nothing.

        Raises:
            FeedbackError: a rank, rows, tokens or squares that no batch of this run has.
            InvalidLossError: a loss that no model has.
        """
        rows, tokens, sums, squares = losses.rows, losses.tokens, losses.loss_sums, losses.square_sums
        if losses.rank >= self.batch_rows:
            raise FeedbackError(
                f"step {step}: rank {losses.rank} reports, but {self.batch_rows} rows have no more ranks than that"
            )
        is_sound = rows <= self.batch_rows
        if is_sound.all():  # so that no product is too large
            is_sound = (tokens <= rows * self.row_tokens) & (sums <= tokens * self.nats)
            is_sound &= squares <= rows * self.nats**2
        if is_sound.all():
            high = np.minimum(self.row_tokens, tokens - rows + 1)
            low = np.maximum(1, tokens - (rows - 1) * self.row_tokens)
            of_sums = sums * sums
            is_sound = of_sums * (1 - SLACK) <= (squares + LEAST_SLACK) * (high * tokens)
            is_sound &= (squares - LEAST_SLACK) * (low * low) <= of_sums * (1 + SLACK)
            is_sound |= squares == 0
            if is_sound.all():
                return  # nearly always; what follows finds the words
        self._refuse(losses, int(np.flatnonzero(~is_sound)[0]), names, step)

    def _refuse(self, losses: SourceLosses, i: int, names: Sequence[str], step: int) -> NoReturn:
        rows, tokens, total = int(losses.rows[i]), int(losses.tokens[i]), float(losses.loss_sums[i])
        if rows > self.batch_rows:
            raise FeedbackError(
                f"step {step} reports {rows} rows of {names[i]}, but its batch has {self.batch_rows} in all"
            )
        if tokens > rows * self.row_tokens:
            raise FeedbackError(
                f"step {step} reports {tokens} tokens in {rows} rows of {names[i]}, but a row has {self.row_tokens} "
                "(sequence_length); count the tokens that carry a loss"
            )
        if total > tokens * self.nats:
            raise InvalidLossError(
                f"step {step}: {names[i]} reports a loss of {total / tokens:.6g} nats a token ({total:.6g} over "
                f"{tokens} tokens), and at most {self.nats:.6g} are believed, {MOST_LN_VOCAB:g} times ln(vocabulary). "
                "Report sums of cross entropies in nats, or stop and look at the model: nothing was learned from this"
            )
        raise FeedbackError(
            f"step {step}: {names[i]} reports {float(losses.square_sums[i]):.6g} for the sum over rows of the squared "
            f"mean loss of a row, which {rows} rows of {tokens} tokens with a loss sum of {total:.6g} cannot have; "
            "leave square sums out (0) if you have none"
        )

    def check_left(
        self, losses: SourceLosses, drawn: IntArray | None, told: IntArray | None, names: Sequence[str], *, step: int
    ) -> None:
        """Raise unless the rows of a report are among those of its step that nobody reported before.

        Args:
            losses: the report.
            drawn: rows of each source in the batch of the step, [K]; None where a trainer draws for itself, so that
                only ``batch_rows`` of any source are known.
            told: rows of each source that other ranks reported, [K]; None if those were all.
            names: of the sources.
            step: of the report.

        Raises:
            FeedbackError: the batch never had them.
            RepeatedRowsError: it had, but others reported them.
        """
        rows = losses.rows
        if drawn is not None and (rows > drawn).any():
            i = int(np.flatnonzero(rows > drawn)[0])
            raise FeedbackError(
                f"step {step} reports {rows[i]} rows of {names[i]}, but its batch has {drawn[i]} of it; check the "
                "order of the sources in the report, and report a batch under its own step"
            )
        num, already = int(rows.sum()), self.batch_rows if told is None else int(told.sum())
        if drawn is None and num > self.batch_rows:
            raise FeedbackError(f"step {step} reports {num} rows, but its batch has {self.batch_rows}")
        is_left = told is not None and num + already <= self.batch_rows
        if drawn is not None and told is not None:
            is_left = bool((told + rows <= drawn).all())
        if num and not is_left:
            share = "all" if already >= self.batch_rows else f"{already} of the"
            raise RepeatedRowsError(
                f"step {step} reports {num} rows more, but {share} {self.batch_rows} rows of its batch were reported "
                "before; report each row once"
            )
