"""Skill-It's weights, with the graph of what teaches what given."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mixer.config.policy import SkillItConfig
from mixer.losses import SourceLosses, add_losses
from mixer.policies.point import PointPolicy, filled_in, nats, normalised_exp
from mixer.types import Array, State


class SkillItPolicy(PointPolicy):
    """Online mirror descent with a window, projected on the region:

        p_i = exp(eta sum_j A_ij S_j) / sum,     S_j = the sum of source j's losses over the last phases

    A_ij is what source i teaches source j, given: the released code has no learning of the graph either. The paper's
    losses are held-out ones (``losses: heldout``, from probes); mean training losses of phases stand in for them by
    default. A source without a loss in a phase keeps its last one; one that never had any counts as the mean of the
    others. Source: Chen et al., NeurIPS 2023, arXiv 2307.14430.
    """

    def __init__(self, config: SkillItConfig, *, graph: Array) -> None:
        self._config = config
        self._graph = graph

    def initial(self, num_sources: int) -> State:
        """Return no losses; ``window`` is [phases * K], the newest last, of which ``filled`` phases count."""
        zeros = {name: np.zeros(num_sources) for name in ("tokens", "last", "seen")}
        return {**zeros, "window": np.zeros(num_sources * self._config.window), "filled": np.zeros(1)}

    def absorb(self, state: State, steps: Sequence[SourceLosses], *, since: int, until: int) -> State:
        """Return the memory with the losses of one more phase."""
        if not steps:
            return state
        losses = add_losses(steps)
        new = self._lengthened(state, losses) if self._config.losses == "train" else state
        return {**new, "tokens": state["tokens"] + losses.tokens}

    def absorb_probe(self, state: State, losses: SourceLosses, *, step: int) -> State:
        """Return the memory with the held-out losses of one more phase, if those are what counts."""
        if self._config.losses == "train":
            return state
        return self._lengthened(state, losses.first(state["last"].size))

    def _lengthened(self, state: State, losses: SourceLosses) -> State:
        has_rows = losses.tokens > 0
        if not has_rows.any():
            return state
        last = np.where(has_rows, nats(losses), state["last"])
        seen = np.maximum(state["seen"], has_rows)
        window = np.concatenate([state["window"][last.size :], filled_in(last, seen)])
        filled = np.minimum(state["filled"] + 1, self._config.window)
        return {**state, "last": last, "seen": seen, "window": window, "filled": filled}

    def means(self, state: State) -> Array:
        """Return S, [K]."""
        return np.asarray(state["window"].reshape(self._config.window, -1).sum(axis=0))

    def point(self, state: State) -> Array:
        """Return p, [K]; uniform before the first loss."""
        return normalised_exp(self._config.eta * (self._graph @ self.means(state)))
