"""What a run shows besides its walk, kept so that a restart need not read the journal's reports again.

A view has the places of all lines that are no reports, which are read again, and what the reports have added up to. It
names the line that it was taken at; one that does not fit the journal is passed over, for the journal is the record.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from mixer.errors import JournalError, StateMismatchError
from mixer.walk.state import check_state
from service.dashboard.columns import Watch
from service.storage.run_journal import RunJournal
from service.storage.store import Store

KIND = "view"  # of the snapshots that are views: their step is the number of a line
VERSION = 1

log = logging.getLogger(__name__)


def save_view(store: Store, run: str, fingerprint: str, journal: RunJournal, watch: Watch, *, writer: str) -> int:
    """Keep a view in place of the one before, and return the number of the line that it was taken at."""
    line, heard = watch.heard()
    journal.sync()
    position = journal.position_of(line)
    if position is None:
        raise JournalError(f"{journal.path}: line {line} was written, but is not there: the file was moved or cut")
    state = {
        "version": VERSION,
        "fingerprint": fingerprint,
        "journal": list(position),
        "places": [offset for number, offset in list(journal.indexed) if number <= line],
        "heard": heard,
    }
    store.save(run, KIND, line, state, forget_before=line, writer=writer)
    return line


def show_view(state: Mapping[str, Any], fingerprint: str, journal: RunJournal, watch: Watch) -> None:
    """Tell of the lines up to the one that a view was taken at.

    Raises:
        StateMismatchError: it is not of this run's journal; nothing was told.
    """
    check_state(state, version=VERSION, fingerprint=fingerprint, what="the view")
    line, digest = state["journal"]
    found = journal.position_of(line)
    if found is None or found.digest != digest:
        raise StateMismatchError(
            f"it was taken at line {line}, digest {digest}, but {journal.path} "
            + ("has fewer lines" if found is None else f"has {found.digest} there")
        )
    journal.notify_indexed(state["places"], up_to=line)
    watch.take_heard(state["heard"], line)
