"""Aioli: what each source teaches every other, measured by short phases of nearly one source, decides the mixture."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mixer.config.policy import AioliConfig
from mixer.losses import SourceLosses, add_losses
from mixer.policies.point import PointPolicy, nats, normalised_exp
from mixer.sampling.randomness import uniforms
from mixer.types import Array, State

LEAST_VARIATION = 1e-9  # of the largest: directions in which mixtures varied less say nothing


class AioliPolicy(PointPolicy):
    """Aioli with its LearnParams, projected on the region. In a span p of one phase, with n_pi rows of source i:

        fall of source j's held-out loss:  d_pj = sum_i A_ji n_pi,   A = the least squares of the spans of LearnParams
        A <- A - min(0, the smallest entry);   A <- A / (the sum of its entries)
        S <- (1 - ema) A + ema S  (S = A at first),   w_i = exp(eta sum_j S_ji) / sum_k exp(eta sum_j S_jk)

    LearnParams is ``rounds`` times K phases, one for each source in an order that (seed, number of the decision) gives:
    ``one_hot`` of the mixture is that source, the others share the rest. The phases after them follow w, so that
    LearnParams takes ``learn_share`` of all; then A is learned anew. The first of them still has the w of before, as
    the last fall is known one phase later. A pivot that redraws the region begins with LearnParams, and S stays.

    The paper's A comes from mixtures of equal length, one solution for each source of ``W a_j = d_j`` with the falls
    averaged over rounds. That is the same least squares, up to a factor that the division takes out again. Phases of
    ours differ in length, and bounds move their mixtures, also to ones that cannot tell sources apart. So the rows that
    were read take the place of W, and the shortest solution that of the only one. As released, S starts from the
    uniform mixture each time and ``ema`` is what is kept; without ``ema`` the paper multiplies w on.

    Losses are those of probes, of the sources alone. A source missing from a probe keeps its last loss, and rows wait
    for the next probe. Without any, w is uniform. Source: Chen et al., ICLR 2025, arXiv 2411.05735, algorithms 1 and 2.

    Args:
        config: settings.
        seed: of the run.
    """

    def __init__(self, config: AioliConfig, *, seed: int) -> None:
        self._config = config
        self._seed = seed

    def initial(self, num_sources: int) -> State:
        """Return no observations; ``gram``, ``cross`` and S, ``law``, are [K * K], ``place`` is that in the cycle."""
        vectors = {name: np.zeros(num_sources) for name in ("tokens", "exposure", "last", "seen")}
        matrices = {name: np.zeros(num_sources**2) for name in ("gram", "cross", "law")}
        return {**vectors, **matrices, "at": np.full(1, -1.0), "place": np.full(1, -1.0), "decisions": np.zeros(1)}

    def absorb(self, state: State, steps: Sequence[SourceLosses], *, since: int, until: int) -> State:
        """Return the memory with the rows of one more phase, and what LearnParams found if it has ended."""
        num = state["tokens"].size
        learning = self._learning(num)
        place = (int(state["place"][0]) + 1) % (learning + self._playing(num))
        new = {**state, "place": np.array([float(place)]), "decisions": state["decisions"] + 1}
        if place == learning + 1:
            new = self._concluded(new)
        if not steps:
            return new
        losses = add_losses(steps)
        tokens, exposure = state["tokens"] + losses.tokens, state["exposure"] + losses.rows
        return {**new, "tokens": tokens, "exposure": exposure}

    def absorb_probe(self, state: State, losses: SourceLosses, *, step: int) -> State:
        """Return the memory with the falls of the held-out losses since the last probe."""
        if step <= state["at"][0]:  # what a rank says late of a probe that was used
            return state
        own = losses.first(state["last"].size)
        is_there = own.tokens > 0
        last = np.where(is_there, nats(own), state["last"])
        new = {**state, "last": last, "seen": np.maximum(state["seen"], is_there), "at": np.array([float(step)])}
        new["exposure"] = np.zeros(last.size)
        # the phase before ``place`` is what this probe measures
        if 1 <= state["place"][0] <= self._learning(last.size):
            falls = np.where(is_there & (state["seen"] > 0), state["last"] - last, 0.0)
            new["gram"] = state["gram"] + np.outer(state["exposure"], state["exposure"]).ravel()
            new["cross"] = state["cross"] + np.outer(state["exposure"], falls).ravel()
        return new

    def _concluded(self, state: State) -> State:
        """Return the memory after LearnParams: S with what was learned in it, and no observations."""
        num = state["tokens"].size
        gram, cross = (state[name].reshape(num, num) for name in ("gram", "cross"))
        empty = {name: np.zeros(num**2) for name in ("gram", "cross")}
        if not cross.any():  # no losses came, or none changed
            return {**state, **empty}
        taught = np.linalg.lstsq(gram, cross, rcond=LEAST_VARIATION)[0].T  # A, of loss j and source i
        taught = taught - min(0.0, float(taught.min()))
        total = float(taught.sum())
        law = (taught / total if total > 0 else np.full((num, num), 1.0 / num**2)).ravel()
        kept = self._config.ema if state["law"].any() else 0.0
        return {**state, **empty, "law": (1 - kept) * law + kept * state["law"]}

    def after_pivot(self, state: State) -> State:
        """Return the memory at the beginning of LearnParams, with S as it is."""
        empty = {name: np.zeros_like(state[name]) for name in ("gram", "cross")}
        return {**state, **empty, "place": np.zeros(1)}

    def means(self, state: State) -> Array:
        """Return what each source teaches all, ``sum_j S_ji``, [K]."""
        num = state["tokens"].size
        return np.asarray(state["law"].reshape(num, num).sum(axis=0))

    def point(self, state: State) -> Array:
        """Return the mixture of LearnParams whose turn it is, or w, [K]."""
        num, place = state["tokens"].size, max(int(state["place"][0]), 0)
        if num == 1 or place >= self._learning(num):
            return normalised_exp(self._config.eta * self.means(state))
        turn = place % num
        order = np.argsort(uniforms(num, self._seed, "policy.aioli", int(state["decisions"][0]) - turn))
        mixture = np.full(num, (1 - self._config.one_hot) / (num - 1))
        mixture[order[turn]] = self._config.one_hot
        return mixture

    def _learning(self, num_sources: int) -> int:
        """Return the phases of a LearnParams."""
        return self._config.rounds * num_sources

    def _playing(self, num_sources: int) -> int:
        """Return the phases from a LearnParams to the next; with one of them nothing learned would be used."""
        share = self._config.learn_share
        return max(2, round(self._learning(num_sources) * (1 - share) / share))
