"""The tables of a new database; ``migrations`` brings those of older releases up to date."""

from __future__ import annotations

from sqlalchemy import Column, Float, Integer, LargeBinary, MetaData, PrimaryKeyConstraint, String, Table, Text

REVISION = "second"  # the newest of ``migrations``

metadata = MetaData()

versions = Table(  # Alembic reads and writes it
    "alembic_version",
    metadata,
    Column("version_num", String(32), nullable=False),
    PrimaryKeyConstraint("version_num", name="alembic_version_pkc"),
)
runs = Table(
    "runs",
    metadata,
    Column("name", String(100), primary_key=True),
    Column("fingerprint", String(64), nullable=False),
    Column("curriculum", Text, nullable=False),  # JSON
    Column("base_dir", Text, nullable=False),  # relative paths of the curriculum start here
    Column("status", String(16), nullable=False),
    Column("created_at", Float, nullable=False),
)
snapshots = Table(
    "snapshots",
    metadata,
    Column("run", String(100), primary_key=True),
    Column("kind", String(16), primary_key=True),
    Column("step", Integer, primary_key=True, autoincrement=False),
    Column("state", LargeBinary, nullable=False),  # JSON, compressed
)
tokens = Table(
    "tokens",
    metadata,
    Column("id", String(16), primary_key=True),
    Column("name", String(100), nullable=False),
    Column("scope", String(16), nullable=False),
    Column("digest", String(64), nullable=False),
    Column("created_at", Float, nullable=False),
    Column("revoked_at", Float),
)
journal_lines = Table(  # used where the database is a server; beside SQLite a journal is a file
    "journal_lines",
    metadata,
    Column("run", String(100), primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("line", LargeBinary, nullable=False),
)
journal_writers = Table(
    "journal_writers",
    metadata,
    Column("run", String(100), primary_key=True),
    Column("writer", String(200), nullable=False),
)
audit = Table(
    "audit",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("at", Float, nullable=False),
    Column("run", String(100), nullable=False),
    Column("who", String(100), nullable=False),
    Column("origin", String(100), nullable=False),
    Column("action", String(32), nullable=False),
    Column("detail", Text, nullable=False),
)
