"""A fitted slope per source: what learnability, allocation and their held-out forms know of the losses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from mixer.losses import SourceLosses, add_losses
from mixer.policies.base import PIVOT_MEMORY, Policy, scaled
from mixer.policies.regression import with_point
from mixer.types import Array, BoolArray, State

MIN_OBSERVATIONS = 3  # a slope with a standard error needs three points; fewer count as unexplored
_SUMS = ("points", "weight", "sxx", "sxy", "syy")  # what forgetting shrinks; means and counts stay


class SlopeSettings(Protocol):
    """The settings that a fit of slopes needs, as they stand in the config."""

    @property
    def kappa(self) -> float:
        """Exponent of the discount in log time."""

    @property
    def tau_0(self) -> float:
        """Steps added to log time."""

    @property
    def repetition(self) -> float:
        """R*: passes over a source, beyond the first, after which a token is worth 1/e."""


@dataclass(frozen=True, eq=False)
class Slopes:
    """What the fits say, [K] each.

    Attributes:
        is_fitted: whether a source has enough observations for a slope.
        slope: nats gained per e-fold of the source's tokens; 0 where there is no fit.
        error: its standard error, likewise.
        repetition: what repetition leaves of a token's worth, 1 for a source not yet read through.
    """

    is_fitted: BoolArray
    slope: Array
    error: Array
    repetition: Array


class SlopePolicy(Policy):
    """Fits loss against log tokens, source by source; what follows from the slopes is a subclass's.

    Loss y is regressed on x = ln(N + n_0), N the tokens seen of the source, with weights m (rows) and a discount in log
    time: sums shrink by ``(tau / tau')^kappa`` from decision to decision, tau = step + tau_0. The mean loss of a phase
    belongs to the middle of the tokens it was measured on. With ``is_heldout`` y is the loss of held-out rows instead,
    which belongs to the tokens seen before the step it was measured at; a source of which nothing was read since its
    last one has no observation: it says nothing of the source's own tokens, and the slope is to go back to the prior.
    """

    def __init__(
        self, settings: SlopeSettings, *, targets: Array, first_tokens: float, is_heldout: bool = False
    ) -> None:
        self._settings = settings
        self._targets = targets
        self._n_0 = first_tokens
        self._is_heldout = is_heldout

    def initial(self, num_sources: int) -> State:
        """Return no observations: weighted means and centred sums, the six sums without their cancellation."""
        names = ("tokens", "count", "points", "weight", "mean_x", "mean_y", "sxx", "sxy", "syy")
        memory = {name: np.zeros(num_sources) for name in names}
        return memory | ({"measured_at": np.full(num_sources, -1.0)} if self._is_heldout else {})  # tokens

    def absorb(self, state: State, steps: Sequence[SourceLosses], *, since: int, until: int) -> State:
        """Return the memory with one more observation per source that has rows."""
        tau_0 = self._settings.tau_0
        new = scaled(state, _SUMS, ((since + tau_0) / (until + tau_0)) ** self._settings.kappa)
        if not steps:
            return new
        losses = add_losses(steps)
        if not self._is_heldout:
            new = self._with_losses(new, losses, new["tokens"] + losses.tokens / 2, losses.rows > 0)
        new["tokens"] = new["tokens"] + losses.tokens
        return new

    def absorb_probe(self, state: State, losses: SourceLosses, *, step: int) -> State:
        """Return the memory with one more held-out observation per source, if those are what is fitted."""
        if not self._is_heldout:
            return state
        tokens = state["tokens"]
        losses = losses.first(tokens.size)
        seen = (losses.rows > 0) & (tokens > state["measured_at"])
        new = self._with_losses(state, losses, tokens, seen)
        return {**new, "measured_at": np.where(seen, tokens, state["measured_at"])}

    def _with_losses(self, state: State, losses: SourceLosses, tokens: Array, seen: BoolArray) -> State:
        """Return the memory with the mean losses of the sources ``seen`` as observations at ``tokens`` of each."""
        m = np.where(seen, losses.rows, 0).astype(np.float64)
        x = np.where(seen, np.log(tokens + self._n_0), state["mean_x"])
        y = np.where(seen, losses.means(), state["mean_y"])
        new = with_point(state, x=x, y=y, m=m)
        new["points"] = new["points"] + seen
        new["count"] = new["count"] + seen
        return new

    def after_pivot(self, state: State) -> State:
        """Return the memory with a quarter of its weight; tokens seen stay seen."""
        return scaled(state, _SUMS, PIVOT_MEMORY)

    def slopes(self, state: State, unique_tokens: Array) -> Slopes:
        """Return the fits, and what repetition leaves of each source (Muennighoff et al. 2023)."""
        fitted = (state["count"] >= MIN_OBSERVATIONS) & (state["sxx"] > 0)
        epochs = np.divide(state["tokens"], unique_tokens, out=np.zeros(fitted.size), where=unique_tokens > 0)
        repetition = np.exp(-np.maximum(0.0, epochs - 1.0) / self._settings.repetition)
        if not np.count_nonzero(fitted):
            none = np.zeros(fitted.size)
            return Slopes(fitted, none, none, repetition)
        sxx = np.where(fitted, state["sxx"], 1.0)
        slope = np.where(fitted, -state["sxy"] / sxx, 0.0)
        residual = np.maximum(state["syy"] - state["sxy"] ** 2 / sxx, 0.0)
        freedom = np.maximum(state["points"] - 2.0, 1.0)  # discounting may leave fewer points than a line has
        error = np.where(fitted, np.sqrt(residual / freedom / sxx), 0.0)
        return Slopes(fitted, slope, error, repetition)
