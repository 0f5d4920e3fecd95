"""Finds the token files of a source, and opens them as what they are."""

from __future__ import annotations

import glob
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np

from mixer.config.curriculum import Curriculum
from mixer.config.sources import SourceConfig, TokenFilesConfig
from mixer.errors import ConfigError, MissingDataError, MixerError
from mixer.sources.token_files.base import TokenFile, read_head
from mixer.sources.token_files.megatron import MAGIC as MEGATRON_MAGIC
from mixer.sources.token_files.megatron import MegatronFile, pair
from mixer.sources.token_files.rows import TokenFileRows
from mixer.types import IntArray

SAMPLED_DOCUMENTS = 64  # of a file, of which it is seen whether a separator ends them
PATTERNS = {"megatron": "*.idx"}  # the files of a folder that are of a format

Opener = Callable[[Path, TokenFilesConfig], TokenFile]
OPENERS: Mapping[str, Opener] = {"megatron": lambda path, config: MegatronFile(path)}


def open_token_files(curriculum: Curriculum, *, vocab_size: int, separator_id: int) -> dict[str, TokenFileRows]:
    """Open the token files of every source that names some, by source.

    Args:
        curriculum: the run.
        vocab_size: ids must be below.
        separator_id: what ends a document.

    Raises:
        ConfigError, SourceError: files that cannot be read as the source says; it names the source.
    """
    return {
        source.name: open_source(source, curriculum, vocab_size=vocab_size, separator_id=separator_id)
        for source in curriculum.sources
        if source.token_files is not None
    }


def token_file_problems(
    curriculum: Curriculum, *, vocab_size: int, separator_id: int, reads_all: bool = False
) -> Iterator[str]:
    """Yield a sentence for every source whose token files cannot be read; with ``reads_all`` all ids are."""
    for source in curriculum.sources:
        if source.token_files is not None:
            try:
                rows = open_source(source, curriculum, vocab_size=vocab_size, separator_id=separator_id)
                if reads_all:
                    rows.verify()
            except MixerError as error:
                yield str(error)


def open_source(source: SourceConfig, curriculum: Curriculum, *, vocab_size: int, separator_id: int) -> TokenFileRows:
    """Open the token files of one source; arguments and errors are those of ``open_token_files``."""
    config = source.token_files
    assert config is not None
    try:
        files = [
            OPENERS[kind](path, config) for path, kind in find_token_files(curriculum.resolve(config.path), config)
        ]
        if len({file.dtype for file in files}) > 1:
            kinds = ", ".join(f"{file.path.name}: {file.dtype.name}" for file in files)
            raise ConfigError(f"its files hold ids of several types; make a source of each ({kinds})")
        for file in files:
            _check_separator(file, config, separator_id)
    except MixerError as error:
        raise type(error)(f"source {source.name}: tokens: {error}") from error
    return TokenFileRows(
        source.name,
        files,
        row_length=curriculum.sequence_length + 1,
        vocab_size=vocab_size,
        separator_id=separator_id if config.separator == "insert" else None,
    )


def find_token_files(place: Path, config: TokenFilesConfig) -> list[tuple[Path, str]]:
    """Return the files that a path stands for, in order, each with its format.

    Args:
        place: a file, what the names of a pair begin with, a folder, or a pattern.
        config: says the format, or leaves it to the files.

    Raises:
        MissingDataError: nothing is there.
        ConfigError: files that do not say what they are.
    """
    if glob.has_magic(str(place)):
        matched = [Path(path) for path in sorted(glob.glob(str(place), recursive=True))]  # noqa: PTH207  # absolute
        if not matched:
            raise MissingDataError(f"no file matches {place}; mend `tokens.path`")
    else:
        matched = [place]
    found = [pair for path in matched for pair in _at(path, config)]
    return list(dict.fromkeys(found))  # both files of a pair may match


def _at(path: Path, config: TokenFilesConfig) -> Iterator[tuple[Path, str]]:
    if not path.is_dir():
        kind = config.format or _kind_of(path)
        yield (pair(path)[0] if kind == "megatron" else path), kind
        return
    patterns = {kind: PATTERNS[kind] for kind in ([config.format] if config.format else PATTERNS)}
    for kind, pattern in patterns.items():
        files = sorted(file for file in path.rglob(pattern) if file.is_file())
        if files:
            yield from ((file, kind) for file in files)
            return
    raise MissingDataError(f"{path}: no token file is in this folder, none named {' or '.join(patterns.values())}")


def _kind_of(path: Path) -> str:
    """Return the format of a file that says what it is."""
    index = pair(path)[0]
    if index.is_file() and read_head(index, len(MEGATRON_MAGIC)) == MEGATRON_MAGIC:
        return "megatron"
    if not path.exists():
        raise MissingDataError(f"{path}: no such file or folder; mend `tokens.path`")
    raise ConfigError(f"{path}: it does not say what it is; give its `format`, one of {', '.join(OPENERS)}")


def _check_separator(file: TokenFile, config: TokenFilesConfig, separator_id: int) -> None:
    """Raise ConfigError if what the source says of separators is not what the ends of some documents say."""
    documents = file.documents() if config.separator != "none" else None
    if documents is None:
        if config.separator == "insert":
            raise ConfigError(
                f"{file.path}: it does not say where documents end, so that no separator can be put in; set "
                "`separator: present` if each ends with one, or `separator: none`"
            )
        return
    chosen = np.unique(np.linspace(0, len(documents.lengths) - 1, SAMPLED_DOCUMENTS).astype(np.int64))
    last = _ids_at(file, documents.offsets[chosen] + (documents.lengths[chosen] - 1) * file.dtype.itemsize)
    is_separator = [token == separator_id for token in last]
    if config.separator == "insert" and all(is_separator):
        raise ConfigError(
            f"{file.path}: its documents end with the separator {separator_id} already; set `separator: present`"
        )
    if config.separator == "present" and not all(is_separator):
        number = int(chosen[is_separator.index(False)])
        raise ConfigError(
            f"{file.path}: document {number:,} ends with the id {last[is_separator.index(False)]}, not with the "
            f"separator {separator_id}; leave `separator` out to have it put in, or set `separator: none`"
        )


def _ids_at(file: TokenFile, places: IntArray) -> list[int]:
    """Return the ids that begin at these bytes of a file."""
    found = []
    with file.path.open("rb", buffering=0) as opened:
        for place in places.tolist():
            opened.seek(place)
            found.append(int.from_bytes(opened.read(file.dtype.itemsize), "little"))
    return found
