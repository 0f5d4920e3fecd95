"""DoReMi's weights, with the losses of a reference model given: more of what is far above its reference."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mixer.config.policy import DoremiConfig
from mixer.losses import SourceLosses
from mixer.policies.point import PointPolicy, exponentiated, nats
from mixer.types import Array, State


class DoremiPolicy(PointPolicy):
    """Exponentiated gradient ascent on the excess loss, step by step, projected on the region:

        lambda_i = max(0, loss_i - reference_i),   a_i <- a_i exp(eta lambda_i) / sum,   a <- (1 - c) a + c / K

    A source without rows in a step keeps its last lambda, as released. Two things differ from the paper: its proxy
    clips the excess of every token at 0, ours that of a step's mean, which is all a report holds; and its answer is the
    mean of a over a proxy's training, while here the run itself follows a. Source: Xie et al. 2023, arXiv 2305.10429,
    algorithm 1.
    """

    is_by_step = True

    def __init__(self, config: DoremiConfig, *, reference: Array) -> None:
        self._config = config
        self._reference = reference

    def initial(self, num_sources: int) -> State:
        """Return uniform weights."""
        zeros = {name: np.zeros(num_sources) for name in ("tokens", "mean")}
        return {**zeros, "mixture": np.full(num_sources, 1.0 / num_sources)}

    def absorb(self, state: State, steps: Sequence[SourceLosses], *, since: int, until: int) -> State:
        """Return the memory with one more update per step."""
        new = dict(state)
        for losses in steps:
            excess = np.maximum(nats(losses) - self._reference, 0.0)
            new["mean"] = np.where(losses.tokens > 0, excess, new["mean"])
            gains = self._config.eta * new["mean"]
            new["mixture"] = exponentiated(new["mixture"], gains, smoothing=self._config.smoothing)
            new["tokens"] = new["tokens"] + losses.tokens
        return new

    def point(self, state: State) -> Array:
        """Return a, [K]."""
        return state["mixture"]
