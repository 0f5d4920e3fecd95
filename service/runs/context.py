"""What one run of a service consists of, shared by those who decide, build, build again and hand out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from mixer.config.curriculum import Curriculum
from mixer.delivery.batch import BatchReader, PreparedReader, RowBatches
from mixer.delivery.readers import ReaderFactory
from mixer.errors import ConfigError
from mixer.sources.masks import narrowed
from mixer.walk.walk import Walk
from service.dashboard.columns import Watch
from service.runs.cache import BatchCache, BuiltBatches
from service.runs.leases import StepLeases
from service.runs.phases import PhaseIndex
from service.runs.report_wait import ReportWait
from service.runs.waiting import StepNotifier
from service.settings import MIB, Settings
from service.storage.run_journal import RunJournal
from service.storage.store import Store
from service.wire.batches import SendBuffer, encode

TOGETHER_BYTES = 1 << 20
KEPT, KEPT_BYTES = 8, 16 << 20  # times what is built ahead, or so many bytes, are held of batches of prepared rows


@dataclass
class Counters:
    """What /metrics counts, since the server started."""

    batches_built: int = 0
    batches_served: int = 0
    bytes_served: int = 0
    tokens_served: int = 0
    reports: int = 0
    repeated_reports: int = 0
    rebuilt: int = 0
    last_asked: dict[int, tuple[int, float]] = field(default_factory=dict)  # rank -> (step, when, monotonic)


@dataclass(frozen=True, eq=False)
class RunContext:
    """What one run consists of, for those who decide, build, build again and hand out."""

    name: str
    curriculum: Curriculum
    settings: Settings
    store: Store
    writer: str  # as ``Store.take_over`` gave it
    journal: RunJournal
    walk: Walk
    decisions: PhaseIndex
    patience: ReportWait
    rows: ReaderFactory
    served: StepLeases
    window: BatchCache
    watch: Watch
    on_event: Callable[[str, dict[str, Any]], None]
    bell: StepNotifier = field(default_factory=StepNotifier)
    counters: Counters = field(default_factory=Counters)

    @property
    def together(self) -> int:
        """How many global batches are read together at most: of prepared rows some MiB, of streams one."""
        return -(-TOGETHER_BYTES // batch_bytes(self.curriculum)) if self.rows.is_prepared else 1

    def read(self, reader: BatchReader, step: int, num_steps: int = 1) -> BuiltBatches:
        """Read up to ``num_steps`` global batches, tokens in the smallest dtype that holds the vocabulary."""
        if isinstance(reader, PreparedReader):  # whose rows have it already
            room = SendBuffer(is_masked=self.rows.is_masked)
            batches = reader.read_together(step, num_steps, room)
            built = BuiltBatches(batches)
            if self.patience.world_size in (None, 1):
                built.hold(encode(batches, 0, 1, room=room))
            return built
        batch = reader.read(step)
        dtype = self.rows.token_dtype
        rows = narrowed(batch.rows, dtype) if batch.is_masked else batch.rows.astype(dtype, copy=False)
        return BuiltBatches(RowBatches.of(batch._replace(rows=rows)))

    def place_reader(self, up_to: int, reader: BatchReader | None = None) -> tuple[BatchReader, int]:
        """Return a reader and the step it gives next: ``up_to``, or that of the newest place saved up to there.

        Args:
            up_to: a step.
            reader: one to move; by default the sources are opened.
        """
        place = None if self.rows.is_prepared else self.store.newest(self.name, "place", up_to=up_to)
        if reader is None or (place is None and not self.rows.is_prepared):
            reader = self.rows.open(
                self.decisions.view(),
                on_read_through=self.walk.learn_unique_tokens,
                on_skipped=self.walk.note_skipped,
            )
        if self.rows.is_prepared:
            return reader, up_to
        if place is None:
            return reader, 0
        reader.load_state_dict(place[1])
        return reader, place[0]


def batch_bytes(curriculum: Curriculum) -> int:
    """Return what the rows of a global batch take, in the dtype that most vocabularies need."""
    return 2 * curriculum.batch_rows * (curriculum.sequence_length + 1)


def check_memory(curriculum: Curriculum, settings: Settings) -> None:
    """Raise ConfigError if one global batch, and one as it is sent, take more memory than a run may have."""
    most = 2 * batch_bytes(curriculum)
    if most > settings.memory_bytes:
        raise ConfigError(
            f"batch_rows {curriculum.batch_rows} of sequence_length {curriculum.sequence_length} take "
            f"{most / MIB:,.0f} MiB a batch, and a run of this server may hold {settings.memory_bytes / MIB:,.0f}: "
            "make the batch smaller, or start the server with more --memory-mib"
        )


def again_bytes(settings: Settings) -> int:
    """Return how many bytes to hold of batches that were built again."""
    return settings.memory_bytes // 4


def window_bytes(curriculum: Curriculum, settings: Settings, *, is_prepared: bool) -> int:
    """Return how many bytes of batches to hold beside those: prepared rows are built again at once."""
    of_steps = 2 * KEPT * settings.ahead_steps * batch_bytes(curriculum)  # rows, and as they are sent
    rest = settings.memory_bytes - again_bytes(settings)
    return min(rest, max(KEPT_BYTES, of_steps)) if is_prepared else rest
