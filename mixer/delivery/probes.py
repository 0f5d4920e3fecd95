"""The held-out rows that probes measure losses on: a few of each source and target, the same ones every time.

They follow from the prepared rows and the seed alone. Needs no torch; ``probing`` makes tensors of them, the service
sends them.
"""

from __future__ import annotations

import logging
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from mixer.config.curriculum import Curriculum
from mixer.config.probes import probed_goal
from mixer.config.rules import policies_of
from mixer.delivery.batch import RowBatch
from mixer.errors import ConfigError, TopologyError
from mixer.sampling.permutation import order_key, permuted, sides
from mixer.types import IntArray, RowArray

if TYPE_CHECKING:
    from mixer.sources.prepared.rows import Prepared, PreparedRows

log = logging.getLogger(__name__)


class ProbeRows:
    """One rank's part of the rows of each probe of a run.

    Every W-th row of them is this rank's, W ranks in all, beginning with its own number.

    Args:
        curriculum: the run, which asks for probes.
        prepared: its rows; None if it streams.
        rank, world_size: whose part.

    Raises:
        ConfigError: streamed sources, or not a single held-out row, at all or of what a policy is to lower the loss of.
        TopologyError: fewer rows than ranks, of which each has to run the model.
    """

    def __init__(self, curriculum: Curriculum, prepared: Prepared | None, *, rank: int, world_size: int) -> None:
        assert curriculum.probes is not None
        if prepared is None:
            raise ConfigError(
                "probes: held-out rows are read from prepared sources alone; run `mixer prepare` and name its folder, "
                "as in `prepared: FOLDER`, or take `probes` out"
            )
        self._sources = [prepared.held_out(name) for name in curriculum.probed_names]
        self._seed = curriculum.seed
        self._mine = slice(rank, None, world_size)
        sizes = [min(curriculum.probes.rows, source.num_rows) for source in self._sources]
        self.rows_by_source: IntArray = np.array(sizes, dtype=np.int64)
        num_rows = int(self.rows_by_source.sum())
        if not num_rows:
            raise ConfigError(
                f"probes: no source has a held-out row with holdout {curriculum.holdout}; raise holdout, and prepare "
                "the sources again"
            )
        unmeasured = [name for name, size in zip(curriculum.probed_names, sizes, strict=True) if not size]
        for policy in policies_of(curriculum):
            goal = probed_goal(curriculum, policy)
            if goal and goal <= set(unmeasured):
                raise ConfigError(
                    f"policy {policy.name}: not one row of {', '.join(sorted(goal))} is held out, so that the loss it "
                    f"is to lower can never be measured; raise holdout ({curriculum.holdout}) and prepare the sources "
                    "again, or give it other `targets`"
                )
        if unmeasured and rank == 0:
            log.warning(
                "probes: no document of %s is held out with holdout %g, so its held-out loss is never measured",
                ", ".join(unmeasured),
                curriculum.holdout,
            )
        check_shared(num_rows, world_size)

    @property
    def source_ids(self) -> IntArray:
        """The source of each row of this rank, int64 [b]: positions in ``probed_names``."""
        return np.repeat(np.arange(len(self._sources)), self.rows_by_source)[self._mine]

    def batch(self, step: int, phase: int) -> RowBatch:
        """Return this rank's rows as those of a step of a phase; they are the same for every step."""
        rows, numbers = self._read
        return RowBatch(step, phase, rows, self.source_ids, numbers, self._sources[0].is_masked)

    @cached_property
    def _read(self) -> tuple[RowArray, IntArray]:
        """The rows of this rank, [b, T + 1], and the number of each in the held-out rows of its source, [b]."""
        numbers = np.concatenate(
            [
                self._chosen(source, size)
                for source, size in zip(self._sources, self.rows_by_source.tolist(), strict=True)
            ]
        )[self._mine]
        ids = self.source_ids
        rows = np.empty((len(ids), self._sources[0].row_length), dtype=self._sources[0].dtype)
        for i in np.unique(ids).tolist():
            rows[ids == i] = self._sources[i].gather(numbers[ids == i])
        return rows, numbers

    def _chosen(self, source: PreparedRows, size: int) -> IntArray:
        """Return the numbers of so many held-out rows of a source, in order: the first of its keyed order."""
        if not size:
            return np.zeros(0, dtype=np.int64)
        sizes = np.full(size, source.num_rows, dtype=np.int64)
        keys = np.full(size, order_key(self._seed, source.name, 0), dtype=np.uint64)
        return np.sort(permuted(np.arange(size), sizes, keys, sides(sizes)))


def check_shared(num_rows: int, world_size: int) -> None:
    """Raise TopologyError if the rows of a probe are fewer than the ranks, of which each has to run the model."""
    if num_rows < world_size:
        raise TopologyError(
            f"probes: {num_rows} held-out rows in all are fewer than the {world_size} ranks that share them; raise "
            "`probes: {rows: N}`, or the holdout"
        )
