"""Baselines that never look at a loss: static, proportional, UniMax and random weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from mixer.losses import SourceLosses
from mixer.policies.base import Choice, Policy
from mixer.region.region import Region
from mixer.types import Array, BoolArray, State


class FixedPolicy(Policy):
    """The same point in every phase, projected on the region in force: static, proportional and UniMax weights.

    UniMax (Chung et al., arXiv 2304.09151), uniform up to a number of epochs per source, is the projection of a
    constant on the region with those epochs as caps.
    """

    kind = "fixed"

    def __init__(
        self, point: Array, *, caps: Array | None = None, teleports: Literal["always", "never"] = "never"
    ) -> None:
        self._point = point
        self._caps = caps
        self.teleports = teleports
        self._chosen: tuple[Region, Choice] | None = None  # a region gives the same choice in every phase

    def initial(self, num_sources: int) -> State:
        """Return nothing: losses are not looked at."""
        return {}

    def absorb(self, state: State, steps: Sequence[SourceLosses], *, since: int, until: int) -> State:
        """Return the empty memory."""
        return state

    def after_pivot(self, state: State) -> State:
        """Return the empty memory."""
        return state

    def choose(
        self, state: State, region: Region, weights: Array, unique_tokens: Array, alarmed: BoolArray | None = None
    ) -> Choice:
        """Return the nearest point of the region, with the epoch caps if there are any."""
        if self._chosen is None or self._chosen[0] is not region:
            within = region if self._caps is None else epoch_capped(region, self._caps)
            self._chosen = (region, Choice(within.project(self._point)))
        return self._chosen[1]


def proportional(tokens: Array, temperature: float) -> Array:
    """Return weights in proportion to ``tokens^(1 / temperature)``, [K], of tokens > 0.

    T = 1 reads every source equally often, a large T reads all in equal shares. Multilingual BERT's exponentially
    smoothed weighting (Devlin et al. 2019) is S = 1 / T = 0.7; XLM-R's alpha (Conneau et al., arXiv 1911.02116,
    section 3.1) is 1 / T = 0.3.
    """
    if temperature == 1.0:
        return np.asarray(tokens / tokens.sum())
    logs = np.log(tokens) / temperature
    powers = np.exp(logs - logs.max())
    return np.asarray(powers / powers.sum())


def epoch_capped(region: Region, caps: Array) -> Region:
    """Return the region with each upper bound lowered to ``caps`` [K], but never below its lower bound."""
    return Region.of(region.names, region.lower, np.minimum(region.upper, np.maximum(caps, region.lower)))
