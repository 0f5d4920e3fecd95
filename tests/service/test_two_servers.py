"""Two servers over one database: the one that has lost a run hands out nothing, and writes nothing, of it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mixer.config.curriculum import Curriculum
from mixer.config.pivots import Pivot
from mixer.errors import JournalError
from service.runs import leases as served_module
from service.runs.leases import GOOD_S, LEASE, StepLeases
from service.storage.store import Store
from tests.support.engines import opened, running, train
from tests.support.postgres import Postgres, postgres
from tests.support.serving import wait_until, write_run
from tests.support.two_servers import trial


@pytest.fixture(scope="module")
def database() -> Iterator[Postgres]:
    with postgres() as server:
        yield server


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 10))])
def test_a_server_that_was_stopped_while_another_took_over_hands_out_nothing_of_its_own(
    tmp_path: Path, database: Postgres, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    monkeypatch.setenv("MIXER_CACHE", os.environ.get("MIXER_CACHE", str(tmp_path / "cache")))
    differing, answers = trial(tmp_path, database.new_database(), stopped_s=GOOD_S + 1, seed=seed)
    assert differing == []
    assert set(answers) == {503}


@pytest.fixture(params=["sqlite", "postgresql"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path / 'service.db'}"
    else:
        url = request.getfixturevalue("database").new_database().replace("postgresql", "postgresql+psycopg", 1)
    with contextlib.closing(Store.open(url)) as store:
        yield store


WRITES: dict[str, Any] = {
    "save": lambda store, writer: store.save("run", "place", 32, {"at": "older"}, writer=writer),
    "forget": lambda store, writer: store.forget("run", "place", from_step=0, writer=writer),
    "lease": lambda store, writer: StepLeases(store, "run", writer=writer).extend(100),
    "settle": lambda store, writer: StepLeases(store, "run", writer=writer).settle(),
    "confirm": lambda store, writer: store.confirm("run", writer),
}


@pytest.mark.parametrize("write", WRITES)
def test_what_a_writer_of_before_would_write_is_refused_and_nothing_is_changed(store: Store, write: str) -> None:
    older = store.take_over("run")
    WRITES[write](store, older)
    newer = store.take_over("run")
    store.save("run", "place", 16, {"at": "newer"}, writer=newer)
    store.save("run", "served", 40, {}, writer=newer)
    before = [store.newest("run", kind) for kind in ("place", "served")]
    with pytest.raises(JournalError, match="another server writes the journal of run run now .*stop one of the two"):
        WRITES[write](store, older)
    assert [store.newest("run", kind) for kind in ("place", "served")] == before
    WRITES[write](store, newer)


def test_a_lease_that_another_process_wrote_lets_nothing_be_handed_out(store: Store) -> None:
    """It may have been written by the process that took the run over since."""
    store.save("run", "served", 40, {}, writer=store.take_over("run"))
    served = StepLeases(store, "run", writer=store.take_over("run"))
    store.take_over("run")
    assert served.given == 40
    assert not served.claim(3)
    with pytest.raises(JournalError):
        served.extend(3)
    assert not served.claim(3)


def test_where_others_may_take_over_a_lease_is_good_for_a_while_alone(
    database: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    url = database.new_database().replace("postgresql", "postgresql+psycopg", 1)
    with contextlib.closing(Store.open(url)) as store:
        served = StepLeases(store, "run", writer=store.take_over("run"), clock=lambda: now)
        served.extend(0)
        assert served.claim(0)
        now += GOOD_S + 0.1  # as a process sees that was stopped
        assert not served.claim(0)
        assert not served.is_leased(0)
        served.extending(0).result(30)
        assert served.claim_first(range(100)) == LEASE
        now += served_module.RENEW_S * 1.5
        served.extend_early()  # before anybody has to wait for it
        served.extending(0).result(30)
        now += GOOD_S - 1
        assert served.claim(0)
        store.take_over("run")
        with pytest.raises(JournalError, match="another server"):
            served.extending(LEASE).result(30)


def test_an_engine_that_lost_its_run_stops_and_leaves_what_the_newer_one_wrote(
    tmp_path: Path, database: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MIXER_CACHE", str(tmp_path / "cache"))
    curriculum = Curriculum.from_yaml(write_run(tmp_path))
    url = database.new_database()
    older = opened(curriculum, tmp_path, database=url)
    train(older, range(12))
    with running(curriculum, tmp_path, database=url) as newer:
        step = newer.pivot(Pivot(name="without-s2", exclude=("s2",)), "now")
        given = train(newer, range(step, step + 20))
        wait_until(lambda: isinstance(older.builder.problem, JournalError))
        with pytest.raises(JournalError, match="another server"):
            older.pivot(Pivot(name="other", exclude=("s1",)), "now")
        older.stop()  # as SIGTERM does
        assert not any(older.batches.held(at, 0, 2) for at in range(step + 20))
    with running(curriculum, tmp_path, database=url) as again:
        assert train(again, range(step, step + 20)) == given
    older._parts.store.close()
