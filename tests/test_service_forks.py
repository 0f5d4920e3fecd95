"""Forks over HTTP: what is shared stays, what follows is the new curriculum's, and who may ask for what."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest

from mixer.audit import audit
from mixer.config import Curriculum, Pivot
from mixer.errors import ConfigError, MixerError, StateMismatchError
from mixer.preparation import prepare
from service.client import MixerClient, RemoteMixtureDataset
from service.errors import ForbiddenError, RequestError, RunStateError, UnknownRunError
from service.events import Events
from service.record import UNFINISHED
from service.runs import Runs, _curriculum_of
from service.settings import Settings
from service.store import Store
from tests.engines import KilledError
from tests.serving import STEPS, Served, losses_of, write_run


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
        audits = httpx2.get(server.url + "/runs/fork/pivots", trust_env=False).json()
        assert [(line["action"], line["detail"]) for line in audits] == [("fork", {"parent": "run", "at_step": begin})]
    journal = tmp_path / "runs" / "fork" / "journal.jsonl"
    assert audit(journal).difference is None
    drawn = np.concatenate([ids for _, ids in shared[:begin] + ahead])
    for source in range(4):
        numbers = drawn[drawn[:, 0] == source, 1]  # each row of the shared past and of the fork once, in order
        assert sorted(numbers.tolist()) == list(range(len(numbers)))


@pytest.fixture
def runs(folder: Path, tmp_path: Path) -> Iterator[Runs]:
    settings = Settings(folder=tmp_path / "runs", feedback_wait_s=0)
    store = Store.open(settings.database_url)
    runs = Runs(settings, store, Events())
    runs.open_all(Curriculum.from_yaml(write_run(folder, prepared="rows")), "run")
    yield runs
    runs.close()
    store.close()


def decide(runs: Runs, step: int) -> list[int]:
    """Have steps decided, and return where phases begin."""
    for s in range(step + 1):
        asyncio.run(runs.engine("run").phase(s, 30, may_decide=True))
    return [record["start"] for record in runs.engine("run").phases]


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
        ({"floors": {"s0": 0.9, "s1": 0.9}}, ConfigError, "floors sum to 1.8"),
        ({"nonsense": 1}, ConfigError, "nonsense"),
    ],
)
def test_a_fork_may_change_what_comes_but_neither_the_past_nor_what_is_read(
    runs: Runs, changes: dict[str, Any], error: type[MixerError], message: str
) -> None:
    decide(runs, 10)
    with pytest.raises(error, match=message):
        runs.fork("run", "fork", None, changes)
    assert runs.names() == ["run"]
    runs.fork("run", "fork", None, {})  # the name is free


def test_a_fork_begins_where_a_phase_of_its_parent_does_under_a_name_of_its_own(runs: Runs) -> None:
    starts = decide(runs, 20)
    with pytest.raises(RequestError, match=f"no phase begins there; ask for step {starts[1]} or {starts[2]}"):
        runs.fork("run", "fork", starts[1] + 1, {})
    with pytest.raises(UnknownRunError, match="there is no run 'nobody'"):
        runs.fork("nobody", "fork", starts[1], {})
    runs.fork("run", "fork", starts[1], {})
    with pytest.raises(RunStateError, match="there is a run fork already"):
        runs.fork("run", "fork", starts[1], {})
    runs.fork("fork", "grandchild", None, {"policy": {"name": "random"}})
    assert runs.engine("grandchild").frontier == runs.engine("fork").frontier == starts[1]
    runs.set_status("fork", "archived")
    runs.fork("fork", "of-an-archived-run", starts[1], {})
    assert [phase["start"] for phase in runs.engine("of-an-archived-run").phases] == starts[:1]


@pytest.mark.parametrize("is_after", [False, True])
def test_a_kill_while_a_fork_is_made_leaves_a_fork_or_none(
    runs: Runs, monkeypatch: pytest.MonkeyPatch, is_after: bool
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
    again = Runs(runs._settings, runs._store, Events())
    again.open_all(_curriculum_of(runs.record("run")), "run")
    try:
        if is_after:
            assert again.engine("fork").frontier == starts[1]
        else:
            assert again.names() == ["run"]
            assert (runs._settings.folder / "fork" / UNFINISHED).exists()
            again.create("fork", again.record("run").curriculum)  # another run of that name is no fork
            assert again.engine("fork").frontier == 0
    finally:
        again.close()
