"""Reports on their way to a decision: accepted once, in any order, handed over in order."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixer.journal.records import losses_to_record, record_to_losses
from mixer.losses import SourceLosses
from mixer.walk.inbox import Inbox
from mixer.walk.reports import ReportSum
from tests.policies.test_rewards import losses_of, reports

keys = st.lists(st.tuples(st.integers(0, 12), st.integers(0, 2)), max_size=40)


def report(step: int, rank: int) -> SourceLosses:
    """Losses that tell which report they are of."""
    rows = np.array([step + 1])
    return SourceLosses(rows=rows, tokens=rows, loss_sums=np.array([step + rank / 8]), rank=rank)


def filled(
    arrivals: list[tuple[int, int]], *, is_by_step: bool = True, in_sums: bool = False, cutoffs: Sequence[int] = ()
) -> Inbox:
    inbox = Inbox(1, batch_rows=1, is_by_step=is_by_step, in_sums=in_sums, is_guarded=True)
    for step, rank in arrivals:
        if not inbox.has(step, rank):
            inbox.add(step, report(step, rank), cutoffs=cutoffs)
    return inbox


def told(reports: list[ReportSum]) -> list[tuple[int, int, int, list[int], list[float], list[list[float]]]]:
    return [
        (each.first_step, each.last_step, each.reports, losses.rows.tolist(), losses.loss_sums.tolist(), lows.tolist())
        for each in reports
        for losses, lows in [(each.losses, each.lows())]
    ]


@given(keys)
def test_an_inbox_knows_exactly_what_it_has_had(arrivals: list[tuple[int, int]]) -> None:
    inbox = filled(arrivals)
    for step in range(-1, 15):
        for rank in range(4):
            assert inbox.has(step, rank) == ((step, rank) in arrivals)


@given(keys, st.randoms(use_true_random=False))
def test_the_order_of_arrival_and_repeats_change_nothing(arrivals: list[tuple[int, int]], random: object) -> None:
    shuffled = sorted(arrivals * 2, key=lambda _: random.random())  # type: ignore[attr-defined]
    assert filled(shuffled).state_dict() == filled(arrivals).state_dict()


@given(keys, st.integers(0, 14))
def test_what_is_ready_is_in_order_and_summed_over_ranks(arrivals: list[tuple[int, int]], before: int) -> None:
    inbox = filled(arrivals)
    ready = inbox.ready(before)
    known = set(arrivals)
    expected = [
        (step, step, len(ranks), [(step + 1) * len(ranks)], [sum(step + rank / 8 for rank in ranks)], lowest)
        for step in sorted({step for step, _ in known})
        for ranks in [[rank for s, rank in known if s == step]]
        for lowest in [[[step + min(ranks) / 8], [step + 1], [step + 1], [step]]]
    ]
    assert told(ready) == [row for row in expected if row[0] < before]
    inbox.drop(ready)
    assert inbox.ready(before) == []
    assert told(inbox.ready(100)) == [row for row in expected if row[0] >= before]
    assert all(inbox.has(*key) for key in arrivals)  # what was used is remembered all the same


cutoffs_in_order = st.lists(st.integers(0, 14), unique=True, max_size=4).map(sorted)


@given(keys, cutoffs_in_order, st.randoms(use_true_random=False))
def test_steps_that_planned_decisions_use_together_are_kept_as_one_sum(
    arrivals: list[tuple[int, int]], cutoffs: list[int], random: object
) -> None:
    cutoffs = [*cutoffs, 20]
    apart, tied = filled(arrivals), filled(arrivals, in_sums=True, cutoffs=cutoffs)
    joined = filled(arrivals, is_by_step=False, in_sums=True, cutoffs=cutoffs)
    for before in cutoffs:
        mine, theirs = joined.ready(before), apart.ready(before)
        assert len(mine) <= 1 + cutoffs.index(before)
        assert _added(mine) == _added(theirs)
        assert told(tied.ready(before)) == told(theirs)
    shuffled = sorted(arrivals, key=lambda _: random.random())  # type: ignore[attr-defined]
    assert filled(shuffled, is_by_step=False, in_sums=True, cutoffs=cutoffs).state_dict() == joined.state_dict()
    at_once = filled(arrivals, is_by_step=False, in_sums=True).ready(13)  # by the next decision, whenever that comes
    assert len(at_once) == bool(arrivals)
    assert _added(at_once) == _added(apart.ready(20))


def _added(reports: list[ReportSum]) -> list[tuple[int, int, int, list[int], list[float], list[list[float]]]]:
    return told([functools.reduce(lambda one, other: one.joined(other, keeps_lowest=True), reports)] if reports else [])


@pytest.mark.parametrize("is_by_step", [True, False])
def test_a_decision_sooner_than_planned_leaves_what_is_due_later(is_by_step: bool) -> None:
    inbox = filled([(3, 0), (5, 0), (9, 0)], is_by_step=is_by_step, in_sums=True, cutoffs=[7, 12])
    assert inbox.ready(6) == []
    inbox.add(4, report(4, 0), cutoffs=[6, 12])  # since then it was planned anew
    assert [(each.first_step, each.last_step) for each in inbox.ready(6)] == [(4, 4)]
    assert sum(each.reports for each in inbox.ready(7)) == 3
    restored = Inbox(1, is_by_step=is_by_step, in_sums=True)
    restored.load_state_dict(json.loads(json.dumps(inbox.state_dict())))
    assert [told(restored.ready(before)) for before in (6, 7, 12)] == [
        told(inbox.ready(before)) for before in (6, 7, 12)
    ]
    inbox.keep_apart()
    assert sum(each.reports for each in inbox.ready(6)) == 3


@given(st.sets(st.integers(0, 30)))
def test_steps_had_are_kept_as_the_fewest_intervals(steps: set[int]) -> None:
    intervals = filled([(step, 0) for step in steps]).had.get(0, [])
    assert [step for first, last in intervals for step in range(first, last + 1)] == sorted(steps)
    assert all(later[0] > earlier[1] + 1 for earlier, later in zip(intervals, intervals[1:], strict=False))


def test_a_run_of_any_length_is_remembered_in_one_interval() -> None:
    inbox = filled([(step, 0) for step in range(5000)])
    inbox.drop(inbox.ready(5000))
    assert inbox.state_dict() == {"pending": [], "had": {"0": [[0, 4999]]}, "open": {}}


@given(keys, keys)
def test_an_inbox_restored_from_json_goes_on_as_the_first_would(
    before: list[tuple[int, int]], after: list[tuple[int, int]]
) -> None:
    first = filled(before)
    restored = Inbox(1, batch_rows=1, is_by_step=True, is_guarded=True)
    restored.load_state_dict(json.loads(json.dumps(first.state_dict())))
    for inbox in (first, restored):
        for step, rank in after:
            if not inbox.has(step, rank):
                inbox.add(step, report(step, rank))
    assert restored.state_dict() == first.state_dict()
    assert told(restored.ready(100)) == told(first.ready(100))


@given(st.integers(0, 10**9), st.lists(reports(), min_size=1, max_size=3), st.booleans())
def test_reports_come_back_from_a_state_to_the_last_bit(step: int, parts: list[SourceLosses], is_guarded: bool) -> None:
    each = [ReportSum(step, step, losses.on_grid()) for losses in parts]
    before = functools.reduce(lambda one, other: one.joined(other, keeps_lowest=is_guarded), each)
    record = json.loads(json.dumps(before.to_record()))
    assert ReportSum.of(record, 3).to_record() == record
    assert told([ReportSum.of(record, 3)]) == told([before])


@given(reports())
def test_a_record_keeps_the_sources_with_rows_to_the_last_bit(losses: SourceLosses) -> None:
    back = record_to_losses(json.loads(json.dumps(losses_to_record(losses))), 3)
    assert (back.rows == losses.rows).all()
    assert (back.tokens == losses.tokens).all()
    seen = losses.rows > 0
    assert back.loss_sums[seen].tobytes() == losses.loss_sums[seen].tobytes()
    assert back.square_sums[seen].tobytes() == losses.square_sums[seen].tobytes()
    assert (back.loss_sums[~seen] == 0).all()


def test_a_record_holds_the_sources_with_rows_alone() -> None:
    record = losses_to_record(losses_of([2.0, 0.0, 3.0], [1, 0, 2]))
    assert record["sources"] == [0, 2]
    assert record["rows"] == [1, 2]
    assert np.shape(record["loss_sums"]) == (2,)
