"""The first line of a journal: the run, its data, its parent, and what wrote it."""

from __future__ import annotations

import functools
import importlib.metadata
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mixer.config.curriculum import Curriculum
from mixer.errors import ConfigError, JournalError
from mixer.journal.file import JOURNAL_VERSION
from mixer.journal.scan import Record, scan

PACKAGES = ("curriculum-mixer", "numpy", "pydantic", "datasets", "tokenizers")  # those that decide and read


def header_record(
    curriculum: Curriculum, sources: Mapping[str, str], parent: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return a journal's first line: the run, its data as far as known, its parent, and who writes."""
    return {
        "type": "header",
        "version": JOURNAL_VERSION,
        "fingerprint": curriculum.fingerprint,
        "curriculum": curriculum.model_dump(mode="json"),
        "sources": dict(sources),
        "parent": parent,
        **conditions(),
    }


def conditions() -> dict[str, Any]:
    """Return what decisions may depend on besides the journal: versions of packages and Python, the machine."""
    return {
        "libraries": {name: _version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "machine": platform.machine(),
    }


@functools.cache  # reading a package's metadata takes milliseconds
def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def read_header(path: str | Path) -> dict[str, Any]:
    """Return the first line of a journal.

    Raises:
        JournalError: the file is empty or no journal, or of a version that this release does not read.
    """
    from mixer.journal.schema import check_record  # models, which writers need not load

    path = Path(path)
    line = next(scan(path), None)
    if line is None:
        raise JournalError(f"{path}: holds no whole line; no walk was recorded here yet")
    record = line.record()
    if record.get("type") != "header":
        raise JournalError(f"{path}: line 1 is a {record.get('type')!r}, not a header; no walk wrote this journal")
    if record.get("version") != JOURNAL_VERSION:
        raise JournalError(
            f"{path}: a journal of version {record.get('version')!r}, this release reads {JOURNAL_VERSION}; "
            "read it with the release that wrote it"
        )
    return check_record(line, record)


def curricula_of(path: str | Path, first: Mapping[str, Any]) -> list[Curriculum]:
    """Return the curricula that decided a journal's lines, the eldest first; the last is the run's own."""
    runs: list[Mapping[str, Any]] = [first]
    while runs[0]["parent"] is not None:
        runs.insert(0, runs[0]["parent"])
    found = []
    for run in runs:
        try:
            curriculum = Curriculum(**run["curriculum"])
        except (ConfigError, TypeError) as error:
            raise JournalError(
                f"{path}: the curriculum in the header cannot be run by this release: {error}"
            ) from error
        if curriculum.fingerprint != run["fingerprint"]:
            raise JournalError(
                f"{path}: the header says fingerprint {run['fingerprint']}, but its curriculum has "
                f"{curriculum.fingerprint}: the header was edited, or another release of this program wrote it"
            )
        found.append(curriculum)
    return found


def deciding_curriculum(header: Mapping[str, Any], step: int) -> Record:
    """Return the curriculum that decided the phase from ``step``: in a fork, its first phases are the parent's."""
    curriculum, parent = header["curriculum"], header.get("parent")
    while parent is not None and step < parent["step"]:
        curriculum, parent = parent["curriculum"], parent["parent"]
    return dict(curriculum)
