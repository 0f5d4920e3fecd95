"""Online Data Mixing in its Exp3 form: exponential weights over importance-weighted losses."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from mixer.losses import SourceLosses
from mixer.policies.base import PIVOT_MEMORY
from mixer.policies.point import PointPolicy, nats, normalised_exp
from mixer.types import Array, State

LOSS_SCALE = 10.0  # as released: losses are divided by it to lie near [0, 1]


class Exp3Policy(PointPolicy):
    """The class of ODM's released code that is named for Exp3, projected on the region.

    With t steps learned from, and R_i = 0 at first, for each source with rows in a step:

        R_i <- R_i + (loss_i / 10) / pi_i,        eps_t = min(1 / K, sqrt(ln K / (K t))), eps_0 = 1 / K
        pi_i = (1 - K eps_t) exp(eps_{t-1} R_i) / sum_j exp(eps_{t-1} R_j) + eps_t

    pi is the rule's own, before the region bounds it. The authors name another class as the paper's: that is ``odm``.
    Sources: Albalak et al., arXiv 2312.02406; Exp3: Auer et al. 2002.
    """

    is_by_step = True

    def initial(self, num_sources: int) -> State:
        """Return no rewards."""
        return {"tokens": np.zeros(num_sources), "mean": np.zeros(num_sources), "updates": np.zeros(1)}

    def absorb(self, state: State, steps: Sequence[SourceLosses], *, since: int, until: int) -> State:
        """Return the memory with one more update per step."""
        new = dict(state)
        for losses in steps:
            reward = np.where(losses.tokens > 0, nats(losses), 0.0) / LOSS_SCALE
            new["mean"] = new["mean"] + reward / self.point(new)
            new["tokens"] = new["tokens"] + losses.tokens
            new["updates"] = new["updates"] + 1
        return new

    def after_pivot(self, state: State) -> State:
        """Return the memory with a quarter of its rewards and updates: it explores more again."""
        return {**state, "mean": state["mean"] * PIVOT_MEMORY, "updates": state["updates"] * PIVOT_MEMORY}

    def point(self, state: State) -> Array:
        """Return pi, [K]."""
        num, updates = state["mean"].size, float(state["updates"][0])
        floor = _epsilon(num, updates)
        return (1.0 - num * floor) * normalised_exp(_epsilon(num, updates - 1.0) * state["mean"]) + floor


def _epsilon(num_sources: int, updates: float) -> float:
    if updates <= 0 or num_sources == 1:
        return 1.0 / num_sources
    return min(1.0 / num_sources, math.sqrt(math.log(num_sources) / (num_sources * updates)))
