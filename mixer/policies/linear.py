"""A linear bandit over the region: what each source does for the loss that is wanted, learned from whole mixtures."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import NormalDist

import numpy as np

from mixer.config.policy import LinearConfig
from mixer.losses import SourceLosses, add_losses
from mixer.policies.base import PIVOT_MEMORY, Choice, Policy, best_vertex, scaled, silenced
from mixer.region.region import Region
from mixer.sampling.randomness import uniforms
from mixer.types import Array, BoolArray, State

_SUMS = ("gram", "cross", "squares", "weight", "falls", "lengths")  # what forgetting shrinks


class LinearPolicy(Policy):
    """Linear Thompson sampling on the fall of the loss that is wanted, as a linear function of the mixture.

    Between two observations the loss fell by y, d e-folds of time passed (ln of steps + tau_0), and the rows drawn had
    proportions p. With x = d p and a discount in log time:

        y = x . theta + noise,     A = sum x x',  b = sum x y,    m = sum y d / sum d^2  (the mean fall)
        theta = m + (A + l I)^-1 (b - m A 1),     l = ridge * trace(A) / K

    theta_i is what an e-fold of time spent on source i alone would take off the loss: also by what it teaches others,
    which slopes source by source cannot see. A draw ``theta + width * s * L^-T z`` (L L' = A + l I, s the residual
    spread, z standard normal) is maximised over the region by its best vertex, one linear program, and the walk goes
    ``eta`` of the way there. z comes from the counter-based stream of (seed, number of the decision). Random phases are
    the design that tells sources apart.

    The loss is that of probes (``losses: heldout``), the mean over the sources and targets that are wanted; or by
    default the training loss: the mean over the wanted sources seen of each one's last mean loss of a phase, which
    belongs to the middle of the phase. A phase with a source never seen before begins anew.
    Sources: Agrawal and Goyal, ICML 2013; Abeille and Lazaric, AISTATS 2017.

    Args:
        config: settings.
        wanted: weight of each loss in the mean: of the sources, [K], or with ``losses: heldout`` of the sources and
            the targets, [K + M].
        seed: of the run.
    """

    def __init__(self, config: LinearConfig, *, wanted: Array, seed: int) -> None:
        self._config = config
        self._wanted = wanted
        self._seed = seed

    def initial(self, num_sources: int) -> State:
        """Return no observations; ``gram`` is A, [K * K], ``exposure`` are rows since the loss was last known."""
        vectors = {name: np.zeros(num_sources) for name in ("tokens", "cross", "exposure", "last", "seen")}
        scalars = ("squares", "weight", "falls", "lengths", "level", "at", "is_known", "decisions")
        return {**vectors, **{name: np.zeros(1) for name in scalars}, "gram": np.zeros(num_sources**2)}

    def absorb(self, state: State, steps: Sequence[SourceLosses], *, since: int, until: int) -> State:
        """Return the memory with the rows of one more phase, and the fall of the training loss if that counts."""
        tau_0 = self._config.tau_0
        new = scaled(state, _SUMS, ((since + tau_0) / (until + tau_0)) ** self._config.kappa)
        new["decisions"] = state["decisions"] + 1
        if not steps:
            return new
        losses = add_losses(steps)
        new["tokens"] = new["tokens"] + losses.tokens
        if self._config.losses == "heldout":
            new["exposure"] = new["exposure"] + losses.rows
            return new
        half = losses.rows / 2  # of the phase came before the middle of it, where its losses belong
        new["exposure"] = new["exposure"] + half
        has_rows = losses.tokens > 0
        if (has_rows & (state["seen"] == 0)).any():
            new["is_known"] = np.zeros(1)
        new["last"] = np.where(has_rows, losses.means(), new["last"])
        new["seen"] = np.maximum(new["seen"], has_rows)
        weights = self._wanted * new["seen"]
        if weights.sum() > 0:
            level = float(weights @ new["last"]) / float(weights.sum())
            new = self._with_level(new, level, (since + until) / 2)
        new["exposure"] = new["exposure"] + half
        return new

    def absorb_probe(self, state: State, losses: SourceLosses, *, step: int) -> State:
        """Return the memory with the fall of the held-out loss since the last probe, if that counts."""
        level = losses.goal(self._wanted) if self._config.losses == "heldout" else None
        return state if level is None else self._with_level(state, level, float(step))

    def _with_level(self, state: State, level: float, at: float) -> State:
        """Return the memory with one more observation; a loss after no new rows teaches nothing."""
        rows = float(state["exposure"].sum())
        if not state["is_known"][0]:
            return {**state, "level": np.array([level]), "at": np.array([at]), "is_known": np.ones(1)} | {
                "exposure": np.zeros_like(state["exposure"])
            }
        tau_0 = self._config.tau_0
        length = float(np.log((at + tau_0) / (state["at"][0] + tau_0)))
        if rows <= 0 or length <= 0:
            return state
        x, fall = length * state["exposure"] / rows, float(state["level"][0]) - level
        return {
            **state,
            "gram": state["gram"] + np.outer(x, x).ravel(),
            "cross": state["cross"] + x * fall,
            "squares": state["squares"] + fall**2,
            "weight": state["weight"] + 1.0,
            "falls": state["falls"] + fall * length,
            "lengths": state["lengths"] + length**2,
            "level": np.array([level]),
            "at": np.array([at]),
            "exposure": np.zeros(x.size),
        }

    def after_pivot(self, state: State) -> State:
        """Return the memory with a quarter of its weight."""
        return scaled(state, _SUMS, PIVOT_MEMORY)

    def choose(
        self, state: State, region: Region, weights: Array, unique_tokens: Array, alarmed: BoolArray | None = None
    ) -> Choice:
        """Step towards the best vertex of the draw; sources in alarm promise nothing."""
        parts = silenced(self.index(state), alarmed)
        vertex = best_vertex(region, parts)
        return Choice(region.step(weights, vertex, self._config.eta), vertex, parts)

    def index(self, state: State) -> dict[str, Array]:
        """Return theta (``mean``), what the draw adds to it (``width``) and their sum (``index``), [K] each."""
        num = state["cross"].size
        gram = state["gram"].reshape(num, num)
        ridge = self._config.ridge * float(np.trace(gram)) / num
        if not ridge > 0:
            none = np.zeros(num)
            return {"mean": none, "width": none, "tokens": state["tokens"], "index": none}
        mean_fall = float(state["falls"][0] / state["lengths"][0])
        root = np.linalg.cholesky(gram + ridge * np.eye(num))
        own = np.linalg.solve(root.T, np.linalg.solve(root, state["cross"] - mean_fall * gram.sum(axis=1)))
        theta = mean_fall + own
        residual = float(state["squares"][0] - 2 * theta @ state["cross"] + theta @ gram @ theta)
        spread = np.sqrt(max(residual, 0.0) / max(float(state["weight"][0]) - 1.0, 1.0))
        normal = NormalDist()
        shares = uniforms(num, self._seed, "policy.linear", int(state["decisions"][0]))
        z = np.array([normal.inv_cdf(min(max(float(u), 2.0**-53), 1 - 2.0**-53)) for u in shares])
        width = self._config.width * spread * np.linalg.solve(root.T, z)
        return {"mean": theta, "width": width, "tokens": state["tokens"], "index": theta + width}
