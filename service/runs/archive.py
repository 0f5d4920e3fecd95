"""Journals of runs that go on no more, as the routes that read ask of an engine: archived runs, and recorded walks.

A journal is read once, its chain checked; what is appended later is not seen.
"""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

from mixer.journal.header import curricula_of
from mixer.journal.lookup import history
from mixer.sampling.phases import Phase
from service.dashboard.columns import Watch
from service.errors import PastError, RunEndedError
from service.runs.phases import PhaseIndex, UndecidedError
from service.runs.samples import KeptSamples
from service.storage.journal_lines import stored_lines
from service.storage.run_journal import journal_path
from service.storage.store import Store

KEPT = 2  # archived runs that stay in memory: as many as somebody compares


class RecordedRun:
    """What the reading routes ask of an ``Engine``, answered from a journal.

    Args:
        path: the journal.
        name: of the run.
        raw_lines: yields its lines, if not the file does.
        samples: what its model wrote.

    Raises:
        JournalError: no journal, or damage; the message names the line.
    """

    def __init__(
        self,
        path: Path,
        name: str,
        raw_lines: Callable[[], Iterator[bytes]] | None = None,
        samples: KeptSamples | None = None,
    ) -> None:
        self.samples = samples or KeptSamples()
        self.path, self.name, self._raw_lines = path, name, raw_lines
        header, lines = history(path)
        self.curriculum = curricula_of(path, header)[-1]
        self.parent: dict[str, Any] | None = None
        if header["parent"] is not None:
            self.parent = {key: header["parent"][key] for key in ("fingerprint", "step")}
        self.watch = Watch(is_live=False)
        self.watch.add(header, is_new=False)
        self.decisions = PhaseIndex(self.curriculum.names, header["curriculum"])
        for line in lines:
            self.watch.add(line, is_new=False)
            if line["type"] == "phase":
                self.decisions.add({key: value for key, value in line.items() if key != "number"})
            elif line["type"] == "pivot":
                self.decisions.cut(line)

    @property
    def tokenizer(self) -> NoReturn:
        """Refused: a journal has none."""
        raise PastError(f"run {self.name} is a record, which has no tokenizer")

    async def phase(self, step: int, _wait_s: float, *, may_decide: bool) -> Phase:  # as an engine
        """Return the phase that covered a step; raise RunEndedError past the end of the record."""
        try:
            return self.decisions.at(step)
        except UndecidedError:
            raise RunEndedError(
                f"step {step} was asked for, but the record of run {self.name} ends before step "
                f"{self.decisions.frontier}"
            ) from None

    def journal_lines(self) -> Iterator[bytes]:
        """Yield the journal as it is stored."""
        if self._raw_lines is not None:
            yield from self._raw_lines()
            return
        with self.path.open("rb") as file:
            yield from file


class Archive:
    """The archived runs of a server, each read when it is first asked for; the newest ``KEPT`` stay.

    Args:
        store: has the journals where it is a database server.
        folder: has them as files where it is not.
    """

    def __init__(self, store: Store, folder: Path) -> None:
        self._store, self._folder = store, folder
        self._kept: dict[str, RecordedRun] = {}
        self._lock = threading.Lock()  # held while a journal is read: whoever else wants it waits for that

    def past(self, name: str) -> RecordedRun:
        """Return an archived run.

        Raises:
            JournalError: no journal, or damage; the message names the line.
        """
        with self._lock:
            found = self._kept.pop(name, None) or self._read(name)
            self._kept[name] = found
            while len(self._kept) > KEPT:
                del self._kept[next(iter(self._kept))]
            return found

    def _read(self, name: str) -> RecordedRun:
        if not self._store.is_server:
            return RecordedRun(journal_path(self._folder, name), name, samples=KeptSamples(self._store, name))
        with tempfile.NamedTemporaryFile(suffix=".jsonl") as file:
            file.writelines(stored_lines(self._store, name))
            file.flush()
            samples = KeptSamples(self._store, name)
            return RecordedRun(Path(file.name), name, lambda: stored_lines(self._store, name), samples)
