"""Files that the release before wrote: journals replay and are gone on with, states are refused with the way out.

``earlier/run.jsonl`` is a run of 30 steps with a live pivot that cuts a phase, ``state.json`` the state of its walk
after 14 steps, ``fork.jsonl`` a fork of it that went on for 12 steps.
"""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest

from mixer.errors import JournalError, StateMismatchError
from mixer.journal.file import Journal, read_journal
from mixer.journal.header import curricula_of, read_header
from mixer.replay.fork import fork
from mixer.replay.replay import Replay
from mixer.replay.verify import audit
from mixer.walk.walk import Walk
from service.storage.journal_lines import FileLines
from service.storage.run_journal import RunJournal, recover
from tests.replay.test_replay import rewrite
from tests.support.curricula import drive

EARLIER = Path(__file__).parent / "earlier"


@pytest.mark.parametrize("name", ["run.jsonl", "fork.jsonl"])
def test_an_earlier_journal_replays_to_the_last_bit(name: str) -> None:
    verdict = audit(EARLIER / name)
    assert verdict.difference is None
    assert verdict.decisions > 5


def test_a_difference_after_the_fork_line_of_an_earlier_journal_is_found(tmp_path: Path) -> None:
    shutil.copy(EARLIER / "fork.jsonl", tmp_path / "fork.jsonl")
    step = next(line["step"] for line in read_journal(tmp_path / "fork.jsonl") if line["type"] == "fork")

    def other(record: dict[str, Any]) -> dict[str, Any]:
        return {**record, "drawn": [0, 0, 0]} if record.get("start") == step else record

    rewrite(tmp_path / "fork.jsonl", other)
    difference = audit(tmp_path / "fork.jsonl").difference
    assert difference is not None
    assert (difference.kind, difference.step, difference.field) == ("phase", step, "drawn[0]")


def test_a_fork_line_whose_state_is_none_is_refused_by_its_line(tmp_path: Path) -> None:
    shutil.copy(EARLIER / "fork.jsonl", tmp_path / "fork.jsonl")
    rewrite(tmp_path / "fork.jsonl", lambda record: {**record, "state": []} if record["type"] == "fork" else record)
    with pytest.raises(JournalError, match=r"line 38, state: Input should be a valid dictionary"):
        audit(tmp_path / "fork.jsonl")


def test_an_earlier_state_is_refused_and_a_service_reads_the_journal_instead(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, state = tmp_path / "run.jsonl", json.loads((EARLIER / "state.json").read_text())
    shutil.copy(EARLIER / path.name, path)
    (run,) = curricula_of(path, read_header(path))
    refusal = "walk state has version 6, this curriculum-mixer reads version 1; restore it with the release that saved"
    with Journal.open(path) as journal, pytest.raises(StateMismatchError, match=refusal):
        Walk(run, journal=journal).load_state_dict(state)
    before = path.read_bytes()
    with FileLines.open(path) as lines, caplog.at_level(logging.WARNING):
        walk = recover(run, RunJournal(lines), state)
        assert f"the newest snapshot of the walk is passed over: {refusal}" in caplog.text
        assert path.read_bytes() == before
        drive(walk, 40, since=30)
    assert path.read_bytes().startswith(before)
    assert audit(path).difference is None
    assert Replay(path).frontier >= 40


def test_the_journal_of_an_earlier_fork_is_refused_and_a_fork_of_it_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "fork.jsonl"
    shutil.copy(EARLIER / path.name, path)
    run = curricula_of(path, read_header(path))[-1]
    refusal = (
        r"fork.jsonl: the state at line \d+ has version 6, .* reads version 1; .* `mixer fork` with the same config"
    )
    with Journal.open(path) as journal, pytest.raises(StateMismatchError, match=refusal):
        Walk(run, journal=journal)
    frontier = Replay(path).frontier
    fork(path, frontier, run, tmp_path / "again.jsonl", fsync="never")
    with Journal.open(tmp_path / "again.jsonl") as journal:
        walk = Walk(run, journal=journal)
        assert walk.frontier == frontier
        drive(walk, frontier + 20, since=frontier)
    assert audit(tmp_path / "again.jsonl").difference is None
