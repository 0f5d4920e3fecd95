"""Where things that can be made again are kept: trained tokenizers, text gathered from this machine."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import platformdirs

CACHE_VARIABLE = "MIXER_CACHE"


def cache_root() -> Path:
    """Return the folder of the cache: ``$MIXER_CACHE``, or the user's cache folder of this application."""
    override = os.environ.get(CACHE_VARIABLE)
    return Path(override) if override else platformdirs.user_cache_path("curriculum-mixer")


@contextmanager
def written_whole(path: Path) -> Iterator[IO[str]]:
    """Open a text file that appears at ``path`` only once all of it is written; an error leaves no trace.

    Two processes that write the same file at once both succeed and the later one stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as file:
            yield file
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
