"""Softmax over smoothed losses: what some trainers ship; it pays for a high loss, whether or not it can fall."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mixer.config.policy import SoftmaxConfig
from mixer.losses import SourceLosses, add_losses
from mixer.policies.point import PointPolicy, filled_in, nats, normalised_exp
from mixer.types import Array, State


class SoftmaxPolicy(PointPolicy):
    """Weights ``w_i = exp(l_i / T) / sum_j exp(l_j / T)`` of losses smoothed over phases, ``l <- a l + (1 - a) loss``.

    The Boltzmann rule with the loss as the preference (Sutton and Barto, Reinforcement Learning, gradient bandits). A
    source without a loss yet counts as the mean of the others. It camps on noise, as every rule of the loss level does.
    """

    def __init__(self, config: SoftmaxConfig) -> None:
        self._config = config

    def initial(self, num_sources: int) -> State:
        """Return no losses."""
        return {name: np.zeros(num_sources) for name in ("tokens", "mean", "seen")}

    def absorb(self, state: State, steps: Sequence[SourceLosses], *, since: int, until: int) -> State:
        """Return the memory with the mean losses of one more phase."""
        if not steps:
            return state
        losses = add_losses(steps)
        has_rows = losses.tokens > 0
        means = nats(losses)
        old = np.where(state["seen"] > 0, state["mean"], means)
        kept = self._config.smoothing
        return {
            "tokens": state["tokens"] + losses.tokens,
            "mean": np.where(has_rows, kept * old + (1 - kept) * means, state["mean"]),
            "seen": np.maximum(state["seen"], has_rows),
        }

    def point(self, state: State) -> Array:
        """Return the softmax, [K]; uniform before the first loss."""
        return normalised_exp(filled_in(state["mean"], state["seen"]) / self._config.temperature)
