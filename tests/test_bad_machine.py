"""What the machine under the service may do to it: a full disk, a database that is locked, a clock that jumps."""

from __future__ import annotations

import json
import shutil
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable
from contextlib import closing
from email.utils import parsedate_to_datetime
from pathlib import Path

import pytest
import sqlalchemy as sa

from mixer.config.curriculum import Curriculum
from mixer.errors import JournalError, MixerError
from service.client.client import MixerClient
from service.errors import NotReadyError, StallError, StoreError
from service.runs.engine import Engine
from service.storage import store as store_module
from service.storage import tables
from service.storage.journal_lines import CHECKED_LINES, TableLines
from service.storage.store import Store
from tests.support.fleet import digest_of
from tests.support.serving import STEPS, Served, get, losses_of, write_run
from tests.support.undisturbed import engine_in, journal_of, rows_of, undisturbed, what_was_decided, what_was_reported

DISK_MIB = 3
IN_A_SMALL_DISK = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
MOUNT = f'mount -t tmpfs -o size={DISK_MIB}m none "$0" && exec "$@"'


@pytest.fixture
def small_disk(tmp_path: Path) -> Path:
    """A folder that a process sees as a disk of its own; skip where the system lets nobody mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if shutil.which("unshare") is None:
        pytest.skip("there is no unshare to make a small disk with")
    tried = subprocess.run([*IN_A_SMALL_DISK, MOUNT, str(folder), "true"], capture_output=True, text=True, check=False)
    if tried.returncode:
        pytest.skip(f"this system lets nobody mount a small disk: {tried.stderr.strip()}")
    return folder


def fill(path: Path) -> None:
    """Leave no byte on the disk of a file."""
    with path.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(b"x" * 4096)
        except OSError:
            pass


@pytest.mark.slow
def test_a_full_disk_loses_nothing_that_was_acknowledged_and_the_run_goes_on_when_there_is_room(
    tmp_path: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = write_run(tmp_path)
    expected, journal = undisturbed(config, tmp_path / "undisturbed", 1)
    server = Served(config, small_disk, "--feedback-wait-s", "600", prefix=(*IN_A_SMALL_DISK, MOUNT, str(small_disk)))
    problems: list[str] = []
    with server, MixerClient(server.url, patience_s=0.5) as client:
        assert server.process is not None
        inside = Path(f"/proc/{server.process.pid}/root{small_disk}/fill")
        names, step = tuple(client.config()["names"]), 0
        while step < STEPS:
            if step == 20 and not problems:
                fill(inside)
            try:
                rows = client.batch(step)
                assert digest_of(rows) == expected[step, 0]
                client.report(step, losses_of(rows, 0), names)
                step += 1
            except MixerError as error:
                problems.append(str(error))
                assert get(server.url + "/weights").status_code == 200
                assert digest_of(client.batch(3)) == expected[3, 0]
                inside.unlink()
        found = journal_of(server)
    assert len(problems) == 1
    assert "cannot be written: No space left on device" in problems[0]
    assert what_was_decided(found) == what_was_decided(journal)
    assert what_was_reported(found) == what_was_reported(journal)


JUMPS = """
import signal, time
true_time, off_by = time.time, [0.0]
def jump(*_):
    off_by[0] = -1e8 if off_by[0] >= 0 else 1e8
time.time = lambda: true_time() + off_by[0]
signal.signal(signal.SIGUSR1, jump)
"""


def date_of(server: Served) -> float:
    """Return the server's clock, once it has had the time to look at it."""
    time.sleep(1.5)
    answer = get(server.url + "/healthz")
    return parsedate_to_datetime(answer.headers["date"]).timestamp()


@pytest.mark.slow
def test_a_clock_that_jumps_changes_nothing(tmp_path: Path) -> None:
    config = write_run(tmp_path)
    expected, journal = undisturbed(config, tmp_path / "undisturbed", 1)
    server = Served(config, tmp_path / "runs", "--feedback-wait-s", "600", prelude=JUMPS)
    with server, MixerClient(server.url, patience_s=10) as client:
        assert server.process is not None
        names = tuple(client.config()["names"])
        for step in range(STEPS):
            rows = client.batch(step)
            assert digest_of(rows) == expected[step, 0]
            client.report(step, losses_of(rows, 0), names)
            if step in (10, 20, 30):
                server.process.send_signal(signal.SIGUSR1)
        [rank] = client.status().ranks
        assert rank.asked_ago_s is not None
        assert rank.asked_ago_s < 60
        assert abs(date_of(server) - time.time()) > 1e7, "it did not jump"
        assert what_was_decided(journal_of(server)) == what_was_decided(journal)


def test_a_locked_database_holds_trainers_up_and_takes_nothing_from_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "BUSY_TIMEOUT_MS", 50)
    config = write_run(tmp_path)
    curriculum = Curriculum.from_yaml(config)
    expected, journal = undisturbed(config, tmp_path / "undisturbed", 1)
    step = 0

    def train(engine: Engine, wait_s: float) -> None:
        nonlocal step
        while step < curriculum.total_steps:
            try:
                rows = rows_of(engine, step, 0, 1, wait_s=wait_s)
            except NotReadyError:  # the machine does much else
                continue
            assert digest_of(rows) == expected[step, 0]
            engine.report(step, losses_of(rows, 0))
            step += 1

    with engine_in(tmp_path, curriculum, place_steps=4, snapshot_lines=1) as engine:
        rows_of(engine, 0, 0, 1)
        with closing(sqlite3.connect(tmp_path / "service.db", isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises((StoreError, StallError), match="database is locked"):
                train(engine, wait_s=0.5)
            assert 0 < step < curriculum.total_steps  # what was leased could be given, though no snapshot was taken
            other.execute("ROLLBACK")
        train(engine, wait_s=60)
    assert what_was_decided(list(map(json.loads, engine.journal_lines()))) == what_was_decided(journal)


@pytest.mark.parametrize(
    "damage",
    [lambda line: line[:-4] + b'x"}\n', lambda line: line.replace(b'"number":3', b'"number":4'), bytes.strip],
    ids=["digest", "number", "end"],
)
def test_a_damaged_line_of_a_journal_in_tables_is_named(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    with closing(Store.open(f"sqlite:///{tmp_path / 'service.db'}")) as store:
        lines = TableLines(store, "run")
        for number in range(CHECKED_LINES + 2):
            lines.append({"type": "feedback", "step": number})
            assert lines.position_of(number + 1) == lines.position
        assert TableLines(store, "run").position == lines.position
        assert lines.position_of(CHECKED_LINES + 3) is None
        at = tables.journal_lines.c
        with store.transaction() as connection:
            [text] = connection.scalars(sa.select(at.line).where(at.number == 3))
            connection.execute(sa.update(tables.journal_lines).where(at.number == 3).values(line=damage(text)))
        with pytest.raises(JournalError, match=r"the journal of run run: line 3 is damaged or another one; restore"):
            lines.position_of(3)
        with pytest.raises(JournalError, match=r"line 3 is damaged"):
            TableLines(store, "run")  # it is the first of those that are checked
