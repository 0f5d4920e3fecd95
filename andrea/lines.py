"""JSON lines beside the checkpoints of a run: what was measured after so many steps, a line for each time.

A line is written in one go and is on disk when that returns. A process that is killed may leave the last line torn:
it is named, and left out.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mixer.errors import CheckpointError

log = logging.getLogger(__name__)


def append_line(path: Path, record: Mapping[str, Any]) -> None:
    """Add a line; raise CheckpointError, leaving the file as it was, if it cannot be written."""
    data = (json.dumps(record, ensure_ascii=False) + "\n").encode()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            size = os.fstat(handle).st_size
            try:
                while data:  # the second write says why the first was short
                    data = data[os.write(handle, data) :]
                os.fsync(handle)
            except OSError:
                os.ftruncate(handle, size)
                raise
        finally:
            os.close(handle)
    except OSError as error:
        raise CheckpointError(
            f"{path} could not be written ({error}); make room or choose another place, and start the run again: it "
            "goes on from its newest checkpoint"
        ) from error


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a file in order, none if there is no file; a torn last line is left out with a warning.

    Raises:
        CheckpointError: the file cannot be read, or a line before the last is damaged.
    """
    try:
        pieces = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    found = []
    for number, piece in enumerate(pieces[:-1], start=1):
        try:
            record = json.loads(piece)
            _ = int(record["step"])
        except (ValueError, TypeError, KeyError) as error:
            raise CheckpointError(
                f"{path} line {number} is damaged: {piece[:80]!r}; take that line out, or move the file away"
            ) from error
        found.append(record)
    if pieces[-1]:
        log.warning("%s line %d is torn (%r) and left out", path, len(pieces), pieces[-1][:80])
    return found


def keep_up_to(path: Path, step: int) -> None:
    """Take out the lines of later steps, which a run that goes on from a checkpoint writes again, and a torn last one.

    The file changes as a whole or not at all.
    """
    if not path.exists():
        return
    kept = [record for record in read_lines(path) if record["step"] <= step]
    data = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in kept).encode()
    if data == path.read_bytes():
        return
    partial = path.with_name(path.name + ".partial")
    try:
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise CheckpointError(f"{path} could not be written ({error}); make room and start the run again") from error
