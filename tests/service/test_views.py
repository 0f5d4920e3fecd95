"""A start reads what is new since the newest snapshots: what it shows and decides is as if it had read everything."""

from __future__ import annotations

import contextlib
import logging
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from mixer.config.curriculum import Curriculum
from mixer.config.pivots import Pivot
from mixer.sources.prepared.prepare import prepare
from service.dashboard.columns import WalkColumns
from service.runs.engine import Engine
from service.storage import tables
from service.storage.store import Store
from tests.service.test_service_cuts import wait_until
from tests.support.engines import Killable, KilledError, body, opened, running, train
from tests.support.postgres import Postgres, postgres
from tests.support.serving import STEPS, write_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Curriculum]:
    folder = tmp_path_factory.mktemp("views")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MIXER_CACHE", str(folder / "cache"))
        run = Curriculum.from_yaml(write_run(folder, prepared="rows"))
        prepare(run, folder / "rows")
        yield run


@pytest.fixture(scope="module")
def undisturbed(run: Curriculum, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[Any, bytes], Any]:
    with running(run, tmp_path_factory.mktemp("undisturbed")) as engine:
        return train(engine, range(STEPS)), shown(engine)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Postgres]:
    with postgres() as server:
        yield server


@pytest.fixture(params=["file", pytest.param("postgresql", marks=pytest.mark.slow)])
def database(request: pytest.FixtureRequest) -> str | None:
    """Where the journal lies: a URL, or None for a file."""
    return None if request.param == "file" else request.getfixturevalue("cluster").new_database()


def shown(engine: Engine) -> Any:
    """Return all that pages, readers and the walk know, without what depends on when snapshots were taken."""
    _, heard = engine.watch.heard()
    chronicle = engine.watch.chronicle()
    state = engine.walk.state_dict()
    reported = engine.patience.last_reports()
    phases = [
        {key: value for key, value in phase.items() if key != "at"} for phase in engine.decisions.records
    ]  # no clock
    return heard, chronicle.entries, chronicle.weight_steps.tolist(), phases, state["phases"], reported


def all_read(engine: Engine) -> WalkColumns:
    """Return what a chronicle shows that is told every line."""
    chronicle = WalkColumns()
    for _, record in engine.journal._lines.records_after(0):
        chronicle.add({key: value for key, value in record.items() if key != "number"})
    return chronicle


def told_again(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Note the type of each line of before that an engine is told."""
    told: list[str] = []
    listen = Engine._on_line

    def noting(self: Engine, record: dict[str, Any], number: int, is_new: bool) -> None:
        if not is_new:
            told.append(record["type"])
        listen(self, record, number, is_new)

    monkeypatch.setattr(Engine, "_on_line", noting)
    return told


def test_a_start_after_a_stop_reads_no_report(
    run: Curriculum, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, database: str | None
) -> None:
    with running(run, tmp_path, database=database) as engine:
        train(engine, range(40))
        engine.pivot(Pivot(name="later", exclude=("s2",)))
        train(engine, range(40, 60))
        before = shown(engine)
    told = told_again(monkeypatch)
    with running(run, tmp_path, database=database) as engine:
        assert "feedback" not in told
        assert told.count("phase") == len(engine.decisions.records)
        assert shown(engine) == before
        assert engine.watch.chronicle().num_lines == engine.journal.position.line
        assert engine.pivots[0]["name"] == "later"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # those of the killed
@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 8))])
def test_kills_at_random_instants_leave_no_trace_whatever_the_age_of_the_snapshots(
    run: Curriculum,
    undisturbed: tuple[dict[Any, bytes], Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    database: str | None,
    seed: int,
) -> None:
    chance, told = random.Random(seed), told_again(monkeypatch)
    given: dict[tuple[int, int], bytes] = {}
    step = 0
    while step < STEPS:
        told.clear()
        engine = opened(run, tmp_path, database=database, snapshot_lines=chance.choice([1, 4, 25]))
        assert told.count("feedback") < 120  # of 2 ranks: what came since a view that is at most so old
        whole = all_read(engine)
        wait_until(lambda: len(engine.watch.chronicle().entries) >= len(whole.entries))  # noqa: B023  # called at once
        assert engine.watch.chronicle().entries[: len(whole.entries)] == whole.entries
        engine.num_writes, engine.kill_at, engine.is_after = 0, chance.randrange(3, 90), chance.random() < 0.5
        try:
            for at in range(max(0, step - 1), STEPS):
                given |= train(engine, range(at, at + 1))
                step = at + 1
        except KilledError:
            pass
        engine.bury()
    expected, then = undisturbed
    assert given == expected
    with running(run, tmp_path, database=database) as engine:
        whole = all_read(engine)
        assert engine.watch.heard() == (whole.num_lines, whole.heard())
        heard, _, *rest = shown(engine)
        assert (heard["tokens"], rest) == (then[0]["tokens"], list(then[2:]))


def spoil(engine: Killable, how: str) -> None:
    """Spoil the view of a run that was stopped."""
    at = tables.snapshots.c
    mine = (at.run == "run") & (at.kind == "view")
    with contextlib.closing(Store.open(engine._settings.database_url)) as store:
        if how == "torn":
            with store.transaction() as connection:
                half = sa.func.substr(at.state, 1, sa.func.length(at.state) / 2)
                connection.execute(sa.update(tables.snapshots).where(mine).values(state=half))
            return
        newest = store.newest("run", "view")
        assert newest is not None
        line, view = newest
        fields: dict[str, dict[str, Any]] = {
            "foreign": {"fingerprint": "0" * 32},
            "ahead": {"journal": [line + 10**6, "0" * 32]},
            "other": {"journal": [line, "f" * 32]},
        }
        store.save("run", "view", line, view | fields[how], forget_before=line)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("torn", "the view snapshot of run run at .* is damaged"),
        ("foreign", "the view belongs to curriculum 0000"),
        ("ahead", "taken at line 100\\d+, digest .*, but .* has fewer lines"),
        ("other", "digest ffff.*, but .* has [0-9a-f]{32} there"),
    ],
)
def test_a_view_that_does_not_fit_is_named_and_the_journal_is_read(
    run: Curriculum,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    how: str,
    message: str,
) -> None:
    with running(run, tmp_path) as engine:
        train(engine, range(40))
        before = shown(engine)
    spoil(engine, how)
    told = told_again(monkeypatch)
    with caplog.at_level(logging.WARNING), running(run, tmp_path) as engine:
        assert "feedback" in told
        assert shown(engine) == before
    assert re.search(message, caplog.text)
    told.clear()
    with running(run, tmp_path):
        assert "feedback" not in told  # another view has taken its place


def test_a_walk_snapshot_of_another_journal_is_named_and_the_journal_is_driven_again(
    run: Curriculum, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with running(run, tmp_path) as engine:
        given = train(engine, range(40))
        before = shown(engine)
    with contextlib.closing(Store.open(engine._settings.database_url)) as store:
        newest = store.newest("run", "walk")
        assert newest is not None
        store.save("run", "walk", newest[0], newest[1] | {"journal": [newest[0], "f" * 32]})
    with caplog.at_level(logging.WARNING), running(run, tmp_path) as engine:
        assert shown(engine) == before
        assert {key: bytes(body(engine, *key).data) for key in given} == given
    assert "the newest snapshot of the walk is passed over: it was taken at" in caplog.text
