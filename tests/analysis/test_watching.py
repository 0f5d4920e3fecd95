"""Following a run: a file that is not there yet, that grows by halves of lines, that is restarted."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from mixer.analysis import watch as watching
from mixer.analysis.watch import MAX_REGIMES, Follower, RunView, frame
from mixer.cli import app
from mixer.config.pivots import Pivot
from mixer.errors import JournalError
from mixer.journal.file import Journal, read_history
from mixer.walk.walk import Walk
from tests.support.curricula import curriculum, drive
from tests.walk.test_guard import by_heart, guarded


def shown(follower: Follower) -> str:
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(frame(follower))
    return console.export_text()


def test_a_run_is_followed_from_before_it_begins(tmp_path: Path) -> None:
    clock = iter([1.0, 2.0, 12.0])
    follower = Follower(tmp_path / "w", clock=lambda: next(clock))
    assert not follower.poll()
    assert "waiting for" in shown(follower)
    run = curriculum(3, floors={"source-0": 0.4}, pivots=[{"name": "polish", "at_step": 400}])
    with Journal.create(tmp_path / "w") as journal:
        walk = Walk(run, journal=journal)
        assert follower.poll()
        assert "no phase is decided yet" in shown(follower)
        drive(walk, 100)
        follower.poll()
        assert follower.sight.last_step == 99
        walk.pivot(Pivot(name="urgent", caps={"source-1": 0.1}))
        drive(walk, 200, since=100)
        follower.poll()
    assert follower.steps_per_s == pytest.approx(200 / 11)  # steps 0 to 199 since the look at second 1
    text = shown(follower)
    phase = walk.phase_at(walk.frontier - 1)
    for words in (f"phase {phase.index}", phase.kind, "urgent from step", "polish at step 400", "steps/s"):
        assert words in text
    assert all(f"{weight:.3f}" in text for weight in phase.weights)


def test_half_a_line_is_left_for_later(tmp_path: Path) -> None:
    with Journal.create(tmp_path / "w") as journal:
        drive(Walk(curriculum(3), journal=journal), 50)
    whole = (tmp_path / "w").read_bytes()
    cut = whole.rindex(b"\n", 0, -1) + 20
    (tmp_path / "part").write_bytes(whole[:cut])
    follower = Follower(tmp_path / "part")
    follower.poll()
    assert follower.sight.last_step == 48
    (tmp_path / "part").write_bytes(whole)
    follower.poll()
    assert follower.sight.last_step == 49


def test_a_restart_from_a_snapshot_takes_back_what_it_superseded(tmp_path: Path) -> None:
    with Journal.create(tmp_path / "w") as journal:
        walk, follower = Walk(curriculum(3), journal=journal), Follower(tmp_path / "w")
        drive(walk, 60)
        state = json.loads(json.dumps(walk.state_dict()))
        drive(walk, 300, since=60)
        follower.poll()
        assert follower.sight.last_step == 299
        walk.load_state_dict(state)
        drive(walk, 70, since=60)
        follower.poll()
        assert follower.sight.last_step == 69
        drive(walk, 90, since=70)
        follower.poll()
        assert follower.sight.last_step == 89
        assert follower.sight.phase is not None
        assert follower.sight.phase["start"] == walk.phase_at(walk.frontier - 1).start


def test_another_file_in_its_place_is_read_from_the_start_and_rubbish_is_refused(tmp_path: Path) -> None:
    for name, steps in (("long", 200), ("short", 30)):
        with Journal.create(tmp_path / name) as journal:
            drive(Walk(curriculum(3), journal=journal), steps)
    follower = Follower(tmp_path / "long")
    follower.poll()
    (tmp_path / "short").replace(tmp_path / "long")
    follower.poll()
    assert follower.sight.last_step == 29
    (tmp_path / "rubbish").write_bytes(b"\x00\xff\n")
    with pytest.raises(JournalError, match="no journal line"):
        Follower(tmp_path / "rubbish").poll()


@pytest.fixture(scope="module")
def eventful(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A journal with regions, a cut, alarms and a restart behind it, and more of them to come."""
    run = guarded(
        3,
        total_steps=3000,
        pivots=[{"name": f"p{n}", "at_step": 300 * n, "floors": {"source-0": n / 20}} for n in range(1, 9)],
    )
    path = tmp_path_factory.mktemp("eventful") / "run.jsonl"
    with Journal.create(path, fsync="never") as journal:
        walk = Walk(run, journal=journal)
        drive(walk, 700, losses=by_heart)
        walk.pivot(Pivot(name="urgent", caps={"source-1": 0.3}), walk.first_cut(690), cut=True)
        drive(walk, 1100, since=700, losses=by_heart)
        state = json.loads(json.dumps(walk.state_dict()))
        drive(walk, 1300, since=1100, losses=by_heart)
        walk.load_state_dict(state)
        drive(walk, 1800, since=1100, losses=by_heart)
        walk.pivot(Pivot(name="late", caps={"source-2": 0.5}))
        drive(walk, 2000, since=1800, losses=by_heart)
    return path


@pytest.mark.parametrize("tail_bytes", [1, 3_000, 30_000, 300_000])
def test_the_end_of_a_long_journal_shows_what_all_of_it_would(
    eventful: Path, monkeypatch: pytest.MonkeyPatch, tail_bytes: int
) -> None:
    whole = RunView()
    for record in read_history(eventful):
        whole.add(record)
    assert len(whole.regimes) > 6
    assert 0 < whole.alarms[0]["step"] < 200  # long before the end
    monkeypatch.setattr(watching, "TAIL_BYTES", tail_bytes)
    num_read, add = [0], RunView.add

    def counted(self: RunView, record: dict[str, Any]) -> None:
        num_read[0] += 1
        add(self, record)

    monkeypatch.setattr(RunView, "add", counted)
    follower = Follower(eventful)
    assert follower.poll()
    seen = follower.sight
    assert num_read[0] < 100 + tail_bytes / 100
    for name in ("header", "phases", "region", "alarms", "asked", "last_step"):
        assert getattr(seen, name) == getattr(whole, name), name
    assert seen.regimes[-MAX_REGIMES:] == whole.regimes[-MAX_REGIMES:]
    if tail_bytes >= 30_000:
        assert seen.losses == pytest.approx(whole.losses, rel=1e-3)
    num_read[0] = 0
    assert follower.poll()
    assert num_read[0] == 0  # it went on to the end of the file


def test_one_frame_is_printed_on_request(tmp_path: Path) -> None:
    with Journal.create(tmp_path / "w") as journal:
        drive(Walk(curriculum(3), journal=journal), 50)
    done = CliRunner().invoke(app, ["watch", str(tmp_path / "w"), "--once"])
    assert done.exit_code == 0
    assert "source-2" in done.output
    waiting = CliRunner().invoke(app, ["watch", str(tmp_path / "none"), "--once"])
    assert (waiting.exit_code, "waiting for" in waiting.output) == (0, True)


def _hears_ctrl_c() -> None:
    """Undo what a job in the background inherits, where Ctrl-C is ignored."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def test_ctrl_c_ends_it_with_0(tmp_path: Path) -> None:
    terminal, inside = os.openpty()
    command = [sys.executable, "-c", "from mixer.cli import main; main()", "watch", str(tmp_path / "w")]
    process = subprocess.Popen(
        [*command, "--every", "0.1"],
        stdout=inside,
        stderr=subprocess.PIPE,
        preexec_fn=_hears_ctrl_c,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "120", "LINES": "40"},
    )
    os.close(inside)
    try:
        assert "waiting for" in read_until(terminal, "waiting for")
        with Journal.create(tmp_path / "w") as journal:
            drive(Walk(curriculum(3), journal=journal), 30)
        assert "source-2" in read_until(terminal, "source-2")
        process.send_signal(signal.SIGINT)
        read_until(terminal, "")  # or it would wait for who reads
        _, err = process.communicate(timeout=100)
        assert process.returncode == 0, err
        assert err == b""
    finally:
        process.kill()
        os.close(terminal)


def read_until(terminal: int, words: str) -> str:
    """Return what a terminal is told until it shows these words, or is left if there are none."""
    told = ""
    while not words or words not in told:
        try:
            piece = os.read(terminal, 65_536)
        except OSError:  # Linux's way to say that nobody writes any more
            break
        told += piece.decode(errors="replace")
        if not piece:
            break
    return told
