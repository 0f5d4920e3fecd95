"""Sources opened by `datasets`: hub ids, files of this machine, or an object passed in.

Text files (.txt, .md) give one document per paragraph, the pieces between blank lines: whole files would be documents
of many rows, and single lines have no context.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import datasets
from huggingface_hub.utils import (  # type: ignore[attr-defined]  # documented there, but not in its __all__
    are_progress_bars_disabled,
    disable_progress_bars,
    enable_progress_bars,
)

from mixer.config import RetriesConfig, SourceConfig
from mixer.errors import ConfigError, EmptySourceError, MalformedDataError, MissingDataError, MixerError
from mixer.sources.faults import calm, explained, persist
from mixer.sources.files import BUILDERS, COMPRESSIONS, builder_for, find_files, is_url
from mixer.sources.local import gather
from mixer.sources.parquet import ParquetTables
from mixer.sources.streams import WHOLE, Share, Stream, TextStream
from mixer.sources.tokens import TokenStream

__all__ = ["TextStream", "TokenStream", "open_stream"]

BUILDER_OPTIONS: dict[str, dict[str, Any]] = {
    "json": {"parse_agent_traces": False},  # else rows that look like an agent's log are rewritten, or refused
    "text": {"sample_by": "paragraph"},
    "csv": {"keep_default_na": False},  # else the text "NA" or "null" becomes null
}

# else tqdm makes a lock for each look at a pattern of files, and takes it from other threads that look at one
datasets.utils.tqdm.get_lock()


def open_stream(
    source: SourceConfig,
    *,
    resolve: Callable[[str], Path] = Path,
    dataset: datasets.IterableDataset | None = None,
    retries: RetriesConfig | None = None,
    share: Share = WHOLE,
    row_length: int = 1,
    vocab_size: int | None = None,
) -> Stream[Any]:
    """Return the documents of a source: a TextStream, or a TokenStream if its config names ``token_ids`` or ``rows``.

    Args:
        source: where the text is and how its rows are rendered.
        resolve: makes a path of the config file one of this machine (``Curriculum.resolve``).
        dataset: read this data set instead of the one that the source names. It is copied first, so that the caller's
            and other streams of it stay where they are.
        retries: what is done about faults of a network, now and later.
        share: which of the documents to give.
        row_length: T + 1, which every list of a column of ``rows`` must have.
        vocab_size: token ids must be below; None accepts all.

    Raises:
        ConfigError: nothing to read, files of unknown kind, or a data set that cannot resume.
        SourceUnavailableError: a network or server failed, and went on failing after all retries.
        MissingDataError, MalformedDataError, EmptySourceError, SourceError: it cannot be opened; each names the source.
    """
    options: dict[str, Any] = {"retries": retries or RetriesConfig(), "share": share}
    is_of_files = dataset is None
    if dataset is not None:
        dataset = _own_copy(source.name, dataset)
    else:
        arguments, files = _arguments(source, resolve)
        if source.token_column is not None and _is_parquet_here(source, arguments, files):
            return _of_tables(source, files, row_length=row_length, vocab_size=vocab_size, **options)
        load = partial(_load, source, arguments, files, options["retries"])
        dataset, commit = load(source.revision)
        options["files"] = files
        if not files and _is_of_hub(arguments["path"]):
            options |= {"revision": commit, "reopen": partial(_first, load)}
    is_table = dataset._ex_iterable.iter_arrow is not None and not _has(dataset._ex_iterable, "MappedExamplesIterable")
    if source.token_column is None:
        is_plain = is_of_files and source.messages is None and source.template is None
        return TextStream(source, dataset, is_table=is_table and is_plain, **options)
    return TokenStream(source, dataset, row_length=row_length, vocab_size=vocab_size, is_table=is_table, **options)


def _is_parquet_here(source: SourceConfig, arguments: dict[str, Any], files: tuple[Path, ...]) -> bool:
    """Whether a source is Parquet files of this machine, all of them, which need no `datasets`."""
    is_all = arguments["path"] == "parquet" and len(files) == len(arguments["data_files"]["train"])
    return is_all and source.split == "train" and not any(file.suffix in COMPRESSIONS for file in files)


def _of_tables(source: SourceConfig, files: tuple[Path, ...], **options: Any) -> TokenStream:
    try:
        return TokenStream(source, ParquetTables(files), is_table=True, files=files, **options)
    except Exception as error:  # as in Stream
        raise explained(source.name, error, files, MalformedDataError) from error


def _load(
    source: SourceConfig,
    arguments: dict[str, Any],
    files: tuple[Path, ...],
    retries: RetriesConfig,
    revision: str | None,
) -> tuple[datasets.IterableDataset, str]:
    """Return the data set as of a revision, and the commit that it is."""

    def attempt() -> tuple[datasets.IterableDataset, str]:
        try:
            with (
                calm(retries.timeout_s),
                _without_progress_bars(),
                _without_count() if files else contextlib.nullcontext(),
            ):
                builder = datasets.load_dataset_builder(name=source.config_name, revision=revision, **arguments)
                return builder.as_streaming_dataset(split=source.split), builder.hash
        except StopIteration as error:  # how the JSON builder says that its first file is empty
            raise EmptySourceError(f"source {source.name}: there are no rows at all in {files[0]}") from error
        except Exception as error:  # as in Stream; a wrong split or configuration is a bare ValueError
            raise explained(source.name, error, files, MissingDataError) from error

    return persist(attempt, source=source.name, place=lambda: "opening it", retries=retries)


def _first(load: Callable[[str], tuple[datasets.IterableDataset, str]], revision: str) -> datasets.IterableDataset:
    return load(revision)[0]


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


def _own_copy(name: str, dataset: Any) -> datasets.IterableDataset:
    if isinstance(dataset, datasets.Dataset):
        dataset = dataset.to_iterable_dataset()
    if not isinstance(dataset, datasets.IterableDataset):
        raise ConfigError(
            f"source {name}: streams takes a datasets.IterableDataset (one split), not {type(dataset).__name__}"
        )
    if _has(dataset._ex_iterable, "BufferShuffledExamplesIterable"):
        raise ConfigError(
            f"source {name}: the data set has a shuffle buffer, which is not in its saved state, "
            "so a resume could not be exact; pass it without .shuffle()"
        )
    if _draws_without_a_seed(dataset._ex_iterable):
        raise ConfigError(
            f"source {name}: the data set was interleaved with probabilities but no seed, so that every process would "
            "give other rows; pass one, as in interleave_datasets(..., seed=0)"
        )
    try:
        return copy.deepcopy(dataset).with_format(None)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"source {name}: the data set cannot be copied: {error}") from error


def _wrappers(examples: Any) -> Iterator[Any]:
    """Yield what a data set is made of, the outermost first; `datasets` has no public way to ask."""
    yield examples
    for inner in (getattr(examples, "ex_iterable", None), *getattr(examples, "ex_iterables", ())):
        if inner is not None:
            yield from _wrappers(inner)


def _has(examples: Any, kind: str) -> bool:
    """Whether one of the wrappers of a data set is of a class or its subclass."""
    return any(each.__name__ == kind for wrapper in _wrappers(examples) for each in type(wrapper).__mro__)


def _draws_without_a_seed(examples: Any) -> bool:
    """Whether a data set draws from what the operating system gave as a seed: NumPy takes 128 bits of it."""
    generators = [wrapper.generator for wrapper in _wrappers(examples) if hasattr(wrapper, "generator")]
    return any(generator.bit_generator.seed_seq.entropy >= 2**64 for generator in generators)


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
