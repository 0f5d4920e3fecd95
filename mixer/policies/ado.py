"""Adaptive Data Optimization: follow the sources whose fitted scaling law falls fastest."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mixer.config.policy import AdoConfig
from mixer.losses import SourceLosses, add_losses
from mixer.policies.base import Choice, Policy, silenced, silenced_point
from mixer.policies.power_law import fit_power_law
from mixer.region.region import Region
from mixer.system.packed import rounded
from mixer.types import Array, BoolArray, State

NUM_BINS, BIN_RATIO = 16, 1.5  # of the loss curve of each source: bins of n, each ends 1.5 times as far as the last
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

    Three things differ from the released code. Its curve is of every step's loss, smoothed by a Savitzky-Golay filter;
    ours is of the mean losses in the newest 16 bins of n, each 1.5 times as wide as the one before: a power law is a
    matter of log n. Its fit is the best of 512 starts of L-BFGS; ours (``power_law.py``) looks for the
    same minimum from a grid of the same size. The steps that a decision learns from count as alike, as they had one
    mixture. The hard bounds are ours too. Source: Jiang et al., ICLR 2025, arXiv 2410.11820.
    """

    teleports = "never"
    looks_at_squares = False

    def __init__(self, config: AdoConfig, *, prior: Array, batch_rows: int) -> None:
        self._config = config
        self._prior = prior
        self._batch_rows = batch_rows

    def initial(self, num_sources: int) -> State:
        """Return no curves.

        ``curve`` has the mean losses of the bins before the newest, [NUM_BINS * K], each in the slot of its number
        modulo NUM_BINS, 0 where a source was not drawn; ``bin`` is the number of each source's newest bin.
        """
        names = ("tokens", "rows", "alpha", "log_beta", "eps", "is_fitted", "bin", "bin_tokens", "bin_loss")
        state: State = {name: np.zeros(num_sources) for name in names}
        state |= {"shares": self._prior.copy(), "track": self._prior.copy()}
        return state | {"curve": np.zeros(NUM_BINS * num_sources), "fits": np.zeros(2)}  # last fit, updates since

    def absorb(self, state: State, steps: Sequence[SourceLosses], *, since: int, until: int) -> State:
        """Return the memory with the losses in bins of the curves, refitted if it is time, and the shares tracked."""
        new = dict(state)
        losses = add_losses(steps) if steps else None
        if losses is not None and losses.rows.any():
            new |= self._with_losses(state, losses)
        last_fit, updates = state["fits"]
        if until >= self._config.first_fit_step and (updates == 0 or until - last_fit >= self._config.refit_steps):
            new |= self._fitted(new)
            last_fit, updates = float(until), max(updates, 1.0)
        if losses is not None and losses.rows.any():
            num_steps = max(1, round(int(losses.rows.sum()) / self._batch_rows))
            number = np.arange(1, num_steps + 1)[:, None]
            rows = state["rows"] + losses.rows * (number / num_steps)
            kept = SHARE_MEMORY**number
            shares = kept * state["shares"] + (1 - kept) * (losses.rows / losses.rows.sum())
            new["shares"] = rounded(shares[-1], 21)
            if updates:
                scores = self._scores(new, rows, shares)
                track = (updates * state["track"] + scores.sum(axis=0)) / (updates + num_steps)
                new["track"] = rounded(track, 29)
                updates += num_steps
        new["fits"] = np.array([last_fit, updates])
        return new

    def after_pivot(self, state: State) -> State:
        """Return the memory as it is: a scaling law does not change with the region."""
        return state

    def choose(
        self, state: State, region: Region, weights: Array, unique_tokens: Array, alarmed: BoolArray | None = None
    ) -> Choice:
        """Return ADO's weights, moved to the nearest point of the region."""
        score = self.score(state)
        point = TRACK * state["track"] + (1 - TRACK) * score if state["fits"][1] else self._prior
        slope = self._speeds(state, state["rows"])
        parts = silenced({"slope": slope, "tokens": state["tokens"], "index": score}, alarmed)
        return Choice(region.project(silenced_point(point, alarmed)), parts=parts)

    def score(self, state: State) -> Array:
        """Return the shares that learning speed alone would give, [K], sum 1."""
        return self._scores(state, state["rows"], state["shares"])

    def _speeds(self, state: State, rows: Array) -> Array:
        """Return the fitted fall of each source's loss after ``rows`` of each, nats per row, [..., K]; 0 unfitted."""
        n = np.maximum(self._count(rows), 1.0)
        excess = np.exp(state["log_beta"] - state["alpha"] * np.log(n))
        return np.where(state["is_fitted"] > 0, np.maximum(state["alpha"], MIN_ALPHA) * excess / n, 0.0)

    def _scores(self, state: State, rows: Array, shares: Array) -> Array:
        """Return ``score`` after ``rows`` of each source drawn in ``shares``, [..., K]."""
        is_fitted = state["is_fitted"] > 0
        if not is_fitted.any():
            return np.broadcast_to(self._prior, rows.shape)
        speeds = self._speeds(state, rows)
        mean = speeds.sum(axis=-1, keepdims=True) / np.count_nonzero(is_fitted)
        scores = np.where(is_fitted, speeds, mean) * self._prior * shares**HISTORY_POWER
        totals = scores.sum(axis=-1, keepdims=True)
        scores = np.divide(scores, totals, out=np.zeros_like(scores) + self._prior, where=totals > 0)
        scores = np.maximum(scores, min(LEAST_SHARE, 1.0 / self._prior.size))
        return np.asarray(scores / scores.sum(axis=-1, keepdims=True))

    def _count(self, rows: Array) -> Array:
        return np.broadcast_to(rows.sum(axis=-1, keepdims=True), rows.shape) if self._config.same_step_size else rows

    def _with_losses(self, state: State, losses: SourceLosses) -> State:
        """Return what changes of the counts and the curves; the losses belong to the middle of their rows."""
        seen, old = losses.rows > 0, state["bin"]
        middle = np.maximum(self._count(state["rows"] + losses.rows / 2), 1.0)
        newest = np.where(seen, np.floor(np.log(middle) / np.log(BIN_RATIO)), old)
        held, curve = _bins_held(newest), state["curve"].reshape(NUM_BINS, -1)
        curve = np.where(held == old, rounded(_means(state), 10), np.where(held > old, 0.0, curve))
        goes_on = newest == old
        return {
            "tokens": state["tokens"] + losses.tokens,
            "rows": state["rows"] + losses.rows,
            "curve": curve.ravel(),
            "bin": newest,
            "bin_tokens": state["bin_tokens"] * goes_on + losses.tokens,
            "bin_loss": state["bin_loss"] * goes_on + losses.loss_sums,
        }

    def curves(self, state: State) -> tuple[Array, Array]:
        """Return the middle of each bin and the mean loss in it, [NUM_BINS + 1, K]; a loss of 0 where there is none."""
        held, newest = _bins_held(state["bin"]), state["bin"]
        begin, end = BIN_RATIO**newest, np.minimum(self._count(state["rows"]), BIN_RATIO ** (newest + 1))
        n = np.vstack([BIN_RATIO**held * (1 + BIN_RATIO) / 2, (begin + np.maximum(begin, end)) / 2])
        return n, np.vstack([state["curve"].reshape(NUM_BINS, -1), _means(state)])

    def _fitted(self, state: State) -> State:
        n, losses = self.curves(state)
        fit: State = {name: state[name].copy() for name in ("alpha", "log_beta", "eps", "is_fitted")}
        for k in range(n.shape[1]):
            known = losses[:, k] > 0
            if known.sum() >= MIN_POINTS:
                law = fit_power_law(n[known, k], losses[known, k])
                fit["alpha"][k], fit["log_beta"][k], fit["eps"][k] = law.alpha, law.log_beta, law.eps
                fit["is_fitted"][k] = 1.0
        return {name: rounded(values, 21) for name, values in fit.items()}


def _bins_held(newest: Array) -> Array:
    """Return the number of the bin in each slot of the curves, [NUM_BINS, K]: those before the newest."""
    last = newest - 1
    return np.asarray(last - (last - np.arange(NUM_BINS)[:, None]) % NUM_BINS)


def _means(state: State) -> Array:
    """Return the mean losses of the newest bins, [K]; 0 where there are none."""
    tokens = state["bin_tokens"]
    return np.divide(state["bin_loss"], tokens, out=np.zeros_like(tokens), where=tokens > 0)
