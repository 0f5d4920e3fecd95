"""Discounted UCB on any bounded reward: the same bandit for users who bring a reward of their own."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mixer.config.policy import UcbConfig
from mixer.losses import SourceLosses, add_losses
from mixer.policies.base import PIVOT_MEMORY, Choice, Policy, best_vertex, scaled, silenced
from mixer.policies.rewards import Reward, TargetGainReward
from mixer.region.region import Region
from mixer.system.rounding import rounded
from mixer.types import Array, BoolArray, State

_SUMS = ("rows", "sums", "squares")  # what forgetting shrinks
RING_BITS, SUM_BITS = 11, 29  # significant bits, 3 and 9 digits: more say nothing


class BoundedUcb(Policy):
    """Discounted, count-weighted UCB for any reward, brought to [0, 1] by quantiles pooled over all sources.

        N <- gamma^T N + m,  S <- gamma^T S + m r,  Q likewise;  mu = S/N,  V = Q/N - mu^2,  e = N / m_ref
        UCB = mu + c sqrt(2 V ln(1 + E) / e) + 3 c ln(1 + E) / e,   E = sum e,   N = 0 -> +inf

    m_ref is the rows of a mean phase: rows of one phase share one model state. The common scale r = clip((x - q20) /
    (q80 - q20), 0, 1) is Graves et al. 2017's, over the last rewards of all sources. Sources: CUCB with UCB-V widths
    (Kveton et al. 2015; Audibert et al. 2009), discounted after Garivier and Moulines 2011.
    """

    def __init__(self, config: UcbConfig, *, reward: Reward, rows_per_phase: float) -> None:
        self._config = config
        self._reward = reward
        self._m_ref = rows_per_phase

    def initial(self, num_sources: int) -> State:
        """Return no observations; ``recent`` is a ring of the last rewards of all sources."""
        state: State = {name: np.zeros(num_sources) for name in ("tokens", "rows", "sums", "squares")}
        state["recent"] = np.zeros(max(256, 2 * num_sources))
        state["num_rewards"] = np.zeros(1)
        return state | {f"reward.{key}": value for key, value in self._reward.initial(num_sources).items()}

    def absorb(self, state: State, steps: Sequence[SourceLosses], *, since: int, until: int) -> State:
        """Return the memory with one more bounded reward per source that has rows."""
        new = scaled(state, _SUMS, self._config.gamma ** (until - since))
        if not steps:
            return new
        losses = add_losses(steps)
        memory = _memory(state)
        rows = memory["credited"] if isinstance(self._reward, TargetGainReward) else losses.rows
        memory, rewards = self._reward.update(memory, losses)
        new |= {f"reward.{key}": rounded(value, SUM_BITS) for key, value in memory.items()}
        bounded = self._to_unit(new, rewards)
        m = np.where(np.isnan(rewards), 0, rows)
        new["rows"] = new["rows"] + m
        new["sums"] = new["sums"] + m * bounded
        new["squares"] = new["squares"] + m * bounded**2
        for key in _SUMS:
            new[key] = rounded(new[key], SUM_BITS)
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

    def after_pivot(self, state: State) -> State:
        """Return the memory with a quarter of its weight."""
        return scaled(state, _SUMS, PIVOT_MEMORY)

    def choose(
        self, state: State, region: Region, weights: Array, unique_tokens: Array, alarmed: BoolArray | None = None
    ) -> Choice:
        """Step towards the vertex with the best upper confidence bounds."""
        rows, is_known = np.maximum(state["rows"], 1e-12), state["rows"] > 0
        mean = np.where(is_known, state["sums"] / rows, 0.0)
        variance = np.maximum(state["squares"] / rows - mean**2, 0.0)
        effective = rows / self._m_ref
        log_total = np.log1p(float(state["rows"].sum()) / self._m_ref)
        width = self._config.width * (np.sqrt(2 * variance * log_total / effective) + 3 * log_total / effective)
        parts = {
            "mean": mean,
            "width": np.where(is_known, width, 0.0),
            "tokens": state["tokens"],
            "index": np.where(is_known, mean + width, np.inf),
        }
        parts = silenced(parts, alarmed)
        vertex = best_vertex(region, parts)
        return Choice(region.step(weights, vertex, self._config.eta), vertex, parts)


def _memory(state: State) -> State:
    """Return what the reward remembers."""
    return {key.removeprefix("reward."): value for key, value in state.items() if key.startswith("reward.")}
