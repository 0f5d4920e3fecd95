"""``Settings`` of a server, not of a run: where it stores files, how far it builds ahead, its limits."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from pydantic import BaseModel, Field, model_validator

from mixer.journal.file import Fsync

MIB = 1 << 20
DATABASE_FILE = "service.db"  # in the folder; SQLite adds files beside it


class Settings(BaseModel, extra="forbid", frozen=True):
    """The settings of one server; the command line and tests build it."""

    folder: Path = Field(Path("runs/service"), description="journals and the SQLite database lie here")
    database: str | None = Field(None, description="SQLAlchemy URL; default: SQLite in the folder")
    host: str = "127.0.0.1"
    port: int = Field(8642, ge=0, le=65535)
    tls_cert: Path | None = None
    tls_key: Path | None = None
    tokens_file: Path | None = Field(None, description="hashed tokens, instead of those in the database")

    ahead_steps: int = Field(32, ge=1, le=4096, description="batches built beyond the newest step asked for")
    memory_bytes: int = Field(256 * MIB, ge=MIB, description="batches held in memory, per run")
    retain_steps: int = Field(2048, ge=1, description="steps that can be asked for again, as far as phases are held")
    place_steps: int = Field(16, ge=1, description="steps between two saved places of the streams")
    fsync: Fsync = Field("phase", description="what a power cut may take of journals in files; see mixer.journal.file")
    snapshot_lines: int = Field(2000, ge=1, description="journal lines between two snapshots of the walk")
    feedback_wait_s: float = Field(
        5.0, ge=0, description="longest wait, before a phase is decided, for a rank that has not reported yet"
    )

    client_timeout_s: float = Field(
        30.0, gt=0, description="longest wait for a client to send a whole request, or to read on in an answer"
    )
    max_wait_s: float = Field(60.0, ge=0, description="longest wait_s of a request")
    max_body_bytes: int = Field(MIB, ge=1024)
    requests_per_minute: int = Field(
        240_000, ge=1, description="per token, or per address without tokens: 1,024 ranks at two steps a second"
    )
    allow_new_sources: bool = Field(False, description="runs may be created over paths and hub ids of the request")

    @model_validator(mode="after")
    def _whole_tls_pair(self) -> Self:
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("TLS needs both a certificate and its key: give --tls-cert and --tls-key")
        return self

    @property
    def is_loopback(self) -> bool:
        """Whether the server listens to this machine alone."""
        return self.host in ("localhost", "::1") or self.host.startswith("127.")

    @property
    def database_url(self) -> str:
        """The database's URL; PostgreSQL goes through psycopg whichever way it is written."""
        if self.database is None:
            return f"sqlite:///{self.folder / DATABASE_FILE}"
        for prefix in ("postgresql://", "postgres://"):
            if self.database.startswith(prefix):
                return "postgresql+psycopg://" + self.database.removeprefix(prefix)
        return self.database
