"""Documents of one source in file order, by `datasets`: hub ids, files of this machine, or an object passed in.

The only module that imports `datasets`. It reads batches of rows, because `datasets` resumes exactly between the
batches of ``IterableDataset.iter`` and inside a batch we count rows ourselves. To resume it reads the file again up to
the place (parsing, but not tokenising), so that a late resume in one huge file costs a pass over its beginning.

Text files (.txt, .md) give one document per paragraph, the pieces between blank lines: whole files would be documents
of many rows, and single lines have no context.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import weakref
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
from huggingface_hub.utils import (  # type: ignore[attr-defined]  # documented there, but not in its __all__
    are_progress_bars_disabled,
    disable_progress_bars,
    enable_progress_bars,
)

from mixer.config import SourceConfig
from mixer.errors import (
    ConfigError,
    EmptySourceError,
    MalformedDataError,
    MissingDataError,
    MixerError,
    SourceError,
    StateMismatchError,
)
from mixer.sources.files import BUILDERS, builder_for, files_digest, find_files, first_bad_line, is_url
from mixer.sources.local import gather
from mixer.sources.rendering import Renderer

GROUP_DOCUMENTS = 64
GROUP_CHARACTERS = 256 * 1024  # bounds what one call tokenises, and so what a resume has to tokenise again
BATCH_ROWS = 64  # rows that `datasets` converts at once: 10x faster than one at a time, and no more memory than a group

STATE_VERSION = 1
NUM_SEEN = 8  # values of a `where` column that an error shows

BUILDER_OPTIONS: dict[str, dict[str, Any]] = {
    "json": {"parse_agent_traces": False},  # else rows that look like an agent's log are rewritten, or refused
    "text": {"sample_by": "paragraph"},
    "csv": {"keep_default_na": False},  # else the text "NA" or "null" becomes null
}


class TextStream:
    """The documents of one source, in deterministic groups; stopped and restored at any group, the rest is the same.

    Counters are of the current epoch: ``num_rows`` read, ``num_documents`` given, ``num_empty`` rows without text.
    """

    def __init__(
        self,
        source: SourceConfig,
        dataset: datasets.IterableDataset,
        *,
        files: tuple[Path, ...] = (),
        revision: str | None = None,
        reopen: Callable[[str], datasets.IterableDataset] | None = None,
    ) -> None:
        """Stream ``dataset``, of which this object becomes the only user.

        Args:
            source: how its rows are chosen and rendered.
            dataset: the rows.
            files: those that it reads, if they are on this machine.
            revision: the commit that it is of, if it is from the hub.
            reopen: returns the data set as of another commit; a saved state may need one that is no longer the newest.
        """
        self.name = source.name
        self._source = source
        self._files = files
        self._files_digest = files_digest(files) if files else None
        self._revision = revision
        self._reopen = reopen
        self._renderer = Renderer(source)
        self._dataset = self._narrowed(dataset)
        self._batches: Iterator[dict[str, list[Any]]] | None = None
        self._close = _nothing
        self.restart()

    def restart(self) -> None:
        """Go back to the first document: the next epoch."""
        self._move({}, 0)  # an empty state is the beginning, also for `datasets`
        self.num_rows = self.num_documents = self.num_empty = 0
        self._seen: dict[str, list[Any]] = {column: [] for column in self._source.where}

    def next_group(self) -> list[str]:
        """Return the next documents, up to 64 or about 256 KiB of characters; an empty list ends the epoch.

        Raises:
            EmptySourceError: the epoch has ended without one document.
            MissingDataError, MalformedDataError, SourceError: a row that cannot be read. The place is kept, so that
                the next call tries the same group again.
        """
        start = self.state_dict()
        try:
            return self._read_group()
        except BaseException:  # Ctrl-C too must not lose documents
            self.load_state_dict(start)
            raise

    def check(self) -> None:
        """Raise what reading would raise before the first document; the stream is at its beginning afterwards."""
        self.restart()
        self.next_group()
        self.restart()

    def state_dict(self) -> dict[str, Any]:
        """Return the position of the next group as plain data."""
        return {
            "version": STATE_VERSION,
            "source": self.name,
            "files": self._files_digest,
            "revision": self._revision,
            "dataset": copy.deepcopy(self._position),
            "offset": self._offset,
            "rows": self.num_rows,
            "documents": self.num_documents,
            "empty": self.num_empty,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state that ``state_dict`` gave, here or in another process.

        A data set of the hub is read as of the commit that the state was saved with, whatever its newest one is now.

        Raises:
            StateMismatchError: the state of another source or version, or of files that have changed since.
            MissingDataError: a commit that the hub no longer has.
        """
        expected = {"version": STATE_VERSION, "source": self.name, "files": self._files_digest}
        if self._reopen is None:
            expected["revision"] = self._revision
        for key, value in expected.items():
            if state.get(key) != value:
                hint = "; its files are not those that the state was saved with" if key == "files" else ""
                raise StateMismatchError(
                    f"source {self.name}: the saved state has {key} {state.get(key)!r}, but this is {value!r}{hint}"
                )
        if self._reopen is not None and state["revision"] != self._revision:
            self._dataset = self._narrowed(self._reopen(state["revision"]))
            self._revision = state["revision"]
        self._move(copy.deepcopy(state["dataset"]), state["offset"])
        self.num_rows, self.num_documents, self.num_empty = state["rows"], state["documents"], state["empty"]

    def _move(self, position: dict[str, Any], offset: int) -> None:
        """Let the next row be number ``offset`` of the batch that begins at ``position``."""
        self._position = self._next_position = position
        self._offset = offset
        self._batch: dict[str, list[Any]] = {}
        self._batch_rows = 0
        self._batches = None
        self._close()

    def _narrowed(self, dataset: datasets.IterableDataset) -> datasets.IterableDataset:
        """Return the data set with the columns that are needed only; raise MissingDataError if one is not there."""
        if dataset.column_names is None:  # unknown after .map() and for some JSON: each batch is checked then
            return dataset
        self._renderer.check_columns(dataset.column_names)
        return dataset.select_columns(list(self._renderer.columns))

    def _read_group(self) -> list[str]:
        documents: list[str] = []
        num_characters = 0
        while len(documents) < GROUP_DOCUMENTS and num_characters < GROUP_CHARACTERS:
            if self._offset >= self._batch_rows and not self._read_batch():
                break
            row = {column: values[self._offset] for column, values in self._batch.items()}
            self._offset += 1
            self.num_rows += 1
            if not self._renderer.matches(row):
                self._remember(row)
                continue
            text = self._renderer.render(row, self.num_rows)
            if not text:
                self.num_empty += 1
                continue
            documents.append(text)
            num_characters += len(text)
        self.num_documents += len(documents)
        if not self.num_documents:
            raise EmptySourceError(f"source {self.name}: {self._emptiness()}")
        return documents

    def _read_batch(self) -> bool:
        """Read batches until one has a row left; False at the end of the epoch."""
        while self._offset >= self._batch_rows:
            if self._batch_rows:
                self._position, self._offset, self._batch_rows = self._next_position, 0, 0
            batch = self._next_batch()
            if batch is None:
                self._offset = 0
                return False
            self._renderer.check_columns(batch)
            self._batch = batch
            self._batch_rows = len(next(iter(batch.values())))
            self._next_position = self._dataset.state_dict()
        return True

    def _next_batch(self) -> dict[str, list[Any]] | None:
        try:
            with _quiet_logging():
                if self._batches is None:
                    # `datasets` would otherwise begin at the last state it was given, in every epoch
                    self._dataset.load_state_dict(self._position)
                    # not iter(dataset): inside a DataLoader's worker that reads a share of the files only
                    self._batches = batches = self._dataset.iter(batch_size=BATCH_ROWS)
                    # it holds a file open, and left to the end of Python its own clean-up fails noisily
                    self._close = weakref.finalize(self, batches.close)
                return next(self._batches, None)
        except Exception as error:  # `datasets` lets through whatever its readers and file systems raise
            raise _explained(self.name, error, self._files, MalformedDataError) from error

    def _remember(self, row: Mapping[str, Any]) -> None:
        for column, seen in self._seen.items():
            if len(seen) < NUM_SEEN and row[column] not in seen:
                seen.append(row[column])

    def _emptiness(self) -> str:
        if self.num_empty:
            return f"{self.num_rows} rows were read and none has text ({self.num_empty} are empty)"
        if self.num_rows:
            asked = ", ".join(f"{column}={wanted!r}" for column, wanted in self._source.where.items())
            found = ", ".join(f"{column} is one of {seen}" for column, seen in self._seen.items())
            return f"none of {self.num_rows} rows matches where {asked}; {found}"
        return "there are no rows at all"


def open_stream(
    source: SourceConfig,
    *,
    resolve: Callable[[str], Path] = Path,
    dataset: datasets.IterableDataset | None = None,
) -> TextStream:
    """Return the documents of a source.

    Args:
        source: where the text is and how its rows are rendered.
        resolve: makes a path of the config file one of this machine (``Curriculum.resolve``).
        dataset: read this data set instead of the one that the source names. It is copied first, so that the caller's
            and other streams of it stay where they are.

    Raises:
        ConfigError: nothing to read, files of unknown kind, or a data set that cannot resume.
        MissingDataError, MalformedDataError, EmptySourceError, SourceError: it cannot be opened; each names the source.
    """
    if dataset is not None:
        return TextStream(source, _own_copy(source.name, dataset))
    arguments, files = _arguments(source, resolve)

    def load(revision: str | None) -> tuple[datasets.IterableDataset, str]:
        try:
            with _quiet_logging(), _without_progress_bars(), _without_count() if files else contextlib.nullcontext():
                builder = datasets.load_dataset_builder(name=source.config_name, revision=revision, **arguments)
                return builder.as_streaming_dataset(split=source.split), builder.hash
        except StopIteration as error:  # how the JSON builder says that its first file is empty
            raise EmptySourceError(f"source {source.name}: there are no rows at all in {files[0]}") from error
        except Exception as error:  # as above; a wrong split or configuration is a bare ValueError
            raise _explained(source.name, error, files, MissingDataError) from error

    dataset, commit = load(source.revision)
    if files or not _is_of_hub(arguments["path"]):
        return TextStream(source, dataset, files=files)
    return TextStream(source, dataset, revision=commit, reopen=lambda revision: load(revision)[0])


def _arguments(source: SourceConfig, resolve: Callable[[str], Path]) -> tuple[dict[str, Any], tuple[Path, ...]]:
    """Return what ``load_dataset`` takes for this source, and the files of this machine among it."""
    if source.local is not None:
        try:
            gathered = gather(source.local)
        except MixerError as error:
            raise type(error)(f"source {source.name}: {error}") from error
        return _files_arguments(source.name, None, (str(gathered),), Path)
    patterns = (source.data_files,) if isinstance(source.data_files, str) else source.data_files
    if source.path is None or source.path in BUILDERS.values():
        if not patterns:
            raise ConfigError(
                f"source {source.name}: nothing to read; give path, data_files or local, "
                "or pass an IterableDataset as streams={name: dataset}"
            )
        return _files_arguments(source.name, source.path, patterns, resolve)
    path = source.path
    if not _is_of_hub(path):
        folder = resolve(path)
        if not folder.is_dir():
            raise MissingDataError(
                f"source {source.name}: path {path!r} is no folder: {folder}; "
                "name single files as data_files, and data sets of the hub as owner/name"
            )
        if (folder / "state.json").exists() and (folder / "dataset_info.json").exists():
            raise ConfigError(
                f"source {source.name}: {path!r} was written by save_to_disk; "
                f"name its files instead, as data_files: {path.rstrip('/')}/*.arrow"
            )
        path = str(folder)
    return {"path": path, "data_files": list(patterns) if patterns else None}, ()


def _is_of_hub(path: str) -> bool:
    """Whether a path is owner/name of the hub, which never begins like the path of a folder."""
    return path not in BUILDERS.values() and not path.startswith((".", "/", "~"))


def _files_arguments(
    name: str, builder: str | None, patterns: tuple[str, ...], resolve: Callable[[str], Path]
) -> tuple[dict[str, Any], tuple[Path, ...]]:
    urls = [pattern for pattern in patterns if is_url(pattern)]
    files = find_files(name, [pattern for pattern in patterns if not is_url(pattern)], resolve)
    # `datasets` reads names as patterns once more; brackets in the name of a folder must not count
    literal = [str(file).replace("[", "[[]") for file in files]
    builder = builder or builder_for(name, [*map(str, files), *urls])
    arguments = {"path": builder, "data_files": {"train": literal + urls}, **BUILDER_OPTIONS.get(builder, {})}
    return arguments, tuple(files)


def _nothing() -> None:
    """Close nothing: no file is open yet."""


def _own_copy(name: str, dataset: Any) -> datasets.IterableDataset:
    if isinstance(dataset, datasets.Dataset):
        dataset = dataset.to_iterable_dataset()
    if not isinstance(dataset, datasets.IterableDataset):
        raise ConfigError(
            f"source {name}: streams takes a datasets.IterableDataset (one split), not {type(dataset).__name__}"
        )
    if _has_shuffle_buffer(dataset._ex_iterable):
        raise ConfigError(
            f"source {name}: the data set has a shuffle buffer, which is not in its saved state, "
            "so a resume could not be exact; pass it without .shuffle()"
        )
    try:
        return copy.deepcopy(dataset).with_format(None)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"source {name}: the data set cannot be copied: {error}") from error


def _has_shuffle_buffer(examples: Any) -> bool:
    """Walk the wrappers of a data set; `datasets` has no public way to ask."""
    inner = [getattr(examples, "ex_iterable", None), *getattr(examples, "ex_iterables", ())]
    return type(examples).__name__ == "BufferShuffledExamplesIterable" or any(
        _has_shuffle_buffer(each) for each in inner if each is not None
    )


def _explained(name: str, error: Exception, files: tuple[Path, ...], bare: type[SourceError]) -> MixerError:
    """Return our error for one of `datasets`; ``bare`` is what a ValueError that is not pyarrow's means here."""
    if isinstance(error, MixerError):
        return error
    if isinstance(error, FileNotFoundError):
        return MissingDataError(f"source {name}: {error}")
    bad_line = first_bad_line(files)
    if bad_line is not None:
        return MalformedDataError(f"source {name}: {bad_line}")
    where = f" in {files[0] if len(files) == 1 else f'one of {len(files)} files'}" if files else ""
    message = f"source {name}: cannot be read{where}: {type(error).__name__}: {error}"
    if isinstance(error, pa.ArrowException | UnicodeError) or (files and isinstance(error, OSError)):
        return MalformedDataError(message)
    return (bare if isinstance(error, ValueError) else SourceError)(message)


@contextlib.contextmanager
def _quiet_logging() -> Iterator[None]:
    """Keep `datasets` from logging errors that we raise with a better message."""
    level = datasets.logging.get_verbosity()
    datasets.logging.set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        datasets.logging.set_verbosity(level)


@contextlib.contextmanager
def _without_progress_bars() -> Iterator[None]:
    """Turn the bars of `datasets` and of the hub's client off, and on again if they were on."""
    switches = []
    if not datasets.are_progress_bars_disabled():
        datasets.disable_progress_bars()
        switches.append(datasets.enable_progress_bars)
    if not are_progress_bars_disabled():
        disable_progress_bars()
        switches.append(enable_progress_bars)
    try:
        yield
    finally:
        for switch_on in switches:
            switch_on()


@contextlib.contextmanager
def _without_count() -> Iterator[None]:
    """Read files of this machine without a word to the hub.

    `datasets` announces each use of a builder with a request whose timeout does not cover a slow name server: 5 s per
    source, measured on a machine without a network.
    """
    counts = datasets.config.HF_UPDATE_DOWNLOAD_COUNTS
    datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False
    try:
        yield
    finally:
        datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = counts
