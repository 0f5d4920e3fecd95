"""From a curriculum to its policy."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mixer.config.curriculum import Curriculum
from mixer.config.policy import (
    AdoConfig,
    AioliConfig,
    AndreaConfig,
    DoremiConfig,
    DUcbConfig,
    Exp3Config,
    LinearConfig,
    OdmConfig,
    PolicyConfig,
    ProportionalConfig,
    RandomConfig,
    SkillItConfig,
    SoftmaxConfig,
    StaticConfig,
    SwUcbConfig,
    UcbConfig,
    UnimaxConfig,
    VelocituneConfig,
    WaterFillingConfig,
)
from mixer.config.probes import aims_at_probes
from mixer.errors import InfeasibleRegionError
from mixer.policies.ado import AdoPolicy
from mixer.policies.aioli import AioliPolicy
from mixer.policies.andrea import AndreaPolicy
from mixer.policies.base import Policy
from mixer.policies.doremi import DoremiPolicy
from mixer.policies.exp3 import Exp3Policy
from mixer.policies.fixed import FixedPolicy, epoch_capped, proportional
from mixer.policies.forgetting_ucb import DUcbPolicy, SwUcbPolicy
from mixer.policies.learnability import Learnability
from mixer.policies.linear import LinearPolicy
from mixer.policies.odm import OdmPolicy
from mixer.policies.rewards import make_reward
from mixer.policies.skill_it import SkillItPolicy
from mixer.policies.softmax import SoftmaxPolicy
from mixer.policies.ucb import BoundedUcb
from mixer.policies.velocitune import VelocitunePolicy
from mixer.policies.water_filling import WaterFillingPolicy
from mixer.types import Array


def make_policy(curriculum: Curriculum, config: PolicyConfig | None = None) -> Policy:
    """Return the policy of these settings, by default the run's own; raises ConfigError where they cannot work."""
    config, num_sources = config or curriculum.policy, len(curriculum.names)
    uniform = np.full(num_sources, 1.0 / num_sources)
    tokens = np.array([source.tokens or 0 for source in curriculum.sources], dtype=np.float64)
    goal = _goal(curriculum, config)
    match config:
        case UcbConfig(reward="learnability" | "learnability_heldout"):
            return Learnability(
                config,
                targets=goal,
                first_tokens=float(curriculum.batch_tokens),
                is_heldout=config.reward == "learnability_heldout",
            )
        case UcbConfig() | DUcbConfig() | SwUcbConfig():
            return _reward_bandit(curriculum, config, goal)
        case WaterFillingConfig():
            return WaterFillingPolicy(
                config,
                targets=goal,
                batch_tokens=float(curriculum.batch_tokens),
                total_steps=curriculum.total_steps,
            )
        case AndreaConfig():
            return AndreaPolicy(config)
        case OdmConfig():
            return OdmPolicy(config)
        case LinearConfig():
            return LinearPolicy(config, wanted=goal, seed=curriculum.seed)
        case Exp3Config():
            return Exp3Policy()
        case SoftmaxConfig():
            return SoftmaxPolicy(config)
        case DoremiConfig():
            return DoremiPolicy(config, reference=_by_name(curriculum.names, config.reference))
        case VelocituneConfig():
            return VelocitunePolicy(config, reference=_by_name(curriculum.names, config.reference))
        case SkillItConfig():
            rows = [_by_name(curriculum.names, config.graph.get(name, {})) for name in curriculum.names]
            return SkillItPolicy(config, graph=np.stack(rows))
        case AioliConfig():
            return AioliPolicy(config, seed=curriculum.seed)
        case AdoConfig():
            prior = tokens / tokens.sum() if tokens.all() else uniform
            return AdoPolicy(config, prior=prior)
        case StaticConfig():
            return FixedPolicy(_by_name(curriculum.names, config.weights) if config.weights else uniform)
        case ProportionalConfig():
            return FixedPolicy(proportional(tokens, config.temperature))
        case UnimaxConfig():
            caps = np.minimum(1.0, config.max_epochs * tokens / (curriculum.total_steps * curriculum.batch_tokens))
            _check_epochs(curriculum, caps, config)
            return FixedPolicy(uniform, caps=caps)
        case RandomConfig():
            return FixedPolicy(uniform, teleports="always")


def _goal(curriculum: Curriculum, config: PolicyConfig) -> Array:
    """Return the weight of each loss in what a policy is to lower: uniform, or as its ``targets`` say.

    They are the losses of the sources, [K], or where a policy aims at probes those of the sources and the targets,
    [K + M]. Then, if it does not say, the targets alone count where there are some.
    """
    wanted: dict[str, float] | None = getattr(config, "targets", None)
    num_sources = len(curriculum.names)
    is_of_probes = aims_at_probes(config)
    if not wanted and is_of_probes and curriculum.targets:
        return np.repeat([0.0, 1.0], [num_sources, len(curriculum.targets)])
    names = curriculum.probed_names if wanted and is_of_probes else curriculum.names
    goal: Array = _by_name(names, wanted) if wanted else np.full(num_sources, 1.0 / num_sources)
    return np.asarray(goal / goal.sum())


def _reward_bandit(curriculum: Curriculum, config: UcbConfig | DUcbConfig | SwUcbConfig, wanted: Array) -> Policy:
    reference = _by_name(curriculum.names, config.reference) if config.reference else None
    reward = make_reward(config.reward, reference=reference, wanted=wanted)
    rows = curriculum.batch_rows * (curriculum.phases.min_steps + curriculum.phases.max_steps) / 2
    match config:
        case UcbConfig():
            return BoundedUcb(config, reward=reward, rows_per_phase=rows)
        case DUcbConfig():
            return DUcbPolicy(config, reward=reward, rows_per_phase=rows)
        case SwUcbConfig():
            return SwUcbPolicy(config, reward=reward, rows_per_phase=rows)


def _check_epochs(curriculum: Curriculum, caps: Array, config: UnimaxConfig) -> None:
    regimes = zip(curriculum.regimes, curriculum.rules, strict=True)
    for regime in (regime for regime, rule in regimes if rule.policy == config):
        try:
            epoch_capped(regime.region, caps)
        except InfeasibleRegionError as error:
            reachable = float(np.minimum(regime.region.upper, np.maximum(caps, regime.region.lower)).sum())
            raise InfeasibleRegionError(
                f"policy unimax: {config.max_epochs:g} epochs of every source fill only {reachable:.3g} of the run in "
                f"regime {regime.name}; raise max_epochs, shorten the run, or raise floors",
                sources=error.sources,
                excess=error.excess,
                total=error.total,
            ) from error


def _by_name(names: Sequence[str], table: dict[str, float]) -> Array:
    return np.array([table.get(name, 0.0) for name in names])
