"""What the next phase should draw: an index per source and a vertex (bandits), or fixed weights (baselines).

A policy holds settings only. What it has learned is a ``State``, named arrays that it takes and returns, so that a
decision can be tried, journalled and only then kept. ``learnability``, the default index, is a fitted slope per token
with an optimistic width; it recovered about 78 % of a true-gradient oracle's gain in our toy runs, where loss level and
rectified loss drop did worse than uniform.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np

from mixer.config import (
    AndreaConfig,
    Curriculum,
    ProportionalConfig,
    RandomConfig,
    StaticConfig,
    UcbConfig,
    UnimaxConfig,
)
from mixer.errors import InfeasibleRegionError
from mixer.region import Region
from mixer.rewards import Reward, SourceLosses, State, add_losses, make_reward
from mixer.types import Array

PIVOT_MEMORY = 0.25  # what a pivot leaves of the weight of each surviving source's statistics
MIN_OBSERVATIONS = 3  # a slope with a standard error needs three points; fewer count as unexplored


@dataclass(frozen=True, eq=False)
class Choice:
    """Weights for a phase and why: the vertex stepped to and the parts of each source's index, all [K]."""

    weights: Array
    vertex: Array | None = None
    parts: dict[str, Array] = field(default_factory=dict)


class Policy(Protocol):
    """Chooses the weights of phases that are not random."""

    kind: Literal["bandit", "fixed"]  # what its phases are called
    teleports: Literal["by chance", "always", "never"]  # whether the phase law's random phases happen
    is_by_step: bool  # whether ``absorb`` looks at the steps one by one; else it may be given their sum

    def initial(self, num_sources: int) -> State:
        """Return an empty memory."""

    def absorb(self, state: State, steps: Sequence[SourceLosses], *, since: int, until: int) -> State:
        """Return the memory after learning from ``steps``, in order.

        Args:
            state: memory before.
            steps: one SourceLosses per step, summed over ranks; may be empty.
            since: first step of the phase decided last.
            until: first step of the phase to decide now.
        """

    def after_pivot(self, state: State) -> State:
        """Return the memory after a pivot: surviving statistics keep a quarter of their weight."""

    def choose(self, state: State, region: Region, weights: Array, unique_tokens: Array) -> Choice:
        """Return the next weights.

        Args:
            state: memory.
            region: what may be reached now.
            weights: where the walk stands, [K].
            unique_tokens: distinct tokens of each source, 0 where unknown, [K].
        """


class Learnability:
    """UCB on the fitted marginal loss per token (algorithms of ADO and upper-confidence Frank-Wolfe, in one index).

    For each source, loss y is regressed on x = ln(N + n_0), N the tokens seen of it, with weights m (rows) and a
    discount in log time: sums shrink by ``(tau / tau')^kappa`` from decision to decision, tau = step + tau_0. With
    slope -v, its standard error se, the repetition discount rho (Muennighoff et al. 2023) and target weight:

        g = target * rho * max(0, v + c se) / N,    rho = exp(-max(0, N / U - 1) / R*)

    A source with fewer than 3 observations has g = +inf; those are ordered by fewest tokens. The mean loss of a phase
    belongs to the middle of the tokens it was measured on. Sources: Berthet and Perchet, NeurIPS 2017; Jiang et al.,
    arXiv 2410.11820.
    """

    kind: Literal["bandit", "fixed"] = "bandit"
    teleports: Literal["by chance", "always", "never"] = "by chance"
    is_by_step = False

    def __init__(self, config: UcbConfig, *, targets: Array, first_tokens: float) -> None:
        self._config = config
        self._targets = targets
        self._n_0 = first_tokens

    def initial(self, num_sources: int) -> State:
        """Return no observations: weighted means and centred sums, the six sums without their cancellation."""
        names = ("tokens", "count", "points", "weight", "mean_x", "mean_y", "sxx", "sxy", "syy")
        return {name: np.zeros(num_sources) for name in names}

    def absorb(self, state: State, steps: Sequence[SourceLosses], *, since: int, until: int) -> State:
        """Return the memory with one more observation per source that has rows."""
        tau_0 = self._config.tau_0
        new = _scaled(state, _SUMS, ((since + tau_0) / (until + tau_0)) ** self._config.kappa)
        if not steps:
            return new
        losses = add_losses(steps)
        seen = losses.rows > 0
        m = np.where(seen, losses.rows, 0).astype(np.float64)
        x = np.where(seen, np.log(new["tokens"] + losses.tokens / 2 + self._n_0), new["mean_x"])
        y = np.where(seen, losses.means(), new["mean_y"])
        total = np.where(seen, new["weight"] + m, 1.0)
        dx, dy = x - new["mean_x"], y - new["mean_y"]
        pull = new["weight"] * m / total  # West 1979: centred sums grow by this times the products of deviations
        new["sxx"] = new["sxx"] + pull * dx * dx
        new["sxy"] = new["sxy"] + pull * dx * dy
        new["syy"] = new["syy"] + pull * dy * dy
        new["mean_x"] = new["mean_x"] + dx * m / total
        new["mean_y"] = new["mean_y"] + dy * m / total
        new["weight"] = new["weight"] + m
        new["points"] = new["points"] + seen
        new["count"] = new["count"] + seen
        new["tokens"] = new["tokens"] + losses.tokens
        return new

    def after_pivot(self, state: State) -> State:
        """Return the memory with a quarter of its weight; tokens seen stay seen."""
        return _scaled(state, _SUMS, PIVOT_MEMORY)

    def choose(self, state: State, region: Region, weights: Array, unique_tokens: Array) -> Choice:
        """Step towards the vertex with the best optimistic gradient."""
        parts = self.index(state, unique_tokens)
        vertex = region.best_vertex(parts["index"], ties=state["tokens"])
        return Choice(region.step(weights, vertex, self._config.eta), vertex, parts)

    def index(self, state: State, unique_tokens: Array) -> dict[str, Array]:
        """Return each part of the index, [K]: slope, width, repetition, tokens, index."""
        fitted = (state["count"] >= MIN_OBSERVATIONS) & (state["sxx"] > 0)
        sxx = np.where(fitted, state["sxx"], 1.0)
        slope = np.where(fitted, -state["sxy"] / sxx, 0.0)
        residual = np.maximum(state["syy"] - state["sxy"] ** 2 / sxx, 0.0)
        freedom = np.maximum(state["points"] - 2.0, 1.0)  # discounting may leave fewer points than a line has
        width = np.where(fitted, self._config.width * np.sqrt(residual / freedom / sxx), 0.0)
        epochs = np.divide(state["tokens"], unique_tokens, out=np.zeros_like(sxx), where=unique_tokens > 0)
        repetition = np.exp(-np.maximum(0.0, epochs - 1.0) / self._config.repetition)
        gain = self._targets * repetition * np.maximum(0.0, slope + width) / np.maximum(state["tokens"], 1.0)
        index = np.where(fitted, gain, np.inf)
        return {"slope": slope, "width": width, "repetition": repetition, "tokens": state["tokens"], "index": index}


_SUMS = ("points", "weight", "sxx", "sxy", "syy")  # what forgetting shrinks; means and counts stay


class BoundedUcb:
    """Discounted, count-weighted UCB for any reward, brought to [0, 1] by quantiles pooled over all sources.

        N <- gamma^T N + m,  S <- gamma^T S + m r,  Q likewise;  mu = S/N,  V = Q/N - mu^2,  e = N / m_ref
        UCB = mu + c sqrt(2 V ln(1 + E) / e) + 3 c ln(1 + E) / e,   E = sum e,   N = 0 -> +inf

    m_ref is the rows of a mean phase: rows of one phase share one model state. The common scale r = clip((x - q20) /
    (q80 - q20), 0, 1) is Graves et al. 2017's, over the last rewards of all sources. Sources: CUCB with UCB-V widths
    (Kveton et al. 2015; Audibert et al. 2009), discounted after Garivier and Moulines 2011.
    """

    kind: Literal["bandit", "fixed"] = "bandit"
    teleports: Literal["by chance", "always", "never"] = "by chance"
    is_by_step = False

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
        new = _scaled(state, ("rows", "sums", "squares"), self._config.gamma ** (until - since))
        if not steps:
            return new
        losses = add_losses(steps)
        memory = {key.removeprefix("reward."): value for key, value in state.items() if key.startswith("reward.")}
        memory, rewards = self._reward.update(memory, losses)
        new |= {f"reward.{key}": value for key, value in memory.items()}
        bounded = self._to_unit(new, rewards)
        m = np.where(np.isnan(rewards), 0, losses.rows)
        new["rows"] = new["rows"] + m
        new["sums"] = new["sums"] + m * bounded
        new["squares"] = new["squares"] + m * bounded**2
        new["tokens"] = new["tokens"] + losses.tokens
        return new

    def _to_unit(self, new: State, rewards: Array) -> Array:
        """Add ``rewards`` to the ring in ``new`` and return them on its 20 % to 80 % scale, [K]; 0 for NaN."""
        fresh = rewards[~np.isnan(rewards)]
        if not fresh.size:
            return np.zeros(rewards.size)
        seen, ring = int(new["num_rewards"][0]), new["recent"].copy()
        ring[(seen + np.arange(fresh.size)) % ring.size] = fresh
        new["recent"], new["num_rewards"] = ring, np.array([float(seen + fresh.size)])
        low, high = np.quantile(ring[: min(seen + fresh.size, ring.size)], [0.2, 0.8])
        is_spread = high - low > 1e-9 * max(abs(high), 1.0)  # equal rewards may differ by rounding
        scaled = (rewards - low) / (high - low) if is_spread else np.full(rewards.size, 0.5)
        return np.clip(np.where(np.isnan(rewards), 0.0, scaled), 0.0, 1.0)

    def after_pivot(self, state: State) -> State:
        """Return the memory with a quarter of its weight."""
        return _scaled(state, ("rows", "sums", "squares"), PIVOT_MEMORY)

    def choose(self, state: State, region: Region, weights: Array, unique_tokens: Array) -> Choice:
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
        vertex = region.best_vertex(parts["index"], ties=state["tokens"])
        return Choice(region.step(weights, vertex, self._config.eta), vertex, parts)


class AndreaPolicy:
    """UCB1 on ``max(0, EMA - loss) * 1000`` per step and drawn source, as ANDREA published it.

    The EMA (rate 0.1) before the new loss is the baseline; the arm's statistic is a plain mean over pulls. Rewards run
    to hundreds while the bonus stays near 1, so it hardly explores, and it pays for the spread of a source's documents.
    Published constants are kept; C is not published, sqrt(2) is UCB1's (Auer et al. 2002).
    """

    kind: Literal["bandit", "fixed"] = "bandit"
    teleports: Literal["by chance", "always", "never"] = "by chance"
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
        return _scaled(state, ("pulls", "rewards"), PIVOT_MEMORY)

    def choose(self, state: State, region: Region, weights: Array, unique_tokens: Array) -> Choice:
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
        vertex = region.best_vertex(parts["index"], ties=state["tokens"])
        return Choice(region.step(weights, vertex, self._config.eta), vertex, parts)


class FixedPolicy:
    """The same point in every phase, projected on the region in force: static, proportional and UniMax weights.

    UniMax (Chung et al., arXiv 2304.09151), uniform up to a number of epochs per source, is the projection of a
    constant on the region with those epochs as caps.
    """

    kind: Literal["bandit", "fixed"] = "fixed"
    is_by_step = False

    def __init__(
        self, point: Array, *, caps: Array | None = None, teleports: Literal["always", "never"] = "never"
    ) -> None:
        self._point = point
        self._caps = caps
        self.teleports: Literal["by chance", "always", "never"] = teleports

    def initial(self, num_sources: int) -> State:
        """Return nothing: losses are not looked at."""
        return {}

    def absorb(self, state: State, steps: Sequence[SourceLosses], *, since: int, until: int) -> State:
        """Return the empty memory."""
        return state

    def after_pivot(self, state: State) -> State:
        """Return the empty memory."""
        return state

    def choose(self, state: State, region: Region, weights: Array, unique_tokens: Array) -> Choice:
        """Return the nearest point of the region, with the epoch caps if there are any."""
        if self._caps is None:
            return Choice(region.project(self._point))
        return Choice(epoch_capped(region, self._caps).project(self._point))


def epoch_capped(region: Region, caps: Array) -> Region:
    """Return the region with each upper bound lowered to ``caps`` [K], but never below its lower bound."""
    bounds = [
        dict(zip(region.names, values.tolist(), strict=True))
        for values in (region.lower, np.minimum(region.upper, np.maximum(caps, region.lower)))
    ]
    return Region(region.names, floors=bounds[0], caps=bounds[1])


def make_policy(curriculum: Curriculum) -> Policy:
    """Return the policy that the curriculum names, with its settings; raises ConfigError where they cannot work."""
    config, num_sources = curriculum.policy, len(curriculum.names)
    uniform = np.full(num_sources, 1.0 / num_sources)
    tokens = np.array([source.tokens or 0 for source in curriculum.sources], dtype=np.float64)
    match config:
        case UcbConfig(reward="learnability"):
            targets = _by_name(curriculum.names, config.targets) if config.targets else uniform
            return Learnability(config, targets=targets / targets.sum(), first_tokens=float(curriculum.batch_tokens))
        case UcbConfig():
            mean_steps = (curriculum.phases.min_steps + curriculum.phases.max_steps) / 2
            rows_per_phase = curriculum.batch_rows * mean_steps
            return BoundedUcb(config, reward=make_reward(config.reward), rows_per_phase=rows_per_phase)
        case AndreaConfig():
            return AndreaPolicy(config)
        case StaticConfig():
            return FixedPolicy(_by_name(curriculum.names, config.weights) if config.weights else uniform)
        case ProportionalConfig():
            return FixedPolicy(tokens / tokens.sum())
        case UnimaxConfig():
            caps = np.minimum(1.0, config.max_epochs * tokens / (curriculum.total_steps * curriculum.batch_tokens))
            _check_epochs(curriculum, caps, config.max_epochs)
            return FixedPolicy(uniform, caps=caps)
        case RandomConfig():
            return FixedPolicy(uniform, teleports="always")


def _check_epochs(curriculum: Curriculum, caps: Array, max_epochs: float) -> None:
    for regime in curriculum.regimes:
        try:
            epoch_capped(regime.region, caps)
        except InfeasibleRegionError as error:
            reachable = float(np.minimum(regime.region.upper, np.maximum(caps, regime.region.lower)).sum())
            raise InfeasibleRegionError(
                f"policy unimax: {max_epochs:g} epochs of every source fill only {reachable:.3g} of the run in regime "
                f"{regime.name}; raise max_epochs, shorten the run, or raise floors",
                sources=error.sources,
                excess=error.excess,
                total=error.total,
            ) from error


def _by_name(names: Sequence[str], table: dict[str, float]) -> Array:
    return np.array([table.get(name, 0.0) for name in names])


def _scaled(state: State, names: Sequence[str], factor: float) -> State:
    """Return a copy of ``state`` with the named arrays multiplied by ``factor``."""
    return {name: values * factor if name in names else values for name, values in state.items()}
