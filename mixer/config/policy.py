"""The settings of each policy, as they stand under ``policy:`` in a curriculum, and those under ``guard:``."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

from mixer.config.problems import suggestion
from mixer.config.proportions import as_shares

MAX_STEPS = 2**31 - 1  # steps are numbers of 32 bits in the service's tables, and on the wire
MAX_COUNT = 2**53 - 1  # of tokens: floats, which shares are worked out in, hold no larger number exactly
MAX_FACTOR = 1e6  # of numbers whose use is near 1: their squares, exponentials and products with losses stay finite
MAX_WAIT_S = 7 * 86_400.0  # threads of no system can wait for ever; a week is one that a person would notice
MAX_OBSERVATIONS = 2**16  # each is sorted again whenever another one comes


Epochs = Annotated[float, Field(ge=1e-6, le=MAX_FACTOR, strict=True)]  # strict: no "4" and no `true`


class Frozen(BaseModel):
    """Settings that never change; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


Target = Annotated[float, Field(le=1e12)]  # its sum with others, and its share of that, are exact enough
Reference = Annotated[float, Field(ge=0, le=MAX_FACTOR)]  # a loss, nats
REWARDS = ("progress", "loss", "excess", "velocity", "target_gain")  # of rewards.py


class UcbConfig(Frozen):
    """The constrained bandit: an optimistic index per source, a step towards the best vertex of the region."""

    name: Literal["ucb"] = "ucb"
    reward: str = Field(
        "learnability",
        description="learnability, learnability_heldout, progress, loss, excess, velocity, target_gain, "
        "or package.module:function",
    )
    eta: float = Field(0.3, gt=0, le=1, description="w <- (1 - eta) w + eta v")
    eta_decay: Literal["none", "linear", "cosine"] = Field("none", description="how eta falls to 0 towards the end")
    eta_decay_over: Literal["run", "regime"] = Field("run", description="eta_decay: towards the end of which")
    width: float = Field(1.0, ge=0, le=MAX_FACTOR, description="c: standard errors (or UCB-V widths) of optimism")
    kappa: float = Field(1.5, ge=0, le=100, description="learnability: discount exponent in log time")
    tau_0: float = Field(100.0, ge=1e-6, le=MAX_STEPS, description="learnability: steps added to log time")
    repetition: float = Field(15.4, ge=1e-6, le=MAX_FACTOR, description="learnability: R* of Muennighoff et al. 2023")
    gamma: float = Field(0.999, gt=0, le=1, description="other rewards: discount per step")
    targets: dict[str, Target] | None = Field(
        None, description="learnability, target_gain: weight of each source in the goal; target_gain: or target"
    )
    reference: dict[str, Reference] | None = Field(
        None, description="excess, velocity: losses of a reference model, nats"
    )

    @model_serializer(mode="wrap")
    def _as_before_unless_given(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        data: dict[str, Any] = handler(self)
        if self.reference is None:  # a setting that older journals do not know counts only where it is given
            data.pop("reference", None)
        return data

    @field_validator("reward")
    @classmethod
    def _known_reward(cls, reward: str) -> str:
        return _checked_reward(reward, ("learnability", "learnability_heldout", *REWARDS))

    @model_validator(mode="after")
    def _reference_where_it_is_used(self) -> Self:
        _check_reference(self.reward, self.reference)
        return self


class _RewardBandit(Frozen):
    """What D-UCB and SW-UCB share: a reward, and a step towards the best vertex of the region."""

    name: str
    reward: str = Field(
        "progress", description="progress, loss, excess, velocity, target_gain, or package.module:function"
    )
    eta: float = Field(0.3, gt=0, le=1, description="w <- (1 - eta) w + eta v")
    xi: float = Field(0.6, ge=0, le=MAX_FACTOR, description="of the width; the published bound asks for more than 1/2")
    targets: dict[str, Target] | None = Field(
        None, description="target_gain: weight of each source or target in the goal"
    )
    reference: dict[str, Reference] | None = Field(
        None, description="excess, velocity: losses of a reference model, nats"
    )

    @field_validator("reward")
    @classmethod
    def _known_reward(cls, reward: str) -> str:
        return _checked_reward(reward, REWARDS)

    @model_validator(mode="after")
    def _reference_where_it_is_used(self) -> Self:
        _check_reference(self.reward, self.reference)
        return self


class DUcbConfig(_RewardBandit):
    """D-UCB (Garivier and Moulines 2011): upper confidence bounds that forget by a discount."""

    name: Literal["d_ucb"] = "d_ucb"
    discount: float = Field(0.98, gt=0, le=1, description="gamma, per phase")


class SwUcbConfig(_RewardBandit):
    """SW-UCB (Garivier and Moulines 2011): upper confidence bounds over a sliding window."""

    name: Literal["sw_ucb"] = "sw_ucb"
    window: int = Field(50, ge=1, le=1000, description="tau, phases")


def _checked_reward(reward: str, known: tuple[str, ...]) -> str:
    if reward not in known and ":" not in reward:
        raise ValueError(
            f"unknown reward {reward!r}{suggestion(reward, known)}; "
            f"known: {', '.join(known)}, or your own as package.module:function"
        )
    return reward


def _check_reference(reward: str, reference: dict[str, Reference] | None) -> None:
    is_used = reward in ("excess", "velocity")
    if is_used and not reference:
        raise ValueError(f"reward {reward} needs reference: the loss of each source under a reference model, nats")
    if reference is not None and not is_used:
        raise ValueError(f"reference is for the rewards excess and velocity, not for {reward}; leave it out")


class WaterFillingConfig(Frozen):
    """The best allocation of the tokens that are left, if losses fall with the logarithm of a source's tokens."""

    name: Literal["water_filling"] = "water_filling"
    eta: float = Field(1.0, gt=0, le=1, description="w <- (1 - eta) w + eta (the best allocation)")
    eta_decay: Literal["none", "linear", "cosine"] = Field("none", description="how eta falls to 0 towards the end")
    eta_decay_over: Literal["run", "regime"] = Field("run", description="eta_decay: towards the end of which")
    width: float = Field(0.0, ge=0, le=MAX_FACTOR, description="c: standard errors of optimism added to a slope")
    power: float = Field(0.5, ge=0, le=10, description="alpha: of the slopes; 1 is the law's optimum, 0 level tokens")
    gate: float = Field(
        0.5, ge=0, le=1, description="a source whose slope is below this share of the mean slope fades out; 0: none"
    )
    least: float = Field(0.02, ge=0, le=1, description="what the gate leaves at least of a source's gain")
    prior: float = Field(0.5, ge=0, le=MAX_FACTOR, description="observations that the mean slope of all sources counts")
    horizon: int | None = Field(
        None, ge=1, le=MAX_STEPS, description="steps to allocate at a time; default: the rest of the run"
    )
    least_horizon: float = Field(
        0.5, ge=0, le=MAX_FACTOR, description="the horizon is at least this share of the tokens seen"
    )
    losses: Literal["train", "heldout"] = Field("train", description="heldout: slopes of held-out losses (probes)")
    kappa: float = Field(3.0, ge=0, le=100, description="discount exponent of the slopes in log time")
    tau_0: float = Field(20.0, ge=1e-6, le=MAX_STEPS, description="steps added to log time")
    repetition: float = Field(15.4, ge=1e-6, le=MAX_FACTOR, description="R* of Muennighoff et al. 2023")
    targets: dict[str, Target] | None = Field(None, description="weight of each source in the goal")
    random_phases: bool = Field(False, description="whether the random phases of `phases` happen")


class AndreaConfig(Frozen):
    """UCB1 on ``max(0, EMA - loss) * 1000``, as ANDREA published it; kept for fidelity, not advised."""

    name: Literal["andrea"] = "andrea"
    eta: float = Field(0.3, gt=0, le=1)
    eta_decay: Literal["none", "linear", "cosine"] = Field("none", description="how eta falls to 0 towards the end")
    eta_decay_over: Literal["run", "regime"] = Field("run", description="eta_decay: towards the end of which")
    exploration: float = Field(2.0**0.5, ge=0, le=MAX_FACTOR, description="C of UCB1; ANDREA's value is not published")
    ema: float = Field(0.1, gt=0, le=1)


class OdmConfig(Frozen):
    """Online Data Mixing (Albalak et al. 2023), the form of its released code that its authors name as the paper's."""

    name: Literal["odm"] = "odm"
    smoothing: float = Field(0.9, ge=0, lt=1, description="a: what an update keeps of the smoothed perplexity")


class LinearConfig(Frozen):
    """A linear bandit over the region: Thompson sampling on the fall of the loss that is wanted."""

    name: Literal["linear"] = "linear"
    eta: float = Field(0.3, gt=0, le=1, description="w <- (1 - eta) w + eta v")
    width: float = Field(1.0, ge=0, le=MAX_FACTOR, description="spreads of a Thompson draw; 0: no draw")
    ridge: float = Field(0.1, ge=1e-6, le=MAX_FACTOR, description="of the mean of the diagonal that it is added to")
    kappa: float = Field(1.5, ge=0, le=100, description="discount exponent in log time")
    tau_0: float = Field(100.0, ge=1e-6, le=MAX_STEPS, description="steps added to log time")
    losses: Literal["train", "heldout"] = Field("train", description="heldout: the fall is of probes")
    targets: dict[str, Target] | None = Field(
        None, description="weight of each source, or heldout: target, in the loss that is to fall"
    )


class Exp3Config(Frozen):
    """Online Data Mixing in its Exp3 form: exponential weights over importance-weighted losses."""

    name: Literal["exp3"] = "exp3"


class SoftmaxConfig(Frozen):
    """Weights in proportion to ``exp(loss / temperature)``, as some trainers ship it."""

    name: Literal["softmax"] = "softmax"
    temperature: float = Field(1.0, ge=1e-6, le=MAX_FACTOR, description="nats; larger is more uniform")
    smoothing: float = Field(0.9, ge=0, lt=1, description="what a phase keeps of the smoothed loss")


class DoremiConfig(Frozen):
    """DoReMi (Xie et al. 2023): exponentiated steps along the loss above a reference model's."""

    name: Literal["doremi"] = "doremi"
    reference: dict[str, Reference] = Field(description="losses of a reference model by source, nats")
    eta: float = Field(1.0, gt=0, le=100, description="step of the logarithm of a weight, per nat and training step")
    smoothing: float = Field(1e-3, ge=0, le=1, description="c: share of the uniform mixture in each update")


class VelocituneConfig(Frozen):
    """Velocitune (2025): more weight for sources that are slow on their way to a reference loss."""

    name: Literal["velocitune"] = "velocitune"
    reference: dict[str, Reference] = Field(description="losses to be reached by source, nats")
    eta: float = Field(1.0, gt=0, le=100, description="step of the logarithm of a weight in a phase")
    smoothing: float = Field(0.0, ge=0, le=1, description="share of the uniform mixture in each update; published: 0")


class SkillItConfig(Frozen):
    """Skill-It (Chen et al. 2023) with a given graph: more weight for what teaches sources of high loss."""

    name: Literal["skill_it"] = "skill_it"
    graph: dict[str, dict[str, Target]] = Field(
        description="graph[i][j]: what source i teaches source j; 0 if left out"
    )
    eta: float = Field(0.1, gt=0, le=100)
    window: int = Field(3, ge=1, le=1000, description="phases whose losses are summed")
    losses: Literal["train", "heldout"] = Field("train", description="heldout, as published: needs probes")


class AioliConfig(Frozen):
    """Aioli (Chen et al. 2025): phases of nearly one source measure what each teaches the others; needs probes."""

    name: Literal["aioli"] = "aioli"
    eta: float = Field(0.2, gt=0, le=MAX_FACTOR, description="of what a source teaches all; 0.1 to 1 as released")
    ema: float = Field(0.1, ge=0, lt=1, description="what an update keeps of the smoothed matrix")
    rounds: int = Field(1, ge=1, le=1000, description="phases of LearnParams for each source; published: 2 to 6, short")
    one_hot: float = Field(0.625, gt=0, le=1, description="share of its source in a phase of LearnParams")
    learn_share: float = Field(0.5, ge=0.001, lt=1, description="share of the phases that LearnParams takes")


class AdoConfig(Frozen):
    """Adaptive Data Optimization (Jiang et al. 2025): the sources whose fitted scaling law falls fastest."""

    name: Literal["ado"] = "ado"
    first_fit_step: int = Field(1000, ge=1, le=MAX_STEPS, description="natural shares until this step")
    refit_steps: int = Field(1000, ge=1, le=MAX_STEPS)
    same_step_size: bool = Field(True, description="count rows of all sources in each curve, as released")


class StaticConfig(Frozen):
    """The same weights in every phase: those given, or uniform, projected on each regime's region."""

    name: Literal["static"] = "static"
    weights: dict[str, Target] | None = Field(None, description="by source; sum 1, or proportions such as 3 and 1")

    @field_validator("weights", mode="before")
    @classmethod
    def _proportions(cls, weights: Any) -> Any:
        return as_shares(weights)


class ProportionalConfig(Frozen):
    """Weights in proportion to ``tokens^(1 / temperature)`` of each source, projected on each regime's region."""

    name: Literal["proportional"] = "proportional"
    temperature: float = Field(
        1.0, ge=1e-6, le=MAX_FACTOR, description="T: 1 is in proportion to tokens, larger is nearer to uniform"
    )

    @model_serializer(mode="wrap")
    def _as_before_unless_given(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        data: dict[str, Any] = handler(self)
        if self.temperature == 1:  # a setting that older journals do not know
            data.pop("temperature", None)
        return data


class UnimaxConfig(Frozen):
    """As uniform as the bounds and ``max_epochs`` passes over each source allow (Chung et al. 2023)."""

    name: Literal["unimax"] = "unimax"
    max_epochs: float = Field(4.0, ge=1e-6, le=MAX_FACTOR)


class RandomConfig(Frozen):
    """Every phase teleports to a uniformly random point of the region."""

    name: Literal["random"] = "random"


PolicyConfig = Annotated[
    UcbConfig
    | DUcbConfig
    | SwUcbConfig
    | AndreaConfig
    | OdmConfig
    | Exp3Config
    | LinearConfig
    | SoftmaxConfig
    | DoremiConfig
    | VelocituneConfig
    | SkillItConfig
    | AioliConfig
    | AdoConfig
    | WaterFillingConfig
    | StaticConfig
    | ProportionalConfig
    | UnimaxConfig
    | RandomConfig,
    Field(discriminator="name"),
]


class GuardConfig(Frozen):
    """Who watches for sources that are learned by heart, and what is done about one; see ``docs/guard.md``."""

    action: Literal["alarm", "suspend"] = Field("alarm", description="suspend: a source in alarm is pivoted out too")
    min_observations: int = Field(
        64, ge=8, le=MAX_STEPS, description="of a source (one per phase that drew it) before it is judged"
    )
    window: int = Field(
        512,
        ge=16,
        le=MAX_OBSERVATIONS,
        description="observations that the spread of a source's residuals is taken over",
    )
    cliff_z: float = Field(
        8.0, gt=0, le=MAX_FACTOR, description="cliff: a report lies this many spreads below what is expected"
    )
    cliff_ratio: float = Field(0.5, gt=0, lt=1, description="cliff: and below this share of it")
    cliff_within: int = Field(
        64, ge=1, le=MAX_STEPS, description="cliff: observations within which a second one makes an alarm"
    )
    drift_k: float = Field(0.5, ge=0, le=MAX_FACTOR, description="drift: spreads of each fall that are forgiven")
    drift_h: float = Field(
        20.0, gt=0, le=MAX_FACTOR, description="drift: the sum of falls, in spreads, above which there is an alarm"
    )
    gap_share: float = Field(
        0.2, ge=0, lt=1, description="gap: share of the fall of the training loss below which held-out losses stay"
    )
    gap_k: float = Field(0.5, ge=0, le=MAX_FACTOR, description="gap: spreads of each rise of the gap that are forgiven")
    gap_h: float = Field(
        20.0, gt=0, le=MAX_FACTOR, description="gap: the sum of rises, in spreads, above which there is an alarm"
    )
