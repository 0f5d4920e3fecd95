"""How the next phase is decided: from the walk's state to weights and, with a journal, to the lines that say why.

Everything is worked out before any of it is kept, so that a decision that cannot be recorded changes nothing.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace

from mixer.config.curriculum import Curriculum
from mixer.config.rules import Rule
from mixer.policies import Choice, Policy
from mixer.region.epochs import EpochCaps
from mixer.region.regimes import Regime
from mixer.region.region import Region
from mixer.sampling.phases import Kind
from mixer.sampling.randomness import passing_generator
from mixer.types import Array, State
from mixer.walk.deciders import Deciders
from mixer.walk.epochs import EpochLimits
from mixer.walk.eta_decay import eta_in_force
from mixer.walk.guard import Guard, GuardOutcome
from mixer.walk.recorder import decision_record
from mixer.walk.reports import ReportSum
from mixer.walk.schedule import Schedule
from mixer.walk.state import Decision, Learned, WalkState
from mixer.walk.written import rule_record, written_weights


@dataclass(frozen=True, eq=False)
class StartingPoint:
    """Where a decision starts from.

    Attributes:
        regime: that the phase lies in.
        is_new_regime: whether the phase is its first, or the first of a fork.
        region: of the regime, under the caps by epochs if there are any.
        limited: those caps; None if there are none.
        before: the weights that the walk goes on from, [K].
        landed: the nearest point of the region, [K].
        is_moved: whether ``landed`` was projected.
    """

    regime: Regime
    is_new_regime: bool
    region: Region
    limited: EpochCaps | None
    before: Array
    landed: Array
    is_moved: bool


@dataclass(frozen=True, eq=False)
class Move:
    """Where a phase goes.

    Attributes:
        kind: who chose: the policy, chance or the file.
        choice: the weights, and what the policy says of them.
        probability_random: with which the phase was to be random.
        is_excursion: whether the walk goes on from where it was after this phase.
    """

    kind: Kind
    choice: Choice
    probability_random: float = 0.0
    is_excursion: bool = False


class PhaseDecider:
    """Works out the next phase of a walk.

    Args:
        curriculum: the run.
        deciders: its policies.
        is_recorded: whether decisions have a line for the journal.

    Attributes:
        guard: looks at the losses first; None without one.
        epochs: the limits of ``max_epochs``.
    """

    def __init__(self, curriculum: Curriculum, deciders: Deciders, *, is_recorded: bool) -> None:
        self._curriculum, self._deciders, self._is_recorded = curriculum, deciders, is_recorded
        self.guard = None if curriculum.guard is None else Guard(curriculum.guard, curriculum.batch_tokens)
        self.epochs = EpochLimits(curriculum)

    def decide(self, now: WalkState) -> Decision:
        """Return the decision of the phase that follows the newest; ``now`` does not change."""
        newest, start, index = now.phases.newest, now.phases.frontier, now.phases.next_index
        since, cutoff = newest.start if newest else 0, start - self._curriculum.feedback_lag
        used, probes = now.inbox.ready(cutoff), now.probes.ready(cutoff)
        seen = GuardOutcome(now.learned.guard, now.plan)
        if self.guard is not None:
            replan = functools.partial(self._deciders.with_pivot, now=now)
            seen.look(self.guard, used, probes, since=since, until=start, known=now.unique_tokens, replan=replan)
        plan = seen.plan
        rule, length = plan.rule_at(start), plan.length_at(start, index)
        point = self._starting_point(now, plan, rule, length=length)
        policies = self._learned(now, plan, used, probes, since=since, until=start)

        if rule.policy is None:
            hand = written_weights(rule, point.region, landed=point.landed, newest=newest, start=start, length=length)
            move = Move("fixed", Choice(hand))
        else:
            memory = self._deciders.memory(policies, plan.policies, rule.policy)
            move = self._move(self._deciders.of(rule.policy), memory, point, now, seen, index=index)
        eta = eta_in_force(plan, start) if move.kind == "bandit" else None
        choice = move.choice
        if eta is not None:
            choice = replace(choice, weights=point.region.step(point.landed, choice.weights, eta[1]))
        regime = point.regime
        phase = now.phases.following(length=length, kind=move.kind, regime=regime.name, weights=choice.weights)
        if self._is_recorded:
            seen.lines.append(
                decision_record(
                    phase,
                    regime,
                    choice,
                    region=point.region,
                    before=point.before,
                    landed=point.landed if point.is_new_regime or point.is_moved else None,
                    is_new_regime=point.is_new_regime,
                    limited=point.limited,
                    eta=eta and eta[0],
                    rule=rule_record(self._curriculum, rule, point.region, start),
                    boundary=plan.boundary_after(start),
                    probability_random=move.probability_random,
                    counts=now.phases.counts(phase)[0],
                    used=used,
                    probes=probes,
                )
            )
        learned = Learned(policies, seen.state, point.landed if move.is_excursion else None)
        return Decision(phase, learned, used, probes, seen, point.limited)

    def _starting_point(self, now: WalkState, plan: Schedule, rule: Rule, *, length: int) -> StartingPoint:
        """Return where the phase of ``length`` steps that follows starts from."""
        newest, start = now.phases.newest, now.phases.frontier
        regime = plan.regime_at(start)
        before = now.phases.weights if now.learned.home is None else now.learned.home
        is_new_regime = newest is None or start in (regime.start, now.forked_at)
        limited = self.epochs.at(
            regime.region, now.phases, length=length, unique_tokens=now.unique_tokens, policy=rule.policy
        )
        if limited is None:
            region = regime.region
            is_fork_inside = start == now.forked_at and _is_inside(before, region)  # a fork begins where it was
            is_moved = is_new_regime and not is_fork_inside
        else:
            region = limited.region
            is_moved = not region.contains(before)
        landed = region.project(before) if is_moved else before
        return StartingPoint(regime, is_new_regime, region, limited, before, landed, is_moved)

    def _learned(
        self,
        now: WalkState,
        plan: Schedule,
        used: list[ReportSum],
        probes: list[ReportSum],
        *,
        since: int,
        until: int,
    ) -> State:
        """Return what the policies of a plan know after these reports and held-out losses, and a pivot at ``until``."""
        steps, is_redrawn = [reports.losses for reports in used], plan.redraws_at(until)

        def learn(policy: Policy, memory: State) -> State:
            for probe in probes:
                memory = policy.absorb_probe(memory, probe.losses, step=probe.first_step)
            memory = policy.absorb(memory, steps, since=since, until=until)
            return policy.after_pivot(memory) if is_redrawn else memory

        return self._deciders.learned(now.learned.policy, plan.policies, learn)

    def _move(
        self, policy: Policy, memory: State, point: StartingPoint, now: WalkState, seen: GuardOutcome, *, index: int
    ) -> Move:
        """Return a random point of the region, or what the policy chooses."""
        law, teleports = self._curriculum.phase_law, policy.teleports
        chance = {"always": 1.0, "never": 0.0}.get(teleports)
        if chance is None:
            chance = law.probability_random(index)
        if chance == 1.0 or (chance > 0.0 and law.is_random(index)):
            weights = point.region.sample(passing_generator(self._curriculum.seed, "phase.point", index))
            returns = self._curriculum.phases.after_random == "return" and teleports == "by chance"
            return Move("random", Choice(weights), chance, is_excursion=returns)
        alarmed = self.guard.in_alarm(seen.state) if self.guard else None
        choice = policy.choose(memory, point.region, point.landed, now.unique_tokens, alarmed)
        return Move(policy.kind, choice, chance)


def _is_inside(weights: Array, region: Region) -> bool:
    return bool(((weights >= region.lower) & (weights <= region.upper)).all())
