"""The policies of a walk, each with a memory of its own.

All learn from every report, whoever decides, so that one that takes over at a pivot knows the whole run. A policy that
a pivot asked for while the run goes on is the first to name begins there with nothing learned: reports that decisions
have used are in the journal alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mixer.config.curriculum import Curriculum
from mixer.config.pivots import ScheduledPivot
from mixer.config.policy import PolicyConfig
from mixer.config.policy_problems import place_of_goal, places_of_rule, plans_ahead, policy_problems, unknown_names
from mixer.config.probes import drawn_target_problems
from mixer.config.rules import Rule, policies_of
from mixer.errors import ConfigError, PivotError, UnknownSourceError
from mixer.policies import Policy, make_policy
from mixer.region.regimes import Regime
from mixer.types import State
from mixer.walk.schedule import Schedule
from mixer.walk.state import WalkState

Learn = Callable[[Policy, State], State]


class Deciders:
    """Policies by their settings. What they have learned is one state: the run's own under plain names, others' apart.

    Args:
        curriculum: the run.
        own: decides in the place of the policy that the curriculum names.
    """

    def __init__(self, curriculum: Curriculum, *, own: Policy | None = None) -> None:
        self._curriculum = curriculum
        self._made: list[tuple[PolicyConfig, Policy]] = [(curriculum.policy, own or make_policy(curriculum))]
        for config in policies_of(curriculum)[1:]:
            self.of(config)

    def of(self, config: PolicyConfig) -> Policy:
        """Return the policy of these settings; raises ConfigError where they cannot work."""
        for known, policy in self._made:
            if known is config or known == config:
                return policy
        made = make_policy(self._curriculum, config)
        self._made.append((config, made))
        return made

    @property
    def is_by_step(self) -> bool:
        """Whether a policy of the file learns from steps one by one."""
        return any(self.of(config).is_by_step for config in policies_of(self._curriculum))

    @property
    def in_sums(self) -> bool:
        """Whether decisions use reports that they could be given as one sum, whole or not at all."""
        return all(self.of(config).in_sums for config in policies_of(self._curriculum))

    def initial(self) -> State:
        """Return an empty memory of each policy of the file."""
        return self.learned({}, policies_of(self._curriculum), lambda policy, memory: memory)

    def learned(self, state: State, configs: Sequence[PolicyConfig], learn: Learn) -> State:
        """Return the state after each of these policies, the run's own first, has learned.

        Args:
            state: before; of a policy that it does not know, nothing was learned.
            configs: of the policies, in an order that never changes; more may follow later.
            learn: from a policy and its memory to its next memory.
        """
        return joined([learn(self.of(config), self.memory(state, configs, config)) for config in configs])

    def memory(self, state: State, configs: Sequence[PolicyConfig], config: PolicyConfig) -> State:
        """Return what the policy of ``config``, one of ``configs``, has learned."""
        part = part_of(state, configs.index(config))
        return part or self.of(config).initial(len(self._curriculum.names))

    def with_pivot(self, plan: Schedule, new: ScheduledPivot, *, now: WalkState) -> Schedule:
        """Return a plan with one more live pivot; raise as ``Walk.pivot`` does if nobody could decide under it.

        Args:
            plan: in force, perhaps with pivots that ``now`` does not have yet.
            new: the pivot.
            now: of the walk.
        """
        check_live_rule(self._curriculum, new, is_by_step=self.is_by_step)
        configs = policies_of(self._curriculum, [*plan.live_pivots, new])

        def check(regime: Regime, rule: Rule) -> None:  # a policy may have bounds of its own
            if rule.policy is not None:
                inside = regime.region.project(regime.region.lower)
                memory = self.memory(now.learned.policy, configs, rule.policy)
                self.of(rule.policy).choose(memory, regime.region, inside, now.unique_tokens)

        return plan.with_pivot(new, frontier=now.phases.frontier, check=check)


def joined(parts: Sequence[State]) -> State:
    """Return the memories of several policies as one state: the first under its names, the i-th under ``i.name``."""
    later = {f"{i}.{name}": values for i, part in enumerate(parts[1:], 1) for name, values in part.items()}
    return {**parts[0], **later} if later else parts[0]


def part_of(state: Mapping[str, Any], i: int) -> dict[str, Any]:
    """Return the i-th of the memories that ``joined`` was given; empty if there is none."""
    if i == 0:
        return {name: values for name, values in state.items() if not name.partition(".")[0].isdigit()}
    prefix = f"{i}."
    return {name.removeprefix(prefix): values for name, values in state.items() if name.startswith(prefix)}


def check_live_rule(curriculum: Curriculum, pivot: ScheduledPivot, *, is_by_step: bool) -> None:
    """Raise unless what a pivot of a running run says of who decides can be.

    Args:
        curriculum: the run.
        pivot: asked for while it goes on.
        is_by_step: whether the run keeps the reports of each step apart.

    Raises:
        UnknownSourceError: weights, or a table of the policy, that name no source.
        ConfigError: a policy that cannot decide in this run.
        PivotError: a policy that the run could not take in any more.
    """
    if not pivot.has_rule:
        return
    where = f"pivot {pivot.name}: "
    places = [*places_of_rule(pivot, where)]
    if unknown := [*unknown_names(curriculum, [*places, place_of_goal(pivot, where)])]:
        raise UnknownSourceError(unknown)
    problems = [*drawn_target_problems(curriculum, places)]
    if pivot.policy is not None:
        problems += [where + problem for problem in policy_problems(curriculum, pivot.policy)]
    if problems:
        raise ConfigError(problems)
    if pivot.policy is None or pivot.policy in policies_of(curriculum):
        return
    if plans_ahead(pivot.policy) and not curriculum.is_planned:
        raise PivotError(
            f"{where}policy {pivot.policy.name} with these settings plans with total_steps, which may change while "
            "this run goes on; give it a horizon or leave out eta_decay where it has them, choose another policy, or "
            "fork the run with a file whose pivot names it"
        )
    if make_policy(curriculum, pivot.policy).is_by_step and not is_by_step:
        raise PivotError(
            f"{where}policy {pivot.policy.name} learns from each step by itself, but this run adds reports up; choose "
            "another policy, or fork the run with a file whose pivot names it"
        )
