"""The files of a source on this machine: which they are, what reads them, and where a broken one is broken."""

from __future__ import annotations

import bz2
import glob
import gzip
import hashlib
import json
import lzma
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mixer.errors import ConfigError, MissingDataError

BUILDERS = {
    ".jsonl": "json",
    ".json": "json",
    ".ndjson": "json",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".csv": "csv",
    ".txt": "text",
    ".text": "text",
    ".md": "text",
}
OPENERS: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
COMPRESSIONS = (*OPENERS, ".zst", ".lz4")  # `datasets` unpacks these on the fly


def is_url(pattern: str) -> bool:
    """Whether a data file is fetched (https://, hf://, s3://) and not found in a folder."""
    return "://" in pattern


def find_files(name: str, patterns: Sequence[str], resolve: Callable[[str], Path]) -> list[Path]:
    """Return the files that match, pattern by pattern, each pattern's in the order of their names.

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
    return found


def _globbed(path: Path) -> list[Path]:
    return [Path(match) for match in glob.glob(str(path), recursive=True)]  # noqa: PTH207  # absolute patterns


def builder_for(name: str, files: Sequence[str]) -> str:
    """Return the `datasets` builder that reads the files, by their extensions."""
    builders = {file: BUILDERS.get(_extension(file)) for file in files}
    for file, builder in builders.items():
        if builder is None:
            raise ConfigError(
                f"source {name}: cannot tell how to read {file!r} by its extension {_extension(file)!r}; "
                f"known: {', '.join(BUILDERS)} (also with {', '.join(COMPRESSIONS)}); "
                "or set path to the name of a `datasets` builder"
            )
    if len(set(builders.values())) > 1:
        listing = ", ".join(sorted({str(builder) for builder in builders.values()}))
        raise ConfigError(f"source {name}: data_files mix formats ({listing}); give each format a source of its own")
    return str(builders[files[0]])


def files_digest(files: Sequence[Path]) -> str:
    """Digest of the names and sizes of files in order, hex [16]; a cheap sign that they are still the same."""
    listing = json.dumps([(file.name, file.stat().st_size) for file in files])
    return hashlib.blake2b(listing.encode(), digest_size=8).hexdigest()


def first_bad_line(files: Sequence[Path]) -> str | None:
    """Return ``file, line n: reason`` for the first record that is not JSON, or None if every line parses.

    Pyarrow's error counts from the start of a block that it does not name, hence this second reading.
    """
    for file in files:
        if BUILDERS.get(_extension(str(file))) != "json" or file.suffix in (".zst", ".lz4"):
            continue  # the standard library cannot unpack the last two
        with OPENERS.get(file.suffix, open)(file, "rb") as lines:
            for number, line in enumerate(lines, start=1):
                if number == 1 and line.lstrip().startswith(b"["):
                    break  # one array over many lines
                reason = _fault(line)
                if reason is not None:
                    return f"{file}, line {number}: {reason}"
    return None


def _fault(line: bytes) -> str | None:
    if not line.strip():
        return None  # blank lines are allowed
    try:
        record = json.loads(line)
    except UnicodeDecodeError as error:
        return f"not UTF-8 ({error.reason} at byte {error.start})"
    except json.JSONDecodeError as error:
        return f"not JSON ({error.msg} at column {error.colno}): {_excerpt(line)}"
    return None if isinstance(record, dict) else f"not a JSON object: {_excerpt(line)}"


def _excerpt(line: bytes) -> str:
    text = line.decode(errors="replace").strip()
    return text if len(text) <= 60 else f"{text[:60]}…"


def _extension(file: str) -> str:
    path = Path(file.split("?")[0]) if is_url(file) else Path(file)
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in COMPRESSIONS:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""
