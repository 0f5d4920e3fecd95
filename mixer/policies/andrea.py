"""ANDREA's published bandit, for fidelity: it pays for spread, not for learning."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mixer.config.policy import AndreaConfig
from mixer.losses import SourceLosses
from mixer.policies.base import PIVOT_MEMORY, Choice, Policy, best_vertex, scaled, silenced
from mixer.region.region import Region
from mixer.types import Array, BoolArray, State


class AndreaPolicy(Policy):
    """UCB1 on ``max(0, EMA - loss) * 1000`` per step and drawn source, as ANDREA published it.

    The EMA (rate 0.1) before the new loss is the baseline; the arm's statistic is a plain mean over pulls. Rewards run
    to hundreds while the bonus stays near 1, so it hardly explores, and it pays for the spread of a source's documents.
    Published constants are kept; C is not published, sqrt(2) is UCB1's (Auer et al. 2002).
    """

    is_by_step = True
    scale = 1000.0

    def __init__(self, config: AndreaConfig) -> None:
        self._config = config

    def initial(self, num_sources: int) -> State:
        """Return no pulls."""
        return {name: np.zeros(num_sources) for name in ("tokens", "pulls", "rewards", "ema")}

    def absorb(self, state: State, steps: Sequence[SourceLosses], *, since: int, until: int) -> State:
        """Return the memory with one more pull per step and source that has rows."""
        new = dict(state)
        for losses in steps:
            loss, drawn = losses.means(), losses.rows > 0
            ema = np.where(new["pulls"] > 0, new["ema"], loss)  # a first pull has no baseline and earns nothing
            reward = np.where(drawn, np.maximum(0.0, ema - loss) * self.scale, 0.0)
            new["ema"] = np.where(drawn, (1 - self._config.ema) * ema + self._config.ema * loss, new["ema"])
            new["rewards"] = new["rewards"] + reward
            new["pulls"] = new["pulls"] + drawn
            new["tokens"] = new["tokens"] + losses.tokens
        return new

    def after_pivot(self, state: State) -> State:
        """Return the memory with a quarter of its pulls."""
        return scaled(state, ("pulls", "rewards"), PIVOT_MEMORY)

    def choose(
        self, state: State, region: Region, weights: Array, unique_tokens: Array, alarmed: BoolArray | None = None
    ) -> Choice:
        """Step towards the vertex of the best UCB1 ranks."""
        pulls, is_known = np.maximum(state["pulls"], 1e-12), state["pulls"] > 0
        mean = np.where(is_known, state["rewards"] / pulls, 0.0)
        bonus = self._config.exploration * np.sqrt(np.log(max(float(state["pulls"].sum()), 1.0)) / pulls)
        parts = {
            "mean": mean,
            "width": np.where(is_known, bonus, 0.0),
            "tokens": state["tokens"],
            "index": np.where(is_known, mean + bonus, np.inf),
        }
        parts = silenced(parts, alarmed)
        vertex = best_vertex(region, parts)
        return Choice(region.step(weights, vertex, self._config.eta), vertex, parts)
