"""The plan of a walk: the regimes of its curriculum and of the pivots that came while it ran."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self

from mixer.config.curriculum import Curriculum
from mixer.config.pivots import ScheduledPivot
from mixer.config.policy import PolicyConfig
from mixer.config.rules import Rule, excluded_weights, long_ramps, plan_rules, policies_of
from mixer.errors import PivotError, WeightsError
from mixer.region.regimes import AUTOMATIC, Regime, plan_regimes, regime_at
from mixer.sampling.phases import Phase


def in_order(curriculum: Curriculum, live_pivots: Sequence[ScheduledPivot]) -> list[ScheduledPivot]:
    """Return the pivots of a curriculum and those asked for since then, in order of their first step."""
    return sorted([*curriculum.pivots, *live_pivots], key=lambda pivot: pivot.at_step)


def planned_regimes(curriculum: Curriculum, live_pivots: Sequence[ScheduledPivot]) -> tuple[Regime, ...]:
    """Return the regimes that a curriculum and the pivots asked for since then plan; of one step, the last holds."""
    changes = [(pivot.at_step, pivot.name, pivot.apply) for pivot in in_order(curriculum, live_pivots)]
    return plan_regimes(curriculum.bounds, warmup=curriculum.warmup, changes=changes)


@dataclass(frozen=True, eq=False)
class Schedule:
    """What is planned from now on. A change is a new plan.

    Attributes:
        live_pivots: those that came while the walk ran, in the order they came in.
        regimes: in order of their first step, live pivots included.
        rules: who decides in each of them.
        policies: settings of all that any rule names, the run's own first; a pivot adds to the end.
    """

    curriculum: Curriculum
    live_pivots: tuple[ScheduledPivot, ...]
    regimes: tuple[Regime, ...]
    rules: tuple[Rule, ...]
    policies: tuple[PolicyConfig, ...]

    @classmethod
    def of(cls, curriculum: Curriculum, live_pivots: Sequence[ScheduledPivot] = ()) -> Self:
        """Return the plan of a curriculum and these pivots."""
        regimes = planned_regimes(curriculum, live_pivots)
        rules = plan_rules(curriculum, in_order(curriculum, live_pivots), regimes)
        return cls(curriculum, tuple(live_pivots), regimes, rules, policies_of(curriculum, live_pivots))

    def rule_at(self, step: int) -> Rule:
        """Return who decides in the regime that ``step`` lies in."""
        pairs = zip(reversed(self.regimes), reversed(self.rules), strict=True)
        return next(rule for regime, rule in pairs if regime.start <= step)

    def rules_from(self, step: int) -> Sequence[Rule]:
        """Return who decides at ``step``, and in the regimes after it."""
        return [self.rule_at(step), *(r for g, r in zip(self.regimes, self.rules, strict=True) if g.start > step)]

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

    def redraws_at(self, step: int) -> bool:
        """Whether a pivot redraws the region at ``step``; one that only says who decides does not."""
        pivots = (*self.curriculum.pivots, *self.live_pivots)
        return any(pivot.at_step == step and not pivot.hands_over_alone for pivot in pivots)

    def has_name(self, name: str) -> bool:
        """Whether a regime has this name already."""
        return name in {regime.name for regime in self.regimes}

    def with_pivot(self, new: ScheduledPivot, *, frontier: int, check: Callable[[Regime, Rule], object]) -> Self:
        """Return the plan with one more live pivot.

        Args:
            new: the pivot, at a step that can still be decided; before ``frontier`` it cuts the newest phase.
            frontier: the first step that no phase covers yet.
            check: raises if a rule cannot decide in a regime.

        Raises:
            PivotError: no whole phases lead from one regime to the next, or a ramp is longer than its regime.
            WeightsError: weights written by hand that new bounds exclude, unless a failure asks for the pivot.
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
        plan._check_written(new, known=[*excluded_weights(self.regimes, self.rules)])
        for regime, rule in zip(plan.regimes, plan.rules, strict=True):
            check(regime, rule)
        return plan

    def _check_written(self, new: ScheduledPivot, *, known: Sequence[str]) -> None:
        """Raise if weights written by hand cannot be in a regime of this plan, unless that was so before ``new``.

        A ramp that ``new`` falls into goes on in its regime. A pivot that nobody wrote may move weights.
        """
        for name, problem in long_ramps(self.regimes, self.rules, total_steps=self.curriculum.total_steps):
            if name == new.name:
                raise PivotError(problem)
        if new.name.startswith(AUTOMATIC) and not new.has_rule:
            return
        for problem in excluded_weights(self.regimes, self.rules):
            if problem not in known:
                where = f"pivot {new.name}: "
                raise WeightsError(problem if problem.startswith(where) else where + problem)


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
