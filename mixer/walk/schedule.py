"""The plan of a walk: the regimes of its curriculum and of the pivots that came while it ran."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self

from mixer.config.curriculum import Curriculum, ScheduledPivot
from mixer.errors import PivotError
from mixer.region.regimes import Regime, plan_regimes, regime_at
from mixer.sampling.phases import Phase


def planned_regimes(curriculum: Curriculum, live_pivots: Sequence[ScheduledPivot]) -> tuple[Regime, ...]:
    """Return the regimes that a curriculum and the pivots asked for since then plan; of one step, the last holds."""
    pivots = sorted([*curriculum.pivots, *live_pivots], key=lambda pivot: pivot.at_step)
    changes = [(pivot.at_step, pivot.name, pivot.apply) for pivot in pivots]
    return plan_regimes(curriculum.bounds, warmup=curriculum.warmup, changes=changes)


@dataclass(frozen=True, eq=False)
class Schedule:
    """What is planned from now on. A change is a new plan.

    Attributes:
        live_pivots: those that came while the walk ran, in the order they came in.
        regimes: in order of their first step, live pivots included.
    """

    curriculum: Curriculum
    live_pivots: tuple[ScheduledPivot, ...]
    regimes: tuple[Regime, ...]

    @classmethod
    def of(cls, curriculum: Curriculum, live_pivots: Sequence[ScheduledPivot] = ()) -> Self:
        """Return the plan of a curriculum and these pivots."""
        return cls(curriculum, tuple(live_pivots), planned_regimes(curriculum, live_pivots))

    def regime_at(self, step: int) -> Regime:
        """Return the regime that ``step`` lies in."""
        return regime_at(self.regimes, step)

    def boundary_after(self, step: int) -> int | None:
        """Return the first step after ``step`` that begins a regime; None if none does."""
        return next((regime.start for regime in self.regimes if regime.start > step), None)

    def fits_from(self, step: int) -> bool:
        """Whether whole phases lead from ``step`` to the next regime."""
        boundary = self.boundary_after(step)
        return boundary is None or self.curriculum.phase_law.fits(boundary - step)

    def length_at(self, start: int, index: int) -> int:
        """Return the length of phase ``index`` if it begins at ``start``; see ``fits_from``."""
        boundary = self.boundary_after(start)
        return self.curriculum.phase_law.length(index, None if boundary is None else boundary - start)

    def pivots_at(self, step: int) -> bool:
        """Whether a pivot redraws the region at ``step``."""
        return any(pivot.at_step == step for pivot in (*self.curriculum.pivots, *self.live_pivots))

    def has_name(self, name: str) -> bool:
        """Whether a regime has this name already."""
        return name in {regime.name for regime in self.regimes}

    def with_pivot(self, new: ScheduledPivot, *, frontier: int, check: Callable[[Regime], object]) -> Self:
        """Return the plan with one more live pivot.

        Args:
            new: the pivot, at a step that can still be decided; before ``frontier`` it cuts the newest phase.
            frontier: the first step that no phase covers yet.
            check: raises if a policy cannot decide in a regime.

        Raises:
            PivotError: no whole phases lead from one regime to the next.
            InfeasibleRegionError, UnknownSourceError: the bounds cannot be.
        """
        plan = type(self).of(self.curriculum, [*self.live_pivots, new])
        since = min(new.at_step, frontier)
        what = "the cut" if new.at_step < frontier else "the end of the newest phase"
        boundaries = [(r.start, f"the start of {r.name}") for r in plan.regimes if r.start > since]
        problems = self.curriculum.phase_law.boundary_problems(
            boundaries, since=since, origin=f"{what} at step {since}"
        )
        if problems:
            raise PivotError(f"pivot {new.name}: {problems[0]}")
        for regime in plan.regimes:
            check(regime)
        return plan


class PlannedStarts:
    """Where the phases to come begin, worked out as far as it was asked for, until a phase or the plan changes."""

    def __init__(self) -> None:
        self._of: tuple[Schedule | None, Phase | None] = (None, None)
        self._starts: list[int] = []

    def beyond(self, step: int, plan: Schedule, newest: Phase) -> list[int]:
        """Return first steps from the end of the newest phase on, in order, at least up to one after ``step``."""
        if self._of != (plan, newest):
            self._of, self._starts = (plan, newest), [newest.end]
        while (start := self._starts[-1]) <= step:
            self._starts.append(start + plan.length_at(start, newest.index + len(self._starts)))
        return self._starts
