"""Documents of one source in file order, as text or as token ids; stopped and restored at any group, exactly.

They read batches of rows, each of which says where it begins, and count rows inside one. Our own readers go on there at
once (in a compressed file: once it is decompressed up to there). `datasets` resumes exactly between the batches of
``IterableDataset.iter``, but reads the file again up to the place, parsing it.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from mixer.config.sources import RetriesConfig, SourceConfig
from mixer.errors import EmptySourceError, MalformedDataError, StateMismatchError
from mixer.sources.batches import Batch
from mixer.sources.faults import NetworkFault, calm, explained, persist
from mixer.sources.files import files_digest
from mixer.sources.records import FileRecords
from mixer.sources.rendering import Renderer
from mixer.sources.share import WHOLE, Share, is_the_sum_of_its_files
from mixer.system.threads import POOL
from mixer.types import TokenArray

if TYPE_CHECKING:
    import datasets

    from mixer.sources.chat import ChatTemplate

log = logging.getLogger("mixer.sources")

STATE_VERSION = 5
NUM_SEEN = 8  # values of a `where` column that an error shows

Documents = list[str] | list[TokenArray] | TokenArray
Group = TypeVar("Group", list[str], list[TokenArray] | TokenArray)
Result = TypeVar("Result")


class Stream(ABC, Generic[Group]):
    """What streams of text and of token ids share: the place, its state, and reading on after faults.

    Counters are of the current epoch: ``num_rows`` read, ``num_documents`` given, ``num_empty`` rows without text,
    ``num_other_split`` documents of the other side of the held-out split, ``num_other_readers`` of other readers,
    ``num_bad`` records that were left out as ``on_bad_record: skip`` asks for.

    ``on_bad`` is told of each bad record, with its place, instead of what the source's config says.
    """

    on_bad: Callable[[str], object] | None = None

    _batch_size: int
    _is_table: bool  # read as pyarrow tables, not as lists of Python values

    def __init__(
        self,
        source: SourceConfig,
        dataset: datasets.IterableDataset | FileRecords,
        *,
        files: tuple[Path, ...] = (),
        revision: str | None = None,
        reopen: Callable[[str], datasets.IterableDataset | FileRecords] | None = None,
        retries: RetriesConfig | None = None,
        share: Share = WHOLE,
        chat: ChatTemplate | None = None,
    ) -> None:
        """Stream ``dataset``, of which this object becomes the only user.

        Args:
            source: how its rows are chosen and rendered.
            dataset: the rows.
            files: those that it reads, if they are on this machine.
            revision: the commit that it is of, if it is from the hub.
            reopen: returns the data set as of another commit; a saved state may need one that is no longer the newest.
            retries: what is done about faults of a network.
            share: which documents to give.
            chat: how conversations are rendered, if the source says that they are.
        """
        self.name = source.name
        self._source = source
        self._files = files
        self._files_digest = files_digest(files) if files else None
        self._revision = revision
        self._reopen = reopen
        self._retries = retries or RetriesConfig()
        self._share = share
        self._is_far = not files or not isinstance(dataset, FileRecords)  # whether a library of others reads it
        self.skipped: list[str] = []  # records left out, where and why, until somebody clears it
        self.chat = chat
        self._renderer = Renderer(source, chat)
        self._dataset, self._stride = self._narrowed(dataset)
        self._batches: Iterator[Any] | None = None
        self._records: Batch | None = None  # that the next row is in, or was in
        self._close: Callable[[], object] = _nothing
        self.restart()
        if not self._is_far:  # a wrong column or a broken file is told before a run begins, as it costs a block
            self._read_batch()
            self.restart()

    @property
    def fingerprint(self) -> str | None:
        """Which data this is: the commit on the hub, or a digest of the files' names and sizes; None if not known."""
        if self._files_digest is not None:
            return f"files {self._files_digest}"
        return None if self._revision is None else f"commit {self._revision}"

    @property
    def identity(self) -> str | None:
        """All that says which documents are given from a place on; None if it is not known which data is read.

        Streams of one identity can stand in for each other.
        """
        if self.fingerprint is None:
            return None
        found = [(str(file), file.stat()) for file in self._files]
        files = [(name, stat.st_ino, stat.st_size, stat.st_mtime_ns) for name, stat in found]
        source = self._source.model_dump_json(exclude={"tokens", "on_exhausted", "on_failure"})
        digest = "" if self.chat is None else self.chat.digest
        return repr((source, files, self._share, self._retries, self._batch_size, self._is_table)) + digest

    def restart(self) -> None:
        """Go back to the first document: the next epoch."""
        self._move({}, 0, None)  # an empty state is the beginning, also for `datasets`
        self.num_rows = self.num_documents = self.num_empty = self.num_other_split = self.num_other_readers = 0
        self.num_bad = 0
        self._seen: dict[str, list[Any]] = {column: [] for column in self._source.where}
        self._names: dict[str, None] = {}  # columns of records of JSON some of which lack one

    def next_group(self) -> Group:
        """Return the next documents, a bounded number; an empty group ends the epoch.

        Raises:
            EmptySourceError: the epoch has ended without one document.
            SourceUnavailableError: a network or server failed, and went on failing after all retries.
            MissingDataError, MalformedDataError, SourceError: a row that cannot be read.

        Whatever it raises, the place is kept, so that the next call tries the same group again.
        """
        return self.persist(self.try_group, self.place())

    def persist(
        self, attempt: Callable[[], Result], place: Mapping[str, Any], first: NetworkFault | None = None
    ) -> Result:
        """Return what ``attempt`` returns, made again after faults of a network.

        Args:
            attempt: reads at ``place``.
            place: for the message.
            first: a fault that counts as the first attempt.
        """
        where = f"after row {place['rows']} of the epoch"
        return persist(attempt, source=self.name, place=lambda: where, retries=self._retries, first=first)

    def try_group(self) -> Group:
        """Return what ``next_group`` returns, but raise NetworkFault at once, without a second attempt."""
        start = self.place()
        try:
            group = self._read_group()
            self._check_not_empty(group)
        except BaseException:  # Ctrl-C too must not lose documents
            self.load_state_dict(start)
            raise
        return group

    def check(self) -> None:
        """Raise what reading would raise before the first document; the stream is at its beginning afterwards."""
        self.restart()
        self.next_group()
        self.restart()

    def state_dict(self) -> dict[str, Any]:
        """Return the position of the next group as plain data."""
        return copy.deepcopy(self.place())

    def place(self) -> dict[str, Any]:
        """Return what ``state_dict`` returns without copying it; for those who change nothing in it."""
        return {
            "version": STATE_VERSION,
            "source": self.name,
            "files": self._files_digest,
            "revision": self._revision,
            "split": self._share.split,
            "reader": [self._share.reader, self._share.num_readers],
            "dataset": self._position,
            "offset": self._offset,
            "read": self._digest(),
            "rows": self.num_rows,
            "documents": self.num_documents,
            "empty": self.num_empty,
            "other_split": self.num_other_split,
            "other_readers": self.num_other_readers,
            "bad": self.num_bad,
        }

    def _digest(self) -> str | None:
        """Return the digest of the file up to the next row, if that is known and not in the position already."""
        if not self._offset:
            return None
        return self._read_digest if self._records is None else self._records.digest(self._offset)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state that ``state_dict`` gave, here or in another process.

        A data set of the hub is read as of the commit that the state was saved with, whatever its newest one is now.

        Raises:
            StateMismatchError: the state of another source, version, split or reader, or of files that have changed in
                what was read of them.
            MissingDataError: a commit that the hub no longer has.
        """
        self.check_state(state)
        if self._reopen is not None and state["revision"] != self._revision:
            self._dataset, self._stride = self._narrowed(self._reopen(state["revision"]))
            self._revision = state["revision"]
        self._move(state["dataset"], state["offset"], state["read"])  # `datasets` copies what it loads
        self.num_rows, self.num_documents, self.num_empty = state["rows"], state["documents"], state["empty"]
        self.num_other_split, self.num_other_readers = state["other_split"], state["other_readers"]
        self.num_bad = state["bad"]

    def abandon(self) -> None:
        """Let go of what is open without closing it, in a process that was forked after it was opened."""
        if isinstance(self._close, weakref.finalize):
            self._close.detach()
        _LEFT_OPEN.append(self._batches)
        self._close = _nothing
        self._batches = None

    def __getstate__(self) -> dict[str, Any]:
        """Another process opens the files again at the same place."""
        left_out = {"_batches": None, "_close": _nothing, "_batch": None, "_batch_rows": 0, "_records": None}
        kept = {"_next_position": self._position, "_read_digest": self._digest()}
        return {**self.__dict__, **left_out, **kept}

    def check_state(self, state: Mapping[str, Any]) -> None:
        """Raise StateMismatchError for a state that ``load_state_dict`` would refuse."""
        expected: dict[str, Any] = {"version": STATE_VERSION, "source": self.name, "files": self._files_digest}
        if self._reopen is None:
            expected["revision"] = self._revision
        expected |= {"split": self._share.split, "reader": [self._share.reader, self._share.num_readers]}
        for key, value in expected.items():
            if state.get(key) != value and not (key == "files" and self._is_mended(state)):
                hint = {
                    "version": "; another release read this source: go on with that one, or begin the run anew",
                    "files": "; its files are not those that the state was saved with, and differ in what was read of "
                    "them by then, or are of a kind (Parquet, Arrow) of which that is not known",
                    "reader": "; a source that is streamed in every rank and worker goes on only with the same number "
                    "of them: use the same world size and num_workers, or `mixer prepare` the source",
                }.get(key, "")
                raise StateMismatchError(
                    f"source {self.name}: the saved state has {key} {state.get(key)!r}, but this is {value!r}{hint}"
                )

    def _is_mended(self, state: Mapping[str, Any]) -> bool:
        """Whether files that have changed are the same in all that was read of them up to a state."""
        if not isinstance(self._dataset, FileRecords) or not self._files:
            return False
        try:
            return self._dataset.has_read(state["dataset"], state["offset"], state["read"])
        except Exception as error:
            raise explained(self.name, error, self._files, MalformedDataError) from error

    def _move(self, position: dict[str, Any], offset: int, digest: str | None) -> None:
        """Let the next row be number ``offset`` of the batch that begins at ``position``."""
        self._read_digest = digest
        self._records = None
        self._position = self._next_position = position
        self._offset = offset
        self._batch: Any = None
        self._batch_rows = 0
        self._batches = None
        self._close()

    def _narrowed(
        self, dataset: datasets.IterableDataset | FileRecords
    ) -> tuple[datasets.IterableDataset | FileRecords, int]:
        """Return the data set with the files and columns that are needed only, and which documents of them to take.

        The files are dealt out if their number divides by that of the readers and nothing looks across files; else each
        reader reads all and takes every ``num_readers``-th document, the second value.

        Raises:
            MissingDataError: a column that is not there.
        """
        stride, readers = 1, self._share.num_readers
        if readers > 1 and dataset.num_shards % readers == 0 and is_the_sum_of_its_files(dataset):
            dataset = dataset.shard(readers, self._share.reader, contiguous=False)
        else:
            stride = readers
        if isinstance(dataset, FileRecords):
            renderer = self._renderer
            return dataset.narrowed(renderer.columns, keeps_spelling=renderer.keeps_spelling), stride
        if dataset.column_names is not None:  # unknown after .map(): each batch is checked then
            self._renderer.check_columns(dataset.column_names)
            dataset = dataset.select_columns(list(self._renderer.columns))
        return (dataset.with_format("arrow") if self._is_table else dataset), stride

    @abstractmethod
    def _read_group(self) -> Group:
        """Return the next documents; an empty group at the end of the epoch."""

    @abstractmethod
    def _hold(self, batch: Batch) -> None:
        """Keep a batch."""

    def _read_batch(self) -> bool:
        """Read batches until one has a row left; False at the end of the epoch."""
        while self._offset >= self._batch_rows:
            if self._batch_rows:
                self._position, self._offset, self._batch_rows = self._next_position, 0, 0
            batch = self._next_batch()
            if batch is None:
                self._offset, self._records = 0, None
                return False
            self._check_columns(batch)
            self._hold(batch)
            if batch.start is not None:
                self._position = batch.start
            self._records, self._batch_rows = batch, batch.num_rows
            self._next_position = self._dataset.state_dict()
        return True

    def _check_columns(self, batch: Batch) -> None:
        if batch.names is None:
            return
        if not batch.is_open:
            self._renderer.check_columns(batch.names, batch.file)
            return
        self._names |= dict.fromkeys(batch.names)
        if not self.num_rows and not self._offset:  # of JSON, a later record may have what these lack
            self._renderer.check_rendered(batch.names, batch.file)

    def _next_batch(self) -> Batch | None:
        try:
            with calm(self._retries.timeout_s) if self._is_far else contextlib.nullcontext():
                if self._batches is None:
                    # `datasets` would otherwise begin at the last state it was given, in every epoch
                    self._dataset.load_state_dict(self._position)
                    # not iter(dataset): inside a DataLoader's worker that reads a share of the files only
                    self._batches = batches = self._dataset.iter(batch_size=self._batch_size)
                    # it holds a file open, and left to the end of Python its own clean-up fails noisily
                    self._close = weakref.finalize(self, _closed, batches)
                    POOL.close_at_exit(self._close)
                batch = next(self._batches, None)
                return batch if batch is None or isinstance(batch, Batch) else self._as_batch(batch)
        except Exception as error:  # `datasets` lets through whatever its readers and file systems raise
            raise explained(self.name, error, self._files, MalformedDataError) from error

    def _as_batch(self, rows: Any) -> Batch:
        """Return rows of `datasets` as a batch."""
        first = self.num_rows + 1 - self._offset
        names = rows.column_names if self._is_table else list(rows)
        num_rows = rows.num_rows if self._is_table else len(next(iter(rows.values()), ()))
        return Batch(rows, num_rows, lambda i: f"row {first + i}", names=names)

    def _refuse(self, row: int, reason: str) -> None:
        """Do with a bad record what the config says: raise, or leave it out.

        Args:
            row: its number in the batch.
            reason: why it cannot be read.
        """
        records, source = self._records, self._source
        assert records is not None
        problem = f"source {self.name}: {records.place(row)}: {reason}"
        if self.on_bad is not None:
            self.on_bad(problem)
        elif source.on_bad_record == "stop":
            raise MalformedDataError(f"{problem}; mend it, or set on_bad_record: skip")
        elif not self._is_mine():
            return
        elif self.num_bad >= source.max_bad_records:
            raise MalformedDataError(
                f"{problem}; {self.num_bad} bad records of this epoch were skipped before it, as many as "
                "max_bad_records allows: mend them (`mixer check --all` lists them), or raise it"
            )
        else:
            log.warning("%s; skipped, as on_bad_record says", problem)
            self.skipped.append(f"{records.place(row)}: {reason}")
        self.num_bad += 1

    def _check_not_empty(self, group: Group) -> None:
        if not len(group) and not self.num_documents and self.on_bad is None:
            if self._names:
                self._renderer.check_columns(self._names)
            raise EmptySourceError(f"source {self.name}: {self._emptiness()}")

    def _is_mine(self) -> bool:
        """Whether the next document of the split is this reader's; every reader counts them alike."""
        number = self.num_documents + self.num_other_readers
        return self._stride == 1 or number % self._stride == self._share.reader

    def _remember(self, row: Mapping[str, Any]) -> None:
        for column, seen in self._seen.items():
            if len(seen) < NUM_SEEN and row[column] not in seen:
                seen.append(row[column])

    def _emptiness(self) -> str:
        share = self._share
        if self.num_other_readers or (share.num_readers > 1 and self._stride == 1 and not self.num_rows):
            return (
                f"reader {share.reader} of {share.num_readers} gets no document: its share of {self.num_rows} rows "
                f"has {self.num_other_readers} documents, all of other readers; use fewer ranks and workers, or "
                "`mixer prepare` the source, which any number can read"
            )
        if self.num_other_split:
            what = "is held out" if share.held_out else "is left to train on"
            return (
                f"none of {self.num_other_split} documents {what} with holdout {share.holdout}; "
                f"{'raise' if share.held_out else 'lower'} holdout, or give the source more text"
            )
        if self.num_empty:
            return f"{self.num_rows} rows were read and none has text ({self.num_empty} are empty)"
        if self.num_bad:
            return f"{self.num_rows} rows were read, and none of those that are not bad ({self.num_bad} are) has text"
        if self.num_rows:
            asked = ", ".join(f"{column}={wanted!r}" for column, wanted in self._source.where.items())
            found = ", ".join(f"{column} is one of {seen}" for column, seen in self._seen.items())
            return f"none of {self.num_rows} rows matches where {asked}; {found}"
        return "there are no rows at all"


_LEFT_OPEN: list[Any] = []  # iterators of a parent process, which wait for its threads when they are closed


def _closed(batches: Any) -> None:
    with contextlib.suppress(ValueError):  # at exit, of a thread that is stuck in it
        batches.close()


def _nothing() -> None:
    """Close nothing: no file is open yet."""
