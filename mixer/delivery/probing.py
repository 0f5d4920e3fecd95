"""A rank's side of probes: which one is due, its rows as tensors, and the losses that a trainer gives back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor

from mixer.config.curriculum import Curriculum
from mixer.delivery.decider import Decider
from mixer.delivery.feedback import LossAccumulator
from mixer.delivery.probes import ProbeRows
from mixer.delivery.ranks import Ranks
from mixer.delivery.tensors import Batch, tensors_of
from mixer.errors import FeedbackError
from mixer.losses import SourceLosses
from mixer.sources.packing import WIDE


class Probing:
    """What a data set knows of the probes of its run.

    Args:
        curriculum: the run.
        rows: this rank's part.
        ranks: who share each probe.
        dtype: of the token ids that are given out.
    """

    def __init__(self, curriculum: Curriculum, rows: ProbeRows, ranks: Ranks, dtype: np.dtype[Any] = WIDE) -> None:
        names, width = curriculum.probed_names, curriculum.sequence_length
        self._rows = rows
        self._dtype = dtype
        self._names = names
        self._own = np.bincount(rows.source_ids, minlength=len(names))
        self._reports = LossAccumulator(
            int(self._own.sum()), ranks.slice_width(width), names, over_slices=ranks.over_slices(width)
        )
        self._newest = -1  # step of the newest probe that was given out

    def clear(self) -> None:
        """Begin anew: the run stands elsewhere."""
        self._reports.clear()
        self._newest = -1

    def due(self, walk: Decider, until: int) -> Batch | None:
        """Return this rank's part of the newest probe of steps up to ``until``, once, if it was not answered."""
        step = walk.probe_step(until)
        if step is None or step <= self._newest or walk.has_probe(step, 0):
            return None
        self._newest = step
        batch = self._rows.batch(step, walk.phase_at(step).index)
        return tensors_of(batch.split(self._dtype), provenance=False)

    def add(
        self, probe: Mapping[str, Any], losses: Tensor | None, mask: Tensor | None, num_tokens: Tensor | None
    ) -> list[tuple[int, SourceLosses | None]]:
        """Take in losses of a probe or a part of one; return the steps whose probes are now whole, with their losses.

        Raises:
            FeedbackError: no probe as it was given out, rows of other sources, or shapes that do not belong together.
        """
        whole = self._reports.add(probe, losses, mask, num_tokens)
        for step, summed in whole:
            if summed is not None and (summed.rows > self._own).any():
                i = int(np.flatnonzero(summed.rows > self._own)[0])
                raise FeedbackError(
                    f"the probe of step {step} has {self._own[i]} rows of {self._names[i]} here, but losses of "
                    f"{summed.rows[i]} are reported; report the probe as dataset.probe_batch() gave it"
                )
        return whole
