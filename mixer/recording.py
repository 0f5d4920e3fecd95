"""The journal of one walk: what was found in it at the start, what the walk writes, and the line that it stands at.

A journal that was written before is only appended to. A walk that begins on it, or goes on from a state, stands at an
earlier line until it writes: then that line is said first, and what came after it is superseded.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mixer.config import Curriculum
from mixer.errors import JournalError, StateMismatchError
from mixer.journal import JOURNAL_VERSION, Journal
from mixer.packed import pack_lines, unpack_lines
from mixer.records import header_record
from mixer.scan import Position
from mixer.states import STATE_VERSION, check_state


class Recording:
    """What a walk does with its journal; with None it does nothing.

    Args:
        journal: of the walk: an empty one is begun, with a header.
        curriculum: of the walk.
        sources: for the header of a new journal; by source, a digest of files or a commit.

    Attributes:
        is_on: whether there is a journal.
        header: the first line of a journal that was begun before; else None.
        beginning: the state that a fork begins with; None if the journal is not a fork's.
        forked_from: fingerprint of the curriculum that decided the steps before that; None likewise.

    Raises:
        StateMismatchError: the journal, or the state in it, belongs to another curriculum or release.
        JournalError: a fork that was not written to its end.
    """

    def __init__(self, journal: Journal | None, curriculum: Curriculum, sources: Mapping[str, str]) -> None:
        self.is_on = journal is not None
        self.header: Mapping[str, Any] | None = None
        self.beginning: Mapping[str, Any] | None = None
        self.forked_from: str | None = None
        self._journal = journal
        self._resume_at: Position | None = None  # where the next line belongs, if not at the end
        if journal is None:
            return
        if journal.position.line == 0:
            journal.append(header_record(curriculum, sources))
        else:
            self._stand_at_beginning(journal, curriculum.fingerprint)

    def _stand_at_beginning(self, journal: Journal, fingerprint: str) -> None:
        self.header = first = journal.record_at(1) or {}
        found = first.get("fingerprint")
        if first.get("version") != JOURNAL_VERSION or found != fingerprint:
            raise StateMismatchError(
                f"{journal.path}: journal version {first.get('version')} of curriculum {found}, but this is version "
                f"{JOURNAL_VERSION} of curriculum {fingerprint}; use a new file, or the old curriculum"
            )
        begin, parent = 1, first["parent"]
        if parent is not None:
            begin, self.forked_from = parent["shared"] + 2, parent["fingerprint"]
            record = journal.record_at(begin)
            if record is None or record["type"] != "fork":
                raise JournalError(
                    f"{journal.path}: the fork of step {parent['step']} has no line {begin} to begin from; "
                    "make it again with `mixer fork`"
                )
            self.beginning, what = record["state"], f"{journal.path}: the state at line {begin}"
            check_state(record["state"], version=STATE_VERSION, fingerprint=fingerprint, what=what)
        self._resume_at = journal.position_of(begin)

    def write(self, record: Mapping[str, Any]) -> None:
        """Append a line where the walk stands; JournalError if it cannot be written, and then nothing is."""
        if self._journal is None:
            return
        if self._resume_at is not None:
            self._journal.resume_from(self._resume_at)
            self._resume_at = None
        self._journal.append(record)

    def place(self) -> dict[str, Any]:
        """Return what a state says of the journal: where the walk stands, and lines that a power cut may take."""
        if self._journal is None:
            return {"journal": None}
        if self._resume_at is not None:
            return {"journal": list(self._resume_at)}
        unsynced = self._journal.unsynced()
        return {"journal": list(self._journal.position), **({"unsynced": pack_lines(unsynced)} if unsynced else {})}

    def go_on_from(self, state: Mapping[str, Any]) -> None:
        """Stand at the line where ``state`` was taken; StateMismatchError if the journal does not have it."""
        if self._journal is None:
            return
        position = _recovered(self._journal, state)
        if position is None:
            raise StateMismatchError("the saved state was taken without a journal, so this journal cannot follow it")
        self._journal.resume_from(position)
        self._resume_at = None

    def has(self, state: Mapping[str, Any]) -> bool:
        """Whether ``state`` was taken at a line of this journal."""
        if self._journal is None:
            return False
        position = _recovered(self._journal, state)
        return position is not None and self._journal.position_of(position.line) == position

    def close(self) -> None:
        """Let go of the journal."""
        if self._journal is not None:
            self._journal.close()


def _recovered(journal: Journal, state: Mapping[str, Any]) -> Position | None:
    """Return where a state was taken, once lines up to there that a power cut took are written again."""
    if not state["journal"]:
        return None
    if "unsynced" in state:
        journal.recover(unpack_lines(state["unsynced"]))
    return Position(*state["journal"])
