"""The probes of a run that is served: a rank's held-out rows of a step that offers some, and the losses it measured."""

from __future__ import annotations

import numpy as np

from mixer.delivery.batch import RowBatches
from mixer.delivery.probes import check_shared
from mixer.errors import FeedbackError, ProbeNotOfferedError
from mixer.losses import SourceLosses
from mixer.sampling.phases import Phase
from mixer.walk.probes import NO_PROBES, offers_probe
from service.runs.context import RunContext
from service.wire.batches import Body, encode


class ServedProbes:
    """What ranks are given to measure, and what they say of it.

    Args:
        parts: of the run.

    Raises:
        ConfigError: the curriculum asks for probes whose rows cannot be read.
    """

    def __init__(self, parts: RunContext) -> None:
        self._walk, self._curriculum = parts.walk, parts.curriculum
        self._rows = parts.rows.probe_rows()

    def body(self, phase: Phase, step: int, rank: int, world_size: int) -> Body:
        """Return a rank's rows of the probe of a step in ``phase``; the same bytes on every retry.

        Raises:
            ProbeNotOfferedError: the step offers none.
            TopologyError: fewer rows than ranks.
        """
        if self._rows is None:
            raise ProbeNotOfferedError(NO_PROBES.format(step))
        if not offers_probe(self._curriculum, phase, step):
            raise ProbeNotOfferedError(
                f"step {step} offers no probe: it lies in phase {phase.index}, which begins at step {phase.start}"
            )
        rows = self._rows.batch(step, phase.index)
        check_shared(len(rows.rows), world_size)
        return encode(RowBatches.of(rows), rank, world_size).body(step)

    def report(self, step: int, losses: SourceLosses, world_size: int | None) -> bool:
        """Take in what a rank measured; False if it had answered before. When this returns it is durable.

        Raises:
            ProbeNotOfferedError: the step offers no probe, or one that is too old to be answered.
            FeedbackError, InvalidLossError: rows that the rank was not given, or losses that cannot be.
        """
        if self._rows is not None and world_size is not None and losses.rank < world_size:
            mine = self._rows.source_ids[losses.rank :: world_size]
            given = np.bincount(mine, minlength=len(self._curriculum.probed_names))
            if (losses.rows > given).any():
                i = int(np.argmax(losses.rows > given))
                raise FeedbackError(
                    f"the probe of step {step} gives rank {losses.rank} of {world_size} {given[i]} rows of "
                    f"{self._curriculum.probed_names[i]}, but losses of {losses.rows[i]} are reported; report the "
                    "probe as it was given"
                )
        return self._walk.report_probe(step, losses)
