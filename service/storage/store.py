"""``Store``, the database: runs, snapshots, tokens and the audit; SQLite or PostgreSQL through the same code.

A snapshot only shortens a restart: the journal alone is the record. Every method is one transaction. If the database
cannot be reached, is locked or is full, it raises StoreError within ``ANSWER_S``.

Of several processes the one that took a run over last is its writer (``take_over``). Transactions of the others are
refused: each transaction compares the writer's token with that in the table.
"""

from __future__ import annotations

import logging
import os
import secrets
import socket
import threading
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import orjson
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import IntegrityError, SQLAlchemyError

from mixer.errors import JournalError, StateMismatchError
from service.errors import RunStateError, StoreError
from service.storage import tables
from service.storage.deadlines import within

log = logging.getLogger(__name__)

ANSWER_S = 4.0  # longest transaction, so that every request is answered within 5 s
LONG_S = 60.0  # longest transaction that moves a whole journal
SLOW_S = 1.0  # a transaction that fails after so long shows that the database does not answer
REST_S = 1.0  # for so long all other transactions then fail at once, instead of waiting one after the other
SERVED = "served"  # kind of the snapshots that are leases of steps; their step is the end of the lease
BUSY_TIMEOUT_MS = 3500  # SQLite's wait for a lock
SERVER_OPTIONS: dict[str, Any] = {
    "application_name": "curriculum-mixer",
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 15_000,
    # a process that stops in the middle of a transaction must not keep its locks longer than others wait for them
    "options": "-c statement_timeout=4000 -c idle_in_transaction_session_timeout=2500",
}


@dataclass(frozen=True)
class RunRecord:
    """The row of one run."""

    name: str
    fingerprint: str
    curriculum: dict[str, Any]
    base_dir: str
    status: str
    created_at: float


class Store:
    """An open database with up-to-date tables; ``Store.open(url)`` creates or migrates them."""

    def __init__(self, engine: sa.Engine) -> None:
        self.engine = engine
        self._file = None if self.is_server or not engine.url.database else Path(engine.url.database)
        self._identity = None if self._file is None else _identity(self._file)
        self._silent: tuple[float, str] | None = None  # since when the database does not answer, and what it said
        self._lock = threading.Lock()

    @classmethod
    def open(cls, url: str) -> Self:
        """Connect, and bring the tables up to date.

        Raises:
            StoreError: naming the URL without its password.
        """
        try:
            options = {} if url.startswith("sqlite") else {"pool_pre_ping": True, "connect_args": SERVER_OPTIONS}
            engine = sa.create_engine(url, pool_size=8, max_overflow=8, pool_timeout=ANSWER_S, **options)
        except (SQLAlchemyError, ImportError, ValueError) as error:
            raise StoreError(f"the database URL cannot be used: {error}") from error
        if engine.dialect.name == "sqlite":
            if engine.url.database:
                Path(engine.url.database).parent.mkdir(parents=True, exist_ok=True)
            sa.event.listen(engine, "connect", _prepare_sqlite)
        elif engine.dialect.driver == "psycopg":
            sa.event.listen(engine, "do_connect", _connect_with_deadline)
        try:
            with within(LONG_S), engine.begin() as connection:
                _bring_up_to_date(connection)
        except SQLAlchemyError as error:
            raise StoreError(f"{engine.url!r}: {_reason(error)}") from error
        return cls(engine)

    @property
    def is_server(self) -> bool:
        """Whether the database is a server, which then holds the journals too."""
        return self.engine.dialect.name != "sqlite"

    @contextmanager
    def transaction(self, *, within_s: float = ANSWER_S, is_reading: bool = False) -> Iterator[sa.Connection]:
        """Yield a connection in a transaction, which is committed at the end.

        Args:
            within_s: how long the database may take for all of it.
            is_reading: whether nothing is written, so that a write lock of SQLite does not matter.

        Raises:
            StoreError: the transaction was undone, or the answer to its commit was lost.
        """
        begin = time.monotonic()
        heeds_silence = self.is_server or not is_reading
        if heeds_silence:
            self._check_answers(begin)
            self._check_file()
        try:
            with within(within_s), self.engine.begin() as connection:
                if heeds_silence:
                    self._check_answers(time.monotonic())  # again, as getting a connection may have taken a while
                if within_s > ANSWER_S and self.is_server:
                    connection.exec_driver_sql(f"SET LOCAL statement_timeout = {round(within_s * 1000)}")
                yield connection
        except SQLAlchemyError as error:
            reason, now = _reason(error), time.monotonic()
            if heeds_silence and now - begin > SLOW_S:
                with self._lock:
                    self._silent = now, reason
            raise StoreError(f"the database cannot be used: {reason}", retry_after_s=1) from error

    def _check_answers(self, now: float) -> None:
        with self._lock:
            silent = self._silent
        if silent is not None and now - silent[0] < REST_S:
            raise StoreError(f"the database cannot be used: {silent[1]}", retry_after_s=1)

    def _check_file(self) -> None:
        """Raise StoreError if the database's file was moved, replaced or deleted: writes to it would be lost."""
        if self._file is not None and _identity(self._file) != self._identity:
            raise StoreError(
                f"{self._file} is no longer the file that this server opened: it was moved, replaced or deleted. "
                "Nothing was written; put it back, or stop the server and start it again"
            )

    def ping(self) -> None:
        """Raise StoreError unless the database answers and can be written."""
        with self.transaction() as connection:
            if not self.is_server:
                connection.exec_driver_sql("BEGIN IMMEDIATE")
            connection.execute(sa.select(tables.runs.c.name).limit(1))
            if self.is_server and connection.scalar(sa.text("SHOW transaction_read_only")) == "on":
                raise StoreError("the database can be read alone: it stands by for another one")

    def close(self) -> None:
        """Close all connections."""
        self.engine.dispose()

    def take_over(self, run: str) -> str:
        """Become the writer of a run in place of any other; return the writer's token.

        A transaction of the other writer that is under way is waited for; later ones are refused.
        """
        writer = f"{secrets.token_hex(8)}, process {os.getpid()} on {socket.gethostname()}"[:200]
        insert: Any = (postgresql if self.is_server else sqlite).insert
        adding = insert(tables.journal_writers).values(run=run, writer=writer)
        with self.transaction(within_s=3 * ANSWER_S) as connection:
            connection.execute(adding.on_conflict_do_update(index_elements=["run"], set_={"writer": writer}))
        return writer

    def check_writer(self, connection: sa.Connection, run: str, writer: str) -> None:
        """Raise JournalError, which undoes the transaction, unless ``writer`` is the run's and stays so until its end.

        Call it after the first change: SQLite begins a transaction there.
        """
        at = tables.journal_writers.c
        found = connection.scalar(sa.select(at.writer).where(at.run == run).with_for_update(read=True))
        if found != writer:
            raise JournalError(
                f"another server writes the journal of run {run} now ({found}); stop one of the two, and start "
                "this one again if it is to go on"
            )

    def confirm(self, run: str, writer: str) -> None:
        """Raise JournalError unless ``writer`` is the run's."""
        with self.transaction() as connection:
            self.check_writer(connection, run, writer)

    def add_run(
        self, record: RunRecord, *, lines: Sequence[bytes] = (), place: tuple[int, Mapping[str, Any]] | None = None
    ) -> None:
        """Add a run; for a fork, with the lines of its journal and the place from which its streams continue.

        Raises:
            RunStateError: the database has a run of that name, which another server may have made.
        """
        values = {**vars(record), "curriculum": orjson.dumps(record.curriculum).decode()}
        numbered = [{"run": record.name, "number": n, "line": line} for n, line in enumerate(lines, start=1)]
        snapshots: list[tuple[str, int, Mapping[str, Any]]] = [(SERVED, 0, {})]  # no step was handed out
        if place is not None:
            snapshots.append(("place", *place))
        rows = [{"run": record.name, "kind": kind, "step": n, "state": _packed(state)} for kind, n, state in snapshots]
        try:
            with self.transaction(within_s=LONG_S if numbered else ANSWER_S) as connection:
                connection.execute(sa.insert(tables.runs).values(values))
                if numbered:
                    connection.execute(sa.insert(tables.journal_lines), numbered)
                connection.execute(sa.insert(tables.snapshots), rows)
        except StoreError as error:
            if isinstance(error.__cause__, IntegrityError):
                raise RunStateError(f"the database has a run {record.name} already") from error
            raise

    def drop_run(self, name: str) -> None:
        """Delete a run that could not be started."""
        with self.transaction(within_s=LONG_S) as connection:
            for table in (tables.snapshots, tables.journal_lines, tables.journal_writers):
                connection.execute(sa.delete(table).where(table.c.run == name))
            connection.execute(sa.delete(tables.runs).where(tables.runs.c.name == name))

    def runs(self) -> list[RunRecord]:
        """Return every run, oldest first."""
        with self.transaction(is_reading=True) as connection:
            rows = connection.execute(sa.select(tables.runs).order_by(tables.runs.c.created_at)).mappings().all()
        return [RunRecord(**{**row, "curriculum": orjson.loads(row["curriculum"])}) for row in rows]

    def update_run(self, name: str, **values: Any) -> None:
        """Change columns of a run."""
        with self.transaction() as connection:
            connection.execute(sa.update(tables.runs).where(tables.runs.c.name == name).values(values))

    def save(
        self,
        run: str,
        kind: str,
        step: int,
        state: Mapping[str, Any],
        *,
        forget_before: int = 0,
        writer: str | None = None,
    ) -> None:
        """Save a snapshot, in place of one of the same step; delete those that no step from ``forget_before`` on needs.

        Raises:
            JournalError: ``writer``, if given, is no longer the run's.
        """
        at = tables.snapshots.c
        mine = (at.run == run) & (at.kind == kind)
        with self.transaction() as connection:
            connection.execute(sa.delete(tables.snapshots).where(mine & (at.step == step)))
            if writer is not None:
                self.check_writer(connection, run, writer)
            connection.execute(sa.insert(tables.snapshots).values(run=run, kind=kind, step=step, state=_packed(state)))
            kept = connection.scalar(sa.select(sa.func.max(at.step)).where(mine & (at.step <= forget_before)))
            if kept is not None:
                connection.execute(sa.delete(tables.snapshots).where(mine & (at.step < kept)))

    def newest(self, run: str, kind: str, *, up_to: int | None = None) -> tuple[int, dict[str, Any]] | None:
        """Return step and state of the newest snapshot, up to step ``up_to`` if that is given; None if there is none.

        Raises:
            StateMismatchError: the snapshot is damaged.
        """
        at = tables.snapshots.c
        query = sa.select(at.step, at.state).where((at.run == run) & (at.kind == kind)).order_by(at.step.desc())
        if up_to is not None:
            query = query.where(at.step <= up_to)
        with self.transaction(is_reading=True) as connection:
            row = connection.execute(query.limit(1)).first()
        if row is None:
            return None
        try:
            return row.step, orjson.loads(zlib.decompress(row.state))
        except (zlib.error, ValueError) as error:
            raise StateMismatchError(
                f"the {kind} snapshot of run {run} at {row.step} is damaged ({error}); delete that row of `snapshots`, "
                "or restore the database from a backup"
            ) from error

    def all_of(self, run: str, kind: str, *, limit: int) -> list[tuple[int, dict[str, Any]]]:
        """Return step and state of the newest snapshots of a kind by step; damaged ones are left out with a warning."""
        at = tables.snapshots.c
        query = sa.select(at.step, at.state).where((at.run == run) & (at.kind == kind)).order_by(at.step.desc())
        with self.transaction(is_reading=True) as connection:
            rows = connection.execute(query.limit(limit)).all()
        found = []
        for row in reversed(rows):
            try:
                found.append((row.step, orjson.loads(zlib.decompress(row.state))))
            except (zlib.error, ValueError) as error:
                log.warning("the %s of run %s at %d is damaged and left out: %s", kind, run, row.step, error)
        return found

    def forget(self, run: str, kind: str, *, from_step: int, writer: str | None = None) -> None:
        """Delete the snapshots of ``from_step`` and later ones; raise JournalError as ``save`` does."""
        at = tables.snapshots.c
        void = sa.delete(tables.snapshots).where((at.run == run) & (at.kind == kind) & (at.step >= from_step))
        with self.transaction() as connection:
            connection.execute(void)
            if writer is not None:
                self.check_writer(connection, run, writer)

    def note(self, *, run: str, who: str, origin: str, action: str, detail: Mapping[str, Any]) -> int:
        """Add an entry to the audit, of who did what, when and from where; return its id."""
        values = {"at": time.time(), "run": run, "who": who, "origin": origin, "action": action}
        adding = sa.insert(tables.audit).values(**values, detail=orjson.dumps(dict(detail)).decode())
        with self.transaction() as connection:
            number: int = connection.execute(adding.returning(tables.audit.c.id)).scalar_one()
        return number

    def complete(self, number: int, detail: Mapping[str, Any]) -> None:
        """Complete an entry of the audit, which is written before the action, as a kill may come in between."""
        changing = sa.update(tables.audit).where(tables.audit.c.id == number)
        with self.transaction() as connection:
            connection.execute(changing.values(detail=orjson.dumps(dict(detail)).decode()))

    def take_back(self, number: int) -> None:
        """Delete an entry of the audit whose action was refused."""
        with self.transaction() as connection:
            connection.execute(sa.delete(tables.audit).where(tables.audit.c.id == number))

    def audit(self, run: str) -> list[dict[str, Any]]:
        """Return the audit of a run, oldest first."""
        query = sa.select(tables.audit).where(tables.audit.c.run == run).order_by(tables.audit.c.id)
        with self.transaction(is_reading=True) as connection:
            rows = connection.execute(query).mappings().all()
        return [{**row, "detail": orjson.loads(row["detail"])} for row in rows]


def _bring_up_to_date(connection: sa.Connection) -> None:
    """Create the tables, or migrate those of an older release."""
    found, at = {*sa.inspect(connection).get_table_names()}, tables.versions.c.version_num
    if not found & {*tables.metadata.tables}:
        if connection.dialect.name == "sqlite":  # its driver would commit after each table
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        tables.metadata.create_all(connection)
        connection.execute(sa.insert(tables.versions).values({at: tables.REVISION}))
    elif tables.versions.name not in found or connection.scalars(sa.select(at)).all() != [tables.REVISION]:
        upgrade(connection)


def upgrade(connection: sa.Connection, revision: str = "head") -> None:
    """Migrate the tables to a revision, by default the newest."""
    from alembic import command  # takes as long to import as the rest of a start on a database that is up to date
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.attributes["connection"] = connection
    command.upgrade(config, revision)


def _connect_with_deadline(_dialect: Any, _record: Any, arguments: Any, keywords: Any) -> object:
    from service.storage.postgresql import DeadlineConnection  # SQLite must not need psycopg

    return DeadlineConnection.connect(*arguments, **keywords)


def _identity(path: Path) -> tuple[int, int] | None:
    """Return device and inode of a file; None if there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _packed(state: Mapping[str, Any]) -> bytes:
    return zlib.compress(orjson.dumps(dict(state)), level=1)


def _prepare_sqlite(connection: Any, _record: object) -> None:
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=FULL")  # NORMAL may lose a commit in a power cut: a revoked token would be back
    cursor.execute(f"PRAGMA busy_timeout={BUSY_TIMEOUT_MS}")
    cursor.close()


def _reason(error: SQLAlchemyError) -> str:
    """Return the first line of the driver's message; the rest repeats the statement and its values."""
    return str(getattr(error, "orig", None) or error).splitlines()[0]
