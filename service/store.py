"""The database: runs, snapshots, tokens, who pivoted; SQLite in a file or PostgreSQL by URL, through the same code.

A snapshot only shortens a restart: the journal alone is the record. Every method is one transaction, and raises
StoreError if the database cannot be reached, is locked or is full.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import orjson
import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError

from mixer.errors import StateMismatchError
from service import tables
from service.errors import StoreError

BUSY_TIMEOUT_MS = 5000
SERVER_OPTIONS: dict[str, Any] = {  # a database that does not answer is down, however its network keeps silent
    "application_name": "curriculum-mixer",
    "connect_timeout": 5,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 15_000,
    "options": "-c statement_timeout=20000",
}


@dataclass(frozen=True)
class RunRecord:
    """One run as the database has it."""

    name: str
    fingerprint: str
    curriculum: dict[str, Any]
    base_dir: str
    status: str
    created_at: float


class Store:
    """An open database, its tables up to date. ``Store.open(url)`` makes what is missing."""

    def __init__(self, engine: sa.Engine) -> None:
        self.engine = engine

    @classmethod
    def open(cls, url: str) -> Self:
        """Connect, and bring the tables up to date.

        Raises:
            StoreError: naming the URL without its password.
        """
        try:
            options = {} if url.startswith("sqlite") else {"pool_pre_ping": True, "connect_args": SERVER_OPTIONS}
            engine = sa.create_engine(url, pool_size=8, max_overflow=8, pool_timeout=10, **options)
        except (SQLAlchemyError, ImportError, ValueError) as error:
            raise StoreError(f"the database URL cannot be used: {error}") from error
        if engine.dialect.name == "sqlite":
            if engine.url.database:
                Path(engine.url.database).parent.mkdir(parents=True, exist_ok=True)
            sa.event.listen(engine, "connect", _prepare_sqlite)
        try:
            with engine.begin() as connection:
                _bring_up_to_date(connection)
        except SQLAlchemyError as error:
            raise StoreError(f"{engine.url!r}: {_reason(error)}") from error
        return cls(engine)

    @property
    def is_server(self) -> bool:
        """Whether the database is a server, which then holds the journals too."""
        return self.engine.dialect.name != "sqlite"

    @contextmanager
    def transaction(self) -> Iterator[sa.Connection]:
        """Give a connection whose work is kept at the end, or not at all."""
        try:
            with self.engine.begin() as connection:
                yield connection
        except SQLAlchemyError as error:
            raise StoreError(f"the database cannot be used: {_reason(error)}") from error

    def ping(self) -> None:
        """Raise StoreError unless the database answers, from its tables."""
        with self.transaction() as connection:
            connection.execute(sa.select(tables.runs.c.name).limit(1))

    def close(self) -> None:
        """Let go of every connection."""
        self.engine.dispose()

    def add_run(
        self, record: RunRecord, *, lines: Sequence[bytes] = (), place: tuple[int, Mapping[str, Any]] | None = None
    ) -> None:
        """Note a new run; for a fork, with the lines of its journal and the place that its streams go on from."""
        values = {**vars(record), "curriculum": orjson.dumps(record.curriculum).decode()}
        numbered = [{"run": record.name, "number": n, "line": line} for n, line in enumerate(lines, start=1)]
        with self.transaction() as connection:
            connection.execute(sa.insert(tables.runs).values(values))
            if numbered:
                connection.execute(sa.insert(tables.journal_lines), numbered)
            if place is not None:
                row = {"run": record.name, "kind": "place", "step": place[0], "state": _packed(place[1])}
                connection.execute(sa.insert(tables.snapshots).values(row))

    def drop_run(self, name: str) -> None:
        """Forget a run that could not be started."""
        with self.transaction() as connection:
            for table in (tables.snapshots, tables.journal_lines, tables.journal_writers):
                connection.execute(sa.delete(table).where(table.c.run == name))
            connection.execute(sa.delete(tables.runs).where(tables.runs.c.name == name))

    def runs(self) -> list[RunRecord]:
        """Return every run, oldest first."""
        with self.transaction() as connection:
            rows = connection.execute(sa.select(tables.runs).order_by(tables.runs.c.created_at)).mappings().all()
        return [RunRecord(**{**row, "curriculum": orjson.loads(row["curriculum"])}) for row in rows]

    def update_run(self, name: str, **values: Any) -> None:
        """Change columns of a run."""
        with self.transaction() as connection:
            connection.execute(sa.update(tables.runs).where(tables.runs.c.name == name).values(values))

    def save(self, run: str, kind: str, step: int, state: Mapping[str, Any], *, forget_before: int = 0) -> None:
        """Keep a snapshot in place of one of the same step; drop those that nothing from ``forget_before`` on needs."""
        at = tables.snapshots.c
        mine = (at.run == run) & (at.kind == kind)
        with self.transaction() as connection:
            connection.execute(sa.delete(tables.snapshots).where(mine & (at.step == step)))
            connection.execute(sa.insert(tables.snapshots).values(run=run, kind=kind, step=step, state=_packed(state)))
            kept = connection.scalar(sa.select(sa.func.max(at.step)).where(mine & (at.step <= forget_before)))
            if kept is not None:
                connection.execute(sa.delete(tables.snapshots).where(mine & (at.step < kept)))

    def newest(self, run: str, kind: str, *, up_to: int | None = None) -> tuple[int, dict[str, Any]] | None:
        """Return step and state of the newest snapshot, or of the newest that is not after ``up_to``.

        Raises:
            StateMismatchError: what is there is no whole snapshot.
        """
        at = tables.snapshots.c
        query = sa.select(at.step, at.state).where((at.run == run) & (at.kind == kind)).order_by(at.step.desc())
        if up_to is not None:
            query = query.where(at.step <= up_to)
        with self.transaction() as connection:
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

    def forget(self, run: str, kind: str, *, from_step: int) -> None:
        """Drop the snapshots of this step and later ones."""
        at = tables.snapshots.c
        void = sa.delete(tables.snapshots).where((at.run == run) & (at.kind == kind) & (at.step >= from_step))
        with self.transaction() as connection:
            connection.execute(void)

    def note(self, *, run: str, who: str, origin: str, action: str, detail: Mapping[str, Any]) -> int:
        """Write a line of the audit: who did what, when and from where; return its number."""
        values = {"at": time.time(), "run": run, "who": who, "origin": origin, "action": action}
        adding = sa.insert(tables.audit).values(**values, detail=orjson.dumps(dict(detail)).decode())
        with self.transaction() as connection:
            number: int = connection.execute(adding.returning(tables.audit.c.id)).scalar_one()
        return number

    def complete(self, number: int, detail: Mapping[str, Any]) -> None:
        """Say what became of something that the audit has: a line is written before it is done, for a kill may come."""
        changing = sa.update(tables.audit).where(tables.audit.c.id == number)
        with self.transaction() as connection:
            connection.execute(changing.values(detail=orjson.dumps(dict(detail)).decode()))

    def take_back(self, number: int) -> None:
        """Strike out a line of the audit: it was refused, and nothing was done."""
        with self.transaction() as connection:
            connection.execute(sa.delete(tables.audit).where(tables.audit.c.id == number))

    def audit(self, run: str) -> list[dict[str, Any]]:
        """Return the audit of a run, oldest first."""
        query = sa.select(tables.audit).where(tables.audit.c.run == run).order_by(tables.audit.c.id)
        with self.transaction() as connection:
            rows = connection.execute(query).mappings().all()
        return [{**row, "detail": orjson.loads(row["detail"])} for row in rows]


def _bring_up_to_date(connection: sa.Connection) -> None:
    """Make the tables, or change those of an older release."""
    found, at = {*sa.inspect(connection).get_table_names()}, tables.versions.c.version_num
    if not found & {*tables.metadata.tables}:
        if connection.dialect.name == "sqlite":  # whose driver would make each table a transaction of its own
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        tables.metadata.create_all(connection)
        connection.execute(sa.insert(tables.versions).values({at: tables.REVISION}))
    elif tables.versions.name not in found or connection.scalars(sa.select(at)).all() != [tables.REVISION]:
        upgrade(connection)


def upgrade(connection: sa.Connection, revision: str = "head") -> None:
    """Bring the tables to the newest revision, or another, as ``migrations`` say."""
    from alembic import command  # takes as long to import as the rest of a start on a database that is up to date
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.attributes["connection"] = connection
    command.upgrade(config, revision)


def _packed(state: Mapping[str, Any]) -> bytes:
    return zlib.compress(orjson.dumps(dict(state)), level=1)


def _prepare_sqlite(connection: Any, _record: object) -> None:
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=FULL")  # NORMAL may lose a commit in a power cut: a revoked token would be back
    cursor.execute(f"PRAGMA busy_timeout={BUSY_TIMEOUT_MS}")
    cursor.close()


def _reason(error: SQLAlchemyError) -> str:
    """The first line of what the driver said: the rest repeats the statement and its values."""
    return str(getattr(error, "orig", None) or error).splitlines()[0]
