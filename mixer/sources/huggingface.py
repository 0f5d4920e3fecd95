"""Sources opened: files of this machine, those of a hub, or a data set that a program passes.

JSON, CSV, Parquet, Arrow and text are read by readers of ours, wherever they lie; `datasets` resolves what a hub's id,
configuration, split and patterns mean, and reads every other kind. Text files (.txt, .md) give one document per
paragraph, the pieces between blank lines: whole files would be documents of many rows, single lines have no context.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import glob
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import datasets
from datasets.utils.file_utils import _prepare_path_and_storage_options
from fsspec.core import url_to_fs
from huggingface_hub.utils import (  # type: ignore[attr-defined]  # documented there, but not in its __all__
    are_progress_bars_disabled,
    disable_progress_bars,
    enable_progress_bars,
)

from mixer.config.sources import RetriesConfig, SourceConfig
from mixer.errors import ConfigError, MissingDataError, MixerError
from mixer.sources.faults import calm, explained, persist
from mixer.sources.files import KINDS, READERS, extension_of, find_files, has_configs, is_url, kind_of, split_of_folder
from mixer.sources.local import gather
from mixer.sources.records import TABLE_READERS, DataFile, FileRecords
from mixer.sources.share import WHOLE, Share
from mixer.sources.streams import Stream
from mixer.sources.text_stream import TextStream
from mixer.sources.tokens import TokenStream

__all__ = ["TextStream", "TokenStream", "open_stream"]

NOT_OPTIONS = {"name", "version", "data_dir", "data_files", "description", "features"}  # of a builder's configuration

Rows: TypeAlias = "datasets.IterableDataset | FileRecords"

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
    rows: Rows
    if dataset is not None:
        rows = _own_copy(source.name, dataset)
    elif (files := _files_here(source, resolve)) is not None:
        rows = FileRecords(_as_asked(source, files))
        options["files"] = tuple(Path(file.name) for file in files)
    else:
        load = partial(_load, source, _arguments(source, resolve), options["retries"])
        rows, commit = load(source.revision)
        if source.path is not None and _is_of_hub(source.path):
            options |= {"revision": commit, "reopen": partial(_first, load)}
    _check_reading(source, rows)
    is_table = _is_table(rows)
    if source.token_column is None:
        is_plain = source.messages is None and source.template is None
        return TextStream(source, rows, is_table=is_table and dataset is None and is_plain, **options)
    return TokenStream(source, rows, row_length=row_length, vocab_size=vocab_size, is_table=is_table, **options)


def _as_asked(source: SourceConfig, files: list[DataFile]) -> list[DataFile]:
    """Return files that are read by the unit and under the key that the source names."""
    unit, field = source.sample_by or "paragraph", source.field
    return [dataclasses.replace(file, sample_by=unit, field=field) for file in files]


def _check_reading(source: SourceConfig, rows: Rows) -> None:
    """Raise ConfigError if a setting of one kind of files stands at a source of another."""
    kinds = rows.kinds if isinstance(rows, FileRecords) else {"other data"}
    for key, kind in (("sample_by", "text"), ("field", "json")):
        value = getattr(source, key)
        if value is not None and kinds != {kind}:
            raise ConfigError(
                f"source {source.name}: {key} {value!r} is for files of {kind}, and this source has "
                f"{', '.join(sorted(kinds))}; leave it out"
            )


def _is_table(rows: Rows) -> bool:
    """Whether rows can be read as Arrow tables and resume exactly."""
    if isinstance(rows, FileRecords):
        return rows.kinds <= TABLE_READERS.keys()
    return rows._ex_iterable.iter_arrow is not None and not _has(rows._ex_iterable, "MappedExamplesIterable")


def _files_here(source: SourceConfig, resolve: Callable[[str], Path]) -> list[DataFile] | None:
    """Return the files of a source if they are on this machine and of kinds that we read; else None."""
    name, kind = source.name, None
    patterns = (source.data_files,) if isinstance(source.data_files, str) else source.data_files
    if source.local is not None:
        try:
            paths = [gather(source.local)]
        except MixerError as error:
            raise type(error)(f"source {name}: {error}") from error
    elif source.path is None or source.path in READERS:
        if not patterns:
            raise ConfigError(
                f"source {name}: nothing to read; give path, data_files or local, "
                "or pass an IterableDataset as streams={name: dataset}"
            )
        if any(map(is_url, patterns)):
            return None
        kind = source.path
        paths = find_files(name, patterns, resolve)
    elif _is_of_hub(source.path):
        return None
    else:
        folder = _folder(source, resolve)
        if patterns:
            paths = find_files(name, patterns, lambda pattern: folder / pattern)
        elif source.config_name is not None or has_configs(folder):
            return None
        else:
            found = split_of_folder(name, folder, source.split)
            return None if found is None else _of_kind(name, None, found)
    if source.split != "train":
        raise MissingDataError(f"source {name}: Bad split: {source.split}. Available splits: ['train']")
    return _of_kind(name, kind, paths)


def _of_kind(name: str, kind: str | None, paths: list[Path]) -> list[DataFile]:
    kind = kind or kind_of(name, [*map(str, paths)])
    own = [KINDS.get(extension_of(str(path)), kind) for path in paths]  # both CSV and TSV are of the kind CSV
    return [DataFile(str(p), k if READERS[k] == READERS[kind] else kind) for p, k in zip(paths, own, strict=True)]


def _folder(source: SourceConfig, resolve: Callable[[str], Path]) -> Path:
    assert source.path is not None
    folder = resolve(source.path)
    if not folder.is_dir():
        raise MissingDataError(
            f"source {source.name}: path {source.path!r} is no folder: {folder}; "
            "name single files as data_files, and data sets of the hub as owner/name"
        )
    if (folder / "state.json").exists() and (folder / "dataset_info.json").exists():
        raise ConfigError(
            f"source {source.name}: {source.path!r} was written by save_to_disk; "
            f"name its files instead, as data_files: {source.path.rstrip('/')}/*.arrow"
        )
    return folder


def _load(
    source: SourceConfig, arguments: dict[str, Any], retries: RetriesConfig, revision: str | None
) -> tuple[Rows, str]:
    """Return what `datasets` resolves as of a revision, read by us if we can, and the commit that it is."""

    def attempt() -> tuple[Rows, str]:
        try:
            with calm(retries.timeout_s), _without_progress_bars():
                builder = datasets.load_dataset_builder(name=source.config_name, revision=revision, **arguments)
                files = _files_of(builder, source.split)
                if files:
                    return FileRecords(_as_asked(source, files)), builder.hash
                return builder.as_streaming_dataset(split=source.split), builder.hash
        except Exception as error:  # as in Stream; a wrong split or configuration is a bare ValueError
            raise explained(source.name, error, (), MissingDataError) from error

    return persist(attempt, source=source.name, place=lambda: "opening it", retries=retries)


def _first(load: Callable[[str], tuple[Rows, str]], revision: str) -> Rows:
    return load(revision)[0]


def _files_of(builder: Any, split: str) -> list[DataFile] | None:
    """Return the files of one split, or None if there is more to reading them than we do."""
    module = type(builder).__module__.rpartition(".")[2]
    names = {str(key): files for key, files in (builder.config.data_files or {}).items()}.get(split)
    kinds = [KINDS.get(extension_of(name)) for name in names or ()]
    if not names or any(READERS.get(kind or "") != module for kind in kinds):
        return None
    for option in dataclasses.fields(builder.config):
        usual = option.default if option.default_factory is dataclasses.MISSING else option.default_factory()
        is_tab = option.name == "sep" and set(kinds) == {"tsv"} and builder.config.sep == "\t"
        if option.name not in NOT_OPTIONS and getattr(builder.config, option.name) != usual and not is_tab:
            return None
    return [
        DataFile(name, kind or module, _open_remote if is_url(name) else None)
        for name, kind in zip(names, kinds, strict=True)
    ]


def _open_remote(name: str) -> BinaryIO:
    """Open a file as `datasets` does, but for its retries, which lose what a server answered."""
    path, options = _prepare_path_and_storage_options(name, download_config=datasets.DownloadConfig())
    files, path = url_to_fs(path, **(options or {}))
    opened: BinaryIO = files.open(path, "rb")
    return opened


def _arguments(source: SourceConfig, resolve: Callable[[str], Path]) -> dict[str, Any]:
    """Return what ``load_dataset_builder`` takes for a source that is not of files of this machine alone."""
    patterns = [source.data_files] if isinstance(source.data_files, str) else [*(source.data_files or ())]
    if source.path is None or source.path in READERS:
        files = find_files(source.name, [pattern for pattern in patterns if not is_url(pattern)], resolve)
        # `datasets` reads names as patterns once more; brackets in the name of a folder must not count
        names = [glob.escape(str(file)) for file in files]
        names += [pattern for pattern in patterns if is_url(pattern)]
        return {"path": READERS[source.path or kind_of(source.name, names)], "data_files": {"train": names}}
    path = source.path if _is_of_hub(source.path) else str(_folder(source, resolve))
    return {"path": path, "data_files": patterns or None}


def _is_of_hub(path: str) -> bool:
    """Whether a path is owner/name of the hub, which never begins like the path of a folder."""
    return path not in READERS and not path.startswith((".", "/", "~"))


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
