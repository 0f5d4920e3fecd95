"""Which lines of a journal still hold, and finding a phase without reading the rest."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixer.analysis.explain import explain
from mixer.errors import JournalError, StepError
from mixer.journal.file import Journal
from mixer.journal.lookup import JournalIndex, history
from mixer.journal.scan import BLOCK_BYTES
from mixer.journal.tables import read_tables
from mixer.replay.fork import fork
from mixer.walk.walk import Walk
from tests.support.curricula import curriculum, drive
from tests.support.memory import peak_bytes


@pytest.fixture
def resumed(tmp_path: Path) -> Path:
    """A walk restored twice, the second time from a snapshot of the timeline that the first had left."""
    run, path = curriculum(3, pivots=[{"name": "polish", "at_step": 150, "floors": {"source-1": 0.5}}]), tmp_path / "w"
    with Journal.create(path) as journal:
        walk = Walk(run, journal=journal)
        drive(walk, 60)
        early = json.loads(json.dumps(walk.state_dict()))
        drive(walk, 100, since=60)
        late = json.loads(json.dumps(walk.state_dict()))
        drive(walk, 160, since=100)
        walk.load_state_dict(early)
        drive(walk, 80, since=60)
        walk.load_state_dict(late)
        drive(walk, 300, since=100)
    return path


def test_phases_are_found_across_resumes(resumed: Path) -> None:
    phases = [record for record in history(resumed)[1] if record["type"] == "phase"]
    assert [phase["index"] for phase in phases] == list(range(len(phases)))
    journal = JournalIndex(resumed)
    for step in range(300):
        found = journal.phase_at(step)
        assert found == next(p for p in phases if p["start"] <= step < p["start"] + p["length"])
    polish = journal.phase_at(299)
    assert journal.first_of_regime(polish)["start"] == 150
    before = journal.before(polish)
    assert before is not None
    assert before["index"] == polish["index"] - 1
    assert journal.before(journal.phase_at(0)) is None


def test_a_step_that_is_not_decided_says_which_are(resumed: Path) -> None:
    journal = JournalIndex(resumed)
    for step in (-1, 10_000):
        with pytest.raises(StepError, match=r"count from 0|has phases for steps 0 to 3\d\d"):
            journal.phase_at(step)


def test_a_line_edited_by_hand_is_refused_when_it_is_used(resumed: Path) -> None:
    text = resumed.read_bytes()
    at = text.rindex(b'"type":"phase"')
    resumed.write_bytes(text[:at] + text[at:].replace(b'"kind":"bandit"', b'"kind":"random"', 1))
    with pytest.raises(JournalError, match=r"line \d+ is damaged or does not follow"):
        JournalIndex(resumed).phase_at(299)


@pytest.mark.parametrize("content", [b"", b"\x00\xff\n", b"{}\n", b'{"type":"feedback"}\n', b"no line feed"])
def test_what_is_no_journal_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "w").write_bytes(content)
    with pytest.raises(JournalError):
        JournalIndex(tmp_path / "w")
    with pytest.raises(JournalError):
        JournalIndex(tmp_path / "missing")


def test_a_region_is_found_where_it_began_also_under_a_name_that_returns(tmp_path: Path) -> None:
    warmup = {"curriculum_warmup_steps": 60, "curriculum_warmup_sources": ["source-0", "source-1"]}
    pivots = [{"name": "early", "at_step": 30, "caps": {"source-0": 0.7}}]  # in the warmup, and on after its end
    run, law = curriculum(3, **warmup, pivots=pivots, phases={"max_steps": 10}), {"max_steps": 10}
    paths = [tmp_path / "run.jsonl", tmp_path / "fork.jsonl"]
    with Journal.create(paths[0]) as journal:
        drive(Walk(run, journal=journal), 200)
    step = next(phase["start"] for phase in read_tables(paths[0]).phases if phase["start"] > 100)
    new = curriculum(3, floors={"source-2": 0.5}, phases=law, pivots=[{**pivots[0], "at_step": step + 40}])
    fork(paths[0], step, new, paths[1])
    with Journal.open(paths[1]) as journal:
        drive(Walk(new, journal=journal), step + 90, since=step)
    for path, expected in zip(paths, ([0, 30, 60], [0, 30, 60, step, step + 40]), strict=True):
        phases, found = read_tables(path).phases, set()
        for i, phase in enumerate(phases):
            opening = next(earlier for earlier in reversed(phases[: i + 1]) if earlier["region"] is not None)
            assert JournalIndex(path).first_of_regime(phase) == opening
            found.add(opening["start"])
        assert sorted(found) == expected


def test_questions_take_the_same_memory_and_few_bytes_of_a_journal_of_any_length(tmp_path: Path) -> None:
    peaks = []
    for num_steps in (1000, 6000):
        run, path = curriculum(2, phases={"min_steps": 1, "max_steps": 3}), tmp_path / f"{num_steps}.jsonl"
        with Journal.create(path, fsync="never") as journal:
            drive(Walk(run, journal=journal), num_steps)
        assert path.stat().st_size > 2 * BLOCK_BYTES
        explain(path, 0)  # what is imported late
        peaks.append(peak_bytes(lambda: explain(path, num_steps - 1)))  # noqa: B023  # called at once
        assert explain(path, num_steps - 1)["phase"]["start"] >= num_steps - 3
    assert peaks[1] < peaks[0] + 20_000


@given(st.binary(max_size=200))
def test_any_bytes_are_a_journal_error_and_nothing_worse(tmp_path_factory: pytest.TempPathFactory, raw: bytes) -> None:
    path = tmp_path_factory.mktemp("fuzz") / "w"
    path.write_bytes(raw)
    with pytest.raises(JournalError):
        JournalIndex(path)
