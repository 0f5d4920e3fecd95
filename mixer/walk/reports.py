"""Reports that one decision learns from together: their sum, and of each source the lowest of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from mixer.journal.records import losses_to_record, record_to_losses
from mixer.losses import SourceLosses, add_losses
from mixer.types import Array


@dataclass(frozen=True, eq=False)
class ReportSum:
    """Reports that one decision learns from together.

    Attributes:
        first_step, last_step: of the reports.
        losses: their sum.
        reports: how many there are, from any number of ranks.
        lowest: of each source the report with the lowest mean loss, as ``lowest_of`` gives it; None where the sum is
            one report, or stands for them all.
        due: the decision that they are kept for learns from all that there is of steps below this one; 0 for any that
            learns from ``last_step``.
    """

    first_step: int
    last_step: int
    losses: SourceLosses
    reports: int = 1
    lowest: Array | None = None
    due: int = 0

    def joined(self, other: ReportSum, *, keeps_lowest: bool) -> ReportSum:
        """Return both as one; losses lie on a grid, so the sum is exact in any order."""
        return ReportSum(
            min(self.first_step, other.first_step),
            max(self.last_step, other.last_step),
            add_losses([self.losses, other.losses]),
            self.reports + other.reports,
            lower(self.lows(), other.lows()) if keeps_lowest else None,
            max(self.due, other.due),
        )

    def lows(self) -> Array:
        """Return the lowest report of each source, [4, K]."""
        return lowest_of(self.last_step, self.losses) if self.lowest is None else self.lowest

    def to_record(self) -> dict[str, Any]:
        """Return plain data for a saved state."""
        return {
            "first_step": self.first_step,
            "last_step": self.last_step,
            "reports": self.reports,
            "due": self.due,
            "lowest": None if self.lowest is None else self.lowest.tolist(),
            **losses_to_record(self.losses),
        }

    @classmethod
    def of(cls, record: Mapping[str, Any], num_sources: int) -> ReportSum:
        """Return what ``to_record`` was called on."""
        return cls(
            record["first_step"],
            record["last_step"],
            record_to_losses(record, num_sources),
            record["reports"],
            None if record["lowest"] is None else np.array(record["lowest"]),
            record["due"],
        )


def lowest_of(step: int, losses: SourceLosses) -> Array:
    """Return one report as the lowest of each source: loss sums, tokens, rows and step, [4, K]; zeros without rows."""
    steps = np.where(losses.rows > 0, step, 0)
    return np.stack([losses.loss_sums, losses.tokens, losses.rows, steps]).astype(np.float64)


def lower(one: Array, other: Array) -> Array:
    """Return the lower of two for each source, [4, K]; ties go by step, rows and tokens, so that order is nothing."""
    ranks = [
        np.divide(lows[0], lows[1], out=np.full(lows.shape[1], np.inf), where=lows[1] > 0) for lows in (one, other)
    ]
    is_lower, is_equal = ranks[1] < ranks[0], (ranks[1] == ranks[0]) & (other[1] > 0)
    if is_equal.any():
        for row in (3, 2, 1):
            is_lower |= is_equal & (other[row] < one[row])
            is_equal &= other[row] == one[row]
    return np.where(is_lower, other, one)
