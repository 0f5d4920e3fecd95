"""The walk's limits by epochs: the caps that each phase is decided under, from what was drawn so far."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np

from mixer.config.curriculum import Curriculum
from mixer.config.epochs import allowed_tokens
from mixer.config.policy import PolicyConfig
from mixer.region.epochs import EpochCaps, epoch_caps
from mixer.region.region import Region
from mixer.types import Array
from mixer.walk.decided import DecidedPhases

log = logging.getLogger(__name__)
ROUNDING_ROWS = 2.0  # that a source may give beyond its limit: draws stay that near to what weights earn


class EpochLimits:
    """What ``max_epochs`` allows at a decision: ``mixer.region.epochs`` has the rule.

    Tokens used are those of the rows drawn and of those that weights have earned and draws still owe, up to a row, so
    that rounding moves no cap. Rows drawn of a source exceed ``max_epochs * tokens`` by at most 2 with systematic
    draws, unless floors want more or the limits had to be raised, which the journal and the log say. Multinomial draws
    may exceed it by the deviation of one phase's draws from their mean.
    """

    def __init__(self, curriculum: Curriculum) -> None:
        self._curriculum = curriculum
        self._has_warned = False

    def at(
        self,
        region: Region,
        phases: DecidedPhases,
        *,
        length: int,
        unique_tokens: Array,
        policy: PolicyConfig | None,
    ) -> EpochCaps | None:
        """Return the caps of the phase of ``length`` steps that follows; None if no source has a limit yet.

        ``policy`` decides it; None if weights are written by hand.
        """
        run = self._curriculum
        allowed = allowed_tokens(run, unique_tokens, run.limits_under(policy))
        if not np.isfinite(allowed).any():
            return None
        row = run.sequence_length
        if phases.newest is not None:
            allowed = allowed + row  # what the random start of the draws may owe: caps never fall by it
        steps_left = run.total_steps - phases.frontier
        steps = min(length, steps_left) if steps_left > 0 else length  # those past the planned end are not trained on
        return epoch_caps(
            region,
            allowed=allowed,
            used=row * (np.clip(phases.owed, -1.0, 1.0) + phases.drawn),
            left=float(max(steps_left, steps) * run.batch_tokens),
            phase_tokens=float(steps * run.batch_tokens),
        )

    def warn(self, found: EpochCaps, start: int, unique_tokens: Array) -> None:
        """Log, once, that limits had to be raised by more than rounding."""
        allowed = allowed_tokens(self._curriculum, unique_tokens)
        extra = (found.epoch_factor - 1.0) * allowed[np.isfinite(allowed)].max()
        if self._has_warned or extra <= ROUNDING_ROWS * self._curriculum.sequence_length:
            return
        self._has_warned = True
        log.warning(
            "max_epochs cannot be kept from step %d on: the tokens that it allows are used up, so all limits are "
            "raised together as far as each phase needs, now by a factor of %.4g; the journal says it of each phase. "
            "Raise max_epochs, add text, or end the run",
            start,
            found.epoch_factor,
        )


def epochs_record(found: EpochCaps) -> dict[str, Any]:
    """Return what a decision's line says of its caps by epochs; a cap of a source without a limit is null."""
    return {
        "caps": found.caps,
        "lower": found.region.lower,
        "upper": found.region.upper,
        "cap_factor": found.cap_factor,
        "epoch_factor": found.epoch_factor,
    }
