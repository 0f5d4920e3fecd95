"""What several runs of one server read: prepared rows, mapped once, and streams, read once by runs near each other."""

from __future__ import annotations

import threading
import weakref
from pathlib import Path

from mixer.config.curriculum import Curriculum
from mixer.sources.prepared.manifest import MANIFEST
from mixer.sources.prepared.rows import Prepared
from mixer.sources.shared import SharedGroups

Key = tuple[Path, int, int, int]


class Sharing:
    """What is open, for as long as a run reads it.

    Attributes:
        streams: what the runs stream; each joins, and leaves when it is stopped.
    """

    def __init__(self) -> None:
        self.streams = SharedGroups()
        self._open: weakref.WeakValueDictionary[Key, Prepared] = weakref.WeakValueDictionary()
        self._lock = threading.Lock()

    def prepared(self, curriculum: Curriculum) -> Prepared | None:
        """Return the prepared rows that a curriculum names, those of another run if they are the same; None if none.

        Raises:
            MissingDataError, MalformedDataError: see ``Prepared.open``.
        """
        if curriculum.prepared is None:
            return None
        folder = curriculum.resolve(curriculum.prepared)
        with self._lock:
            key = _key(folder)
            found = self._open.get(key) if key is not None else None
            if found is None:
                found = Prepared.open(folder)
                if key is not None:
                    self._open[key] = found
            return found


def _key(folder: Path) -> Key | None:
    """Return what tells the rows of a folder, as they are now, from any others; None if there are none."""
    try:
        manifest = (folder / MANIFEST).resolve(strict=True)
        found = manifest.stat()
    except OSError:
        return None
    return manifest, found.st_ino, found.st_size, found.st_mtime_ns
