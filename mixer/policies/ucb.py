"""Discounted UCB on any bounded reward: the same bandit for users who bring a reward of their own."""

from __future__ import annotations

import numpy as np

from mixer.config.policy import UcbConfig
from mixer.policies.base import PIVOT_MEMORY, scaled
from mixer.policies.rewards import Reward
from mixer.policies.unit_reward import SUM_BITS, UnitRewardPolicy
from mixer.system.rounding import rounded
from mixer.types import Array, State

_SUMS = ("rows", "sums", "squares")  # what forgetting shrinks


class BoundedUcb(UnitRewardPolicy):
    """Discounted, count-weighted UCB for any reward in [0, 1].

        N <- gamma^T N + m,  S <- gamma^T S + m r,  Q likewise;  mu = S/N,  V = Q/N - mu^2,  e = N / m_ref
        UCB = mu + c sqrt(2 V ln(1 + E) / e) + 3 c ln(1 + E) / e,   E = sum e,   N = 0 -> +inf

    m_ref is the rows of a mean phase: rows of one phase share one model state. Sources: CUCB with UCB-V widths
    (Kveton et al. 2015; Audibert et al. 2009), discounted after Garivier and Moulines 2011.
    """

    def __init__(self, config: UcbConfig, *, reward: Reward, rows_per_phase: float) -> None:
        super().__init__(config, reward=reward)
        self._config = config
        self._m_ref = rows_per_phase

    def no_sums(self, num_sources: int) -> State:
        """Return no rows."""
        return {name: np.zeros(num_sources) for name in _SUMS}

    def forgotten(self, state: State, num_steps: int) -> State:
        """Return the memory with its sums discounted by gamma per step."""
        return scaled(state, _SUMS, self._config.gamma**num_steps)

    def added(self, state: State, rows: Array, rewards: Array) -> State:
        """Return the memory with the rows and rewards of a phase."""
        terms = {"rows": rows, "sums": rows * rewards, "squares": rows * rewards**2}
        return {**state, **{name: rounded(state[name] + term, SUM_BITS) for name, term in terms.items()}}

    def after_pivot(self, state: State) -> State:
        """Return the memory with a quarter of its weight."""
        return scaled(state, _SUMS, PIVOT_MEMORY)

    def index(self, state: State) -> dict[str, Array]:
        """Return each part of the index, [K]: mean, width, tokens, index."""
        rows, is_known = np.maximum(state["rows"], 1e-12), state["rows"] > 0
        mean = np.where(is_known, state["sums"] / rows, 0.0)
        variance = np.maximum(state["squares"] / rows - mean**2, 0.0)
        effective = rows / self._m_ref
        log_total = np.log1p(float(state["rows"].sum()) / self._m_ref)
        width = self._config.width * (np.sqrt(2 * variance * log_total / effective) + 3 * log_total / effective)
        return {
            "mean": mean,
            "width": np.where(is_known, width, 0.0),
            "tokens": state["tokens"],
            "index": np.where(is_known, mean + width, np.inf),
        }
