"""Share out the rest of the run at once: the allocation that fitted learning curves make best, by water-filling."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

import numpy as np

from mixer.config.policy import WaterFillingConfig
from mixer.losses import SourceLosses
from mixer.policies.base import Choice, silenced
from mixer.policies.slopes import SlopePolicy, Slopes
from mixer.region.region import Region
from mixer.types import Array, BoolArray, State

GATE_POWER = 4  # how steeply a source fades below the gate
LEAST_GAIN = 1e-12  # of the largest; a source that pays less is one that pays nothing


class WaterFillingPolicy(SlopePolicy):
    """The certainty-equivalent allocation of the tokens that are left, under curves that fall with log tokens.

    If source i's loss falls by v_i nats per e-fold of its tokens N_i, and H tokens are left, the weights to spend them
    with are those of the region that maximise

        sum_i a_i ln(N_i + w_i H),     a_i = target_i rho_i max(fade_i r_i^alpha, least)
        r_i = max(0, v_i + c se_i) / (their mean over the sources),     fade_i = min(1, r_i / gate)^4

    alpha = 1 and no gate are the optimum of that law. The answer is ``w_i = clip(s a_i - N_i / H, lower_i, upper_i)``
    for the level s that makes the sum 1. It is worked out anew in every phase, and the walk goes ``eta`` of the way to
    it. Unlike a step to the best vertex it has no reason to swing: near slopes get near weights.

    The law knows nothing of transfer: what a source teaches about the others is credited to their own tokens. On real
    text, where sources of one language teach each other, a smaller alpha is better than 1. A source that teaches
    nothing has a slope far below the mean; ``gate`` makes such a source fade out, and the others keep what alpha gives
    them. ``least`` keeps a little of it, so that a source that begins to teach is found.

    Slopes are first drawn towards their mean over the sources, by a prior worth ``prior`` observations each (n_i
    observations, discounted): ``v_i <- (n_i v_i + prior vbar) / (n_i + prior)``, vbar = sum n_j v_j / sum n_j. A source
    with fewer than 3 observations has the mean slope. H is ``horizon`` steps, or what is left of the run, but never
    less than ``least_horizon`` times the tokens seen: towards the end no small error of a slope moves all the weight.

    Sources: log-law curves and certainty equivalence as in Jiang et al., arXiv 2410.11820; water-filling: Boyd and
    Vandenberghe, Convex Optimization, section 5.5.3; a prior worth some observations: Efron and Morris, 1973.
    """

    def __init__(
        self,
        config: WaterFillingConfig,
        *,
        targets: Array,
        batch_tokens: float,
        total_steps: int,
    ) -> None:
        super().__init__(config, targets=targets, first_tokens=batch_tokens, is_heldout=config.losses == "heldout")
        self.teleports = "by chance" if config.random_phases else "never"
        self._config = config
        self._batch_tokens = batch_tokens
        self._total_steps = total_steps

    def initial(self, num_sources: int) -> State:
        """Return no observations, before step 0."""
        return {**super().initial(num_sources), "step": np.zeros(1)}

    def absorb(self, state: State, steps: Sequence[SourceLosses], *, since: int, until: int) -> State:
        """Return the memory with one more observation per source that has rows, and the step it is for."""
        return {**super().absorb(state, steps, since=since, until=until), "step": np.array([float(until)])}

    def choose(
        self, state: State, region: Region, weights: Array, unique_tokens: Array, alarmed: BoolArray | None = None
    ) -> Choice:
        """Step towards the best allocation; sources in alarm promise nothing."""
        fit = self.slopes(state, unique_tokens)
        mean, width = self.shrunk(state, fit), self._config.width * fit.error
        gain = self._targets * fit.repetition * self._promise(np.maximum(0.0, mean + width))
        if alarmed is not None:
            gain = np.where(alarmed, 0.0, gain)
        horizon = self._horizon(state)
        solution = water_filled(region, gain, state["tokens"] / horizon)
        parts = {"slope": fit.slope, "mean": mean, "width": width, "repetition": fit.repetition}
        parts |= {"tokens": state["tokens"], "gain": gain, "index": solution}
        moved = region.step(weights, solution, self._config.eta)
        return Choice(moved, parts={**silenced(parts, alarmed), "index": solution})

    def _promise(self, slopes: Array) -> Array:
        """Return what each source promises as it is read, [K], against one of mean slope without a gate."""
        mean = float(slopes.mean())
        relative = slopes / mean if mean > 0 else np.ones(slopes.size)
        gate = self._config.gate
        fade = (np.minimum(relative, gate) / gate) ** GATE_POWER if gate > 0 else 1.0
        return np.maximum(fade * relative**self._config.power, self._config.least)

    def shrunk(self, state: State, fit: Slopes) -> Array:
        """Return the slopes drawn towards their mean, [K]; 1 for all sources if none has a fit."""
        points = np.where(fit.is_fitted, state["points"], 0.0)
        if not points.sum() > 0:
            return np.ones(points.size)
        mean = float((points * fit.slope).sum() / points.sum())
        total = points + self._config.prior
        own = np.divide(points, total, out=np.zeros(points.size), where=total > 0)
        return mean + own * (fit.slope - mean)

    def _horizon(self, state: State) -> float:
        """Return H, tokens; at least those of one batch."""
        left = self._config.horizon
        if left is None:
            left = max(self._total_steps - int(state["step"][0]), 1)
        least = self._config.least_horizon * float(state["tokens"].sum())
        return max(left * self._batch_tokens, least)


def water_filled(region: Region, gain: Array, filled: Array) -> Array:
    """Return the mixture of the region that maximises ``sum_i gain_i ln(filled_i + w_i)``, float64 [K].

    What sources of positive gain cannot take goes to the others, as level in ``filled + w`` as their bounds allow.

    Args:
        region: what may be reached.
        gain: >= 0, finite, [K]; only ratios matter.
        filled: >= 0, what each source has had already, as a share of what is to be given, [K].
    """
    lower, upper = region.lower, region.upper
    pays = gain > LEAST_GAIN * gain.max()
    if float(np.where(pays, upper, lower).sum()) <= 1.0 and not pays.all():
        return region.project(_level((~pays).astype(np.float64), filled, np.where(pays, upper, lower), upper))
    return region.project(_level(np.where(pays, gain / gain.max(), 0.0), filled, lower, upper))


def _level(gain: Array, filled: Array, lower: Array, upper: Array) -> Array:
    """Return ``clip(s gain - filled, lower, upper)`` for the s that makes the sum 1; ``lower`` where gain is 0.

    The sum never falls with s and is linear between its 2 K kinks, so bisection among the sorted kinks finds the two
    around s, and with them which weights slide: O(K log K), no tolerance.
    """
    pays = gain > 0
    a, n, low, high = gain[pays], filled[pays], lower[pays], upper[pays]
    left = 1.0 - float(lower[~pays].sum())
    starts, ends = (low + n) / a, (high + n) / a
    kinks = np.sort(np.concatenate([starts, ends]))

    def given(level: float) -> float:
        return float(np.clip(level * a - n, low, high).sum())

    k = min(max(bisect_left(kinks, left, key=given), 1), kinks.size - 1)
    at_high, at_low = ends <= kinks[k - 1], starts >= kinks[k]
    slides = ~(at_high | at_low)
    weights = lower.copy()
    weights[pays] = np.where(at_high, high, low)
    if slides.any():
        rest = left - float(high[at_high].sum()) - float(low[at_low].sum())
        level = (rest + float(n[slides].sum())) / float(a[slides].sum())
        own = weights[pays]
        own[slides] = np.clip(level * a[slides] - n[slides], low[slides], high[slides])
        weights[pays] = own
    return weights
