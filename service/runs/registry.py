"""The runs of a server: opened from the database, made, paused, archived; the engine of each."""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mixer.config.curriculum import Curriculum
from mixer.config.policy import PolicyConfig
from mixer.config.rules import policies_of
from mixer.errors import ConfigError, MixerError, StateMismatchError, StepError
from service.errors import ForbiddenError, RequestError, RunStateError, StallError, UnknownRunError
from service.runs.engine import Engine
from service.runs.events import Events
from service.runs.sharing import Sharing
from service.settings import DATABASE_FILE, Settings
from service.storage.run_journal import drop_unfinished, fork_lines
from service.storage.store import RunRecord, Store

MAX_OPEN = 64
STOP_S = 10.0  # that runs which read, or wait for a source, are waited for when they are stopped
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")  # as schemas.Name
DEVICES = {"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(10))}  # of Windows

log = logging.getLogger(__name__)


class RunRegistry:
    """Every run of one server by name; the default one is what short paths mean.

    Args:
        settings: of the server.
        store: where runs are kept.
        events: what engines tell.
    """

    def __init__(self, settings: Settings, store: Store, events: Events) -> None:
        self._settings, self._store, self._events = settings, store, events
        self._engines: dict[str, Engine] = {}
        self._records: dict[str, RunRecord] = {}
        self._sharing = Sharing()
        self._being_made: set[str] = set()
        self._unopened: dict[str, MixerError] = {}  # why
        self._is_closed = False
        self._lock = threading.RLock()
        self.default: str | None = None

    def open_all(self, curriculum: Curriculum | None = None, name: str | None = None, **rows: Any) -> None:
        """Start every run that is not archived; the one of ``curriculum``, new or gone on with, is the default.

        One of the others that cannot be opened is left out, and told by name to whoever asks for it.

        Raises:
            StateMismatchError: the run of that name is of another curriculum.
        """
        with self._lock:
            self._records = {record.name: record for record in self._store.runs()}
            if curriculum is not None:
                self.default = name or "default"
                self._adopt(self.default, curriculum)
            elif self._records:
                self.default = next(iter(self._records))
            for record in self._records.values():
                if record.status != "archived":
                    self._reopen(record, curriculum, rows)

    def _reopen(self, record: RunRecord, curriculum: Curriculum | None, rows: Mapping[str, Any]) -> None:
        if curriculum is not None and record.name == self.default:
            self._start(record, curriculum, **rows)
            return
        try:
            self._start(record, _curriculum_of(record))
        except MixerError as error:
            if curriculum is None and record.name == self.default:
                raise
            log.exception("run %s is not opened", record.name)
            self._unopened[record.name] = error

    def close(self) -> None:
        """Stop every engine, leaving snapshots behind; one whose source keeps it is not waited for."""
        with self._lock:
            self._is_closed = True
            engines = list(self._engines.values())
            self._engines.clear()
        for engine in engines:
            engine.drain()
        deadline = time.monotonic() + STOP_S
        for engine in engines:
            engine.stop(within_s=max(0.0, deadline - time.monotonic()))

    def names(self) -> list[str]:
        """Return the names of all runs, oldest first."""
        return list(self._records)

    def record(self, name: str) -> RunRecord:
        """Return what the database has of a run."""
        if name not in self._records:
            raise UnknownRunError(f"there is no run {name!r}; there are {', '.join(self._records) or 'none yet'}")
        return self._records[name]

    def engine(self, name: str | None = None) -> Engine:
        """Return the engine of a run, the default one if ``name`` is None.

        Raises:
            UnknownRunError: no such run.
            RunStateError: it is archived.
        """
        if name is None:
            if self.default is None:
                raise UnknownRunError("this server has no run yet")
            name = self.default
        engine = self._engines.get(name)
        if engine is None:
            status = self.record(name).status
            if name in self._unopened:
                cause = self._unopened[name]
                raise StallError(f"run {name} could not be opened when the server started: {cause}", cause=cause)
            raise RunStateError(f"run {name} is {status}; its journal lies in the server's folder")
        return engine

    def engines(self) -> list[Engine]:
        """Return the engines of all runs that are not archived."""
        return list(self._engines.values())

    def create(self, name: str, data: Mapping[str, Any]) -> RunRecord:
        """Make a run and start it.

        Raises:
            ConfigError: a curriculum that cannot be run.
            ForbiddenError: it reads what the default run does not, and the settings do not allow that.
            RunStateError: the name is taken, or there are too many runs.
        """
        known = self.engine().curriculum if self.default is not None else None
        curriculum = self._curriculum(data, known, base_dir=Path.cwd() if known is None else known.base_dir)
        with self._new(name):
            drop_unfinished(name, self._settings.folder)
            return self._begin(self._add(name, curriculum), curriculum)

    def fork(self, parent: str, name: str, at_step: int | None, changes: Mapping[str, Any]) -> RunRecord:
        """Make a run that shares the parent's history up to a step, and start it.

        Args:
            parent: a run; archived ones too.
            name: of the new run.
            at_step: where a phase of the parent begins; by default the first step that it has not decided yet.
            changes: fields of the curriculum that differ from the parent's; null takes one out.

        Raises:
            RequestError: no phase begins there.
            ConfigError, ForbiddenError, RunStateError: as ``create``; a fork keeps the sources and what is drawn.
        """
        record = self.record(parent)
        engine = self._engines.get(parent)
        known = engine.curriculum if engine is not None else _curriculum_of(record)
        data = {**known.model_dump(mode="json", exclude_none=True), **changes}
        data = {key: value for key, value in data.items() if value is not None}
        curriculum = self._curriculum(data, known, base_dir=known.base_dir)
        if at_step is None:
            at_step = engine.decisions.frontier if engine is not None else 0
        with self._new(name):
            try:
                lines = fork_lines(self._store, parent, name, at_step, curriculum, self._settings.folder)
            except StepError as error:
                raise RequestError(str(error)) from error
            place = None if curriculum.is_on_disk else self._store.newest(parent, "place", up_to=at_step)
            return self._begin(self._add(name, curriculum, lines=lines, place=place), curriculum)

    def _curriculum(self, data: Mapping[str, Any], known: Curriculum | None, *, base_dir: Path) -> Curriculum:
        """Return what a request asks for, if it may."""
        try:
            curriculum = Curriculum.from_data(data, base_dir=base_dir)
        except (TypeError, RecursionError) as error:
            raise ConfigError(f"the curriculum is not a mapping of fields: {error}") from error
        if not self._settings.allow_new_sources:
            _check_reads_known(curriculum, known)
        return curriculum

    @contextmanager
    def _new(self, name: str) -> Iterator[None]:
        """Keep a name for a run that is being made."""
        with self._lock:
            check_name(name, self._settings, {*self._records, *self._being_made})
            if name in self._records or name in self._being_made:
                raise RunStateError(f"there is a run {name} already")
            if len(self._engines) + len(self._being_made) >= MAX_OPEN:
                raise RunStateError(f"{MAX_OPEN} runs are open; archive one first")
            self._being_made.add(name)
        try:
            yield
        finally:
            with self._lock:
                self._being_made.discard(name)

    def _begin(self, record: RunRecord, curriculum: Curriculum) -> RunRecord:
        """Open a new run, which others need not wait for, and start it."""
        try:
            engine = self._open(record, curriculum)
        except Exception:  # it cannot be opened, now or when the server is started again
            self._store.drop_run(record.name)
            raise
        with self._lock:
            if not self._is_closed:
                self._records[record.name] = record
                self._engines[record.name] = engine
                engine.start()
                return record
        engine.stop()
        raise RunStateError("the server is being stopped; the run is made, and goes on when it is started again")

    def set_status(self, name: str, status: str) -> RunRecord:
        """Pause, resume or archive a run; archiving is for ever."""
        with self._lock:
            record = self.record(name)
            if record.status == "archived" and status != "archived":
                raise RunStateError(f"run {name} is archived; make a new one")
            if status == "archived" and name == self.default:
                raise RunStateError(f"run {name} is what the server was started for; stop the server instead")
            engine = None if status == "archived" else self.engine(name)
            self._store.update_run(name, status=status)
            self._records[name] = RunRecord(**{**vars(record), "status": status})
            if engine is not None:
                engine.set_paused(is_paused=status == "paused")
                return self._records[name]
            self._unopened.pop(name, None)
            stopped = self._engines.pop(name, None)
        if stopped is not None:
            stopped.stop(within_s=STOP_S)
        return self._records[name]

    def _adopt(self, name: str, curriculum: Curriculum) -> None:
        """Note the config file's run, or check that the one there is of the same curriculum."""
        found = self._records.get(name)
        if found is None:
            check_name(name, self._settings, self._records)
            drop_unfinished(name, self._settings.folder)
            self._records[name] = self._add(name, curriculum)
        elif found.fingerprint != curriculum.fingerprint:
            raise StateMismatchError(
                f"run {name} in {self._settings.folder} is of curriculum {found.fingerprint}, but the file is "
                f"{curriculum.fingerprint}; serve it under another --name, or use another --folder"
            )

    def _add(self, name: str, curriculum: Curriculum, **fork: Any) -> RunRecord:
        record = RunRecord(
            name=name,
            fingerprint=curriculum.fingerprint,
            curriculum=curriculum.model_dump(mode="json", exclude_none=True),
            base_dir=str(curriculum.base_dir.resolve()),
            status="active",
            created_at=time.time(),
        )
        self._store.add_run(record, **fork)
        return record

    def _start(self, record: RunRecord, curriculum: Curriculum, **rows: Any) -> None:
        engine = self._engines[record.name] = self._open(record, curriculum, **rows)
        engine.start()

    def _open(self, record: RunRecord, curriculum: Curriculum, **rows: Any) -> Engine:
        engine = Engine(
            record.name,
            curriculum,
            self._store,
            self._settings,
            on_event=self._events.publish,
            sharing=self._sharing,
            **rows,
        )
        engine.set_paused(is_paused=record.status == "paused")
        return engine


def _check_reads_known(curriculum: Curriculum, known: Curriculum | None) -> None:
    """Raise ForbiddenError if a run of a request would read, or import, what the known run does not."""
    places = [] if known is None else [source.model_dump(exclude={"tokens"}) for source in known.sources]
    for source in curriculum.sources:
        if source.model_dump(exclude={"tokens"}) not in places:
            raise ForbiddenError(
                f"source {source.name} is not one that the server's own config file names; a run that is made by "
                "a request may read those alone, unless the server was started with --allow-new-sources"
            )
    for key in ("tokenizer", "prepared"):
        if getattr(curriculum, key) not in (None, getattr(known, key)):
            raise ForbiddenError(f"{key} differs from the config file's; a request may not name files")
    check_code_known(policies_of(curriculum), known)


def check_code_known(policies: Iterable[PolicyConfig], known: Curriculum | None) -> None:
    """Raise ForbiddenError if policies of a request would import code that those of the known run do not."""
    rewards = {getattr(policy, "reward", "") for policy in (() if known is None else policies_of(known))}
    for reward in (getattr(policy, "reward", "") for policy in policies):
        if ":" in reward and reward not in rewards:
            raise ForbiddenError(f"reward {reward!r} is code of yours; a request may not name code")


def check_name(name: str, settings: Settings, known: Iterable[str]) -> None:
    """Raise unless a new run can have this name, which is that of its folder too.

    Args:
        name: of the new run.
        settings: of the server, which keeps files of its own in the folder of the runs.
        known: names of the other runs; two that differ in small and capital letters alone are one folder on some disks.

    Raises:
        RequestError: no name of a run, or one that a file or an operating system has.
        RunStateError: another run has it.
    """
    if not NAME.fullmatch(name):
        raise RequestError(
            f"{name[:120]!r} is no name of a run: up to 100 letters, digits, '.', '_' and '-', the first of them a "
            "letter or a digit"
        )
    folded = name.casefold()
    stem = folded.split(".")[0]
    if stem in DEVICES or name.endswith("."):
        raise RequestError(f"{name!r} cannot be the name of a folder on every system; take another")
    if folded.startswith(DATABASE_FILE) or (settings.folder / name).is_file():
        raise RequestError(f"{name!r} is the name of a file in {settings.folder.name}; take another")
    twin = next((other for other in known if other.casefold() == folded and other != name), None)
    if twin is not None:
        raise RunStateError(f"there is a run {twin} already, and {name} would be the same folder on some disks")


def _curriculum_of(record: RunRecord) -> Curriculum:
    return Curriculum.from_data(record.curriculum, base_dir=record.base_dir)


def name_of(path: Path) -> str:
    """Return the name of the run of a config file: its own, as far as names of runs allow."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", path.stem).strip("-._")[:100] or "default"
