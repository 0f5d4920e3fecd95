"""A database that is locked, silent or gone: whoever asks is told within 5 s, and all goes on afterwards."""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from service.errors import StoreError
from service.storage import postgresql, store
from service.storage.store import ANSWER_S, BUSY_TIMEOUT_MS, SERVER_OPTIONS, Store
from tests.support.postgres import Postgres, postgres
from tests.support.serving import Served, get, post, wait_until, write_run

PROMISED_S = 5.0  # docs/operations.md
ASKED: dict[str, Callable[[str], Any]] = {
    "a batch beyond those leased": lambda url: get(url + "/batches/60?wait_s=0"),
    "a pivot": lambda url: post(url + "/pivots", json={"name": "late", "exclude": ["s2"]}),
    "readiness": lambda url: get(url + "/readyz"),
    "a pause": lambda url: post(url + "/runs/run/pause", json={}),
}


@pytest.fixture(scope="module")
def database() -> Iterator[Postgres]:
    with postgres() as server:
        yield server


def test_no_wait_for_the_database_is_longer_than_what_the_document_promises() -> None:
    assert BUSY_TIMEOUT_MS / 1000 < ANSWER_S < PROMISED_S
    assert postgresql.MIN_CONNECT_S < ANSWER_S
    assert f"statement_timeout={ANSWER_S * 1000:.0f} " in SERVER_OPTIONS["options"]
    assert store.SLOW_S < BUSY_TIMEOUT_MS / 1000


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    with contextlib.closing(sqlite3.connect(folder / "service.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield
        other.execute("ROLLBACK")


@contextlib.contextmanager
def moved(folder: Path) -> Iterator[None]:
    (folder / "service.db").rename(folder / "elsewhere.db")
    yield
    (folder / "elsewhere.db").rename(folder / "service.db")


@contextlib.contextmanager
def stopped(database: Postgres) -> Iterator[None]:
    """Stop every process of a cluster, as a machine that has no memory left does: its network still answers."""
    assert database._server is not None
    backends = [pid for pid, parent in _parents() if parent == database._server.pid]
    for pid in (database._server.pid, *backends):
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in (*backends, database._server.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


def _parents() -> Iterator[tuple[int, int]]:
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, IndexError):
            yield int(folder.name), int((folder / "stat").read_text().rsplit(")", 1)[1].split()[1])


@pytest.mark.parametrize("fault", ["locked", "moved", "stopped"])
def test_whoever_asks_is_told_and_all_goes_on_afterwards(
    tmp_path: Path, request: pytest.FixtureRequest, fault: str
) -> None:
    folder, options = tmp_path / "runs", ["--feedback-wait-s", "0", "--ahead-steps", "64", "--name", "run"]
    hurt: AbstractContextManager[None]
    if fault == "stopped":
        database: Postgres = request.getfixturevalue("database")
        options += ["--database", database.new_database()]
        hurt = stopped(database)
    else:
        hurt = {"locked": locked, "moved": moved}[fault](folder)
    with Served(write_run(tmp_path), folder, *options) as server:
        url = server.url
        assert get(url + "/batches/0").status_code == 200
        found: dict[str, tuple[int, str]] = {}

        def ask(what: str) -> None:
            begin = time.monotonic()
            answer = ASKED[what](url)
            print(f"{what}: {answer.status_code} after {time.monotonic() - begin:.2f} s")
            found[what] = (answer.status_code, answer.json().get("error", {}).get("code", ""))

        with hurt:
            wait_until(lambda: get(url + "/readyz").status_code == 503)
            get(url + "/batches/10?wait_s=0")  # whatever it is: nobody is held up
            threads = [threading.Thread(target=ask, args=(what,)) for what in ASKED for _ in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(100)
        assert {what: code for what, (code, _) in found.items() if code != 503} in (
            {},
            {"a batch beyond those leased": 409},
        )
        assert found["readiness"] in ((503, "store"), (503, "stalled"))
        server.wait_ready()
        assert get(url + "/batches/60?wait_s=30").status_code == 200
        assert post(url + "/pivots", json={"name": "late", "exclude": ["s2"]}).status_code == 201
        assert "Traceback" not in server.log()


def test_a_line_of_those_who_wait_is_answered_as_soon_as_the_first_one_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else each would wait in turn, for a lock of the process and then for that of the database."""
    monkeypatch.setattr(store, "BUSY_TIMEOUT_MS", 1500)
    in_turn, failed = threading.Lock(), []
    with contextlib.closing(Store.open(f"sqlite:///{tmp_path / 'service.db'}")) as opened, locked(tmp_path):

        def write() -> None:
            with in_turn:
                begin = time.monotonic()
                with pytest.raises(StoreError, match="database is locked"):
                    opened.save("run", "walk", 1, {})
                failed.append(time.monotonic() - begin > 1)

        threads = [threading.Thread(target=write) for _ in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(100)
        assert sum(failed) == 1
        assert opened.runs() == []  # what is read alone needs no lock


def test_a_database_whose_file_is_another_one_is_not_written(tmp_path: Path) -> None:
    path = tmp_path / "service.db"
    with contextlib.closing(Store.open(f"sqlite:///{path}")) as opened:
        opened.save("run", "walk", 1, {"n": 1})
        path.rename(tmp_path / "elsewhere.db")
        with pytest.raises(StoreError, match="no longer the file that this server opened: it was moved"):
            opened.save("run", "walk", 2, {"n": 2})
        path.write_bytes(b"")
        with pytest.raises(StoreError, match="replaced or deleted"):
            opened.ping()
        (tmp_path / "elsewhere.db").replace(path)
        opened.save("run", "walk", 2, {"n": 2})
        assert opened.newest("run", "walk") == (2, {"n": 2})
