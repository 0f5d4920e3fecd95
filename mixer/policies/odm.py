"""Online Data Mixing: weights in proportion to smoothed perplexity; the baseline that rewards a high loss."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from mixer.config.policy import OdmConfig
from mixer.losses import SourceLosses
from mixer.policies.base import PIVOT_MEMORY, Choice, Policy, silenced, silenced_point
from mixer.region.region import Region
from mixer.types import Array, BoolArray, State

MAX_NATS = 100.0  # exp(100) fits float64 with room; no vocabulary has a loss near it


class OdmPolicy(Policy):
    """The group update of ODM's ``SmoothedMeanWeightUpdater``, projected on the region.

    The released code has three forms; its authors name this one as the paper's:

        R_i <- a R_i + (1 - a) exp(loss_i),        eps_t = min(1 / K, sqrt(ln K / (K t)))
        w_i = (1 - K eps_t) R_i / sum_j R_j + eps_t

    t counts steps learned from; a source without rows keeps its R; until a first loss all weights are equal. The floor
    eps_t is ODM's whole exploration, so phases are never random. Hard bounds are ours: the weights are projected on
    the region. A high loss that nothing can lower, noise, is paid for ever. Source: Albalak et al., arXiv 2312.02406.
    """

    teleports = "never"
    is_by_step = True

    def __init__(self, config: OdmConfig) -> None:
        self._config = config

    def initial(self, num_sources: int) -> State:
        """Return no perplexities."""
        return {"tokens": np.zeros(num_sources), "smoothed": np.zeros(num_sources), "updates": np.zeros(1)}

    def absorb(self, state: State, steps: Sequence[SourceLosses], *, since: int, until: int) -> State:
        """Return the memory with one more update per step."""
        new, a = dict(state), self._config.smoothing
        for losses in steps:
            seen = losses.rows > 0
            perplexity = np.exp(np.minimum(np.where(seen, losses.means(), 0.0), MAX_NATS))
            new["smoothed"] = np.where(seen, a * new["smoothed"] + (1 - a) * perplexity, new["smoothed"])
            new["tokens"] = new["tokens"] + losses.tokens
            new["updates"] = new["updates"] + 1
        return new

    def after_pivot(self, state: State) -> State:
        """Return the memory as if a quarter of the updates had been made: ODM explores more again."""
        return {**state, "updates": state["updates"] * PIVOT_MEMORY}

    def choose(
        self, state: State, region: Region, weights: Array, unique_tokens: Array, alarmed: BoolArray | None = None
    ) -> Choice:
        """Return ODM's weights, moved to the nearest point of the region."""
        point = silenced_point(self.point(state), alarmed)
        parts = {"mean": state["smoothed"], "tokens": state["tokens"], "index": point}
        return Choice(region.project(point), parts=silenced(parts, alarmed))

    def point(self, state: State) -> Array:
        """Return the weights before any bounds, [K]."""
        num_sources = state["smoothed"].size
        total = float(state["smoothed"].sum())
        if total == 0.0:
            return np.full(num_sources, 1.0 / num_sources)
        updates = max(float(state["updates"][0]), 1.0)
        epsilon = min(1.0 / num_sources, math.sqrt(math.log(num_sources) / (num_sources * updates)))
        return np.asarray((1.0 - num_sources * epsilon) * state["smoothed"] / total + epsilon)
