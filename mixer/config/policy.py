"""The settings of each policy, as they stand under ``policy:`` in a curriculum, and those under ``guard:``."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from mixer.config.problems import suggestion

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


class UcbConfig(Frozen):
    """The constrained bandit: an optimistic index per source, a step towards the best vertex of the region."""

    name: Literal["ucb"] = "ucb"
    reward: str = Field("learnability", description="learnability, progress, loss, or package.module:function")
    eta: float = Field(0.3, gt=0, le=1, description="w <- (1 - eta) w + eta v")
    eta_decay: Literal["none", "linear", "cosine"] = Field("none", description="how eta falls to 0 towards the end")
    eta_decay_over: Literal["run", "regime"] = Field("run", description="eta_decay: towards the end of which")
    width: float = Field(1.0, ge=0, le=MAX_FACTOR, description="c: standard errors (or UCB-V widths) of optimism")
    kappa: float = Field(1.5, ge=0, le=100, description="learnability: discount exponent in log time")
    tau_0: float = Field(100.0, ge=1e-6, le=MAX_STEPS, description="learnability: steps added to log time")
    repetition: float = Field(15.4, ge=1e-6, le=MAX_FACTOR, description="learnability: R* of Muennighoff et al. 2023")
    gamma: float = Field(0.999, gt=0, le=1, description="other rewards: discount per step")
    targets: dict[str, Target] | None = Field(None, description="learnability: weight of each source in the goal")

    @field_validator("reward")
    @classmethod
    def _known_reward(cls, reward: str) -> str:
        known = ("learnability", "progress", "loss")
        if reward not in known and ":" not in reward:
            raise ValueError(
                f"unknown reward {reward!r}{suggestion(reward, known)}; "
                f"known: {', '.join(known)}, or your own as package.module:function"
            )
        return reward


class WaterFillingConfig(Frozen):
    """The best allocation of the tokens that are left, if losses fall with the logarithm of a source's tokens."""

    name: Literal["water_filling"] = "water_filling"
    eta: float = Field(0.3, gt=0, le=1, description="w <- (1 - eta) w + eta (the best allocation)")
    eta_decay: Literal["none", "linear", "cosine"] = Field("none", description="how eta falls to 0 towards the end")
    eta_decay_over: Literal["run", "regime"] = Field("run", description="eta_decay: towards the end of which")
    width: float = Field(0.0, ge=0, le=MAX_FACTOR, description="c: standard errors of optimism added to a slope")
    power: float = Field(1.0, ge=0, le=10, description="alpha: of the slopes; 1 is the law's optimum, 0 level tokens")
    prior: float = Field(3.0, ge=0, le=MAX_FACTOR, description="observations that the mean slope of all sources counts")
    horizon: int | None = Field(
        None, ge=1, le=MAX_STEPS, description="steps to allocate at a time; default: the rest of the run"
    )
    least_horizon: float = Field(
        0.5, ge=0, le=MAX_FACTOR, description="the horizon is at least this share of the tokens seen"
    )
    losses: Literal["train", "heldout"] = Field("train", description="heldout: slopes of held-out losses (probes)")
    kappa: float = Field(1.5, ge=0, le=100, description="discount exponent of the slopes in log time")
    tau_0: float = Field(100.0, ge=1e-6, le=MAX_STEPS, description="steps added to log time")
    repetition: float = Field(15.4, ge=1e-6, le=MAX_FACTOR, description="R* of Muennighoff et al. 2023")
    targets: dict[str, Target] | None = Field(None, description="weight of each source in the goal")


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


class AdoConfig(Frozen):
    """Adaptive Data Optimization (Jiang et al. 2025): the sources whose fitted scaling law falls fastest."""

    name: Literal["ado"] = "ado"
    first_fit_step: int = Field(1000, ge=1, le=MAX_STEPS, description="natural shares until this step")
    refit_steps: int = Field(1000, ge=1, le=MAX_STEPS)
    same_step_size: bool = Field(True, description="count rows of all sources in each curve, as released")


class StaticConfig(Frozen):
    """The same weights in every phase: those given, or uniform, projected on each regime's region."""

    name: Literal["static"] = "static"
    weights: dict[str, Target] | None = None


class ProportionalConfig(Frozen):
    """Weights in proportion to each source's tokens, projected on each regime's region."""

    name: Literal["proportional"] = "proportional"


class UnimaxConfig(Frozen):
    """As uniform as the bounds and ``max_epochs`` passes over each source allow (Chung et al. 2023)."""

    name: Literal["unimax"] = "unimax"
    max_epochs: float = Field(4.0, ge=1e-6, le=MAX_FACTOR)


class RandomConfig(Frozen):
    """Every phase teleports to a uniformly random point of the region."""

    name: Literal["random"] = "random"


PolicyConfig = Annotated[
    UcbConfig
    | WaterFillingConfig
    | AndreaConfig
    | OdmConfig
    | AdoConfig
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
