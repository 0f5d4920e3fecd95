"""Bandits on any reward: each phase's rewards, brought to [0, 1], and a step towards the vertex of the best index."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from mixer.losses import SourceLosses, add_losses
from mixer.policies.base import Choice, Policy, best_vertex, silenced
from mixer.policies.rewards import Reward, TargetGainReward
from mixer.region.region import Region
from mixer.system.rounding import rounded
from mixer.types import Array, BoolArray, State

RING_BITS, SUM_BITS = 11, 29  # significant bits, 3 and 9 digits: more say nothing


class StepSettings(Protocol):
    """The setting that a step towards a vertex needs, as it stands in the config."""

    @property
    def eta(self) -> float:
        """Share of the way to the vertex."""


class UnitRewardPolicy(Policy):
    """A bandit whose rewards lie in [0, 1], by quantiles pooled over all sources; subclasses sum them up and rank.

    The common scale r = clip((x - q20) / (q80 - q20), 0, 1) is Graves et al. 2017's, over the last rewards of all
    sources.
    """

    def __init__(self, settings: StepSettings, *, reward: Reward) -> None:
        self._eta = settings.eta
        self._reward = reward

    @abstractmethod
    def forgotten(self, state: State, num_steps: int) -> State:
        """Return a copy of the memory after one more phase of ``num_steps`` steps, before its rewards."""

    @abstractmethod
    def added(self, state: State, rows: Array, rewards: Array) -> State:
        """Return the memory with one phase's rows that are rewarded and their rewards in [0, 1], [K] each."""

    @abstractmethod
    def index(self, state: State) -> dict[str, Array]:
        """Return ``mean``, ``width``, ``tokens`` and their ``index``, [K] each; +inf for a source without rewards."""

    def initial(self, num_sources: int) -> State:
        """Return no observations; ``recent`` is a ring of the last rewards of all sources."""
        state: State = {"tokens": np.zeros(num_sources), **self.no_sums(num_sources)}
        state["recent"] = np.zeros(max(256, 2 * num_sources))
        state["num_rewards"] = np.zeros(1)
        return state | {f"reward.{key}": value for key, value in self._reward.initial(num_sources).items()}

    @abstractmethod
    def no_sums(self, num_sources: int) -> State:
        """Return the subclass's own part of an empty memory."""

    def absorb(self, state: State, steps: Sequence[SourceLosses], *, since: int, until: int) -> State:
        """Return the memory with one more bounded reward per source that has rows."""
        new = self.forgotten(state, until - since)
        if not steps:
            return new
        losses = add_losses(steps)
        memory = _memory(state)
        rows = memory["credited"] if isinstance(self._reward, TargetGainReward) else losses.rows
        memory, rewards = self._reward.update(memory, losses)
        new |= {f"reward.{key}": rounded(value, SUM_BITS) for key, value in memory.items()}
        bounded = self._to_unit(new, rewards)
        new = self.added(new, np.where(np.isnan(rewards), 0, rows), bounded)
        new["tokens"] = new["tokens"] + losses.tokens
        return new

    def absorb_probe(self, state: State, losses: SourceLosses, *, step: int) -> State:
        """Return the memory with a probe's held-out losses, if the reward is of those."""
        if not isinstance(self._reward, TargetGainReward):
            return state
        memory = self._reward.absorb_probe(_memory(state), losses)
        return {**state, **{f"reward.{key}": rounded(value, SUM_BITS) for key, value in memory.items()}}

    def _to_unit(self, new: State, rewards: Array) -> Array:
        """Add ``rewards`` to the ring in ``new`` and return them on its 20 % to 80 % scale, [K]; 0 for NaN."""
        fresh = rewards[~np.isnan(rewards)]
        if not fresh.size:
            return np.zeros(rewards.size)
        seen, ring = int(new["num_rewards"][0]), new["recent"].copy()
        ring[(seen + np.arange(fresh.size)) % ring.size] = rounded(fresh, RING_BITS)
        new["recent"], new["num_rewards"] = ring, np.array([float(seen + fresh.size)])
        low, high = np.quantile(ring[: min(seen + fresh.size, ring.size)], [0.2, 0.8])
        is_spread = high - low > 1e-9 * max(abs(high), 1.0)  # equal rewards may differ by rounding
        scaled = (rewards - low) / (high - low) if is_spread else np.full(rewards.size, 0.5)
        return np.clip(np.where(np.isnan(rewards), 0.0, scaled), 0.0, 1.0)

    def choose(
        self, state: State, region: Region, weights: Array, unique_tokens: Array, alarmed: BoolArray | None = None
    ) -> Choice:
        """Step towards the vertex with the best upper confidence bounds; sources in alarm promise nothing."""
        parts = silenced(self.index(state), alarmed)
        vertex = best_vertex(region, parts)
        return Choice(region.step(weights, vertex, self._eta), vertex, parts)


def _memory(state: State) -> State:
    """Return what the reward remembers."""
    return {key.removeprefix("reward."): value for key, value in state.items() if key.startswith("reward.")}
