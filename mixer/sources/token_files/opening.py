"""Opens the token files of a source as what they are, and compares them with what the source says of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mixer.config.curriculum import Curriculum
from mixer.config.sources import SourceConfig, TokenFilesConfig
from mixer.errors import ConfigError, MixerError
from mixer.sources.token_files.bare import BareFile, HeadedFile
from mixer.sources.token_files.base import DTYPES, TokenFile, malformed
from mixer.sources.token_files.datatrove import DatatroveFile
from mixer.sources.token_files.finding import find_masks, find_token_files
from mixer.sources.token_files.listing import INDEX, read_listing
from mixer.sources.token_files.litdata import open_litdata
from mixer.sources.token_files.mds import open_mds
from mixer.sources.token_files.megatron import MegatronFile
from mixer.sources.token_files.olmo import OlmoFile
from mixer.sources.token_files.rows import TokenFileRows
from mixer.types import IntArray

SAMPLED_DOCUMENTS = 64  # of a file, of which it is seen whether a separator ends them


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
        found = find_token_files(curriculum.resolve(config.path), config)
        files = [file for path, kind in found for file in _opened(path, kind, config)]
        if len({file.dtype for file in files}) > 1:
            kinds = ", ".join(f"{file.path.name}: {file.dtype.name}" for file in files[:5])
            raise ConfigError(f"its files hold ids of several types; make a source of each ({kinds})")
        if config.mask is not None:
            _give_masks(files, find_masks(curriculum.resolve(config.mask)))
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
        ended_by=separator_id if config.separator == "present" else None,
    )


def _opened(path: Path, kind: str, config: TokenFilesConfig) -> Sequence[TokenFile]:
    """Return the files of a path that is of a format; of MDS and LitData those that its ``index.json`` lists."""
    dtype = None if config.dtype is None else DTYPES[config.dtype]
    if kind in ("mds", "litdata"):
        index = path / INDEX if path.is_dir() else path
        listing = read_listing(index)
        if kind == "mds":
            return open_mds(index, listing, name=config.column, dtype=dtype)
        _check_says_type(index, dtype)
        return open_litdata(index, listing)
    if kind == "datatrove":
        return [DatatroveFile(path, dtype)]
    if kind == "olmo":
        return [OlmoFile(path, dtype)]
    if kind == "bare":
        if dtype is None:
            raise ConfigError(f"{path}: bare ids say nothing of themselves; give their `dtype`, such as uint16")
        return [BareFile(path, dtype)]
    _check_says_type(path, dtype)
    return [MegatronFile(path) if kind == "megatron" else HeadedFile(path)]


def _check_says_type(path: Path, dtype: Any) -> None:
    if dtype is not None:
        raise ConfigError(f"{path}: it says itself how its ids are stored; leave `dtype` out")


def _give_masks(files: Sequence[TokenFile], masks: Sequence[Path]) -> None:
    if len(files) != len(masks):
        raise ConfigError(
            f"{len(files)} token files, but {len(masks)} loss masks; give one of each, named in one order"
        )
    for file, mask in zip(files, masks, strict=True):
        if mask.stat().st_size != file.num_tokens:
            raise malformed(
                mask, f"it has {mask.stat().st_size:,} bytes for the {file.num_tokens:,} ids of {file.path.name}"
            )
        file.mask = mask


def _check_separator(file: TokenFile, config: TokenFilesConfig, separator_id: int) -> None:
    """Raise ConfigError if what the source says of separators is not what some documents of a file say."""
    documents = file.documents() if config.separator != "none" else None
    if documents is None:
        if config.separator == "insert":
            raise ConfigError(
                f"{file.path}: it does not say where documents end, so that no separator can be put in; set "
                "`separator: present` if each has one, or `separator: none`"
            )
        return
    chosen = np.unique(np.linspace(0, len(documents.lengths) - 1, SAMPLED_DOCUMENTS).astype(np.int64))
    at_end = (documents.lengths[chosen] - 1) * (0 if file.separator_leads else file.dtype.itemsize)
    ids = _ids_at(file, documents.offsets[chosen] + at_end)
    has_separator = [token == separator_id for token in ids]
    where = "begin" if file.separator_leads else "end"
    if config.separator == "insert" and all(has_separator):
        raise ConfigError(
            f"{file.path}: its documents {where} with the separator {separator_id} already; set `separator: present`"
        )
    if config.separator == "present" and not all(has_separator):
        at = has_separator.index(False)
        raise ConfigError(
            f"{file.path}: document {chosen[at]:,} {where}s with the id {ids[at]}, not with the separator "
            f"{separator_id}; leave `separator` out to have it put in, or set `separator: none`"
        )


def _ids_at(file: TokenFile, places: IntArray) -> list[int]:
    """Return the ids that begin at these bytes of a file."""
    found = []
    with file.path.open("rb", buffering=0) as opened:
        for place in places.tolist():
            opened.seek(place)
            found.append(int.from_bytes(opened.read(file.dtype.itemsize), "little"))
    return found
