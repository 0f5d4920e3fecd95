"""A new run that shares a recorded one's history up to a step and goes on under another curriculum.

The fork's journal begins with a header that points at its parent, then the parent's lines up to that step, then a
``fork`` line with the state that the new curriculum starts from. The new policy has learned from every shared report
that a decision had used, as if it had been there: the same policy with the same settings finds its own statistics.
"""

from __future__ import annotations

import contextlib
import itertools
from pathlib import Path
from typing import Any

from mixer.config.curriculum import Curriculum
from mixer.errors import ConfigError, JournalError, StepError
from mixer.journal.file import Fsync, Journal, scan_history
from mixer.journal.header import curricula_of, header_record, read_header
from mixer.journal.phases import PhaseLines
from mixer.journal.scan import Line
from mixer.replay.redrive import Redrive

SHARED_FIELDS = (
    "seed",
    "batch_rows",
    "sequence_length",
    "tokenizer",
    "vocab_size",
    "sources",
    "targets",
    "holdout",
    "draws",
)


def fork(
    path: str | Path, at_step: int, curriculum: Curriculum, out: str | Path, *, fsync: Fsync = "phase"
) -> dict[str, Any]:
    """Write the journal of a fork and return its header's ``parent``.

    ``Walk(curriculum, journal=Journal.open(out))`` then begins at ``at_step``.

    Args:
        path: the parent's journal, which is only read.
        at_step: the first step that the new curriculum decides: where a phase of the parent begins, or its frontier.
        curriculum: with the same sources in the same order; its bounds hold from ``at_step`` on.
        out: a new file.
        fsync: as in ``Journal``.

    Raises:
        StepError: no phase begins at ``at_step``; the message names those around it.
        ConfigError: other sources, or a planned change that no whole phases reach.
        JournalError: a damaged parent, or one whose decisions this program does not recompute.
    """
    path, out = Path(path), Path(out)
    first = read_header(path)
    curricula = curricula_of(path, first)
    _check_curriculum(curricula[-1], curriculum, at_step)
    last = _last_shared(path, at_step, first["parent"])
    parent = {
        "fingerprint": first["fingerprint"],
        "curriculum": first["curriculum"],
        "digest": last.digest,
        "line": last.number,
        "step": at_step,
        "shared": 0,
        "parent": first["parent"],
    }
    shared = sum(1 for _ in _lines_between(path, last.number))
    parent["shared"] = shared
    with Journal.create(out, fsync=fsync) as journal:
        try:
            journal.append(header_record(curriculum, first["sources"], parent))
            _copy(path, last.number, journal, Redrive([*curricula, curriculum]), curriculum)
        except BaseException:
            with contextlib.suppress(OSError):
                out.unlink()  # half a fork is no run
            raise
    return parent


def _check_curriculum(old: Curriculum, new: Curriculum, at_step: int) -> None:
    if new.names != old.names:
        raise ConfigError(
            f"the walk has the sources {', '.join(old.names)}, but the new config has {', '.join(new.names)}; "
            "a fork keeps sources and their order (exclude those that it should not draw)"
        )
    for field in SHARED_FIELDS:
        then, now = getattr(old, field), getattr(new, field)
        if then != now:
            raise ConfigError(
                f"the new config has {field} {now!r:.200}, the walk {then!r:.200}; it says which rows the shared "
                "history drew: a fork changes bounds, pivots, warmup, phases, policy, lag and length only"
            )
    if at_step <= 0:
        raise StepError(f"fork at step {at_step}: nothing would be shared; begin a new run with the new config")
    boundaries = [(r.start, f"the start of {r.name}") for r in new.regimes if r.start > at_step]
    problems = new.phase_law.boundary_problems(boundaries, since=at_step, origin=f"the fork at step {at_step}")
    if problems:
        raise ConfigError(problems)


def _lines_between(path: Path, last: int) -> itertools.takewhile[Line]:
    """Yield the lines that still hold after the header, up to line ``last``."""
    lines = scan_history(path)
    next(lines)
    return itertools.takewhile(lambda line: line.number <= last, lines)


def _last_shared(path: Path, at_step: int, parent: dict[str, Any] | None) -> Line:
    """Return the line before the decision of ``at_step``: the last that a fork there shares.

    A decision's lines are its alarms and the pivots for them, if any, and its phase.
    """
    if parent is not None and at_step < parent["step"]:
        raise StepError(
            f"fork at step {at_step}: {path} is itself a fork of step {parent['step']}; fork its parent there"
        )
    before: Line | None = None
    starts: list[int] = []
    lines, is_deciding = PhaseLines({}, keep=0), False
    for line in scan_history(path):
        is_deciding = line.kind == "alarm" or (is_deciding and line.kind == "pivot")
        if line.kind == "phase":
            record = line.record()
            if record["start"] == at_step:
                break
            starts.append(record["start"])
            lines.add(record)
        elif line.kind == "pivot":
            lines.cut(line.record())
        if not is_deciding:
            before = line
    else:
        if at_step != lines.frontier:
            around = [
                *[start for start in starts if start < at_step][-1:],
                *[start for start in [*starts, lines.frontier] if start > at_step][:1],
            ]
            raise StepError(
                f"fork at step {at_step}: no phase begins there; ask for step "
                f"{' or '.join(str(step) for step in around if step > 0) or lines.frontier}"
            )
    assert before is not None, "a header comes first"
    return before


def _copy(path: Path, last: int, journal: Journal, redrive: Redrive, curriculum: Curriculum) -> None:
    for line in _lines_between(path, last):
        difference = redrive.follow(line)
        if difference is not None:
            raise JournalError(
                f"{path}: {difference}; a fork of decisions that cannot be recomputed could not be replayed: "
                "`mixer replay` says more"
            )
        journal.append(line.record())
    journal.append(redrive.fork_record(curriculum))
