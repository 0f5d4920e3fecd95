"""D-UCB and SW-UCB: upper confidence bounds for rewards that change, by a discount or by a window of phases."""

from __future__ import annotations

import math

import numpy as np

from mixer.config.policy import DUcbConfig, SwUcbConfig
from mixer.policies.base import PIVOT_MEMORY, scaled
from mixer.policies.rewards import Reward
from mixer.policies.unit_reward import SUM_BITS, UnitRewardPolicy
from mixer.system.rounding import rounded
from mixer.types import Array, State

LEAST_PULLS = 1e-9  # of a source that counts as known: what is left of one pull after 1,000 phases at discount 0.98


class DUcbPolicy(UnitRewardPolicy):
    """D-UCB with fractional pulls, for rewards r in [0, 1] (B = 1). In each phase, with g = ``discount``:

        N_i <- g N_i + m_i / m_ref,    S_i <- g S_i + (m_i / m_ref) r_i,    n = sum_i N_i
        index_i = S_i / N_i + 2 sqrt(xi ln(max(n, 1)) / N_i),    N_i = 0 -> +inf

    m_i are the source's rows in the phase and m_ref those of a mean phase, which is one pull, shared by its sources.
    The walk goes ``eta`` of the way to the vertex of the region that is best for the index. A pivot leaves a quarter
    of N and S. Source: Garivier and Moulines, ALT 2011 (arXiv 0805.3415): their bound asks for xi > 1/2, and they
    advise g = 1 - sqrt(Y / T) / 4 for Y changes in T phases.
    """

    def __init__(self, config: DUcbConfig, *, reward: Reward, rows_per_phase: float) -> None:
        super().__init__(config, reward=reward)
        self._config = config
        self._m_ref = rows_per_phase

    def no_sums(self, num_sources: int) -> State:
        """Return no pulls."""
        return {"pulls": np.zeros(num_sources), "sums": np.zeros(num_sources)}

    def forgotten(self, state: State, num_steps: int) -> State:
        """Return the memory with its sums discounted once."""
        return scaled(state, ("pulls", "sums"), self._config.discount)

    def added(self, state: State, rows: Array, rewards: Array) -> State:
        """Return the memory with the pulls and rewards of a phase."""
        pulls = rows / self._m_ref
        terms = {"pulls": pulls, "sums": pulls * rewards}
        return {**state, **{name: rounded(state[name] + term, SUM_BITS) for name, term in terms.items()}}

    def after_pivot(self, state: State) -> State:
        """Return the memory with a quarter of its weight."""
        return scaled(state, ("pulls", "sums"), PIVOT_MEMORY)

    def index(self, state: State) -> dict[str, Array]:
        """Return each part of the index, [K]: mean, width, tokens, index."""
        total = float(state["pulls"].sum())
        return _parts(state, state["pulls"], state["sums"], scale=2.0, log_total=self._config.xi * _log(total))


class SwUcbPolicy(UnitRewardPolicy):
    """SW-UCB with fractional pulls, for rewards r in [0, 1] (B = 1). With tau = ``window`` and t phases so far:

        N_i, S_i = the sums of m_i / m_ref and (m_i / m_ref) r_i over the last tau phases
        index_i = S_i / N_i + sqrt(xi ln(min(t, tau)) / N_i),    N_i = 0 -> +inf

    Pulls, steps and vertices are those of ``DUcbPolicy``. Phases without a reward count too. A pivot leaves a quarter
    of each phase in the window. Source: Garivier and Moulines, ALT 2011 (arXiv 0805.3415): they advise
    tau = 2 sqrt(T ln T / Y) for Y changes in T phases.
    """

    def __init__(self, config: SwUcbConfig, *, reward: Reward, rows_per_phase: float) -> None:
        super().__init__(config, reward=reward)
        self._config = config
        self._m_ref = rows_per_phase

    def no_sums(self, num_sources: int) -> State:
        """Return an empty window: rings of [window * K], in which phase t has the place t mod window."""
        ring = num_sources * self._config.window
        return {"pulls": np.zeros(ring), "sums": np.zeros(ring), "phases": np.zeros(1)}

    def forgotten(self, state: State, num_steps: int) -> State:
        """Return the memory with an empty phase in place of the oldest in the window."""
        new = {**state, "phases": state["phases"] + 1}
        nothing = np.zeros(state["tokens"].size)
        return {**new, **{name: self._placed(new, name, nothing) for name in ("pulls", "sums")}}

    def added(self, state: State, rows: Array, rewards: Array) -> State:
        """Return the memory with the pulls and rewards of the newest phase."""
        pulls = rounded(rows / self._m_ref, SUM_BITS)
        terms = {"pulls": pulls, "sums": rounded(pulls * rewards, SUM_BITS)}
        return {**state, **{name: self._placed(state, name, term) for name, term in terms.items()}}

    def _placed(self, state: State, name: str, values: Array) -> Array:
        """Return the named ring with ``values`` as its newest phase, [window * K]."""
        ring = state[name].reshape(self._config.window, -1).copy()
        ring[int(state["phases"][0] - 1) % self._config.window] = values
        return ring.ravel()

    def after_pivot(self, state: State) -> State:
        """Return the memory with a quarter of its weight."""
        return scaled(state, ("pulls", "sums"), PIVOT_MEMORY)

    def index(self, state: State) -> dict[str, Array]:
        """Return each part of the index, [K]: mean, width, tokens, index."""
        window = self._config.window
        pulls, sums = (state[name].reshape(window, -1).sum(axis=0) for name in ("pulls", "sums"))
        log_total = self._config.xi * _log(min(float(state["phases"][0]), window))
        return _parts(state, pulls, sums, scale=1.0, log_total=log_total)


def _log(total: float) -> float:
    return math.log(max(total, 1.0))  # of less than one pull: no width below 0


def _parts(state: State, pulls: Array, sums: Array, *, scale: float, log_total: float) -> dict[str, Array]:
    """Return the mean reward, ``scale * sqrt(log_total / pulls)`` and their sum, [K] each."""
    is_known = pulls > LEAST_PULLS
    counts = np.where(is_known, pulls, 1.0)
    mean = np.where(is_known, sums / counts, 0.0)
    width = np.where(is_known, scale * np.sqrt(log_total / counts), 0.0)
    index = np.where(is_known, mean + width, np.inf)
    return {"mean": mean, "width": width, "tokens": state["tokens"], "index": index}
