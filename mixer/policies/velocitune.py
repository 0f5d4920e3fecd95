"""Velocitune's weights, with the losses to be reached given: more of what is slow on its way."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mixer.config.policy import VelocituneConfig
from mixer.losses import SourceLosses, add_losses
from mixer.policies.point import PointPolicy, exponentiated
from mixer.policies.rewards import VelocityReward
from mixer.types import Array, State


class VelocitunePolicy(PointPolicy):
    """Exponentiated steps along what is left to learn, phase by phase, projected on the region:

        V_i = (loss_i - reference_i) / (first_i - reference_i),     w_i <- w_i exp(eta V_i) / sum_j w_j exp(eta V_j)

    first_i is the mean loss of the source's first phase. A source without rows keeps its last V. ``smoothing`` mixes in
    the uniform mixture, which the paper does not. Its targets come from a scaling law; here they are given. Source: Luo
    et al., ACL 2025, arXiv 2411.14318.
    """

    def __init__(self, config: VelocituneConfig, *, reference: Array) -> None:
        self._config = config
        self._velocity = VelocityReward(reference)

    def initial(self, num_sources: int) -> State:
        """Return uniform weights."""
        zeros = {name: np.zeros(num_sources) for name in ("tokens", "mean")}
        return {**zeros, **self._velocity.initial(num_sources), "mixture": np.full(num_sources, 1.0 / num_sources)}

    def absorb(self, state: State, steps: Sequence[SourceLosses], *, since: int, until: int) -> State:
        """Return the memory with one more update."""
        if not steps:
            return state
        losses = add_losses(steps)
        memory, left = self._velocity.update({name: state[name] for name in ("first", "seen")}, losses)
        mean = np.where(np.isnan(left), state["mean"], left)
        mixture = exponentiated(state["mixture"], self._config.eta * mean, smoothing=self._config.smoothing)
        return {"tokens": state["tokens"] + losses.tokens, "mean": mean, "mixture": mixture, **memory}

    def point(self, state: State) -> Array:
        """Return w, [K]."""
        return state["mixture"]
