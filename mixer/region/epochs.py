"""Limits by epochs as caps on weights: what a region leaves when sources may be read only so often."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from mixer.region.region import ROUNDING, Region
from mixer.types import Array


@dataclass(frozen=True, eq=False)
class EpochCaps:
    """The caps by epochs of one phase.

    Attributes:
        caps: largest weight that the tokens left of each source allow, [K]; inf without a limit. Floors win over it.
        region: the region under these caps.
        cap_factor: what the caps were multiplied by, so that weights within them can sum to 1; nearly always 1. Sources
            are then used up sooner, and no limit is broken yet.
        epoch_factor: what the limits were multiplied by, as no more tokens are left within them; 1 if there are enough.
    """

    caps: Array
    region: Region
    cap_factor: float = 1.0
    epoch_factor: float = 1.0


def epoch_caps(region: Region, *, allowed: Array, used: Array, left: float, phase_tokens: float) -> EpochCaps:
    """Return the caps under which no source gives more than its allowed tokens, spread over what is left of the run.

        cap_i = min(hi_i, max(lo_i, (E_i U_i - N_i) / tokens left))

    with ``E_i U_i`` allowed, ``N_i`` used. A phase has no more than ``left`` tokens, so weights within the caps never
    pass the limit, and they never fall while weights stay within them. Where they leave no weights (a warmup on few
    sources, tokens learned late), all are multiplied by the smallest common factor with which weights sum to 1, up to
    what is allowed for this phase. Where that is too little, as tokens are used up, all limits ``E_i U_i`` are
    multiplied by the smallest common factor that suffices for this phase. Bandits with knapsacks: Badanidiyuru et al.,
    FOCS 2013.

    Args:
        region: what floors and caps allow.
        allowed: tokens that each source may give in the whole run, [K]; inf without a limit.
        used: tokens that it gave, [K].
        left: tokens that the run has left, at least ``phase_tokens``.
        phase_tokens: tokens of the phase that is decided.
    """

    def shared(factor: float) -> Array:
        return factor * (np.maximum(allowed - used, 0.0) / left)

    def raised(factor: float) -> Array:
        return np.maximum(factor * allowed - used, 0.0) / phase_tokens

    def within(caps: Array) -> Array:
        return np.minimum(region.caps, np.maximum(region.floors, caps))

    def suffices(caps: Array) -> bool:
        return math.fsum(within(caps).tolist()) >= 1.0 - ROUNDING / 2

    def found(caps: Array, **factors: float) -> EpochCaps:
        most = within(caps)
        if (most == region.caps).all():  # no cap is below what the region has
            return EpochCaps(caps, region, **factors)
        return EpochCaps(caps, Region.of(region.names, region.floors, most), **factors)

    if suffices(caps := shared(1.0)):
        return found(caps)
    soonest = left / phase_tokens
    if suffices(shared(soonest)):
        factor = _smallest(lambda factor: suffices(shared(factor)), soonest)
        caps = shared(factor)
        return found(caps, cap_factor=factor)
    is_limited = np.isfinite(allowed)
    most = 2.0 * float(((used + phase_tokens) / allowed)[is_limited].max())  # then each cap is above 1
    factor = _smallest(lambda factor: suffices(raised(factor)), most)
    caps = raised(factor)
    return found(caps, cap_factor=soonest, epoch_factor=factor)


def _smallest(suffices: Callable[[float], bool], high: float) -> float:
    """Return the smallest factor from 1 to ``high`` that suffices, to the last bit or so; ``high`` does."""
    low = 1.0
    for _ in range(100):
        middle = (low + high) / 2
        if not low < middle < high:
            break
        low, high = (low, middle) if suffices(middle) else (middle, high)
    return high
