"""Recompute every decision of a journal from the feedback that it holds, and compare bit for bit.

A ``Redrive`` takes the lines of a journal one after the other and drives a walk with them. What the walk would have
written must be what the line says, byte for byte; ``audit`` names the first line where it is not. Superseded lines are
recomputed too, each from the snapshot that the run itself went on from.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mixer.config.curriculum import Curriculum
from mixer.errors import JournalError, StateMismatchError
from mixer.journal.file import resume_lines
from mixer.journal.header import conditions, curricula_of, read_header
from mixer.journal.scan import Line, last_lines, scan
from mixer.journal.schema import check_record
from mixer.replay.redrive import Difference, Redrive


@dataclass
class Verdict:
    """What ``audit`` found: how much was recomputed, the first difference if any, and what may have caused it."""

    lines: int = 0
    decisions: int = 0
    reports: int = 0
    resumes: int = 0
    last_step: int = -1
    difference: Difference | None = None
    causes: list[str] = field(default_factory=list)

    def count(self, kind: str) -> None:
        """Note one more line of a type."""
        self.lines += 1
        self.decisions += kind == "phase"
        self.reports += kind == "feedback"
        self.resumes += kind == "resume"


def audit(path: str | Path, *, curriculum: Curriculum | None = None) -> Verdict:
    """Recompute every decision of a journal from its feedback and compare each line bit for bit.

    Args:
        path: the journal.
        curriculum: decide under this one instead of the header's, to see where it would have parted.

    Raises:
        JournalError: damage, or lines that no walk writes; the message names the line.
        StateMismatchError: ``curriculum`` has other sources.
    """
    path = Path(path)
    first = read_header(path)
    curricula = curricula_of(path, first)
    verdict = Verdict(lines=1, causes=_other_conditions(first))
    if curriculum is not None:
        if curriculum.names != curricula[-1].names:
            raise StateMismatchError(
                f"{path}: a walk over {', '.join(curricula[-1].names)}, but the config has "
                f"{', '.join(curriculum.names)}; decisions can be compared over the same sources in the same order only"
            )
        verdict.causes = [*_other_fields(curricula[-1], curriculum), *verdict.causes]
        curricula[-1] = curriculum
    (last, _), end = last_lines(path)
    resumes = [(line.number, target) for line, target in resume_lines(path, end)]
    redrive = Redrive(curricula, is_supposed=curriculum is not None)
    snapshots = _Snapshots(resumes)
    if 1 in snapshots.wanted:
        snapshots.keep(1, redrive)
    for line in itertools.islice(scan(path), 1, last):
        kind = line.kind
        if kind == "resume":
            _check_resume(line, snapshots.digests[line.number])
            redrive.restore(snapshots.take(line.number))
        else:
            verdict.difference = redrive.follow(line)
        verdict.count(kind)
        if verdict.difference is not None:
            break
        if line.number in snapshots.wanted:
            snapshots.keep(line.number, redrive, digest=line.digest)
    verdict.last_step = redrive.walk.frontier - 1
    if verdict.difference is None:
        verdict.causes = []
    elif not verdict.causes:
        verdict.causes = [
            "config, libraries and machine are the same as now: either the line (or a report before it) was edited and "
            "the chain made anew, or a reward of your own or the program itself was changed"
        ]
    return verdict


class _Snapshots:
    """Where the walk stood at the lines that ``resume`` lines go back to, held no longer than they are needed."""

    def __init__(self, resumes: Sequence[tuple[int, int]]) -> None:
        self._targets = dict(resumes)
        self.wanted = Counter(target for _, target in resumes)  # line -> how often it is still gone back to
        self._held: dict[int, tuple[int, dict[str, Any]]] = {}
        self.digests: dict[int, str | None] = {}

    def keep(self, number: int, redrive: Redrive, digest: str | None = None) -> None:
        self._held[number] = redrive.snapshot()
        self.digests |= {line: digest for line, target in self._targets.items() if target == number}

    def take(self, resume: int) -> tuple[int, dict[str, Any]]:
        target = self._targets[resume]
        self.wanted[target] -= 1
        return self._held[target] if self.wanted[target] else self._held.pop(target)


def _check_resume(line: Line, digest: str | None) -> None:
    record = check_record(line, line.record())
    if digest is not None and record["digest"] != digest:
        raise JournalError(
            f"{line.path}: line {line.number} goes on from line {record['line']} with digest {record['digest']}, "
            f"but that line has {digest}"
        )


def _other_conditions(first: Mapping[str, Any]) -> list[str]:
    """Return a sentence for each condition in the header that is not so now."""
    now = conditions()
    pairs = [(f"{name}", first["libraries"].get(name), version) for name, version in now["libraries"].items()]
    pairs += [("Python", first["python"], now["python"]), ("the machine", first["machine"], now["machine"])]
    return [f"{name} was {then}, now {version}" for name, then, version in pairs if then != version]


def _other_fields(old: Curriculum, new: Curriculum) -> list[str]:
    return [
        f"config field {name}: {then!r} in the journal, {now!r} in the config"
        for name, then, now in different_fields(old.model_dump(mode="json"), new.model_dump(mode="json"))
    ]


def different_fields(one: Any, other: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yield every field in which two configs differ, as (path, one, other); lists are compared whole."""
    if isinstance(one, dict) and isinstance(other, dict):
        for key in dict.fromkeys([*one, *other]):
            yield from different_fields(one.get(key), other.get(key), f"{path}.{key}" if path else str(key))
    elif one != other:
        yield path, one, other
