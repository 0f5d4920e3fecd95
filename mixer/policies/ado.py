"""Adaptive Data Optimization: follow the sources whose fitted scaling law falls fastest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from mixer.policies.base import Choice, silenced, silenced_point
from mixer.policies.power_law import fit_power_law
from mixer.policy_config import AdoConfig
from mixer.region import Region
from mixer.rewards import SourceLosses, State, add_losses
from mixer.types import Array, BoolArray

MAX_POINTS = 256  # of the loss curve of each source; neighbours are averaged when there are more
MIN_POINTS = 4  # a curve with three parameters, and one to be wrong by
MIN_ALPHA, HISTORY_POWER, SHARE_MEMORY, LEAST_SHARE, TRACK = 0.05, 0.5, 0.9, 0.01, 0.9  # as released


class AdoPolicy:
    """ADO as its authors released it, projected on the region.

    With ``L_k(n) = eps_k + beta_k n^-alpha_k`` fitted to each source's losses, mu the natural shares and h the moving
    average (0.9) of the shares really drawn:

        score_k = max(alpha_k, 0.05) (L_k(n) - eps_k) / n * mu_k * sqrt(h_k), brought to sum 1, at least 0.01 each
        p = 0.9 pbar + 0.1 score,     pbar <- (1 - 1 / (t + 1)) pbar + score / (t + 1)

    n is the number of rows of *all* sources, as in the released code (``same_step_size``), or the source's own rows.
    Until the first fit, mu is played. A source with too few losses to fit falls as fast as the mean of the others.

    Two things differ from the released code. Its curve is of every step's loss, smoothed by a Savitzky-Golay filter;
    ours is of the mean losses of phases, at most 256 points. Its fit is the best of 512 starts of L-BFGS; ours
    (``power_law.py``) looks for the same minimum from a grid of the same size. The hard bounds are ours too.
    Source: Jiang et al., ICLR 2025, arXiv 2410.11820.
    """

    kind: Literal["bandit", "fixed"] = "bandit"
    teleports: Literal["by chance", "always", "never"] = "never"
    is_by_step = True

    def __init__(self, config: AdoConfig, *, prior: Array) -> None:
        self._config = config
        self._prior = prior

    def initial(self, num_sources: int) -> State:
        """Return no curves: ``curve_n``, ``curve_loss`` [points * K], the loss 0 where a source was not drawn."""
        state: State = {name: np.zeros(num_sources) for name in ("tokens", "rows", "alpha", "log_beta", "eps")}
        state |= {"shares": self._prior.copy(), "track": self._prior.copy(), "score": self._prior.copy()}
        state |= {"curve_n": np.zeros(0), "curve_loss": np.zeros(0), "fits": np.zeros(2)}  # last fit, updates since
        state["is_fitted"] = np.zeros(num_sources)
        return state

    def absorb(self, state: State, steps: Sequence[SourceLosses], *, since: int, until: int) -> State:
        """Return the memory with one more point of each curve, refitted if it is time, and the shares tracked."""
        new = dict(state)
        if steps:
            losses = add_losses(steps)
            n = self._count(new["rows"] + losses.rows / 2)
            new["curve_n"], new["curve_loss"] = _lengthened(new, n, np.where(losses.rows > 0, losses.means(), 0.0))
        last_fit, updates = state["fits"]
        first = self._config.first_fit_step
        if until >= first and (updates == 0 or until - last_fit >= self._config.refit_steps):
            new |= self._fitted(new)
            last_fit, updates = float(until), max(updates, 1.0)
        for losses in steps:
            new["rows"] = new["rows"] + losses.rows
            new["tokens"] = new["tokens"] + losses.tokens
            drawn = losses.rows / max(int(losses.rows.sum()), 1)
            new["shares"] = SHARE_MEMORY * new["shares"] + (1 - SHARE_MEMORY) * drawn
            if updates:
                new["score"] = self.score(new)
                rate = 1.0 / (updates + 1.0)
                new["track"] = (1 - rate) * new["track"] + rate * new["score"]
                updates += 1.0
        new["fits"] = np.array([last_fit, updates])
        return new

    def after_pivot(self, state: State) -> State:
        """Return the memory as it is: a scaling law does not change with the region."""
        return state

    def choose(
        self, state: State, region: Region, weights: Array, unique_tokens: Array, alarmed: BoolArray | None = None
    ) -> Choice:
        """Return ADO's weights, moved to the nearest point of the region."""
        point = TRACK * state["track"] + (1 - TRACK) * state["score"] if state["fits"][1] else self._prior
        parts = {"slope": self.speed(state), "tokens": state["tokens"], "index": state["score"]}
        return Choice(region.project(silenced_point(point, alarmed)), parts=silenced(parts, alarmed))

    def speed(self, state: State) -> Array:
        """Return the fitted fall of each source's loss, nats per row, [K]; 0 without a fit."""
        n = np.maximum(self._count(state["rows"]), 1.0)
        excess = np.exp(state["log_beta"] - state["alpha"] * np.log(n))
        speed = np.where(state["is_fitted"] > 0, np.maximum(state["alpha"], MIN_ALPHA) * excess / n, 0.0)
        return np.asarray(speed)

    def score(self, state: State) -> Array:
        """Return the shares that learning speed alone would give, [K], sum 1."""
        speed, is_fitted = self.speed(state), state["is_fitted"] > 0
        if not is_fitted.any():
            return self._prior
        speed = np.where(is_fitted, speed, speed[is_fitted].mean())
        score = speed * self._prior * state["shares"] ** HISTORY_POWER
        total = float(score.sum())
        if total <= 0.0:
            return self._prior
        score = np.maximum(score / total, min(LEAST_SHARE, 1.0 / score.size))
        return np.asarray(score / score.sum())

    def _count(self, rows: Array) -> Array:
        return np.full(rows.size, rows.sum()) if self._config.same_step_size else rows

    def _fitted(self, state: State) -> State:
        num_sources = state["rows"].size
        n, losses = state["curve_n"].reshape(-1, num_sources), state["curve_loss"].reshape(-1, num_sources)
        fit: State = {name: state[name].copy() for name in ("alpha", "log_beta", "eps", "is_fitted")}
        for k in range(num_sources):
            known = (losses[:, k] > 0) & (n[:, k] > 0)
            if known.sum() >= MIN_POINTS:
                law = fit_power_law(n[known, k], losses[known, k])
                fit["alpha"][k], fit["log_beta"][k], fit["eps"][k] = law.alpha, law.log_beta, law.eps
                fit["is_fitted"][k] = 1.0
        return fit


def _lengthened(state: State, n: Array, losses: Array) -> tuple[Array, Array]:
    """Return the curves with one more point; pairs of neighbours become their mean when there are MAX_POINTS."""
    num_sources = n.size
    counts = np.concatenate([state["curve_n"], n]).reshape(-1, num_sources)
    curves = np.concatenate([state["curve_loss"], losses]).reshape(-1, num_sources)
    if len(counts) > MAX_POINTS:
        even = len(counts) // 2 * 2
        pairs_n, pairs = counts[:even].reshape(-1, 2, num_sources), curves[:even].reshape(-1, 2, num_sources)
        known = pairs > 0
        num_known = known.sum(axis=1)
        sums = np.where(known, pairs, 0.0).sum(axis=1)
        means = np.divide(sums, num_known, out=np.zeros_like(sums), where=num_known > 0)
        counts = np.concatenate([pairs_n.mean(axis=1), counts[even:]])
        curves = np.concatenate([means, curves[even:]])
    return counts.ravel(), curves.ravel()
