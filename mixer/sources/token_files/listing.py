"""The ``index.json`` of a folder of LitData or MosaicML: which of the two it is, and the files that it lists."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import orjson

from mixer.sources.token_files.base import malformed, unreadable

INDEX = "index.json"
T = TypeVar("T")


def read_listing(path: Path) -> dict[str, Any]:
    """Return what an ``index.json`` says; raise MalformedDataError if it is no JSON object."""
    try:
        found = orjson.loads(path.read_bytes())
    except OSError as error:
        raise unreadable(path, error) from error
    except orjson.JSONDecodeError as error:
        raise malformed(path, f"it is no JSON: {error}") from error
    if not isinstance(found, dict):
        raise malformed(path, f"it holds a {type(found).__name__}, not an object")
    return found


def kind_of_listing(listing: Mapping[str, Any]) -> str | None:
    """Return the format whose index this is, ``mds`` or ``litdata``; None if it is neither's."""
    if isinstance(listing.get("shards"), list) and "version" in listing:
        return "mds"
    if isinstance(listing.get("chunks"), list) and "config" in listing:
        return "litdata"
    return None


def field(path: Path, data: Any, key: str, kind: type[T]) -> T:
    """Return a field of an index; raise MalformedDataError if it is not there, or not of its kind."""
    value = data.get(key) if isinstance(data, Mapping) else None
    if not isinstance(value, kind):
        raise malformed(path, f"its {key!r} is {str(value)[:60]!r}, not a {kind.__name__}")
    return value


def files_of(index: Path, entries: Sequence[Any], key: str) -> Iterator[tuple[Path, Mapping[str, Any]]]:
    """Yield the path of each file that an index lists and its entry; raise MalformedDataError for one elsewhere."""
    for entry in entries:
        name = field(index, entry, key, str)
        if Path(name).name != name:
            raise malformed(index, f"it lists the file {name!r}, which is not in its folder")
        yield index.parent / name, entry
