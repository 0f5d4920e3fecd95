"""Whatever is killed, and whenever: trainers get the batches of an undisturbed run, and no report is lost."""

from __future__ import annotations

import json
import random
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mixer.config.curriculum import Curriculum
from mixer.errors import JournalError
from service.client.client import MixerClient
from service.settings import Settings
from service.storage.journal_lines import TableLines, stored_lines
from service.storage.store import Store
from tests.support.fleet import Fleet, digest_of
from tests.support.postgres import Postgres, postgres
from tests.support.serving import Served, get, losses_of, wait_until, write_run
from tests.support.undisturbed import engine_in, journal_of, rows_of, undisturbed, what_was_decided, what_was_reported

PATIENT = ("--feedback-wait-s", "600")  # decisions wait for every rank, so that timing shapes nothing
READY_BEFORE = 0.75  # of the kills wait until the server is ready; the others may hit it while it starts
LONGEST_WAIT_S = 0.6
LOCKED_S = 0.3


@pytest.fixture(scope="module")
def database() -> Iterator[Postgres]:
    with postgres() as server:
        yield server


def disturb(server: Served, fleet: Fleet, cut: Callable[[], None], *, kills: int, seed: int) -> dict[str, int]:
    """Kill the server, a rank or what holds the journal at random instants; return how often each was."""
    rng = random.Random(seed)
    done = {"server": 0, "rank": 0, "database": 0}
    each = max(1, kills // 3)  # most of the time goes into starting servers
    kinds = rng.sample(list(done), counts=[kills - 2 * each, each, each], k=kills)
    for kind in kinds:
        if rng.random() < READY_BEFORE:
            server.wait_ready()
        time.sleep(rng.uniform(0, LONGEST_WAIT_S))
        if kind == "server":
            server.kill()
            server.start(wait=False)
        elif kind == "rank":
            rank = rng.randrange(fleet.num_ranks)
            fleet.kill(rank)
            fleet.start(rank)
        else:
            cut()
        done[kind] += 1
        assert fleet.is_training, "the run was over before all kills were"
    return done


def check_survives(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    cut: Callable[[Path], None],
    *options: str,
    num_ranks: int,
    num_steps: int,
    kills: int,
    seed: int,
    **changes: Any,
) -> None:
    config = write_run(tmp_path, total_steps=num_steps, **changes)
    monkeypatch.setenv("MIXER_CACHE", str(tmp_path / "disturbed" / "cache"))  # one tokenizer for both
    expected, journal = undisturbed(config, tmp_path / "undisturbed", num_ranks)
    server = Served(config, tmp_path / "disturbed", *PATIENT, *options)
    with server, Fleet(server.url, tmp_path / "fleet", num_ranks=num_ranks, num_steps=num_steps) as fleet:
        done = disturb(server, fleet, lambda: cut(tmp_path / "disturbed"), kills=kills, seed=seed)
        fleet.finish(timeout_s=200)
        found = journal_of(server)
        log = server.log()
    assert sum(done.values()) == kills
    assert min(done.values()) > 0
    assert fleet.digests() == {place: {digest} for place, digest in expected.items()}
    assert fleet.acknowledged() == expected.keys()
    assert what_was_decided(found) == what_was_decided(journal)
    assert what_was_reported(found) == what_was_reported(journal)
    assert "Traceback" not in log


def lock_for_a_while(folder: Path) -> None:
    """Hold the write lock of the SQLite database as another process would."""

    def hold() -> None:
        connection = sqlite3.connect(folder / "service.db", timeout=100, isolation_level=None)
        connection.execute("BEGIN IMMEDIATE")
        time.sleep(LOCKED_S)
        connection.execute("ROLLBACK")
        connection.close()

    threading.Thread(target=hold).start()


def test_an_engine_that_comes_back_decides_nothing_before_somebody_asks(tmp_path: Path) -> None:
    """With a lag it could, but it does not know yet how many ranks there are to wait for."""
    curriculum = Curriculum.from_yaml(write_run(tmp_path, feedback_lag=6))
    with engine_in(tmp_path, curriculum) as engine:
        rows_of(engine, 0, 0, 1)
        wait_until(lambda: engine.walk.frontier > curriculum.feedback_lag)  # as it builds ahead, it may decide
    frontier = engine.walk.frontier  # it has stopped
    with engine_in(tmp_path, curriculum) as engine:
        wait_until(lambda: engine.builder.next >= frontier)  # it builds what was decided
        time.sleep(0.5)
        assert engine.builder.next == engine.walk.frontier == frontier


def test_a_few_kills_leave_no_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_survives(tmp_path, monkeypatch, lock_for_a_while, num_ranks=2, num_steps=40, kills=3, seed=1)


def test_postgresql_that_is_cut_off_and_a_server_that_is_killed_leave_no_trace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, database: Postgres
) -> None:
    config = write_run(tmp_path, total_steps=40)
    monkeypatch.setenv("MIXER_CACHE", str(tmp_path / "disturbed" / "cache"))
    expected, journal = undisturbed(config, tmp_path / "undisturbed", 2)
    found = {}
    with (
        Served(config, tmp_path / "disturbed", *PATIENT, "--database", database.new_database()) as server,
        MixerClient(server.url) as client,
    ):
        names = tuple(client.config()["names"])
        for step in range(40):
            if step % 9 == 5:
                database.cut()
            if step == 20:
                server.kill()
                server.start(wait=False)
            for rank in range(2):
                rows = client.batch(step, rank, 2)
                found[step, rank] = digest_of(rows)
                assert client.report(step, losses_of(rows, rank), names)
        assert found == expected
        assert what_was_decided(journal_of(server)) == what_was_decided(journal)
        assert what_was_reported(journal_of(server)) == what_was_reported(journal)
        database.stop()
        down = get(server.url + "/readyz")
        assert (down.status_code, down.json()["error"]["code"]) == (503, "store")
        assert get(server.url + "/healthz").status_code == 200
        database.start()
        server.wait_ready()
    assert "Traceback" not in server.log()


def test_of_two_servers_over_one_database_the_second_one_writes(tmp_path: Path, database: Postgres) -> None:
    settings = Settings(folder=tmp_path, database=database.new_database())
    store = Store.open(settings.database_url)
    first = TableLines(store, "run")
    first.append({"type": "header"})
    second = TableLines(store, "run")
    with pytest.raises(JournalError, match="another server writes the journal of run run now .*stop one of the two"):
        first.append({"type": "phase", "of": "first"})
    second.append({"type": "phase", "of": "second"})
    with pytest.raises(JournalError, match="another server"):
        first.append({"type": "phase", "of": "first"})
    assert len(list(stored_lines(store, "run"))) == 2  # as a fork reads its parent, which goes on
    second.append({"type": "phase", "of": "second"})
    assert [record.get("of") for _, record in second.records_after(0)] == [None, "second", "second"]
    store.close()


def test_a_journal_whose_header_was_torn_is_begun_again(tmp_path: Path) -> None:
    curriculum = Curriculum.from_yaml(write_run(tmp_path))
    with engine_in(tmp_path, curriculum):
        pass
    journal = tmp_path / "run" / "journal.jsonl"
    header = journal.read_bytes().splitlines()[0]
    journal.write_bytes(header[:-20])
    with engine_in(tmp_path, curriculum) as engine:
        rows_of(engine, 0, 0, 1)
    again = journal.read_bytes().splitlines()[0]
    assert what_was_decided([json.loads(again)]) == what_was_decided([json.loads(header)])


@pytest.mark.slow
@pytest.mark.timeout(1800)  # 4 minutes on two cores that three others use
@pytest.mark.parametrize("lag", [0, 6])
def test_fifty_kills_leave_no_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lag: int) -> None:
    check_survives(
        tmp_path, monkeypatch, lock_for_a_while, num_ranks=4, num_steps=400, kills=50, seed=3, feedback_lag=lag
    )


@pytest.mark.slow
@pytest.mark.timeout(1800)  # 4 minutes on two cores that three others use
def test_fifty_kills_leave_no_trace_in_postgresql(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, database: Postgres
) -> None:
    rng = random.Random(5)

    def cut(_: Path) -> None:
        if rng.random() < 0.5:
            database.cut()
        else:  # the whole server goes away, as in a crash, and comes back
            database.stop()
            time.sleep(LOCKED_S)
            database.start()

    check_survives(
        tmp_path,
        monkeypatch,
        cut,
        "--database",
        database.new_database(),
        num_ranks=4,
        num_steps=400,
        kills=50,
        seed=4,
    )
