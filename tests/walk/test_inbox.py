"""Reports on their way to a decision: accepted once, in any order, handed over in order."""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixer.errors import StateMismatchError
from mixer.journal.records import losses_to_record, record_to_losses
from mixer.losses import SourceLosses
from mixer.walk.inbox import Inbox
from mixer.walk.reports import Arrived, lows_of, reports_to_state, state_to_reports
from tests.policies.test_rewards import losses_of, reports

keys = st.lists(st.tuples(st.integers(0, 12), st.integers(0, 2)), max_size=40)


def report(step: int, rank: int) -> SourceLosses:
    """Losses that tell which report they are of."""
    rows = np.array([step + 1])
    return SourceLosses(rows=rows, tokens=rows, loss_sums=np.array([step + rank / 8]), rank=rank)


def filled(
    arrivals: list[tuple[int, int]],
    *,
    is_by_step: bool = True,
    in_sums: bool | None = None,
    cutoffs: Sequence[int] = (),
) -> Inbox:
    in_sums = not is_by_step if in_sums is None else in_sums
    inbox = Inbox(1, batch_rows=1, is_by_step=is_by_step, in_sums=in_sums)
    for step, rank in arrivals:
        if not inbox.has(step, rank):
            inbox.add(step, report(step, rank), cutoffs=cutoffs)
    return inbox


def told(arrived: list[Arrived]) -> list[tuple[int, int, int, list[int], list[float]]]:
    return [
        (each.first_step, each.last_step, each.reports, each.losses.rows.tolist(), each.losses.loss_sums.tolist())
        for each in arrived
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
        (step, step, len(ranks), [(step + 1) * len(ranks)], [sum(step + rank / 8 for rank in ranks)])
        for step in sorted({step for step, _ in known})
        for ranks in [[rank for s, rank in known if s == step]]
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
    apart, joined = filled(arrivals), filled(arrivals, is_by_step=False, cutoffs=cutoffs)
    tied = filled(arrivals, in_sums=True, cutoffs=cutoffs)
    for before in cutoffs:
        (mine, tied_too, theirs) = (inbox.ready(before) for inbox in (joined, tied, apart))
        for name in ("rows", "loss_sums"):
            for ready in (mine, tied_too):
                assert sum(getattr(each.losses, name).sum() for each in ready) == sum(
                    getattr(each.losses, name).sum() for each in theirs
                )
        assert sum(each.reports for each in mine) == sum(each.reports for each in theirs)
        assert told(tied_too) == told(theirs)
        assert len(mine) <= 1 + cutoffs.index(before)
    shuffled = sorted(arrivals, key=lambda _: random.random())  # type: ignore[attr-defined]
    assert filled(shuffled, is_by_step=False, cutoffs=cutoffs).state_dict() == joined.state_dict()


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


@given(st.sets(st.integers(0, 30)))
def test_steps_had_are_kept_as_the_fewest_intervals(steps: set[int]) -> None:
    intervals = filled([(step, 0) for step in steps]).had.get(0, [])
    assert [step for first, last in intervals for step in range(first, last + 1)] == sorted(steps)
    assert all(later[0] > earlier[1] + 1 for earlier, later in zip(intervals, intervals[1:], strict=False))


def test_a_run_of_any_length_is_remembered_in_one_interval() -> None:
    inbox = filled([(step, 0) for step in range(5000)])
    inbox.drop(inbox.ready(5000))
    assert inbox.state_dict() == {"pending": "", "learned_until": 0, "had": [[[[0, 0]], [[0, 4999]]]]}


def test_ranks_that_had_the_same_steps_are_named_together() -> None:
    inbox = filled([(step, rank) for step in range(30) for rank in range(64) if (step, rank) != (29, 5)])
    assert inbox.state_dict()["had"] == [[[[0, 4], [6, 63]], [[0, 29]]], [[[5, 5]], [[0, 28]]]]


@given(keys, keys)
def test_an_inbox_restored_from_json_goes_on_as_the_first_would(
    before: list[tuple[int, int]], after: list[tuple[int, int]]
) -> None:
    first = filled(before)
    restored = Inbox(1, batch_rows=1, is_by_step=True)
    restored.load_state_dict(json.loads(json.dumps(first.state_dict())))
    for inbox in (first, restored):
        for step, rank in after:
            if not inbox.has(step, rank):
                inbox.add(step, report(step, rank))
    assert restored.state_dict() == first.state_dict()
    assert told(restored.ready(100)) == told(first.ready(100))


@st.composite
def arrivals_of_any_kind(draw: st.DrawFn) -> list[Arrived]:
    """Reports of 3 sources, some of them sums of several, with lows or without, with squares or without."""
    has_lows, has_squares = draw(st.booleans()), draw(st.booleans())
    found: list[Arrived] = []
    step = draw(st.integers(0, 10**9))
    for _ in range(draw(st.integers(0, 5))):
        parts = []
        for _ in range(draw(st.integers(1, 3))):
            losses = draw(reports()).on_grid()
            losses = losses if has_squares else replace(losses, square_sums=np.zeros(3))
            parts.append(Arrived(step, step, 1, losses, lows_of(step, losses) if has_lows else None))
            step += draw(st.integers(0, 2))
        joined = functools.reduce(Arrived.joined, parts)
        found.append(replace(joined, is_learned=draw(st.booleans())))
        step += 1
    return found


@given(arrivals_of_any_kind())
def test_reports_come_back_from_a_state_to_the_last_bit(before: list[Arrived]) -> None:
    after = state_to_reports(json.loads(json.dumps(reports_to_state(before))), 3)
    assert len(after) == len(before)
    for one, other in zip(before, after, strict=True):
        for name in ("first_step", "last_step", "reports", "is_learned"):
            assert getattr(one, name) == getattr(other, name), name
        for name in ("rows", "tokens", "loss_sums", "square_sums"):
            assert getattr(one.losses, name).tolist() == getattr(other.losses, name).tolist(), name
        assert (one.lows is None) == (other.lows is None)
        if one.lows is not None and other.lows is not None:
            assert one.lows.tolist() == other.lows.tolist()


@pytest.mark.parametrize("text", ["x", "not base64: \u00e9", "0000000000", 3, ["a list, as versions before 5 had it"]])
def test_packed_reports_that_were_changed_are_refused(text: Any) -> None:
    with pytest.raises(StateMismatchError, match="no packed reports: it was changed"):
        state_to_reports(text, 3)


@given(st.sets(st.integers(0, 12)), st.integers(0, 14))
def test_the_steps_learned_from_ahead_are_the_whole_ones_from_the_first_on(steps: set[int], before: int) -> None:
    inbox = Inbox(1, is_by_step=True, whole_rows=4)
    for step in steps:
        rows = np.array([3 if step == 6 else 4])  # of step 6 a row is missing
        inbox.add(step, SourceLosses(rows=rows, tokens=rows, loss_sums=rows * 1.0))
    learned = []
    while (arrived := inbox.next_whole(before)) is not None:
        learned.append(arrived.first_step)
        inbox.note_learned(arrived)
    assert learned == list(itertools.takewhile(lambda step: step in steps and step < before and step != 6, range(15)))
    assert sum(arrived.reports for arrived in inbox.ready(100)) == len(steps)
    assert [arrived.is_learned for arrived in inbox.ready(100)] == [True] * bool(learned) + [False] * (
        len(steps) - len(learned)
    )


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
