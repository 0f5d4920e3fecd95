"""Finds the token files that a path stands for, and tells what each is by what it says of itself."""

from __future__ import annotations

import glob
from collections.abc import Iterator
from pathlib import Path

from mixer.config.sources import TokenFilesConfig
from mixer.errors import ConfigError, MissingDataError
from mixer.sources.token_files.bare import NEMO, magic_of
from mixer.sources.token_files.base import read_head
from mixer.sources.token_files.listing import INDEX, kind_of_listing, read_listing
from mixer.sources.token_files.megatron import MAGIC as MEGATRON_MAGIC
from mixer.sources.token_files.megatron import pair

PATTERNS = {
    "megatron": "*.idx",
    "datatrove": "*.ds",
    "olmo": "*.npy",
    "llm.c": "*.bin",
    "nemo": "*.bin",
    "bare": "*.bin",
}
BESIDE = (".index", ".metadata", ".loss", ".csv.gz", ".bos.idx", ".json", ".md", ".txt")  # say something of others


def find_token_files(place: Path, config: TokenFilesConfig) -> list[tuple[Path, str]]:
    """Return the files that a path stands for, in order, each with its format; of MDS and LitData the ``index.json``.

    Args:
        place: a file, what the names of a pair begin with, a folder, or a pattern.
        config: says the format, or leaves it to the files.

    Raises:
        MissingDataError: nothing is there.
        ConfigError: files that do not say what they are.
    """
    found = [one for path in _matched(place) for one in _at(path, config)]
    return list(dict.fromkeys(found))  # both files of a pair may match


def find_masks(place: Path) -> list[Path]:
    """Return the files of loss masks that a path stands for, in order; raise MissingDataError if there are none."""
    found = [file for path in _matched(place) for file in (sorted(path.rglob("*")) if path.is_dir() else [path])]
    files = [file for file in found if file.is_file()]
    if not files:
        raise MissingDataError(f"{place}: no such file or folder of loss masks; mend `tokens.mask`")
    return files


def _matched(place: Path) -> list[Path]:
    if not glob.has_magic(str(place)) or place.exists():
        return [place]
    matched = [Path(path) for path in sorted(glob.glob(str(place), recursive=True))]  # noqa: PTH207  # absolute
    if not matched:
        raise MissingDataError(f"no file matches {place}; mend the path")
    is_folder = any(path.is_dir() for path in matched)
    kept = [path for path in matched if path.is_dir() or not path.name.endswith(BESIDE)]
    return matched if is_folder and not kept else kept or matched


def _at(path: Path, config: TokenFilesConfig) -> Iterator[tuple[Path, str]]:
    if not path.is_dir():
        kind = config.format or _kind_of(path)
        yield (pair(path)[0] if kind == "megatron" else path), kind
        return
    if (path / INDEX).is_file() and config.format in (None, "mds", "litdata"):
        yield path / INDEX, config.format or _kind_of(path / INDEX)
        return
    patterns = {kind: pattern for kind, pattern in PATTERNS.items() if config.format in (None, kind)}
    for pattern in dict.fromkeys(patterns.values()):
        files = sorted(file for file in path.rglob(pattern) if file.is_file() and not file.name.endswith(BESIDE))
        if files:
            yield from ((file, config.format or _kind_of(file)) for file in files)
            return
    named = " or ".join(dict.fromkeys([*patterns.values(), INDEX]))
    raise MissingDataError(f"{path}: no token file is in this folder, none named {named}")


def _kind_of(path: Path) -> str:
    """Return the format of a file that says what it is."""
    index = pair(path)[0]
    if index.is_file() and read_head(index, len(MEGATRON_MAGIC)) == MEGATRON_MAGIC:
        return "megatron"
    if not path.exists():
        raise MissingDataError(f"{path}: no such file or folder; mend `tokens.path`")
    if path.name == INDEX and (kind := kind_of_listing(read_listing(path))) is not None:
        return kind
    if path.suffix in (".ds", ".npy"):
        return {".ds": "datatrove", ".npy": "olmo"}[path.suffix]
    if path.suffix == ".idx":
        return "megatron"  # of which it will be said what is wrong
    magic = magic_of(path)
    if magic is not None:
        return "nemo" if magic == NEMO else "llm.c"
    raise ConfigError(
        f"{path}: it does not say what it is; give its `format`, as in `format: bare` with a `dtype` for ids without a "
        "header"
    )
