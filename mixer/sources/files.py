"""The files of a source on this machine: which they are, and what reads them."""

from __future__ import annotations

import glob
import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import orjson

from mixer.errors import ConfigError, MissingDataError
from mixer.sources.compression import NAMES as COMPRESSIONS
from mixer.sources.token_files.listing import INDEX, kind_of_listing

KINDS = {
    ".jsonl": "json",
    ".json": "json",
    ".ndjson": "json",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
    ".csv": "csv",
    ".tsv": "tsv",
    ".txt": "text",
    ".text": "text",
    ".md": "text",
}
READERS = {kind: "csv" if kind == "tsv" else kind for kind in KINDS.values()}  # what `datasets` calls them
NAMES_OF_LISTINGS = {"mds": "MosaicML's MDS", "litdata": "LitData"}
LISTING_BYTES = 1 << 30
ABOUT_A_FOLDER = {"readme.md", "dataset_infos.json", "dataset_info.json", "dataset_dict.json", "state.json"}


def is_url(pattern: str) -> bool:
    """Whether a data file is fetched (https://, hf://, s3://) and not found in a folder."""
    return "://" in pattern


def find_files(name: str, patterns: Sequence[str], resolve: Callable[[str], Path]) -> list[Path]:
    """Return the files that match, pattern by pattern, each pattern's in the order of their names.

    A pattern that is the name of a file means that file alone.

    Raises:
        MissingDataError: a pattern that matches nothing; the message has the pattern and the folder looked in.
    """
    found: list[Path] = []
    for pattern in patterns:
        path = resolve(pattern).absolute()
        matches = [path] if path.is_file() else _globbed(path)
        files = sorted(match for match in matches if match.is_file())
        if not files:
            raise MissingDataError(
                f"source {name}: no file matches {path.name!r} in {path.parent}"
                f"{'' if path.parent.exists() or glob.has_magic(str(path.parent)) else ', which does not exist'}; "
                "data_files are relative to the curriculum's folder"
            )
        found += files
    refuse_listings(name, found)
    return found


def _globbed(path: Path) -> list[Path]:
    return [Path(match) for match in glob.glob(str(path), recursive=True)]  # noqa: PTH207  # absolute patterns


def kind_of(name: str, files: Sequence[str]) -> str:
    """Return how the files are read, by their extensions; they must be alike.

    Raises:
        ConfigError: files of unknown kind, or of several.
    """
    kinds = {file: KINDS.get(extension_of(file)) for file in files}
    for file, kind in kinds.items():
        if kind is None:
            raise ConfigError(
                f"source {name}: cannot tell how to read {file!r} by its extension {extension_of(file)!r}; "
                f"known: {', '.join(KINDS)} (also with {', '.join(COMPRESSIONS)}); "
                f"or set path to one of {', '.join(READERS)}"
            )
    if len({READERS[str(kind)] for kind in kinds.values()}) > 1:
        listing = ", ".join(f"{Path(file).name} is {kind}" for kind, file in {k: f for f, k in kinds.items()}.items())
        raise ConfigError(
            f"source {name}: its files mix formats ({listing}); give each format a source of its own, with data_files"
        )
    return str(kinds[files[0]])


def split_of_folder(name: str, folder: Path, split: str) -> list[Path] | None:
    """Return the files of one split of a folder in the order of their names, or None if it has none of our kinds.

    Names and folders such as ``train`` and ``test`` make splits, as `datasets` has it; without any, all is ``train``.

    Raises:
        ConfigError: files that would be left out: in no split, or of a kind that is not that of the others.
        MissingDataError: no such split.
    """
    from datasets.data_files import DataFilesDict, get_data_patterns  # which takes seconds to import
    from datasets.packaged_modules import _EXTENSION_TO_MODULE

    known = {*_EXTENSION_TO_MODULE, *KINDS, ".zip", ".tar"}
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and _is_data(path.relative_to(folder))]
    files = [path for path in files if extension_of(str(path)) in known]
    if not any(extension_of(str(path)) in KINDS for path in files):
        return None
    refuse_listings(name, files)
    kind_of(name, [*map(str, files)])
    base = folder.resolve().as_posix()
    found = DataFilesDict.from_patterns(get_data_patterns(base), base_path=base)
    splits = {str(key): {Path(path) for path in paths} for key, paths in found.items()}
    left_out = [path for path in files if not any(path.resolve() in paths for paths in splits.values())]
    if left_out:
        raise ConfigError(
            f"source {name}: {left_out[0].relative_to(folder)} is in no split, as other files are named after one "
            f"({', '.join(splits)}); name the files as data_files, or give all of them names of splits"
        )
    if split not in splits:
        raise MissingDataError(f"source {name}: Bad split: {split}. Available splits: {[*splits]}")
    return [path for path in files if path.resolve() in splits[split]]


def refuse_listings(name: str, files: Sequence[Path]) -> None:
    """Raise ConfigError for the ``index.json`` of a folder of MDS or LitData, which is none of its documents."""
    for file in files:
        if file.name == INDEX and (kind := kind_of_listing(_json(file))) is not None:
            raise ConfigError(
                f"source {name}: {file} lists the files of a folder of {NAMES_OF_LISTINGS[kind]}, and holds no "
                f"document; if its records are token ids, read them as `tokens: {{path: {file.parent}}}`"
            )


def _json(path: Path) -> dict[str, Any]:
    """Return what a file of JSON says, nothing if it is of another kind, or too large for a listing."""
    if path.stat().st_size > LISTING_BYTES:
        return {}
    try:
        found = orjson.loads(path.read_bytes())
    except orjson.JSONDecodeError:
        return {}
    return found if isinstance(found, dict) else {}


def has_configs(folder: Path) -> bool:
    """Whether the card of a folder says which files make which configuration."""
    cards = [folder / "README.md", folder / ".huggingface.yaml"]
    return any(path.is_file() and "\nconfigs:" in path.read_text(encoding="utf-8", errors="replace") for path in cards)


def _is_data(path: Path) -> bool:
    is_hidden = any(part.startswith((".", "__")) for part in path.parts)
    return not is_hidden and path.name.lower() not in ABOUT_A_FOLDER


def files_digest(files: Sequence[Path]) -> str:
    """Digest of the names and sizes of files in order, hex [16]; a cheap sign that they are still the same."""
    listing = json.dumps([(file.name, file.stat().st_size) for file in files])
    return hashlib.blake2b(listing.encode(), digest_size=8).hexdigest()


def extension_of(file: str) -> str:
    """Return the ending of a file's name that says its kind, in small letters; how it is compressed comes after it."""
    path = Path(file.split("?")[0]) if is_url(file) else Path(file)
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in COMPRESSIONS:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""
