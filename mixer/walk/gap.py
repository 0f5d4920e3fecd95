"""The guard's third detector: what is learned by heart gets better in training, and not on held-out rows.

It needs probes: the loss of held-out rows of the source, which are the same every time.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mixer.config.policy import GuardConfig
from mixer.losses import SourceLosses
from mixer.types import Array, BoolArray, State

MIN_PAIRS = 8  # probes of a source before its usual gap is known
USUAL_RATE = 0.02  # of the running means: they remember about 50 pairs; 20 missed a fall of 0.4 nats over 150 pairs
MAX_Z = 4.0  # a single pair adds at most this: gaps count by lasting
NAMES = ("gap_pairs", "gap_train", "gap_held_out", "gap_rise")  # of the state's arrays, [K]
COARSE = NAMES[1:]  # those that are no counts


@dataclass(frozen=True, eq=False)
class Gap:
    """What a probe says beside the training losses of the same decision, [K] each.

    Attributes:
        arrays: the detector's part of the guard's state.
        held_out: mean losses of the held-out rows, nats; NaN where there are none.
        expected: the training loss at which the gap would be the usual one, nats.
        z: how many spreads of its rows the training loss lies above that; below 0: under it.
        begins: whether the gap has opened.
        lasts: whether it has not closed again, if it was open.
    """

    arrays: State
    held_out: Array
    expected: Array
    z: Array
    begins: BoolArray
    lasts: BoolArray


def look_at_gap(
    config: GuardConfig, state: State, probe: SourceLosses, *, loss: Array, spread: Array, judged: BoolArray
) -> Gap:
    """Return what a probe says; pairs of losses before the first have empty arrays.

    With l the training and h the held-out loss of a pair, and l_0 and h_0 their running means over the pairs before:

        growth = min(l_0 - l, (l_0 - l) - (h_0 - h)) / spread,  at most 0 unless h_0 - h <= gap_share (l_0 - l)
        rise <- max(0, rise + clip(growth, -4, 4) - gap_k); an alarm when it exceeds gap_h, until it is back at 0

    What the model learns of a source lowers both losses; what it learns by heart lowers the first alone. So only what
    the training loss itself falls by counts, and nothing where the held-out loss falls too.

    Args:
        config: thresholds.
        state: of the guard; without the arrays of NAMES if there was no probe yet.
        probe: held-out losses of the K sources.
        loss: mean training losses of the decision, nats, [K]; of any value where there are no rows.
        spread: standard deviation of those means, nats, [K]; 0 where it is not known.
        judged: which sources have training losses and may be judged, [K].
    """
    old = {name: state.get(name, np.zeros(loss.size)) for name in NAMES}
    paired = judged & (probe.tokens > 0)
    held_out, pairs = probe.means(), old["gap_pairs"]
    is_known = paired & (pairs >= MIN_PAIRS) & (spread > 0)
    train_fall = np.where(is_known, old["gap_train"] - loss, 0.0)
    held_out_fall = np.where(is_known, old["gap_held_out"] - held_out, 0.0)
    z = np.divide(held_out_fall - train_fall, spread, out=np.zeros(loss.size), where=is_known)
    growth = np.minimum(np.divide(train_fall, spread, out=np.zeros(loss.size), where=is_known), -z)
    stays = held_out_fall <= config.gap_share * train_fall
    added = np.clip(np.where(stays, growth, np.minimum(growth, 0.0)), -MAX_Z, MAX_Z)
    rise = np.where(is_known, np.maximum(0.0, old["gap_rise"] + added - config.gap_k), old["gap_rise"])
    rate = np.maximum(USUAL_RATE, 1.0 / (pairs + 1.0))

    def moved(usual: Array, value: Array) -> Array:
        return np.where(paired, usual + rate * (np.where(paired, value, usual) - usual), usual)

    arrays = {
        "gap_pairs": pairs + paired,
        "gap_train": moved(old["gap_train"], loss),
        "gap_held_out": moved(old["gap_held_out"], held_out),
        "gap_rise": np.minimum(rise, config.gap_h),
    }
    expected = held_out - (old["gap_held_out"] - old["gap_train"])
    return Gap(arrays, held_out, expected, z, is_known & (rise > config.gap_h), rise > 0)
