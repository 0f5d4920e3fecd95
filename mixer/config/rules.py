"""Who decides in each regime: a policy, or weights that somebody wrote by hand, reached at once or along a ramp.

A rule is in force until a pivot gives another: a pivot with neither ``weights`` nor ``policy`` leaves it as it was.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import numpy as np
from pydantic import Field, SerializerFunctionWrapHandler, ValidationInfo, field_validator, model_serializer

from mixer.config.policy import MAX_STEPS, Frozen, PolicyConfig, StaticConfig
from mixer.config.proportions import as_shares
from mixer.region.regimes import Regime
from mixer.region.region import NEARLY, Region
from mixer.types import Array

if TYPE_CHECKING:
    from mixer.config.curriculum import Curriculum
    from mixer.config.pivots import ScheduledPivot

SUM_TOLERANCE = 1e-6  # how far decimals that are rounded by hand, such as 0.333333, may miss a sum of 1
Weight = Annotated[float, Field(ge=0, le=1, strict=True)]  # strict: no "0.5" and no `true`


class WrittenWeights(Frozen):
    """The fields of weights that are written by hand; left out of what is saved where they are not given."""

    weights: dict[str, Weight] | None = Field(
        None,
        description="fixed weights by source, 0 where not named, within the regime's bounds; of sum 1, or proportions",
    )
    ramp_steps: int | None = Field(
        None, ge=1, le=MAX_STEPS, description="steps from the mixture before to `weights`, along a straight line"
    )

    @model_serializer(mode="wrap")
    def _only_what_is_given(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        data: dict[str, Any] = handler(self)
        for key in ("weights", "ramp_steps", "policy"):  # settings that older journals do not know
            if key in data and data[key] is None:
                del data[key]
        return data

    @field_validator("weights", mode="before")
    @classmethod
    def _proportions(cls, weights: Any) -> Any:
        return as_shares(weights)

    @field_validator("weights")
    @classmethod
    def _sum_to_one(cls, weights: dict[str, float] | None) -> dict[str, float] | None:
        if weights is None:
            return None
        total = math.fsum(weights.values())
        if abs(total - 1) > SUM_TOLERANCE:
            way = "lower" if total > 1 else "raise"
            raise ValueError(f"weights sum to {total:.7g}, not 1; {way} them by {abs(total - 1):.3g} in total")
        return weights

    @field_validator("ramp_steps")
    @classmethod
    def _ramp_leads_somewhere(cls, ramp_steps: int | None, info: ValidationInfo) -> int | None:
        if ramp_steps is not None and info.data.get("weights", ...) is None:
            raise ValueError(f"a ramp of {ramp_steps} steps leads nowhere without weights; give `weights` beside it")
        return ramp_steps


class RuleFields(WrittenWeights):
    """What a pivot may say of who decides from it on."""

    policy: PolicyConfig | None = Field(
        None, description="who decides; without settings, those of the run's own policy of that name"
    )

    @field_validator("policy", mode="before")
    @classmethod
    def _by_name(cls, policy: Any) -> Any:
        return {"name": policy} if isinstance(policy, str) else policy

    @field_validator("policy")
    @classmethod
    def _one_decides(cls, policy: PolicyConfig | None, info: ValidationInfo) -> PolicyConfig | None:
        is_static = isinstance(policy, StaticConfig) and policy.weights is None
        if policy is not None and not is_static and info.data.get("weights") is not None:
            raise ValueError(
                f"policy {policy.name} would never decide, as weights hold until the next pivot; leave out one of the "
                "two, or hand over at a pivot of its own"
            )
        return policy

    @property
    def has_rule(self) -> bool:
        """Whether the pivot says who decides; else it stays as it was."""
        return self.weights is not None or self.policy is not None


AnyPivot = TypeVar("AnyPivot", bound=RuleFields)


@dataclass(frozen=True)
class Rule:
    """Who decides in a regime.

    Attributes:
        policy: it decides; None where weights are written by hand.
        weights: by source, 0 where not named; None where a policy decides.
        since: the step at which the weights took force, where their ramp begins.
        ramp_steps: length of the ramp, 0 if there is none.
        place: where it is written, for messages.
    """

    policy: PolicyConfig | None
    weights: Mapping[str, float] | None = None
    since: int = 0
    ramp_steps: int = 0
    place: str = ""

    @property
    def ramp_end(self) -> int:
        """The first step after the ramp; ``since`` if there is none."""
        return self.since + self.ramp_steps

    def target(self, region: Region) -> Array:
        """Return the written weights, [K]; where the region does not hold them, its nearest point."""
        assert self.weights is not None, "asked where weights are written"
        target = np.array([self.weights.get(name, 0.0) for name in region.names])
        is_inside = bool(((target >= region.lower) & (target <= region.upper)).all())
        return target if is_inside and math.fsum(target.tolist()) == 1.0 else region.project(target)


def plan_rules(curriculum: Curriculum, pivots: Sequence[ScheduledPivot], regimes: Sequence[Regime]) -> tuple[Rule, ...]:
    """Return the rule of each regime.

    Weights of the top level begin after the warmup, which the run's policy decides.

    Args:
        curriculum: the run.
        pivots: all, in order of their first step; of one step the last that has a rule holds.
        regimes: of those pivots.
    """
    warmup_end, _ = curriculum.warmup
    rule, after_warmup = Rule(curriculum.policy), Rule(curriculum.policy)
    if curriculum.weights is not None:
        after_warmup = Rule(None, curriculum.weights, warmup_end, curriculum.ramp_steps or 0, "weights")
    left = [pivot for pivot in pivots if pivot.has_rule]
    rules, num_used = [], 0
    for regime in regimes:
        if num_used == 0 and regime.start >= warmup_end:
            rule = after_warmup
        while num_used < len(left) and left[num_used].at_step <= regime.start:
            rule, num_used = _rule_of(left[num_used]), num_used + 1
        rules.append(rule)
    return tuple(rules)


def _rule_of(pivot: ScheduledPivot) -> Rule:
    place = f"pivot {pivot.name}"
    if pivot.weights is not None:
        return Rule(None, pivot.weights, pivot.at_step, pivot.ramp_steps or 0, place)
    return Rule(pivot.policy, place=place)


def policies_of(curriculum: Curriculum, live_pivots: Iterable[RuleFields] = ()) -> tuple[PolicyConfig, ...]:
    """Return the settings of each policy that the run names, its own first; equal ones once."""
    found = [curriculum.policy]
    for pivot in (*curriculum.pivots, *live_pivots):
        if pivot.policy is not None and pivot.policy not in found:
            found.append(pivot.policy)
    return tuple(found)


def resolved(pivot: AnyPivot, own: PolicyConfig) -> AnyPivot:
    """Return a pivot whose policy, named without settings, has those of the run's ``own`` policy of that name."""
    policy = pivot.policy
    if policy is None or policy.name != own.name or policy == own or not policy.model_fields_set <= {"name"}:
        return pivot
    return pivot.model_copy(update={"policy": own})


def excluded_weights(regimes: Sequence[Regime], rules: Sequence[Rule]) -> Iterator[str]:
    """Yield a sentence for each weight in force that the bounds of a regime exclude."""
    for regime, rule, later in zip(regimes, rules, [*regimes[1:], None], strict=True):
        if rule.weights is None or (later is not None and later.start == regime.start):  # of one step the last holds
            continue
        for outside in _outside(rule.weights, regime.region):
            if regime.start == rule.since:
                yield f"{rule.place}: {outside} in regime {regime.name}; write weights within the bounds, or widen them"
            else:
                yield (
                    f"regime {regime.name} (from step {regime.start}): its bounds exclude the weights in force, of "
                    f"{rule.place}: {outside}; give its pivot `weights` or a `policy` of its own, or wider bounds"
                )


def long_ramps(regimes: Sequence[Regime], rules: Sequence[Rule], *, total_steps: int) -> Iterator[tuple[str, str]]:
    """Yield the regime and a sentence for each ramp that is longer than the regime that it begins."""
    ends = [*(regime.start for regime in regimes[1:]), total_steps]
    for regime, rule, end in zip(regimes, rules, ends, strict=True):
        if regime.start == rule.since and regime.start < end < rule.ramp_end:
            yield (
                regime.name,
                f"{rule.place}: ramp_steps is {rule.ramp_steps}, but regime {regime.name} has {end - regime.start} "
                f"steps, {regime.start} to {end - 1}; make the ramp {rule.ramp_end - end} steps shorter, or the regime "
                "longer",
            )


def _outside(weights: Mapping[str, float], region: Region) -> Iterator[str]:
    for name, floor, cap in zip(region.names, region.floors.tolist(), region.caps.tolist(), strict=True):
        weight = weights.get(name, 0.0)
        if weight < floor - NEARLY:
            yield f"the weight of {name} is {weight:.6g}, below its floor {floor:.6g}"
        elif weight > cap + NEARLY:
            why = ", as it is excluded or outside the warmup" if cap == 0 else ""
            yield f"the weight of {name} is {weight:.6g}, above its cap {cap:.6g}{why}"


def unused_weights(curriculum: Curriculum, rules: Sequence[Rule]) -> Iterator[str]:
    """Yield a sentence if the weights of the top level are never in force."""
    if curriculum.weights is not None and not any(rule.place == "weights" for rule in rules):
        yield (
            "weights: they are never in force, as a pivot that says who decides comes before the warmup's end or at "
            "it; write them into that pivot, or leave them out"
        )
