"""The settings of probes, and what must hold of them and of targets: held-out rows, and names that nothing draws."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from mixer.config.policy import MAX_STEPS, Frozen, GuardConfig, LinearConfig, PolicyConfig
from mixer.config.rules import policies_of

if TYPE_CHECKING:
    from mixer.config.curriculum import Curriculum

MAX_PROBE_ROWS = 2**16  # of a source; all are read, sent and run through the model at once
MOST_COMPUTE = 0.01  # of training, above which `mixer check` warns
OF_PROBES = ("heldout", "learnability_heldout", "target_gain")  # losses and rewards that only probes give
OF_GAP = ("gap_share", "gap_k", "gap_h")  # settings of the guard
FORWARD_SHARE = 1 / 3  # of the compute of a training step: the backward pass costs twice the forward pass


class ProbesConfig(Frozen):
    """Which held-out rows a trainer is offered to measure losses on, and how often."""

    rows: int = Field(8, ge=1, le=MAX_PROBE_ROWS, description="held-out rows of each source and target")
    every: Literal["phase"] | Annotated[int, Field(ge=1, le=MAX_STEPS, strict=True)] = Field(
        "phase", description="phases from one probe to the next; `phase` is 1"
    )

    @property
    def phases(self) -> int:
        """Phases from one probe to the next."""
        return 1 if self.every == "phase" else self.every


def probe_problems(curriculum: Curriculum) -> Iterable[str]:
    """Yield what is wrong with the probes and the targets of a curriculum whose names are known to be distinct."""
    probes = curriculum.probes
    if probes is not None and not curriculum.holdout and not curriculum.targets:
        yield (
            "probes: there are no held-out rows to measure losses on; hold some out, as in `holdout: 0.02`, or name a "
            "source with `role: target`"
        )
    guard = curriculum.guard
    if guard is not None and probes is None:
        for key in OF_GAP:
            if getattr(guard, key) != GuardConfig.model_fields[key].default:
                yield (
                    f"guard: {key} is {getattr(guard, key):g}, but there are no probes to measure a gap to held-out "
                    "losses; ask for them, as in `probes: {}`, or take it out"
                )
    if curriculum.targets and probes is None:
        names = ", ".join(target.name for target in curriculum.targets)
        yield f"role: target of {names}: a target is only measured, by probes; ask for them, as in `probes: {{}}`"
    for target in curriculum.targets:
        if target.max_epochs != "inherit":
            yield f"source {target.name}: max_epochs of a target has no effect, as it is never drawn; take it out"


def probe_policy_problems(curriculum: Curriculum, policy: PolicyConfig) -> Iterable[str]:
    """Yield a sentence if a policy learns from held-out losses that nobody measures."""
    settings = (("losses", getattr(policy, "losses", None)), ("reward", getattr(policy, "reward", None)))
    for what, chosen in settings:
        if curriculum.probes is None and chosen in OF_PROBES:
            yield (
                f"policy {policy.name}: {what} is {chosen}, but there are no probes to measure held-out losses; ask "
                "for them, as in `probes: {}`"
            )


def aims_at_probes(policy: PolicyConfig) -> bool:
    """Return whether the ``targets`` of a policy weigh the losses of probes, so that they may name targets."""
    is_linear = isinstance(policy, LinearConfig) and policy.losses == "heldout"
    return is_linear or getattr(policy, "reward", None) == "target_gain"


def goal_problems(curriculum: Curriculum, policy: PolicyConfig) -> Iterable[str]:
    """Yield a sentence for each of the ``targets`` of a policy that it could not see the loss of."""
    wanted = getattr(policy, "targets", None) or {}
    targets = {target.name for target in curriculum.targets}
    ways = {"linear": "say `losses: heldout`"} | dict.fromkeys(("ucb", "d_ucb", "sw_ucb"), "say `reward: target_gain`")
    way = ways.get(policy.name, "choose `policy: {name: linear, losses: heldout}`")
    for name, weight in wanted.items():
        if name in targets and not aims_at_probes(policy):
            yield (
                f"policy: targets: {name} has `role: target`: only probes measure its loss, and policy {policy.name} "
                f"with these settings looks at the losses of what is drawn; {way}, or take it out there"
            )
        elif weight > 0 and name in curriculum.names and aims_at_probes(policy) and not curriculum.holdout:
            yield (
                f"policy: targets: no row of {name} is held out to measure its loss on; hold some out, as in "
                "`holdout: 0.02`, or take it out there"
            )


def probed_goal(curriculum: Curriculum, policy: PolicyConfig) -> set[str]:
    """Return the names of what a policy wants to lower the held-out loss of; none if it does not aim at probes."""
    if not aims_at_probes(policy):
        return set()
    if wanted := getattr(policy, "targets", None):
        return {name for name, weight in wanted.items() if weight > 0}
    return {target.name for target in curriculum.targets} or set(curriculum.names)


def unaimed_targets(curriculum: Curriculum) -> list[str]:
    """Return the names of the targets that no policy of the run looks at: they are measured alone."""
    aimed: set[str] = set().union(*(probed_goal(curriculum, policy) for policy in policies_of(curriculum)))
    return [target.name for target in curriculum.targets if target.name not in aimed]


def drawn_target_problems(curriculum: Curriculum, places: Iterable[tuple[str, Iterable[str]]]) -> Iterable[str]:
    """Yield a sentence for each place that would draw a target, bound how often it is drawn, or weigh it as a source.

    Args:
        curriculum: the run.
        places: what is said of sources that are drawn: fields, and the names in each.
    """
    targets = {target.name for target in curriculum.targets}
    for place, names in places:
        for name in names:
            if name in targets:
                yield f"{place}: {name} has `role: target`: it is measured, never drawn; take it out there"


def probe_compute(curriculum: Curriculum) -> float:
    """Return what probes cost at most, as a share of the compute of training.

    With p probed rows of each of the K + M sources and targets, once in n phases of mean length L, and B rows a step:
    ``p (K + M) / (3 n L B)``, as a forward pass is a third of a step.
    """
    assert curriculum.probes is not None
    phases = curriculum.phases
    rows_between = curriculum.probes.phases * (phases.min_steps + phases.max_steps) / 2 * curriculum.batch_rows
    return FORWARD_SHARE * curriculum.probes.rows * len(curriculum.probed_names) / rows_between


def probe_notes(curriculum: Curriculum) -> Iterable[str]:
    """Yield a sentence on what probes cost; a warning above 1 % of training."""
    if curriculum.probes is None:
        return
    share, number = probe_compute(curriculum), len(curriculum.probed_names)
    note = (
        f"probes: {curriculum.probes.rows} rows of {number} sources and targets take {share:.2%} of training's compute"
    )
    if share > MOST_COMPUTE:
        note = f"warning: {note}, above {MOST_COMPUTE:.0%}; lower `rows`, or raise `every`"
    yield note
    if unaimed := unaimed_targets(curriculum):
        yield (
            f"targets: {', '.join(unaimed)}: measured alone, as no policy looks at it; `policy: {{name: linear, "
            "losses: heldout}` does"
        )
