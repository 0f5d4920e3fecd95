"""What a report may say: all that a batch can hold and nothing else, and whatever was written can be read again."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixer.analysis.explain import explain
from mixer.errors import FeedbackError, InvalidLossError, MixerError, RepeatedRowsError
from mixer.journal.file import Journal, read_journal
from mixer.losses import SourceLosses
from mixer.replay.replay import Replay
from mixer.replay.verify import audit
from mixer.sampling.phases import Phase
from mixer.types import IntArray
from mixer.walk.limits import Limits
from mixer.walk.reports import ReportSum
from mixer.walk.walk import Walk
from tests.support.curricula import batch_counts, curriculum, drive, noisy_losses, same_phases
from tests.support.strategies import source_names

STEP = 5
NAMES = source_names(3)

any_float = st.one_of(
    st.floats(),
    st.sampled_from([1e304, 1e302, 1e308, 5e-324, -0.0, 1e16, 1e9, math.inf, math.nan, -1.0]),
    st.floats(0, 200),
)
any_count = st.one_of(
    st.integers(0, 8), st.integers(0, 64), st.sampled_from([2**31, 2**53, 2**63 - 1, 2**63, 2**64, 9 * 10**15, -1])
)


@st.composite
def any_tables(draw: st.DrawFn) -> dict[str, Any]:
    """What a trainer, or somebody with its token, may say of three sources: some of it likely, some of it wild."""
    tables: dict[str, Any] = {}
    for name, values in (
        ("rows", any_count),
        ("tokens", any_count),
        ("loss_sums", any_float),
        ("square_sums", any_float),
    ):
        if draw(st.integers(0, 3)) == 0:
            tables[name] = draw(st.lists(values, min_size=3, max_size=3))
    factor = draw(st.sampled_from([0.0, 1.0, 5e-324, 100.0, 1e5, 1e304]))
    return {**tables, "rank": draw(st.sampled_from([0, 0, 0, 1, 7, 8, 2**40, 2**70])), "factor": factor}


def told(walk: Walk, step: int, **tables: Any) -> SourceLosses:
    """Return what a trainer says of a step, its losses multiplied and some of its tables replaced."""
    factor = np.float64(tables.pop("factor", 1.0))
    losses = noisy_losses(walk.curriculum, step, batch_counts(walk.curriculum, walk.phase_at(step), step))
    with np.errstate(over="ignore", invalid="ignore"):
        losses = replace(losses, loss_sums=losses.loss_sums * factor, square_sums=losses.square_sums * factor**2)
    usual = {name: getattr(losses, name) for name in ("rows", "tokens", "loss_sums", "square_sums")}
    return SourceLosses(**{**usual, **tables})


def rest_of(walk: Walk, since: int) -> list[Phase]:
    """Train on from a step to 60."""
    return drive(walk, 60, since=since)


@given(any_tables(), st.sampled_from([{"name": "ucb"}, {"name": "odm"}, {"name": "andrea"}]), st.sampled_from([0, 12]))
@settings(max_examples=150)
def test_a_report_is_refused_before_anything_is_written_or_the_run_can_be_stopped_opened_replayed_and_explained(
    tables: dict[str, Any], policy: dict[str, Any], lag: int
) -> None:
    run = curriculum(3, policy=policy, feedback_lag=lag, phases={"initial_random": 1})
    with TemporaryDirectory() as folder:
        path = Path(folder) / "run.jsonl"
        with Journal.create(path, fsync="never") as journal:
            walk = Walk(run, journal=journal)
            drive(walk, STEP)
            walk.phase_at(STEP)
            before, content = walk.state_dict(), path.read_bytes()
            try:
                is_new = walk.report(STEP, told(walk, STEP, **tables))
            except FeedbackError:
                assert walk.state_dict() == before
                assert path.read_bytes() == content
                assert walk.report(STEP, told(walk, STEP))  # it can still be told rightly
                return
            assert is_new
            stopped = json.loads(json.dumps(walk.state_dict(can_undo=True), allow_nan=False))
            same = Walk(run)
            same.load_state_dict({**stopped, "journal": None})
            assert same_phases(rest_of(same, STEP + 1), rest_of(walk, STEP + 1))
        assert "null" not in [line for line in path.read_text().splitlines() if '"feedback"' in line][STEP]
        assert audit(path).difference is None
        assert explain(path, 40)["words"]
        with Journal.open(path, fsync="never") as journal:
            again = Walk(run, journal=journal)
            again.load_state_dict(stopped)
            assert same_phases(rest_of(again, STEP + 1), [*map(Replay(path).phase_at, range(STEP + 1, 60))])


@pytest.mark.parametrize(
    ("tables", "error", "message"),
    [
        (
            {"rows": [9 * 10**15] * 3, "tokens": [9 * 10**15] * 3},
            FeedbackError,
            "9000000000000000 rows of source-0.* has 8 in",
        ),
        ({"tokens": [10**12] * 3}, FeedbackError, r"1000000000000 tokens in \d rows of source-0, but a row has 4 "),
        (
            {"loss_sums": [1e304, 0, 0]},
            InvalidLossError,
            r"source-0 reports a loss of \S+ nats a token \(1e\+304 over ",
        ),
        ({"factor": 1e9}, InvalidLossError, r"and at most 501\.\d+ are believed, 100 times ln\(vocabulary\)"),
        (
            {"square_sums": [1e302, 0, 0]},
            FeedbackError,
            r"source-0 reports 1e\+302 for the sum over rows of the squared",
        ),
        (
            {"square_sums": [1e-9, 0, 0]},
            FeedbackError,
            "source-0 reports 1e-09 for the sum over rows of the squared mean",
        ),
        ({"rows": [2**64] * 3}, FeedbackError, r"they are whole numbers, at most 2\^53"),
        ({"rank": 8}, FeedbackError, "rank 8 reports, but 8 rows have no more ranks"),
    ],
)
def test_what_no_batch_holds_is_refused_with_its_value_and_the_bound(
    tables: dict[str, Any], error: type[MixerError], message: str
) -> None:
    walk = Walk(curriculum(3, vocab_size=150, floors={"source-0": 0.4}))
    drive(walk, STEP)
    walk.phase_at(STEP)
    with pytest.raises(error, match=message):
        walk.report(STEP, told(walk, STEP, **tables))
    assert walk.report(STEP, told(walk, STEP))
    with pytest.raises(MixerError):
        Replay.report(_replayed(walk), STEP, told(walk, STEP, factor=1e9))


def _replayed(walk: Walk) -> Any:
    """A record in the place of a walk, as far as ``Replay.report`` looks at it."""

    class Record:
        curriculum, names, phase_at = walk.curriculum, walk.names, walk.phase_at

    return Record


@given(st.data())
def test_pieces_of_a_batch_are_taken_in_any_cut_and_order_and_never_a_row_too_many(data: st.DataObject) -> None:
    walk = Walk(curriculum(3))
    walk.phase_at(0)
    drawn = batch_counts(walk.curriculum, walk.phase_at(0), 0)
    sources = np.repeat(np.arange(3), drawn)
    ranks = np.array(data.draw(st.lists(st.integers(0, 6), min_size=8, max_size=8)))
    left = drawn.copy()
    for rank in data.draw(st.permutations(range(7))):
        mine = np.bincount(sources[ranks == rank], minlength=3)
        for extra in range(3):
            more = mine + np.eye(3, dtype=np.int64)[extra]
            if more[extra] > left[extra]:
                expected = RepeatedRowsError if more[extra] <= drawn[extra] else FeedbackError
                with pytest.raises(expected):
                    walk.report(0, part_of(walk, more, rank))
        if data.draw(st.booleans()):
            state = json.loads(json.dumps(walk.state_dict()))
            walk = Walk(walk.curriculum)
            walk.load_state_dict(state)
        assert walk.report(0, part_of(walk, mine, rank))
        left = left - mine
    assert not left.any()


def part_of(walk: Walk, rows: IntArray, rank: int) -> SourceLosses:
    return replace(noisy_losses(walk.curriculum, 0, rows), rank=rank)


def test_a_trainer_that_draws_for_itself_may_report_other_rows_but_not_more_than_a_batch() -> None:
    walk = Walk(curriculum(3))
    drawn = batch_counts(walk.curriculum, walk.phase_at(0), 0)
    other = np.roll(drawn, 1) if (np.roll(drawn, 1) != drawn).any() else drawn
    one_more = other + np.array([1, 0, 0])
    with pytest.raises(FeedbackError, match="step 0 reports 9 rows, but its batch has 8"):
        walk.report(0, part_of(walk, one_more, 0), has_own_draws=True)
    half = other // 2
    assert walk.report(0, part_of(walk, half, 0), has_own_draws=True)
    with pytest.raises(RepeatedRowsError, match=rf"reports 8 rows more, but {half.sum()} of the 8 rows"):
        walk.report(0, part_of(walk, other, 1), has_own_draws=True)
    assert walk.report(0, part_of(walk, other - half, 1), has_own_draws=True)


@pytest.mark.parametrize(
    ("fields", "nats"),
    [
        ({"vocab_size": 50_000}, 1082.0),
        ({"tokenizer": {"train_vocab_size": 300}}, 570.4),
        ({}, 2218.1),
        ({"vocab_size": 1}, 69.3),
    ],
)
def test_the_largest_loss_follows_from_the_vocabulary(fields: dict[str, Any], nats: float) -> None:
    assert Limits.of(curriculum(3, **fields)).nats == pytest.approx(nats, abs=0.1)


@given(
    st.lists(st.tuples(st.integers(1, 4), st.floats(0, 500)), min_size=1, max_size=8),
    st.sampled_from([1.0, 0.99, 1.01, 0.5, 2.0]),
)
def test_square_sums_of_real_rows_are_taken_whatever_is_masked(rows: list[tuple[int, float]], factor: float) -> None:
    run = curriculum(1, batch_rows=len(rows), vocab_size=150)
    walk = Walk(run)
    walk.phase_at(0)
    tokens, means = np.array(rows).T
    squares = np.array([(means**2).sum()]) * factor
    losses = SourceLosses([len(rows)], [tokens.sum()], [(tokens * means).sum()], squares)  # type: ignore[arg-type]
    if 0.99 <= factor <= 1.01:  # what rounding may do
        assert walk.report(0, losses)
    elif len(rows) == 1 and means[0] > 0.1:  # then they follow from the sum
        refused_squares = pytest.raises(FeedbackError, match="for the sum over rows of the squared mean loss of a row")
        with refused_squares:
            walk.report(0, losses)


numbers = st.floats(0, 1e300).map(lambda value: value if value == 0 or value > 1e-300 else 0.0)


@given(st.lists(st.lists(numbers, min_size=6, max_size=6), min_size=1, max_size=4), st.integers(1, 2**50))
def test_sums_of_any_size_wait_in_a_state_to_the_last_bit(values: list[list[float]], count: int) -> None:
    for step, row in enumerate(values):
        counts = np.full(3, count)
        losses = SourceLosses(counts, counts, np.array(row[:3]), np.array(row[3:])).on_grid()
        if np.isfinite(losses.loss_sums).all() and np.isfinite(losses.square_sums).all():
            back = ReportSum.of(json.loads(json.dumps(ReportSum(step, step, losses).to_record())), 3).losses
            for name in ("rows", "tokens", "loss_sums", "square_sums"):
                assert getattr(back, name).tobytes() == getattr(losses, name).tobytes()


@pytest.mark.parametrize("value", [1e9, 1e16, 1e30])
@pytest.mark.parametrize("lag", [0, 20])
def test_a_journal_from_before_there_were_bounds_opens_and_replays(tmp_path: Path, value: float, lag: int) -> None:
    run, path = curriculum(3, feedback_lag=lag, phases={"initial_random": 1}), tmp_path / "old.jsonl"
    with Journal.create(path) as journal:
        walk = Walk(run, journal=journal)
        drive(walk, STEP)
        beyond = told(walk, STEP, loss_sums=np.full(3, value), rows=np.full(3, 99), tokens=np.full(3, 10**12))
        assert walk.report(STEP, beyond, is_recorded=True)
        stopped = json.loads(json.dumps(walk.state_dict()))
        rest = rest_of(walk, STEP + 1)
    assert audit(path).difference is None
    assert explain(path, 50)["words"]
    with Journal.open(path) as journal:
        again = Walk(run, journal=journal)
        again.load_state_dict(stopped)
        assert same_phases(rest_of(again, STEP + 1), rest)
    assert [line["step"] for line in read_journal(path) if line["type"] == "feedback"].count(STEP) == 1


def test_one_report_cannot_turn_the_mixture_for_good() -> None:
    """The two reports of the issue: 10^12 tokens, and 10^9 nats a token."""
    run = curriculum(3, total_steps=2000)
    for wild in ({"tokens": [10**12] * 3}, {"factor": 1e9}):
        honest, attacked = Walk(run), Walk(run)
        expected = drive(honest, 200)
        drive(attacked, 50)
        attacked.phase_at(50)
        with pytest.raises(FeedbackError, match=re.escape("step 50")):
            attacked.report(50, told(attacked, 50, **wild))
        assert same_phases(drive(attacked, 200, since=50), expected[50:])


def test_each_of_as_many_ranks_as_there_are_rows_reports_its_own() -> None:
    walk = Walk(curriculum(3, floors={"source-0": 0.4}))
    drive(walk, STEP)
    walk.phase_at(STEP)
    sources = np.repeat(np.arange(3), batch_counts(walk.curriculum, walk.phase_at(STEP), STEP))
    assert sources.size == walk.curriculum.batch_rows
    for rank, source in enumerate(sources.tolist()):
        rows = np.zeros(3, dtype=np.int64)
        rows[source] = 1
        assert walk.report(STEP, part_of(walk, rows, rank))
