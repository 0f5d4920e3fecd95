"""Forks over HTTP: what is shared stays, what follows is the new curriculum's, and who may ask for what."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mixer.config.curriculum import Curriculum
from mixer.config.pivots import Pivot
from mixer.errors import ConfigError, MissingDataError, MixerError, StateMismatchError
from mixer.replay.verify import audit
from mixer.sources.prepared.prepare import prepare
from service.client import MixerClient, RemoteMixtureDataset
from service.errors import ForbiddenError, RequestError, RunStateError, UnknownRunError
from service.runs.events import Events
from service.runs.registry import RunRegistry, _curriculum_of
from service.runs.sharing import Sharing
from service.settings import Settings
from service.storage.journal_lines import stored_lines
from service.storage.run_journal import UNFINISHED
from service.storage.store import Store
from tests.support.engines import KilledError, body, rows_of
from tests.support.postgres import postgres
from tests.support.serving import STEPS, Served, get, losses_of, write_run


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("forks")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MIXER_CACHE", str(folder / "cache"))
        prepare(Curriculum.from_yaml(write_run(folder)), folder / "rows")
        yield folder


def train(client: MixerClient, steps: range) -> list[tuple[bytes, Any]]:
    """Return the rows of each step, and source and number of each row."""
    names, given = tuple(client.config()["names"]), []
    for step in steps:
        rows = client.batch(step)
        given.append((rows.rows.tobytes(), np.stack([rows.source_ids, rows.row_numbers], axis=1)))
        client.report(step, losses_of(rows, 0), names)
    return given


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["prepared", "streamed"])
def test_a_fork_shares_the_past_and_goes_on_otherwise_also_after_a_kill(
    folder: Path, tmp_path: Path, kind: str
) -> None:
    config = write_run(folder, **({"prepared": "rows"} if kind == "prepared" else {}))
    with Served(config, tmp_path / "runs") as server, MixerClient(server.url) as parent:
        shared = train(parent, range(30))
        parent.pivot(Pivot(name="later", caps={"s1": 0.1}))  # after what is shared
        begin = next(record["start"] for record in parent.phases(20).phases if record["start"] >= 20)
        remote = RemoteMixtureDataset(server.url, 0, 1)
        state = {**remote.state_dict(), "step": begin}
        made = parent.fork(
            "run", "fork", at_step=begin, policy={"name": "static", "weights": dict.fromkeys(("s0", "s2"), 0.5)}
        )
        assert (made.name, made.status, made.is_default) == ("fork", "active", False)
        with MixerClient(server.url, run="fork") as fork:
            assert fork.phases(0).phases[:3] == parent.phases(0).phases[:3]
            ahead = train(fork, range(begin, begin + 15))
            server.kill()
            server.start()
            again = [fork.batch(step).rows.tobytes() for step in range(begin, begin + 15)]
            assert again == [rows for rows, _ in ahead]
            ahead += train(fork, range(begin + 15, STEPS))
            assert fork.weights(begin + 20).weights == {"s0": 0.5, "s1": 0, "s2": 0.5, "s3": 0}
            resumed = RemoteMixtureDataset(server.url, 0, 1, run="fork")
            resumed.load_state_dict(state)
            assert next(iter(resumed))["step"] == begin
            with pytest.raises(StateMismatchError):
                resumed.load_state_dict({**state, "step": begin + 1})
        assert [parent.batch(step).rows.tobytes() for step in range(30)] == [rows for rows, _ in shared]
        audits = get(server.url + "/runs/fork/pivots").json()
        assert [(line["action"], line["detail"]) for line in audits] == [("fork", {"parent": "run", "at_step": begin})]
    journal = tmp_path / "runs" / "fork" / "journal.jsonl"
    assert audit(journal).difference is None
    drawn = np.concatenate([ids for _, ids in shared[:begin] + ahead])
    for source in range(4):
        numbers = drawn[drawn[:, 0] == source, 1]  # each row of the shared past and of the fork once, in order
        assert sorted(numbers.tolist()) == list(range(len(numbers)))


@pytest.fixture
def runs(folder: Path, tmp_path: Path) -> Iterator[RunRegistry]:
    with runs_over(folder, tmp_path) as runs:
        yield runs


@contextmanager
def runs_over(folder: Path, tmp_path: Path) -> Iterator[RunRegistry]:
    settings = Settings(folder=tmp_path / "runs", feedback_wait_s=0)
    store = Store.open(settings.database_url)
    runs = RunRegistry(settings, store, Events())
    runs.open_all(Curriculum.from_yaml(write_run(folder, prepared="rows")), "run")
    yield runs
    runs.close()
    store.close()


def decide(runs: RunRegistry, step: int) -> list[int]:
    """Have steps decided, and return where phases begin."""
    for s in range(step + 1):
        asyncio.run(runs.engine("run").phase(s, 30, may_decide=True))
    return [record["start"] for record in runs.engine("run").decisions.records]


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"seed": 4}, ConfigError, "the new config has seed 4, the walk 3"),
        (
            {"sources": [{"name": f"s{k}", "data_files": "/etc/passwd"} for k in range(4)]},
            ForbiddenError,
            "source s0 is",
        ),
        ({"prepared": "/etc"}, ForbiddenError, "prepared differs from the config file's; a request may not name files"),
        ({"tokenizer": {"file": "/etc/passwd"}}, ForbiddenError, "tokenizer differs"),
        ({"policy": {"name": "ucb", "reward": "os:system"}}, ForbiddenError, "reward 'os:system' is code of yours"),
        (
            {"pivots": [{"name": "p", "at_step": 60, "policy": {"name": "ucb", "reward": "os:system"}}]},
            ForbiddenError,
            "reward 'os:system' is code of yours",
        ),
        ({"floors": {"s0": 0.9, "s1": 0.9}}, ConfigError, "floors sum to 1.8"),
        ({"nonsense": 1}, ConfigError, "nonsense"),
    ],
)
def test_a_fork_may_change_what_comes_but_neither_the_past_nor_what_is_read(
    runs: RunRegistry, changes: dict[str, Any], error: type[MixerError], message: str
) -> None:
    decide(runs, 10)
    with pytest.raises(error, match=message):
        runs.fork("run", "fork", None, changes)
    assert runs.names() == ["run"]
    runs.fork("run", "fork", None, {})  # the name is free


def test_a_fork_begins_where_a_phase_of_its_parent_does_under_a_name_of_its_own(runs: RunRegistry) -> None:
    starts = decide(runs, 20)
    with pytest.raises(RequestError, match=f"no phase begins there; ask for step {starts[1]} or {starts[2]}"):
        runs.fork("run", "fork", starts[1] + 1, {})
    with pytest.raises(UnknownRunError, match="there is no run 'nobody'"):
        runs.fork("nobody", "fork", starts[1], {})
    runs.fork("run", "fork", starts[1], {})
    with pytest.raises(RunStateError, match="there is a run fork already"):
        runs.fork("run", "fork", starts[1], {})
    runs.fork("fork", "grandchild", None, {"policy": {"name": "random"}})
    assert runs.engine("grandchild").decisions.frontier == runs.engine("fork").decisions.frontier == starts[1]
    runs.set_status("fork", "archived")
    runs.fork("fork", "of-an-archived-run", starts[1], {})
    assert [phase["start"] for phase in runs.engine("of-an-archived-run").decisions.records] == starts[:1]


@pytest.mark.parametrize("is_after", [False, True])
def test_a_kill_while_a_fork_is_made_leaves_a_fork_or_none(
    runs: RunRegistry, monkeypatch: pytest.MonkeyPatch, is_after: bool
) -> None:
    starts, add_run = decide(runs, 20), runs._store.add_run

    def killed(*arguments: Any, **keywords: Any) -> None:
        if is_after:
            add_run(*arguments, **keywords)
        raise KilledError

    monkeypatch.setattr(runs._store, "add_run", killed)
    with pytest.raises(KilledError):
        runs.fork("run", "fork", starts[1], {"policy": {"name": "random"}})
    monkeypatch.undo()
    runs.close()
    again = RunRegistry(runs._settings, runs._store, Events())
    again.open_all(_curriculum_of(runs.record("run")), "run")
    try:
        if is_after:
            assert again.engine("fork").decisions.frontier == starts[1]
        else:
            assert again.names() == ["run"]
            assert (runs._settings.folder / "fork" / UNFINISHED).exists()
            again.create("fork", again.record("run").curriculum)  # another run of that name is no fork
            assert again.engine("fork").decisions.frontier == 0
    finally:
        again.close()


def test_runs_over_the_same_prepared_rows_open_and_map_them_once(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "rows", tmp_path / "rows")  # that no other test maps
    with runs_over(tmp_path, tmp_path) as runs:
        body(runs.engine("run"), 0)
        mapped = maps_of(tmp_path / "rows")
        assert mapped > 0
        for name in ("one", "two"):
            runs.create(name, runs.record("run").curriculum)
            body(runs.engine(name), 0)
        runs.fork("run", "three", None, {})
        assert len({id(runs.engine(name)._parts.rows._prepared) for name in runs.names()}) == 1
        assert maps_of(tmp_path / "rows") == mapped


def maps_of(folder: Path) -> int:
    """Return how many memory maps of files in a folder this process has."""
    return sum(str(folder) in line for line in Path("/proc/self/maps").read_text().splitlines())


def test_rows_that_were_prepared_again_are_opened_again(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "rows", tmp_path / "rows")
    run = Curriculum.from_data({**_dumped(folder), "prepared": "rows"}, base_dir=tmp_path)
    sharing = Sharing()
    first = sharing.prepared(run)
    assert sharing.prepared(run) is first
    manifest = tmp_path / "rows" / "prepared.json"
    text = manifest.read_bytes()
    manifest.unlink()
    with pytest.raises(MissingDataError):
        sharing.prepared(run)
    manifest.write_bytes(text)
    assert sharing.prepared(run) is not first


def _dumped(folder: Path) -> dict[str, Any]:
    return Curriculum.from_yaml(write_run(folder)).model_dump(mode="json", exclude_none=True)


def test_a_run_that_cannot_be_opened_is_not_kept(runs: RunRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise MissingDataError("rows/prepared.json: no such file")

    with monkeypatch.context() as patch:
        patch.setattr(runs._sharing, "prepared", fails)
        with pytest.raises(MissingDataError):
            runs.create("other", runs.record("run").curriculum)
    assert runs.names() == ["run"] == [record.name for record in runs._store.runs()]
    runs.create("other", runs.record("run").curriculum)


@pytest.mark.slow
def test_forks_and_cuts_are_the_same_where_the_journal_lies_in_postgresql(folder: Path, tmp_path: Path) -> None:
    with postgres() as server:
        settings = Settings(folder=tmp_path, database=server.new_database(), feedback_wait_s=0)
        curriculum = Curriculum.from_yaml(write_run(folder))
        for _ in range(2):  # and once more, after a restart
            store = Store.open(settings.database_url)
            runs = RunRegistry(settings, store, Events())
            runs.open_all(curriculum, "run")
            parent = runs.engine("run")
            rows = [body(parent, step, 0, 1).data for step in range(20)]
            begin = parent.decisions.records[1]["start"]
            if "fork" not in runs.names():
                runs.fork("run", "fork", begin, {"policy": {"name": "static", "weights": {"s0": 0.5, "s2": 0.5}}})
                cut = parent.pivot(Pivot(name="without-s3", exclude=("s3",)), "now")
            fork = runs.engine("fork")
            assert [body(fork, step, 0, 1).data for step in range(begin)] == rows[:begin]
            assert all(set(rows_of(body(fork, step)).source_ids) == {0, 2} for step in range(begin, begin + 20))
            assert all(3 not in rows_of(body(parent, step)).source_ids for step in range(cut, cut + 10))
            runs.close()
            (tmp_path / "fork.jsonl").write_bytes(b"".join(stored_lines(store, "fork")))
            store.close()
    assert audit(tmp_path / "fork.jsonl").difference is None
