"""The durable record: its chain, damage and crashes, a full disk, and what every line holds."""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixer.config.curriculum import Curriculum
from mixer.config.pivots import Pivot
from mixer.errors import JournalError, StateMismatchError
from mixer.journal.file import Journal, read_journal
from mixer.journal.scan import Position
from mixer.journal.schema import AlarmLine, ForkLine, Parent, ProbeLine
from mixer.replay.fork import fork
from mixer.replay.replay import Replay
from mixer.replay.verify import audit
from mixer.sampling.phases import Phase
from mixer.walk.walk import Walk
from tests.support.curricula import (
    POLICIES,
    batch_counts,
    curricula,
    curriculum,
    drive,
    noisy_losses,
    ragged,
    same_phases,
)

DOCS = Path(__file__).parents[2] / "docs" / "journal.md"


def written(path: Path, records: list[dict[str, Any]]) -> Path:
    with Journal.create(path) as journal:
        for record in records:
            journal.append(record)
    return path


def lines(path: Path) -> list[dict[str, Any]]:
    return [_without_number(record) for record in read_journal(path)]


def _without_number(record: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in record.items() if key != "number"}


plain = st.dictionaries(
    st.text(max_size=5),
    st.one_of(st.none(), st.booleans(), st.integers(-(2**53), 2**53), st.floats(allow_nan=False, allow_infinity=False)),
    min_size=1,
    max_size=4,
)


@given(st.lists(plain, max_size=6))
@settings(max_examples=50)
def test_what_was_written_is_read_back_across_any_number_of_sessions(
    tmp_path_factory: pytest.TempPathFactory, records: list[dict[str, Any]]
) -> None:
    path = tmp_path_factory.mktemp("journal") / "run.jsonl"
    Journal.create(path).close()
    for record in records:
        with Journal.open(path) as journal:
            journal.append(record)
    assert lines(path) == records
    with Journal.open(path) as journal:
        assert journal.position.line == len(records)
        assert lines(path) == [_without_number(record) for record in journal.records()]


@given(st.data())
@settings(max_examples=100)
def test_a_change_of_any_byte_is_found_and_its_line_named(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = written(tmp_path_factory.mktemp("journal") / "run.jsonl", [{"n": i, "x": i / 7} for i in range(4)])
    content = path.read_bytes()
    place = data.draw(st.integers(0, len(content) - 1))
    byte = data.draw(st.integers(0, 255).filter(lambda value: value != content[place]))
    path.write_bytes(content[:place] + bytes([byte]) + content[place + 1 :])
    damaged = content[:place].count(b"\n") + 1
    found, message = [], ""
    try:
        for record in read_journal(path):
            found.append(record["n"])
    except JournalError as error:
        message = str(error)
    assert found == list(range(damaged - 1))
    is_torn = place == len(content) - 1  # without its line feed the last line is left out
    assert is_torn or f"line {damaged} is damaged" in message


def test_lines_that_were_dropped_swapped_or_repeated_break_the_chain(tmp_path: Path) -> None:
    path = written(tmp_path / "run.jsonl", [{"n": i} for i in range(4)])
    whole = path.read_bytes().splitlines(keepends=True)
    for number, kept in ((2, [0, 2, 3]), (1, [1, 2, 3]), (2, [0, 2, 1, 3]), (3, [0, 1, 1, 2, 3])):
        path.write_bytes(b"".join(whole[i] for i in kept))
        with pytest.raises(
            JournalError,
            match=f"line {number} is damaged .* {'no line before it' if number == 1 else f'lines 1 to {number - 1} are sound'}",
        ):
            list(read_journal(path))
        with pytest.raises(JournalError, match=f"line {number} is damaged"):
            Journal.open(path)
        assert path.read_bytes() == b"".join(whole[i] for i in kept)  # never repaired in silence


def test_a_line_cut_short_by_a_crash_is_dropped_with_a_notice_and_the_run_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = written(tmp_path / "run.jsonl", [{"n": 0}, {"n": 1}])
    whole = path.read_bytes()
    first, second = whole.splitlines(keepends=True)
    for kept in range(1, len(second)):
        path.write_bytes(first + second[:kept])
        assert lines(path) == [{"n": 0}]
        caplog.clear()
        with caplog.at_level(logging.WARNING), Journal.open(path) as journal:
            assert f"{kept} bytes of it are dropped" in caplog.text
            assert path.read_bytes() == first
            journal.append({"n": 1})
        assert path.read_bytes() == whole


def test_a_second_writer_is_refused_and_a_reader_is_not(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    with Journal.create(path) as journal:
        journal.append({"n": 0})
        with pytest.raises(JournalError, match="another process writes this journal"):
            Journal.open(path)
        assert lines(path) == [{"n": 0}]
        journal.append({"n": 1})
    with Journal.open(path) as journal:  # released
        assert journal.position.line == 2


def test_a_journal_is_created_once_and_in_a_folder_that_exists(tmp_path: Path) -> None:
    path = written(tmp_path / "run.jsonl", [{"n": 0}])
    with pytest.raises(JournalError, match="File exists; a journal needs a new file"):
        Journal.create(path)
    with pytest.raises(JournalError, match="No such file or directory"):
        Journal.create(tmp_path / "nowhere" / "run.jsonl")
    with pytest.raises(JournalError, match="No such file or directory"):
        list(read_journal(tmp_path / "missing.jsonl"))
    assert lines(path) == [{"n": 0}]


def test_syncing_every_line_writes_the_same_bytes(tmp_path: Path) -> None:
    path = written(tmp_path / "one.jsonl", [{"n": 0}, {"n": 1}])
    with Journal.create(tmp_path / "two.jsonl", fsync="always") as journal:
        journal.append({"n": 0})
        journal.append({"n": 1})
    assert (tmp_path / "two.jsonl").read_bytes() == path.read_bytes()


def test_going_on_from_an_earlier_line_is_written_down_and_supersedes_the_rest(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    with Journal.create(path) as journal:
        journal.append({"n": 0})
        position = journal.position
        journal.resume_from(position)  # at its end already
        assert journal.position == position
        journal.append({"n": 1})
        journal.resume_from(position)
        assert lines(path)[-1] == {"type": "resume", "line": 1, "digest": position.digest}
        for foreign, message in ((Position(9, "0" * 32), "has fewer lines"), (Position(2, "0" * 32), "differs there")):
            with pytest.raises(StateMismatchError, match=f"taken at line {foreign.line}, .* but the journal {message}"):
                journal.resume_from(foreign)
        assert journal.position.line == 3


# A power cut.


def test_a_state_names_no_line_that_a_power_cut_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a cut the file has what was flushed, and every state goes on from there, to the letter."""
    run, path = curriculum(3), tmp_path / "run.jsonl"
    flushed: list[int] = []  # bytes
    monkeypatch.setattr(os, "fsync", lambda _: flushed.append(path.stat().st_size))
    taken: list[tuple[dict[str, Any], bytes]] = []
    with Journal.create(path) as journal:
        walk = Walk(run, journal=journal)
        for step in range(60):
            drive(walk, step + 1, since=step)
            assert flushed[-1] < path.stat().st_size  # the report
            state = json.loads(json.dumps(walk.state_dict()))
            taken.append((state, path.read_bytes()[: flushed[-1]]))
        reference = drive(walk, 90, since=60)
    for state, kept in taken:
        path.write_bytes(kept)
        with Journal.open(path) as journal:
            Walk(run, journal=journal).load_state_dict(state)
            assert path.read_bytes() == kept
    with Journal.open(path) as journal:
        restored = Walk(run, journal=journal)
        restored.load_state_dict(state)
        assert same_phases(drive(restored, 90, since=60), reference)
    path.write_bytes(kept[: len(kept) // 2].rsplit(b"\n", 1)[0] + b"\n")
    with Journal.open(path) as journal, pytest.raises(StateMismatchError, match="but the journal has fewer lines"):
        Walk(run, journal=journal).load_state_dict(state)


def test_a_report_that_the_disk_does_not_take_is_told_as_a_state_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: int) -> None:
        raise OSError(5, "Input/output error")

    with Journal.create(tmp_path / "run.jsonl") as journal:
        walk = Walk(curriculum(3), journal=journal)
        drive(walk, 3)
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", broken)
            for _ in range(2):
                with pytest.raises(JournalError, match="cannot be flushed to disk: Input/output error"):
                    walk.state_dict()
        assert walk.state_dict()["journal"] == list(journal.position)


# A disk that is full.

FULL_DISK = """
    import resource, sys
    from mixer.errors import JournalError
    from mixer.journal import Journal
    from mixer.walk import Walk
    from tests.support.curricula import batch_counts, curriculum, drive, noisy_losses

    path, run, refused = sys.argv[1], curriculum(5, seed=4), 0
    journal = Journal.create(path)
    walk = Walk(run, journal=journal)

    def state_and_file():
        return repr(walk.state_dict()), open(path, "rb").read()

    def refuses(action, room):
        before = state_and_file()
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before[1]) + room, resource.RLIM_INFINITY))
        try:
            action()
        except JournalError as error:
            assert "File too large" in str(error) and "nothing was decided" in str(error), error
        else:
            raise AssertionError("the limit was not met")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        assert state_and_file() == before

    for step in range(150):
        room = (step * 13) % 90  # from not a byte to most of a line
        if step == walk.frontier:
            refuses(lambda: walk.phase_at(step), room)
        phase = walk.phase_at(step)
        losses = noisy_losses(run, step, batch_counts(run, phase, step))
        if step % 10 == 0:
            refuses(lambda: walk.report(step, losses), room)
        assert walk.report(step, losses)
    print(repr(walk.state_dict()["phases"]), repr(walk.state_dict()["policy"]))
"""


def test_a_full_disk_decides_nothing_and_after_room_is_made_the_walk_is_the_same(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(FULL_DISK), str(path)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    walk = Walk(curriculum(5, seed=4))
    drive(walk, 150)
    state = walk.state_dict()
    assert done.stdout.strip() == f"{state['phases']!r} {state['policy']!r}"
    with Journal.create(tmp_path / "roomy.jsonl") as journal:
        drive(Walk(curriculum(5, seed=4), journal=journal), 150)
    assert path.read_bytes() == (tmp_path / "roomy.jsonl").read_bytes()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no device that is always full")
def test_a_journal_on_a_full_device_says_so() -> None:
    with Journal(Path("/dev/full"), os.O_WRONLY, fsync="never") as journal:
        with pytest.raises(JournalError, match="No space left on device; .* make room and call again"):
            journal.append({"n": 0})
        assert journal.position.line == 0


# What a walk writes.


def recorded(path: Path, **fields: Any) -> tuple[list[dict[str, Any]], list[Phase]]:
    """Return the lines and phases of a short run with warmup and pivots."""
    run = curriculum(
        4,
        floors={"source-0": 0.2},
        curriculum_warmup_steps=50,
        curriculum_warmup_sources=["source-0", "source-1"],
        pivots=[{"name": "polish", "at_step": 100, "floors": {"source-3": 0.3}, "exclude": ["source-2"]}],
        feedback_lag=5,
        phases={"initial_random": 1, "random_probability": 0.2},
        **fields,
    )
    with Journal.create(path) as journal:
        phases = drive(Walk(run, journal=journal), 200)
    return lines(path), list(dict.fromkeys(phases))


def test_a_phase_line_holds_the_phase_and_why_it_was_chosen(tmp_path: Path) -> None:
    records, phases = recorded(tmp_path / "run.jsonl")
    found = [record for record in records if record["type"] == "phase"]
    assert len(found) == len(phases)
    before = np.full(4, 0.25)
    run_lines = iter(records)
    for record, phase in zip(found, phases, strict=True):
        for name in ("index", "start", "length", "kind", "regime"):
            assert record[name] == getattr(phase, name)
        for name in ("weights", "drawn", "owed"):
            assert record[name] == getattr(phase, name).tolist()
        assert record["before"] == before.tolist()
        assert record["probability_random"] == (1.0 if phase.index == 0 else 0.2)
        assert record["boundary"] == next((step for step in (50, 100) if step > phase.start), None)
        begins = phase.start in (0, 50, 100)
        assert (record["region"] is not None) == begins
        assert (record["landed"] is not None) == begins
        landed = np.array(record["landed"]) if begins else before
        if begins:
            assert record["distance"] == pytest.approx(np.linalg.norm(landed - before))
            assert record["region"]["regime"] == phase.regime
            assert all(np.array(record["region"]["lower"]) <= landed + 1e-12)
        if phase.kind == "bandit":
            step = 0.7 * landed + 0.3 * np.array(record["vertex"])
            np.testing.assert_allclose(record["weights"], step, atol=1e-12)
            assert set(record["parts"]) == {"slope", "width", "repetition", "tokens", "index"}
        else:
            assert record["vertex"] is None
            assert record["parts"] == {}
        assert sum(record["counts"]) == 8 * phase.length
        learned = [line for line in _until(run_lines, record) if line["type"] == "feedback"]
        assert len(learned) == (phases[phase.index - 1].length if phase.index else 0)  # reported between the two
        before = phase.weights
    assert [record["log_volume"] for record in found if record["start"] in (0, 50, 100)] == [
        pytest.approx(np.log(volume)) for volume in (0.8, 0.8**3 / 6, 0.7**2 / 2)
    ]


@pytest.mark.parametrize(("policy", "chance"), [("static", 0.0), ("odm", 0.0), ("random", 1.0)])
def test_a_policy_that_never_or_always_teleports_says_so_as_a_probability(
    tmp_path: Path, policy: str, chance: float
) -> None:
    with Journal.create(tmp_path / "run.jsonl") as journal:
        phases = drive(Walk(curriculum(3, policy=policy), journal=journal), 100)
    assert {r["probability_random"] for r in lines(tmp_path / "run.jsonl") if r["type"] == "phase"} == {chance}
    assert {phase.kind == "random" for phase in phases} == {chance == 1.0}


def _until(records: Any, last: dict[str, Any]) -> list[dict[str, Any]]:
    taken = []
    for record in records:
        taken.append(record)
        if record is last or record == last:
            break
    return taken


def test_the_feedback_of_a_phase_line_sums_what_it_learned_from(tmp_path: Path) -> None:
    records, phases = recorded(tmp_path / "run.jsonl")
    used_before = 0
    for record in (record for record in records if record["type"] == "phase"):
        usable = max(0, record["start"] - 5)  # the lag
        used = [line for line in records if line["type"] == "feedback" and used_before <= line["step"] < usable]
        used_before = usable
        if not used:
            assert record["feedback"] is None
            continue
        summary = record["feedback"]
        assert summary["reports"] == len(used)
        assert (summary["first_step"], summary["last_step"]) == (used[0]["step"], used[-1]["step"])
        assert summary["delay"] == record["start"] - used[-1]["step"] == 6
        for name in ("rows", "tokens", "loss_sums", "square_sums"):
            total = np.zeros(4)
            for line in used:
                total[line["sources"]] += line[name]
            np.testing.assert_allclose(summary[name], total[summary["sources"]])
            assert (np.delete(total, summary["sources"]) == 0).all()
    assert len(phases) > 5


def test_the_header_holds_the_whole_curriculum_and_who_wrote_it(tmp_path: Path) -> None:
    header = recorded(tmp_path / "run.jsonl", seed=9)[0][0]
    assert header["type"] == "header"
    assert header["version"] == 2
    assert header["curriculum"]["seed"] == 9
    assert header["libraries"]["numpy"] == np.__version__
    assert Curriculum(**header["curriculum"]).fingerprint == header["fingerprint"]


def test_a_restored_walk_writes_where_it_goes_on_from(tmp_path: Path) -> None:
    run, path = curriculum(3), tmp_path / "run.jsonl"
    with Journal.create(path) as journal:
        walk = Walk(run, journal=journal)
        drive(walk, 40)
        state = json.loads(json.dumps(walk.state_dict()))
        reference = drive(walk, 120, since=40)
    first = lines(path)
    with Journal.open(path) as journal:
        restored = Walk(run, journal=journal)
        restored.load_state_dict(state)
        assert same_phases(drive(restored, 120, since=40), reference)
    found = lines(path)
    line = state["journal"][0]
    assert found[: len(first)] == first
    assert found[len(first)] == {"type": "resume", "line": line, "digest": state["journal"][1]}
    assert found[len(first) + 1 :] == first[line:]  # what was superseded was decided again, alike


def test_a_walk_that_begins_again_on_its_journal_supersedes_all_but_the_header(tmp_path: Path) -> None:
    run, path = curriculum(3), tmp_path / "run.jsonl"
    with Journal.create(path) as journal:
        reference = drive(Walk(run, journal=journal), 60)
    first = lines(path)
    with Journal.open(path) as journal:
        again = Walk(run, journal=journal)
        state = again.state_dict()  # of the beginning, not of the journal's end
        assert lines(path) == first  # nothing is written until something happens
        assert same_phases(drive(again, 60), reference)
        again.load_state_dict(state)
        assert lines(path)[-1] == lines(path)[len(first)]
    assert lines(path)[len(first)]["line"] == 1
    assert lines(path)[len(first) + 1 : -1] == first[1:]


def test_the_journal_of_another_curriculum_is_refused_naming_both(tmp_path: Path) -> None:
    run, other, path = curriculum(3), curriculum(3, seed=1), tmp_path / "run.jsonl"
    with Journal.create(path) as journal:
        drive(Walk(run, journal=journal), 20)
    with Journal.open(path) as journal:
        with pytest.raises(StateMismatchError, match=f"{run.fingerprint}.*{other.fingerprint}"):
            Walk(other, journal=journal)
        unrecorded = Walk(run)
        drive(unrecorded, 20)
        with pytest.raises(StateMismatchError, match="taken without a journal, so this journal cannot follow"):
            Walk(run, journal=journal).load_state_dict(unrecorded.state_dict())


@given(curricula())
@settings(max_examples=15)
def test_a_journal_changes_no_decision(tmp_path_factory: pytest.TempPathFactory, run: Any) -> None:
    with Journal.create(tmp_path_factory.mktemp("journal") / "run.jsonl") as journal:
        assert same_phases(drive(Walk(run, journal=journal), 60), drive(Walk(run), 60))


# The document.


def documented() -> dict[str, set[str]]:
    """Return the fields that docs/journal.md describes, by section; nested ones as ``phase.parts``."""
    fields: dict[str, set[str]] = {}
    section = ""
    for line in DOCS.read_text(encoding="utf-8").splitlines():
        if line.startswith("## "):
            section = line[3:]
        nested = re.match(r"^\| `(\w+)` \| meaning \|$", line)
        if nested or line == "| field | meaning |":
            table = f"{section}.{nested[1]}" if nested else section
            fields[table] = set()
        elif match := re.match(r"^\| `(\w+)` \| \S", line):
            fields[table].add(match[1])
    return fields


def test_every_field_that_is_written_is_documented_and_no_other(tmp_path: Path) -> None:
    found: dict[str, set[str]] = {}
    for i, policy in enumerate(POLICIES):
        path = tmp_path / f"{i}.jsonl"
        with Journal.create(path) as journal:
            decay = {"eta_decay": "linear"} if policy["name"] in ("ucb", "andrea") else {}
            run = curriculum(3, policy={**policy, **decay}, phases={"initial_random": 1}, max_epochs=100)
            walk = Walk(run, journal=journal)
            state = walk.state_dict()
            drive(walk, 120, late=ragged)
            walk.pivot(Pivot(name="live", floors={"source-0": 0.5}))
            drive(walk, 200, since=120, late=ragged)
            walk.load_state_dict(state)
            walk.phase_at(0)
        for record in read_journal(path):
            found.setdefault(record["type"], set()).update(set(record) - {"type", "number"})
            if record["type"] == "phase":
                for name in ("parts", "region", "feedback", "epochs"):
                    found.setdefault(f"phase.{name}", set()).update(record.get(name) or {})
    written = {"source-0": 0.5, "source-1": 0.5}
    with Journal.create(tmp_path / "written.jsonl") as journal:
        walk = Walk(curriculum(3), journal=journal)
        for step, pivot in (
            (20, Pivot(name="a", weights=written, ramp_steps=50)),
            (80, Pivot(name="b", policy="linear")),
        ):
            walk.phase_at(step)
            walk.pivot(pivot)
        walk.phase_at(150)
    for record in lines(tmp_path / "written.jsonl"):
        if record["type"] in ("phase", "pivot"):
            found[record["type"]].update(set(record) - {"type", "number", "chain"})
            found.setdefault("phase.rule", set()).update(record.get("rule") or {})
    run = curriculum(3)
    with Journal.create(tmp_path / "parent.jsonl") as journal:
        drive(Walk(run, journal=journal), 60)
        fork(journal.path, Replay(journal.path).frontier, run, tmp_path / "fork.jsonl")
    forked = lines(tmp_path / "fork.jsonl")
    found["header.parent"], found["fork"] = set(forked[0]["parent"]), set(forked[-1]) - {"type"}
    with Journal.create(tmp_path / "sizes.jsonl") as journal:
        sources = [{"name": "a", "local": "topics"}]
        walk = Walk(curriculum(1, sources=sources), journal=journal)
        walk.learn_unique_tokens("a", 5)
        walk.note_skipped("a", "a.jsonl, line 3: not JSON")
    *_, size, skipped = lines(tmp_path / "sizes.jsonl")
    found["unique_tokens"], found["skipped"] = set(size) - {"type"}, set(skipped) - {"type"}
    found["probe"] = set(ProbeLine.model_fields) - {"type", "at", "number"}  # tests/walk/test_probes.py answers some
    found["phase"].add("probes")
    found["fork"] = set(ForkLine.model_fields) - {"type", "at", "number"}  # tests/replay/test_replay.py forks
    found["header.parent"] = set(Parent.model_fields)
    found["alarm"] = set(AlarmLine.model_fields) - {"type", "at", "number"}  # tests/walk/test_guard.py raises some
    found["phase.parts"].add("alarm")
    assert documented() == {**found, "Every line": {"type", "at", "number", "chain"}}


def test_reports_are_written_as_they_came(tmp_path: Path) -> None:
    run = curriculum(3)
    with Journal.create(tmp_path / "run.jsonl") as journal:
        walk = Walk(run, journal=journal)
        rows = batch_counts(run, walk.phase_at(4), 4)
        losses = noisy_losses(run, 4, rows)
        assert walk.report(4, losses)
        assert not walk.report(4, losses)
    (record,) = [record for record in lines(tmp_path / "run.jsonl") if record["type"] == "feedback"]
    seen = rows > 0
    assert record["step"] == 4
    assert record["loss_sums"] == losses.on_grid().loss_sums[seen].tolist()
    assert record["rows"] == rows[seen].tolist()


def test_a_walk_goes_no_further_while_its_journal_is_moved_away_wherever_the_process_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    run, path = curriculum(3), Path("run.jsonl")
    with Journal.create(path) as journal:
        walk = Walk(run, journal=journal)
        monkeypatch.chdir(tmp_path / "elsewhere")
        drive(walk, 20)  # the path was of another folder
        state = walk.state_dict()
        (tmp_path / path).rename(tmp_path / "aside")
        with pytest.raises(JournalError, match=r"^run\.jsonl: No such file .* put the file back as it was"):
            walk.phase_at(walk.frontier)
        assert walk.state_dict() == state
        (tmp_path / "aside").rename(tmp_path / path)
        drive(walk, 60, since=20)
    assert audit(tmp_path / path).difference is None
