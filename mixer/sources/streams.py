"""Documents of one source in file order, as text or as token ids; stopped and restored at any group, exactly.

They read batches of rows, because `datasets` resumes exactly between the batches of ``IterableDataset.iter`` and inside
a batch we count rows ourselves. To resume, `datasets` reads the file again up to the place (parsing, but not
tokenising), so that a late resume in one huge file costs a pass over its beginning.
"""

from __future__ import annotations

import contextlib
import copy
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from mixer.config import RetriesConfig, SourceConfig
from mixer.errors import EmptySourceError, MalformedDataError, StateMismatchError
from mixer.sources.background import POOL
from mixer.sources.faults import NetworkFault, calm, explained, persist
from mixer.sources.files import files_digest
from mixer.sources.holdout import is_held_out, text_bytes
from mixer.sources.rendering import Renderer
from mixer.types import TokenArray

if TYPE_CHECKING:
    import datasets

GROUP_DOCUMENTS = 256
GROUP_CHARACTERS = 128 * 1024  # bounds what one call tokenises, and so what a resume has to tokenise again
BATCH_ROWS = 64  # rows that become Python's at once; they may be long, and most of a group's are short
TABLE_ROWS = 256  # rows of a table that `datasets` gives at once, which costs it 0.25 ms whatever their number

# wrappers of `datasets` that treat each row by itself, and what they may be around
OF_EACH_ROW = frozenset({"ExamplesIterable", "ArrowExamplesIterable", "SelectColumnsIterable"})

STATE_VERSION = 4
NUM_SEEN = 8  # values of a `where` column that an error shows

Documents = list[str] | list[TokenArray] | TokenArray
Group = TypeVar("Group", list[str], list[TokenArray] | TokenArray)
Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True)
class Share:
    """Which of a source's documents a stream gives.

    ``holdout`` is the fraction set aside and ``held_out`` whether the stream gives that part or the rest; of what is
    left, this is reader number ``reader`` of ``num_readers``.
    """

    holdout: float = 0.0
    held_out: bool = False
    reader: int = 0
    num_readers: int = 1

    @property
    def split(self) -> str:
        """The split in words, for states and messages."""
        if not self.holdout:
            return "all"
        return f"held out at {self.holdout}" if self.held_out else f"all but held out at {self.holdout}"

    def has(self, document: bytes) -> bool:
        """Whether the split has a document."""
        return is_held_out(document, self.holdout) == self.held_out


WHOLE = Share()


class Stream(ABC, Generic[Group]):
    """What streams of text and of token ids share: the place, its state, and reading on after faults.

    Counters are of the current epoch: ``num_rows`` read, ``num_documents`` given, ``num_empty`` rows without text,
    ``num_other_split`` documents of the other side of the held-out split, ``num_other_readers`` of other readers.
    """

    _batch_size: int
    _is_table: bool  # read as pyarrow tables, not as lists of Python values

    def __init__(
        self,
        source: SourceConfig,
        dataset: datasets.IterableDataset,
        *,
        files: tuple[Path, ...] = (),
        revision: str | None = None,
        reopen: Callable[[str], datasets.IterableDataset] | None = None,
        retries: RetriesConfig | None = None,
        share: Share = WHOLE,
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
        """
        self.name = source.name
        self._source = source
        self._files = files
        self._files_digest = files_digest(files) if files else None
        self._revision = revision
        self._reopen = reopen
        self._retries = retries or RetriesConfig()
        self._share = share
        self._renderer = Renderer(source)
        self._dataset, self._stride = self._narrowed(dataset)
        self._batches: Iterator[Any] | None = None
        self._close: Callable[[], object] = _nothing
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
        return repr((source, files, self._share, self._retries, self._batch_size, self._is_table))

    def restart(self) -> None:
        """Go back to the first document: the next epoch."""
        self._move({}, 0)  # an empty state is the beginning, also for `datasets`
        self.num_rows = self.num_documents = self.num_empty = self.num_other_split = self.num_other_readers = 0
        self._seen: dict[str, list[Any]] = {column: [] for column in self._source.where}

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
            "rows": self.num_rows,
            "documents": self.num_documents,
            "empty": self.num_empty,
            "other_split": self.num_other_split,
            "other_readers": self.num_other_readers,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state that ``state_dict`` gave, here or in another process.

        A data set of the hub is read as of the commit that the state was saved with, whatever its newest one is now.

        Raises:
            StateMismatchError: the state of another source, version, split or reader, or of files that have changed.
            MissingDataError: a commit that the hub no longer has.
        """
        self.check_state(state)
        if self._reopen is not None and state["revision"] != self._revision:
            self._dataset, self._stride = self._narrowed(self._reopen(state["revision"]))
            self._revision = state["revision"]
        self._move(state["dataset"], state["offset"])  # `datasets` copies what it loads
        self.num_rows, self.num_documents, self.num_empty = state["rows"], state["documents"], state["empty"]
        self.num_other_split, self.num_other_readers = state["other_split"], state["other_readers"]

    def abandon(self) -> None:
        """Let go of what is open without closing it, in a process that was forked after it was opened."""
        if isinstance(self._close, weakref.finalize):
            self._close.detach()
        _LEFT_OPEN.append(self._batches)
        self._close = _nothing
        self._batches = None

    def __getstate__(self) -> dict[str, Any]:
        """Another process opens the files again at the same place."""
        left_out = {"_batches": None, "_close": _nothing, "_batch": None, "_batch_rows": 0}
        return {**self.__dict__, **left_out, "_next_position": self._position}

    def check_state(self, state: Mapping[str, Any]) -> None:
        """Raise StateMismatchError for a state that ``load_state_dict`` would refuse."""
        expected: dict[str, Any] = {"version": STATE_VERSION, "source": self.name, "files": self._files_digest}
        if self._reopen is None:
            expected["revision"] = self._revision
        expected |= {"split": self._share.split, "reader": [self._share.reader, self._share.num_readers]}
        for key, value in expected.items():
            if state.get(key) != value:
                hint = {
                    "files": "; its files are not those that the state was saved with",
                    "reader": "; a source that is streamed in every rank and worker goes on only with the same number "
                    "of them: use the same world size and num_workers, or `mixer prepare` the source",
                }.get(key, "")
                raise StateMismatchError(
                    f"source {self.name}: the saved state has {key} {state.get(key)!r}, but this is {value!r}{hint}"
                )

    def _move(self, position: dict[str, Any], offset: int) -> None:
        """Let the next row be number ``offset`` of the batch that begins at ``position``."""
        self._position = self._next_position = position
        self._offset = offset
        self._batch: Any = None
        self._batch_rows = 0
        self._batches = None
        self._close()

    def _narrowed(self, dataset: datasets.IterableDataset) -> tuple[datasets.IterableDataset, int]:
        """Return the data set with the files and columns that are needed only, and which documents of them to take.

        The files are dealt out if their number divides by that of the readers and nothing looks across files; else each
        reader reads all and takes every ``num_readers``-th document, the second value.

        Raises:
            MissingDataError: a column that is not there.
        """
        stride, readers = 1, self._share.num_readers
        if readers > 1 and dataset.num_shards % readers == 0 and _is_the_sum_of_its_files(dataset):
            dataset = dataset.shard(readers, self._share.reader, contiguous=False)
        else:
            stride = readers
        if dataset.column_names is not None:  # unknown after .map() and for some JSON: each batch is checked then
            self._renderer.check_columns(dataset.column_names)
            dataset = dataset.select_columns(list(self._renderer.columns))
        return (dataset.with_format("arrow") if self._is_table else dataset), stride

    @abstractmethod
    def _read_group(self) -> Group:
        """Return the next documents; an empty group at the end of the epoch."""

    @abstractmethod
    def _hold(self, batch: Any) -> int:
        """Keep a batch and return its number of rows."""

    def _read_batch(self) -> bool:
        """Read batches until one has a row left; False at the end of the epoch."""
        while self._offset >= self._batch_rows:
            if self._batch_rows:
                self._position, self._offset, self._batch_rows = self._next_position, 0, 0
            batch = self._next_batch()
            if batch is None:
                self._offset = 0
                return False
            self._batch_rows = self._hold(batch)
            self._next_position = self._dataset.state_dict()
        return True

    def _next_batch(self) -> Any:
        try:
            with calm(self._retries.timeout_s):
                if self._batches is None:
                    # `datasets` would otherwise begin at the last state it was given, in every epoch
                    self._dataset.load_state_dict(self._position)
                    # not iter(dataset): inside a DataLoader's worker that reads a share of the files only
                    self._batches = batches = self._dataset.iter(batch_size=self._batch_size)
                    # it holds a file open, and left to the end of Python its own clean-up fails noisily
                    self._close = weakref.finalize(self, _closed, batches)
                    POOL.close_at_exit(self._close)
                return next(self._batches, None)
        except Exception as error:  # `datasets` lets through whatever its readers and file systems raise
            raise explained(self.name, error, self._files, MalformedDataError) from error

    def _check_not_empty(self, group: Group) -> None:
        if not len(group) and not self.num_documents:
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
        if self.num_rows:
            asked = ", ".join(f"{column}={wanted!r}" for column, wanted in self._source.where.items())
            found = ", ".join(f"{column} is one of {seen}" for column, seen in self._seen.items())
            return f"none of {self.num_rows} rows matches where {asked}; {found}"
        return "there are no rows at all"


class TextStream(Stream[list[str]]):
    """Documents as text, up to 256 or about 128 KiB of characters in a group."""

    def __init__(
        self, source: SourceConfig, dataset: datasets.IterableDataset, *, is_table: bool = False, **options: Any
    ) -> None:
        """Stream text; the other arguments are those of ``Stream``.

        Args:
            source: with ``text``, ``messages`` or ``template``.
            dataset: the rows.
            is_table: whether the data set can be read as Arrow tables and resume exactly: a third faster.
            options: see ``Stream``.
        """
        self._is_table = is_table
        self._batch_size = TABLE_ROWS if is_table else BATCH_ROWS
        self._part: dict[str, list[Any]] = {}  # columns of some rows of the batch, from ``_part_from`` on
        self._part_from = self._part_rows = 0
        super().__init__(source, dataset, **options)
        chooses = bool(source.where or self._share.holdout)
        self._plain = None if chooses else self._renderer.text_column  # all of its values are documents

    def __getstate__(self) -> dict[str, Any]:
        """Another process makes its own part of the batch."""
        return {**super().__getstate__(), "_part": {}, "_part_rows": 0}

    def _hold(self, batch: Any) -> int:
        self._renderer.check_columns(batch.column_names if self._is_table else batch)
        self._batch, self._part_rows = batch, 0
        return batch.num_rows if self._is_table else len(next(iter(batch.values())))

    def _place_in_part(self) -> int:
        """Return where the next row lies in the part of the batch that is Python's."""
        place = self._offset - self._part_from
        if 0 <= place < self._part_rows:
            return place
        part = slice(self._offset, self._offset + BATCH_ROWS)
        try:
            batch = self._batch
            self._part = batch[part].to_pydict() if self._is_table else {name: batch[name][part] for name in batch}
        except UnicodeDecodeError as error:
            raise explained(self.name, error, self._files, MalformedDataError) from error
        self._part_from, self._part_rows = self._offset, min(BATCH_ROWS, self._batch_rows - self._offset)
        return 0

    def _read_group(self) -> list[str]:
        documents: list[str] = []
        num_characters = 0
        while len(documents) < GROUP_DOCUMENTS and num_characters < GROUP_CHARACTERS:
            if self._offset >= self._batch_rows and not self._read_batch():
                break
            place = self._place_in_part()
            texts = self._texts(place, GROUP_DOCUMENTS - len(documents), GROUP_CHARACTERS - num_characters)
            if texts:
                documents += texts
                num_characters += sum(map(len, texts))
                continue
            row = {column: values[place] for column, values in self._part.items()}
            self._offset += 1
            self.num_rows += 1
            text = self._document(row)
            if text is not None:
                documents.append(text)
                num_characters += len(text)
        return documents

    def _texts(self, place: int, most: int, most_characters: int) -> list[str]:
        """Take rows of the part that are documents as they are, up to one that is not, or until there are enough.

        One by one, as ``_document`` looks at them, they take 3 us each.
        """
        texts: list[str] = []
        if self._plain is None or self._stride > 1:
            return texts
        for text in self._part[self._plain][place : place + most]:
            if type(text) is not str or not text:
                break
            texts.append(text)
            most_characters -= len(text)
            if most_characters <= 0:
                break
        self._offset += len(texts)
        self.num_rows += len(texts)
        self.num_documents += len(texts)
        return texts

    def _document(self, row: dict[str, Any]) -> str | None:
        """Return the text of a row, or None if it is not for this stream."""
        if not self._renderer.matches(row, self.num_rows):
            self._remember(row)
            return None
        text = self._renderer.render(row, self.num_rows)
        if not text:
            self.num_empty += 1
        elif self._share.holdout and not self._share.has(text_bytes(text)):
            self.num_other_split += 1
        elif not self._is_mine():
            self.num_other_readers += 1
        else:
            self.num_documents += 1
            return text
        return None


def _is_the_sum_of_its_files(dataset: datasets.IterableDataset) -> bool:
    """Whether readers that share the files of a data set give together what one reader of all gives.

    It is so under wrappers that treat each row by itself. ``take`` and ``skip`` count rows, ``interleave_datasets`` and
    ``split_dataset_by_node`` choose among them, and the functions of ``map`` and ``filter`` may do either.
    """
    if getattr(dataset, "_distributed", None) is not None:  # `datasets` splits what is left once more
        return False
    examples = getattr(dataset, "_ex_iterable", None)  # not of tables that we read ourselves
    while examples is not None:
        if type(examples).__name__ not in OF_EACH_ROW:
            return False
        examples = getattr(examples, "ex_iterable", None)
    return True


_LEFT_OPEN: list[Any] = []  # iterators of a parent process, which wait for its threads when they are closed


def _closed(batches: Any) -> None:
    with contextlib.suppress(ValueError):  # at exit, of a thread that is stuck in it
        batches.close()


def _nothing() -> None:
    """Close nothing: no file is open yet."""
