"""``mixer replay WALK --serve``: the past over HTTP, at any step; nothing can be written."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from mixer.config.curriculum import Curriculum
from mixer.config.pivots import Pivot
from mixer.errors import JournalError
from mixer.journal.file import Journal
from mixer.replay.fork import fork
from mixer.replay.replay import Replay
from mixer.walk.walk import Walk
from service.client.client import MixerClient
from service.errors import BindError, RunEndedError, UnknownRunError
from service.replay_app import RecordedRun
from service.server import serve_journal
from service.settings import Settings
from tests.support.curricula import curriculum, drive
from tests.support.serving import Served, ask, get

STEPS = 1500  # more phases than a walk holds
MIXER = [sys.executable, "-c", "from mixer.cli import main; main()"]


def write_walk(path: Path, steps: int = STEPS) -> Curriculum:
    """Write a journal with a pivot at a boundary and one that cuts."""
    run = curriculum(3, total_steps=steps, phases={"min_steps": 2, "max_steps": 6})
    with Journal.create(path, fsync="never") as journal:
        walk = Walk(run, journal=journal)
        drive(walk, steps // 2)
        walk.pivot(Pivot(name="later", caps={"source-1": 0.4}))
        drive(walk, steps - 40, since=steps // 2)
        cut = walk.first_cut(steps - 39)
        walk.phase_at(cut)
        walk.pivot(Pivot(name="cut", floors={"source-0": 0.3}), walk.first_cut(cut), cut=True)
        drive(walk, steps, since=steps - 40)
    return run


@pytest.fixture(scope="module")
def journal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("past") / "old walk.jsonl"
    write_walk(path)
    return path


@pytest.fixture(scope="module")
def served(journal: Path) -> Iterator[Served]:
    server = Served(journal, journal.parent)
    server._command = [*MIXER, "replay", str(journal), "--serve", "--port", str(server.port)]
    with server:
        yield server


@pytest.fixture
def client(served: Served) -> Iterator[MixerClient]:
    with MixerClient(served.url, patience_s=100) as client:
        yield client


def test_every_step_has_the_weights_that_it_had(client: MixerClient, journal: Path) -> None:
    replay = Replay(journal)
    for step in [*range(0, STEPS, 71), *(r.start for r in replay.regimes), *(r.start - 1 for r in replay.regimes[1:])]:
        phase, found = replay.phase_at(step), client.weights(step)
        assert (found.phase, found.start, found.length, found.regime) == (
            phase.index,
            phase.start,
            phase.length,
            phase.regime,
        )
        assert found.weights == phase.by_source()
        region = replay.regime_at(phase.start).region
        assert list(found.lower.values()) == region.lower.tolist()
        assert list(found.upper.values()) == region.upper.tolist()
    assert client.weights().step == replay.frontier - 1
    with pytest.raises(
        RunEndedError, match=f"step {replay.frontier} was asked for, but the record of run old-walk ends"
    ):
        client.weights(replay.frontier)


def test_phases_journal_config_and_the_run_can_be_read(client: MixerClient, served: Served, journal: Path) -> None:
    replay = Replay(journal)
    steps, found = 0, []
    while records := client.phases(steps, 1000).phases:
        found += records
        steps = records[-1]["start"] + records[-1]["length"]
    assert [(r["index"], r["start"], r["length"]) for r in found] == [
        (p.index, p.start, p.length) for p in replay.phases
    ]
    assert np.array_equal([r["weights"] for r in found], [p.weights for p in replay.phases])
    assert get(served.url + "/walk").content == journal.read_bytes()
    assert client.config()["fingerprint"] == replay.curriculum.fingerprint
    [run] = client.runs()
    assert (run.name, run.status, run.frontier) == ("old-walk", "archived", replay.frontier)
    assert get(served.url + "/runs/old-walk/weights", params={"step": 5}).json()["step"] == 5
    assert get(served.url + "/overview").status_code == 200
    assert get(served.url + "/").headers["content-type"].startswith("text/html")
    with MixerClient(served.url, run="nobody") as other, pytest.raises(UnknownRunError, match="there is old-walk"):
        other.weights(0)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/feedback"),
        ("POST", "/pivots"),
        ("POST", "/runs"),
        ("POST", "/runs/old-walk/fork"),
        ("POST", "/runs/old-walk/pause"),
        ("DELETE", "/runs/old-walk"),
        ("PUT", "/anything"),
        ("GET", "/batches/3?rank=0&world_size=1&wait_s=20.0"),
        ("GET", "/batches?from=0"),
        ("GET", "/status"),
        ("GET", "/runs/old-walk/events"),
        ("GET", "/tokenizer"),
    ],
)
def test_whatever_would_decide_deliver_or_write_is_refused(served: Served, method: str, path: str) -> None:
    answer = ask(method, served.url + path, json=None if method == "GET" else {})
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (409, "past")
    assert "mixer fork" in error["hint"]


def test_a_fork_and_a_run_that_was_restored_are_told_as_they_stand_at_the_end(tmp_path: Path) -> None:
    run = write_walk(tmp_path / "parent.jsonl", 300)
    begin = Replay(tmp_path / "parent.jsonl").phases[5].start
    fork(tmp_path / "parent.jsonl", begin, run, tmp_path / "fork.jsonl")
    with Journal.open(tmp_path / "fork.jsonl") as journal:
        walk = Walk(run, journal=journal)
        drive(walk, begin + 20, since=begin)
        state = walk.state_dict()
        drive(walk, begin + 90, since=begin + 20)
        walk.load_state_dict(state)
        drive(walk, begin + 60, since=begin + 20)
    past, replay = RecordedRun(tmp_path / "fork.jsonl", "fork"), Replay(tmp_path / "fork.jsonl")
    assert past.parent == {"fingerprint": run.fingerprint, "step": begin}
    assert past.decisions.frontier == replay.frontier
    assert [r["start"] for r in past.decisions.since(0, 1000)] == [phase.start for phase in replay.phases]


@pytest.mark.parametrize("text", [b"", b"nonsense\n", b'{"type":"phase"}\n'])
def test_what_is_no_journal_is_not_served(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "walk.jsonl").write_bytes(text)
    with pytest.raises(JournalError):
        RecordedRun(tmp_path / "walk.jsonl", "walk")


def test_without_tokens_the_past_is_for_this_machine_alone(journal: Path) -> None:
    with pytest.raises(BindError, match="run `mixer token create --scope admin` first"):
        serve_journal(Settings(host="0.0.0.0"), journal)
