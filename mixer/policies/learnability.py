"""The default index: a fitted slope per token with an optimistic width.

It recovered about 78 % of a true-gradient oracle's gain in our toy runs, where loss level and rectified loss drop did
worse than uniform.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mixer.config.policy import UcbConfig
from mixer.losses import SourceLosses, add_losses
from mixer.policies.base import PIVOT_MEMORY, Choice, Policy, best_vertex, scaled, silenced
from mixer.policies.regression import with_point
from mixer.region.region import Region
from mixer.types import Array, BoolArray, State

MIN_OBSERVATIONS = 3  # a slope with a standard error needs three points; fewer count as unexplored


class Learnability(Policy):
    """UCB on the fitted marginal loss per token (algorithms of ADO and upper-confidence Frank-Wolfe, in one index).

    For each source, loss y is regressed on x = ln(N + n_0), N the tokens seen of it, with weights m (rows) and a
    discount in log time: sums shrink by ``(tau / tau')^kappa`` from decision to decision, tau = step + tau_0. With
    slope -v, its standard error se, the repetition discount rho (Muennighoff et al. 2023) and target weight:

        g = target * rho * max(0, v + c se) / N,    rho = exp(-max(0, N / U - 1) / R*)

    A source with fewer than 3 observations has g = +inf; those are ordered by fewest tokens. The mean loss of a phase
    belongs to the middle of the tokens it was measured on. Sources: Berthet and Perchet, NeurIPS 2017; Jiang et al.,
    arXiv 2410.11820.
    """

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
        new = scaled(state, _SUMS, ((since + tau_0) / (until + tau_0)) ** self._config.kappa)
        if not steps:
            return new
        losses = add_losses(steps)
        seen = losses.rows > 0
        m = np.where(seen, losses.rows, 0).astype(np.float64)
        x = np.where(seen, np.log(new["tokens"] + losses.tokens / 2 + self._n_0), new["mean_x"])
        y = np.where(seen, losses.means(), new["mean_y"])
        new = with_point(new, x=x, y=y, m=m)
        new["points"] = new["points"] + seen
        new["count"] = new["count"] + seen
        new["tokens"] = new["tokens"] + losses.tokens
        return new

    def after_pivot(self, state: State) -> State:
        """Return the memory with a quarter of its weight; tokens seen stay seen."""
        return scaled(state, _SUMS, PIVOT_MEMORY)

    def choose(
        self, state: State, region: Region, weights: Array, unique_tokens: Array, alarmed: BoolArray | None = None
    ) -> Choice:
        """Step towards the vertex with the best optimistic gradient; sources in alarm promise nothing."""
        parts = silenced(self.index(state, unique_tokens), alarmed)
        vertex = best_vertex(region, parts)
        return Choice(region.step(weights, vertex, self._config.eta), vertex, parts)

    def index(self, state: State, unique_tokens: Array) -> dict[str, Array]:
        """Return each part of the index, [K]: slope, width, repetition, tokens, index."""
        fitted = (state["count"] >= MIN_OBSERVATIONS) & (state["sxx"] > 0)
        epochs = np.divide(state["tokens"], unique_tokens, out=np.zeros(fitted.size), where=unique_tokens > 0)
        repetition = np.exp(-np.maximum(0.0, epochs - 1.0) / self._config.repetition)
        if not np.count_nonzero(fitted):
            none, unexplored = np.zeros(fitted.size), np.full(fitted.size, np.inf)
            parts = {"slope": none, "width": none, "repetition": repetition}
            return {**parts, "tokens": state["tokens"], "index": unexplored}
        sxx = np.where(fitted, state["sxx"], 1.0)
        slope = np.where(fitted, -state["sxy"] / sxx, 0.0)
        residual = np.maximum(state["syy"] - state["sxy"] ** 2 / sxx, 0.0)
        freedom = np.maximum(state["points"] - 2.0, 1.0)  # discounting may leave fewer points than a line has
        width = np.where(fitted, self._config.width * np.sqrt(residual / freedom / sxx), 0.0)
        gain = self._targets * repetition * np.maximum(0.0, slope + width) / np.maximum(state["tokens"], 1.0)
        index = np.where(fitted, gain, np.inf)
        return {"slope": slope, "width": width, "repetition": repetition, "tokens": state["tokens"], "index": index}


_SUMS = ("points", "weight", "sxx", "sxy", "syy")  # what forgetting shrinks; means and counts stay
