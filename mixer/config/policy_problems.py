"""What is wrong with a policy in a run, as far as its settings alone do not say."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from mixer.config.policy import (
    AioliConfig,
    LinearConfig,
    PolicyConfig,
    ProportionalConfig,
    StaticConfig,
    UnimaxConfig,
    WaterFillingConfig,
)
from mixer.config.probes import goal_problems, probe_policy_problems
from mixer.config.problems import suggestion
from mixer.config.rules import WrittenWeights, policies_of

if TYPE_CHECKING:
    from mixer.config.curriculum import Curriculum

MAX_PAIRED_SOURCES = 256  # of policies that keep a number for every pair of sources


def plans_ahead(policy: PolicyConfig) -> bool:
    """Return whether a policy looks at ``total_steps``."""
    return (
        isinstance(policy, UnimaxConfig)
        or (isinstance(policy, WaterFillingConfig) and policy.horizon is None)
        or getattr(policy, "eta_decay", "none") != "none"
    )


def places_of_rule(fields: WrittenWeights, where: str) -> Iterator[tuple[str, Iterable[str]]]:
    """Yield each place of a curriculum or a pivot that names drawn sources to say who decides, and the names."""
    yield f"{where}weights", fields.weights or ()
    policy = getattr(fields, "policy", None)
    for key in ("weights", "reference", "graph"):
        yield f"{where}policy: {key}", getattr(policy, key, None) or ()
    for teacher, taught in (getattr(policy, "graph", None) or {}).items():
        yield f"{where}policy: graph: {teacher}", taught


def place_of_goal(fields: WrittenWeights, where: str) -> tuple[str, Iterable[str]]:
    """Return the place that names sources, and where the policy looks at probes targets, to say what it is to lower."""
    return f"{where}policy: targets", getattr(getattr(fields, "policy", None), "targets", None) or ()


def unknown_names(curriculum: Curriculum, places: Iterable[tuple[str, Iterable[str]]]) -> Iterator[str]:
    """Yield a sentence for each name, in places as ``places_of_rule`` has them, that is no source's or target's."""
    for place, names in places:
        for name in names:
            if name not in curriculum.probed_names:
                yield f"{place}: unknown source {name!r}{suggestion(name, curriculum.probed_names)}"


def policy_problems(curriculum: Curriculum, policy: PolicyConfig) -> Iterator[str]:
    """Yield a sentence for each reason why a policy cannot decide in a run."""
    values: Sequence[float] = ()
    targets = getattr(policy, "targets", None)
    if targets:
        values = list(targets.values())
    elif isinstance(policy, StaticConfig) and policy.weights:
        values = list(policy.weights.values())
        total = sum(values)
        if not abs(total - 1) <= 1e-6:
            yield f"policy: weights sum to {total:.6g}, not 1; static weights are a point of the simplex"
    if any(not 0 <= value < float("inf") for value in values):
        yield f"policy: weights and targets must be finite and not negative, got {list(values)}"
    elif targets and sum(values) <= 0:
        yield "policy: targets are all 0; at least one source must be wanted"
    yield from goal_problems(curriculum, policy)
    reference = getattr(policy, "reference", None)
    if reference is not None and (missing := [name for name in curriculum.names if name not in reference]):
        yield f"policy {policy.name} needs a reference loss of every source; missing: {', '.join(missing)}"
    if any(value < 0 for row in (getattr(policy, "graph", None) or {}).values() for value in row.values()):
        yield f"policy {policy.name}: what a source teaches another is not negative in graph"
    if isinstance(policy, LinearConfig | AioliConfig) and len(curriculum.names) > MAX_PAIRED_SOURCES:
        yield (
            f"policy {policy.name}: {len(curriculum.names)} sources; it keeps a number for every pair of them and "
            f"takes at most {MAX_PAIRED_SOURCES}; choose water_filling or ucb, or join sources"
        )
    if isinstance(policy, AioliConfig) and policy.one_hot * (num := len(curriculum.names)) <= 1 < num:
        yield (
            f"policy aioli: one_hot is {policy.one_hot:g}, no more than the {1 / num:.3g} that each of {num} sources "
            "has in the uniform mixture, so that its phases would not tell sources apart; raise it"
        )
    if isinstance(policy, ProportionalConfig | UnimaxConfig):
        unknown = [source.name for source in curriculum.sources if source.tokens is None]
        if unknown:
            yield f"policy {policy.name} needs `tokens:` of every source; missing: {', '.join(unknown)}"
    if isinstance(policy, UnimaxConfig) and policies_of(curriculum) == (policy,):
        for source in curriculum.sources:
            if source.max_epochs != "inherit":
                yield (
                    f"source {source.name}: max_epochs has no effect under policy unimax, which has its own; "
                    "remove it, or choose another policy"
                )
    yield from probe_policy_problems(curriculum, policy)
