"""A journal as evidence: lines that no walk writes, files that are none, branches gone back to, and what is flushed."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixer.analysis.explain import explain
from mixer.errors import JournalError
from mixer.journal.file import Journal, history_spans, read_history, read_journal
from mixer.journal.schema import MODELS
from mixer.journal.tables import read_tables
from mixer.losses import SourceLosses
from mixer.replay.diff import compare
from mixer.replay.fork import fork
from mixer.replay.replay import Replay
from mixer.replay.verify import audit
from mixer.walk.walk import Walk
from tests.support.curricula import batch_counts, curriculum, drive, noisy_losses, same_phases

DOCS = Path(__file__).parents[2] / "docs"
READERS: dict[str, Callable[[Path], object]] = {
    "replay": audit,
    "delivery": Replay,
    "diff": lambda path: compare(path, path),
    "fork": lambda path: fork(path, 60, curriculum(4), path.with_name("fork.jsonl")),
    "explain": lambda path: explain(path, 10),
    "effects": read_tables,
}


@pytest.fixture
def recorded(tmp_path: Path) -> Path:
    """A short run of the default policy with a warmup and a pivot."""
    run = curriculum(
        4,
        seed=3,
        floors={"source-0": 0.2},
        curriculum_warmup_steps=50,
        curriculum_warmup_sources=["source-0", "source-1"],
        pivots=[{"name": "polish", "at_step": 100, "floors": {"source-3": 0.3}}],
        feedback_lag=5,
        phases={"initial_random": 2, "random_probability": 0.2},
    )
    with Journal.create(tmp_path / "run.jsonl") as journal:
        drive(Walk(run, journal=journal), 200)
    return tmp_path / "run.jsonl"


def rewritten(path: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> Path:
    """Write a journal again, chain and all, with each line changed."""
    out = path.with_name(f"edited-{path.name}")
    with Journal.create(out, fsync="never") as journal:
        for record in read_journal(path):
            journal.append(change({key: value for key, value in record.items() if key != "number"}))
    return out


PIVOT = {"type": "pivot", "name": "x", "decided_before": 0, "floors": None, "caps": None, "exclude": None}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r | {"rank": -1}, r"line \d+, rank: Input should be greater than or equal to 0, got -1"),
        (lambda r: r | {"loss_sums": [-1.0] * len(r["rows"])}, r"never accepted by a walk: .*loss of .* is -1\.0"),
        (lambda r: r | {"step": 10**6}, "never accepted by a walk: feedback for step 1000000"),
        (lambda r: r | {"rows": [2**63] * len(r["rows"])}, "never accepted by a walk: .*too large"),
        (lambda r: r | {"tokens": [float(value) for value in r["tokens"]]}, r"line \d+, tokens.0: .* valid integer"),
        (lambda r: r | {"sources": list(range(9, 9 + len(r["rows"])))}, "never accepted by a walk"),
        (lambda r: r | {"sources": [9] * len(r["rows"])}, r"line \d+: the arrays have lengths"),
        (lambda r: r | {"step": 0, "rank": 0}, r"line \d+ says again what an earlier line said"),
        (lambda r: r | {"type": "header"}, r"line \d+, version: Field required"),
        (lambda r: r | {"type": "epoch"}, r"line \d+ has type 'epoch'; known are header, phase"),
        (lambda r: PIVOT | {"at_step": 1}, "never accepted by a walk: pivot x at step 1"),
        (
            lambda r: {"type": "unique_tokens", "source": "nobody", "tokens": 4, "decided_before": 0},
            "never accepted by a walk: unknown source 'nobody'",
        ),
        (
            lambda r: {"type": "resume", "line": 900_000, "digest": "0" * 32},
            "goes on from line 900000, which is not a line before it",
        ),
        (
            lambda r: {"type": "resume", "line": 4, "digest": "0" * 32},
            "goes on from line 4 with digest 0+, but that line has",
        ),
    ],
)
def test_lines_that_no_walk_writes_are_refused_by_their_number(
    recorded: Path, change: Callable[[dict[str, Any]], dict[str, Any]], message: str
) -> None:
    edited = rewritten(recorded, lambda r: change(r) if r["type"] == "feedback" and r["step"] == 30 else r)
    with pytest.raises(JournalError, match=message):
        audit(edited)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no whole line"),
        (b'{"type":"header"', "no whole line"),
        (b"\x00\xff\x89PNG\n\x1a\n", "line 1 is damaged or this is not a journal"),
    ],
    ids=["empty", "torn", "binary"],
)
def test_whoever_reads_it_says_what_an_empty_a_torn_and_a_foreign_file_are(
    tmp_path: Path, reader: str, content: bytes, message: str
) -> None:
    (tmp_path / "run.jsonl").write_bytes(content)
    with pytest.raises(JournalError, match=message):
        READERS[reader](tmp_path / "run.jsonl")
    (tmp_path / "run.jsonl").unlink()
    with pytest.raises(JournalError, match="No such file"):
        READERS[reader](tmp_path / "run.jsonl")


def with_curriculum(change: dict[str, Any], record: dict[str, Any]) -> dict[str, Any]:
    return record | {"curriculum": record["curriculum"] | change} if record["type"] == "header" else record


def test_a_header_whose_curriculum_cannot_be_run_says_why(recorded: Path) -> None:
    edited = rewritten(recorded, functools.partial(with_curriculum, {"total_steps": "many"}))
    with pytest.raises(JournalError, match="the curriculum in the header cannot be run by this release: .*total_steps"):
        audit(edited)


def test_a_history_that_cannot_be_recomputed_is_not_forked(recorded: Path) -> None:
    run = Replay(recorded).curriculum
    edited = rewritten(recorded, lambda r: r | {"log_volume": 7.0} if r["type"] == "phase" else r)
    out = recorded.with_name("fork.jsonl")
    step = Replay(recorded).phases[5].start
    with pytest.raises(JournalError, match=r"line 2 .*log_volume is 7.0, recomputed .* `mixer replay` says more"):
        fork(edited, step, run, out)
    assert not out.exists()


def test_a_run_may_go_back_to_a_branch_that_was_superseded(tmp_path: Path) -> None:
    path, run = tmp_path / "run.jsonl", curriculum(3, seed=8)
    with Journal.create(path) as journal:
        walk = Walk(run, journal=journal)
        early = walk.state_dict()
        drive(walk, 30)
        late = walk.state_dict(from_step=0)
        walk.load_state_dict(early)
        drive(walk, 10)
        walk.load_state_dict(late)  # of the branch that was left
        phases = drive(walk, 60, since=30)
    assert audit(path).difference is None
    assert audit(path).resumes == 2
    replay = Replay(path)
    assert same_phases([replay.phase_at(step) for step in range(30, 60)], phases)
    kept = [record["number"] for record in read_history(path)]
    assert kept == [number for span in history_spans(path) for number in range(span.first, span.last + 1)]
    whole = path.read_bytes()
    numbers = [line["number"] for span in history_spans(path) for line in _parsed(whole[span.start : span.end])]
    assert numbers == kept  # bytes and numbers are of the same lines


def _parsed(content: bytes) -> list[dict[str, Any]]:
    import orjson

    return [orjson.loads(line) for line in content.splitlines()]


def test_reports_of_several_ranks_that_overtake_each_other_are_replayed(tmp_path: Path) -> None:
    run = curriculum(3)
    with Journal.create(tmp_path / "w") as journal:
        walk = Walk(run, journal=journal)
        for step in range(60):
            rows = batch_counts(run, walk.phase_at(step), step)
            told = noisy_losses(run, step, rows)
            for rank in (1, 0) if step % 2 else (0, 1):
                mine = rows // 2 if rank else rows - rows // 2
                share = mine / np.maximum(rows, 1)
                walk.report(step, SourceLosses(mine, mine * run.sequence_length, told.loss_sums * share, rank=rank))
    verdict = audit(tmp_path / "w")
    assert verdict.difference is None
    assert verdict.reports == 120


def test_walks_over_other_sources_are_aligned_by_name_and_one_without_a_phase_is_compared_too(tmp_path: Path) -> None:
    for path, num, steps in (("a.jsonl", 2, 40), ("b.jsonl", 3, 40), ("c.jsonl", 3, 0)):
        with Journal.create(tmp_path / path) as journal:
            drive(Walk(curriculum(num, policy="static"), journal=journal), steps)
    found = compare(tmp_path / "a.jsonl", tmp_path / "b.jsonl")
    assert found["sources"] == ["source-0", "source-1", "source-2"]
    assert found["spans"][0]["l1"] == pytest.approx(2 / 3)  # a third of the rows moved
    assert not found["is_same"]
    empty = compare(tmp_path / "b.jsonl", tmp_path / "c.jsonl")
    assert (empty["first_difference"], empty["is_same"], empty["spans"], empty["mean_l1"]) == (None, False, [], 0.0)


@given(st.lists(st.integers(1, 3000), min_size=1, max_size=30), st.data())
@settings(max_examples=30)
def test_every_line_is_found_by_its_number_whatever_the_lengths(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("lines") / "run.jsonl"
    with Journal.create(path, fsync="never") as journal:
        for length in lengths:
            journal.append({"x": "y" * length})
        number = data.draw(st.integers(1, len(lengths)))
        record = journal.record_at(number)
        assert record is not None
        assert (record["number"], len(record["x"])) == (number, lengths[number - 1])
        for absent in (0, -1, len(lengths) + 1):
            assert journal.record_at(absent) is None


def test_the_disk_is_flushed_as_the_setting_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: list[int] = []
    monkeypatch.setattr("mixer.journal.file.os.fsync", flushed.append)
    counts = {}
    for fsync in ("never", "phase", "always"):
        flushed.clear()
        with Journal.create(tmp_path / f"{fsync}.jsonl", fsync=fsync) as journal:  # type: ignore[arg-type]
            walk = Walk(curriculum(3), journal=journal)
            drive(walk, 60)
            before = len(flushed)
            walk.state_dict()
            walk.state_dict()
            counts[fsync] = (before, len(flushed) - before)
            phases = sum(record["type"] == "phase" for record in journal.records())
            lines = journal.position.line
    assert counts["never"] == (0, 0)
    assert counts["phase"] == (1 + 1 + phases, 1)  # the folder, the header, each phase; a state's reports, once
    assert counts["always"] == (1 + lines, 0)


def test_a_file_without_line_feeds_does_not_fill_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mixer.journal.scan.MAX_LINE_BYTES", 1000)
    monkeypatch.setattr("mixer.journal.file.MAX_LINE_BYTES", 1000)
    path = tmp_path / "run.jsonl"
    path.write_bytes(b"\0" * 5000)
    with pytest.raises(JournalError, match="line 1 is longer than 1000 bytes; this is not a journal"):
        list(read_journal(path))
    path.unlink()
    with Journal.create(path) as journal, pytest.raises(JournalError, match="a line of .* bytes; lines hold at most"):
        journal.append({"x": "y" * 2000})


def test_the_document_says_of_every_field_what_its_model_says() -> None:
    text = (DOCS / "journal.md").read_text(encoding="utf-8")
    missing = [
        f"{model.__name__}.{name}"
        for model in MODELS.values()
        for name, field in model.model_fields.items()
        if name not in ("type", "number") and f"| `{name}` | {field.description} |" not in text
    ]
    assert missing == []
