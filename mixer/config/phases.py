"""The settings of phases: their lengths, and which of them are random."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from mixer.config.policy import MAX_STEPS, Frozen

MAX_PHASE_STEPS = 2**20  # a decision near a boundary looks at every length that its phase may have
ANDREA_PHASES = {  # as published, but for the random phases at the start, which depend on the sources
    "min_steps": 7,
    "max_steps": 42,
    "random_probability": 0.1,
    "random_decay": None,
    "after_random": "stay",
}


class PhasesConfig(Frozen):
    """The law of phase kinds and lengths; it never looks at losses."""

    min_steps: int = Field(7, ge=1, le=MAX_PHASE_STEPS)
    max_steps: int = Field(42, ge=1, le=MAX_PHASE_STEPS)
    random_probability: float = Field(0.1, ge=0, le=1)
    initial_random: int | None = Field(
        None, ge=0, le=MAX_STEPS, description="random phases to begin with; default: min(sources, 16)"
    )
    random_decay: float | None = Field(
        None, gt=0, le=MAX_STEPS, description="phases tau: the chance falls as (1 + j / tau)^(-1/3); `null`: it stays"
    )
    after_random: Literal["stay", "return"] = Field(
        "stay", description="where the walk goes on from: the random point, or where it was before (an excursion)"
    )

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min_steps > self.max_steps:
            raise ValueError(f"phases: min_steps {self.min_steps} is above max_steps {self.max_steps}")
        if self.random_decay is not None and self.random_probability == 0:
            raise ValueError("phases: random_decay has no effect, as random_probability is 0; remove one of the two")
        if self.after_random == "return" and self.random_probability == 0 and self.initial_random == 0:
            raise ValueError("phases: after_random: return has no effect, as no phase is random; remove it")
        return self
