"""Adaptive Data Optimization: follow the sources whose fitted scaling law falls fastest."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mixer.config.policy import AdoConfig
from mixer.losses import SourceLosses, add_losses
from mixer.policies.base import Choice, Policy, silenced, silenced_point
from mixer.policies.power_law import fit_power_law
from mixer.region.region import Region
from mixer.types import Array, BoolArray, State

MAX_POINTS = 256  # of the loss curve of each source; neighbours are averaged when there are more
MIN_POINTS = 4  # a curve with three parameters, and one to be wrong by
MIN_ALPHA, HISTORY_POWER, SHARE_MEMORY, LEAST_SHARE, TRACK = 0.05, 0.5, 0.9, 0.01, 0.9  # as released


class AdoPolicy(Policy):
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

    teleports = "never"
    is_by_step = True

    def __init__(self, config: AdoConfig, *, prior: Array) -> None:
        self._config = config
        self._prior = prior

    def initial(self, num_sources: int) -> State:
        """Return no curves.

        ``curve_loss`` has the mean losses of phases, [points * K], 0 where a source was not drawn; ``curve_n`` what n
        was in the middle of them, [points] where it is that of all sources, else [points * K].
        """
        state: State = {name: np.zeros(num_sources) for name in ("tokens", "rows", "alpha", "log_beta", "eps")}
        state |= {
            "is_fitted": np.zeros(num_sources),
            "fits": np.zeros(2),
        }  # step of the last fit, updates since the first
        state |= {"shares": self._prior.copy(), "track": self._prior.copy(), "score": self._prior.copy()}
        return state | {"curve_n": np.zeros(0), "curve_loss": np.zeros(0)}

    def absorb(self, state: State, steps: Sequence[SourceLosses], *, since: int, until: int) -> State:
        """Return the memory with one more point of each curve, refitted if it is time, and the shares tracked."""
        new = dict(state)
        if steps:
            new |= self._lengthened(state, add_losses(steps))
        last_fit, updates = state["fits"]
        if until >= self._config.first_fit_step and (updates == 0 or until - last_fit >= self._config.refit_steps):
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
        return np.where(state["is_fitted"] > 0, np.maximum(state["alpha"], MIN_ALPHA) * excess / n, 0.0)

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
        """Return n after ``rows`` of each source: [1] if it is that of all, else [K]."""
        return rows.sum(keepdims=True) if self._config.same_step_size else rows

    def _fitted(self, state: State) -> State:
        num_sources = state["rows"].size
        losses = state["curve_loss"].reshape(-1, num_sources)
        width = 1 if self._config.same_step_size else num_sources
        n = np.broadcast_to(state["curve_n"].reshape(-1, width), losses.shape)
        fit: State = {name: state[name].copy() for name in ("alpha", "log_beta", "eps", "is_fitted")}
        for k in range(num_sources):
            known = (losses[:, k] > 0) & (n[:, k] > 0)
            if known.sum() >= MIN_POINTS:
                law = fit_power_law(n[known, k], losses[known, k])
                fit["alpha"][k], fit["log_beta"][k], fit["eps"][k] = law.alpha, law.log_beta, law.eps
                fit["is_fitted"][k] = 1.0
        return fit

    def _lengthened(self, state: State, losses: SourceLosses) -> State:
        """Return the curves with one more point; pairs of neighbours become their mean when there are MAX_POINTS."""
        num_sources = losses.rows.size
        middle = self._count(state["rows"] + losses.rows / 2)
        counts = np.concatenate([state["curve_n"], middle]).reshape(-1, middle.size)
        means = np.where(losses.rows > 0, losses.means(), 0.0)
        curves = np.concatenate([state["curve_loss"], means]).reshape(-1, num_sources)
        if len(curves) > MAX_POINTS:
            even = len(curves) // 2 * 2
            pairs = curves[:even].reshape(-1, 2, num_sources)
            num_known = (pairs > 0).sum(axis=1)
            means = np.divide(pairs.sum(axis=1), num_known, out=np.zeros(num_known.shape), where=num_known > 0)
            curves = np.concatenate([means, curves[even:]])
            counts = np.concatenate([counts[:even].reshape(-1, 2, middle.size).mean(axis=1), counts[even:]])
        return {"curve_n": counts.ravel(), "curve_loss": curves.ravel()}
