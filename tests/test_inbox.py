"""Reports on their way to a decision: accepted once, in any order, handed over in order."""

from __future__ import annotations

import json

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mixer.inbox import Arrived, Inbox, losses_to_record, record_to_losses
from mixer.rewards import SourceLosses
from tests.test_rewards import losses_of, reports

keys = st.lists(st.tuples(st.integers(0, 12), st.integers(0, 2)), max_size=40)


def report(step: int, rank: int) -> SourceLosses:
    """Losses that tell which report they are of."""
    rows = np.array([step + 1])
    return SourceLosses(rows=rows, tokens=rows, loss_sums=np.array([step + rank / 8]), rank=rank)


def filled(arrivals: list[tuple[int, int]], *, is_by_step: bool = True, together: int = 0) -> Inbox:
    inbox = Inbox(1, is_by_step=is_by_step)
    for step, rank in arrivals:
        if not inbox.has(step, rank):
            inbox.add(step, report(step, rank), together=together)
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


@given(keys, st.integers(0, 14))
def test_steps_that_decisions_cannot_tell_apart_are_kept_as_one_sum(arrivals: list[tuple[int, int]], at: int) -> None:
    apart, joined = filled(arrivals), filled(arrivals, is_by_step=False, together=at)
    for before in (at, at + 3, 100):
        (mine, theirs) = (inbox.ready(before) for inbox in (joined, apart))
        for name in ("rows", "loss_sums"):
            assert sum(getattr(each.losses, name).sum() for each in mine) == sum(
                getattr(each.losses, name).sum() for each in theirs
            )
        assert sum(each.reports for each in mine) == sum(each.reports for each in theirs)
    assert len(joined.ready(at)) <= 1
    assert [row for row in told(joined.ready(100)) if row[0] >= at] == [
        row for row in told(apart.ready(100)) if row[0] >= at
    ]


@given(st.sets(st.integers(0, 30)))
def test_steps_had_are_kept_as_the_fewest_intervals(steps: set[int]) -> None:
    intervals = filled([(step, 0) for step in steps]).state_dict()["had"].get("0", [])
    assert [step for first, last in intervals for step in range(first, last + 1)] == sorted(steps)
    assert all(later[0] > earlier[1] + 1 for earlier, later in zip(intervals, intervals[1:], strict=False))


def test_a_run_of_any_length_is_remembered_in_one_interval() -> None:
    inbox = filled([(step, 0) for step in range(5000)])
    inbox.drop(inbox.ready(5000))
    assert inbox.state_dict() == {"pending": [], "had": {"0": [[0, 4999]]}}


@given(keys, keys)
def test_an_inbox_restored_from_json_goes_on_as_the_first_would(
    before: list[tuple[int, int]], after: list[tuple[int, int]]
) -> None:
    first = filled(before)
    restored = Inbox(1, is_by_step=True)
    restored.load_state_dict(json.loads(json.dumps(first.state_dict())))
    for inbox in (first, restored):
        for step, rank in after:
            if not inbox.has(step, rank):
                inbox.add(step, report(step, rank))
    assert restored.state_dict() == first.state_dict()
    assert told(restored.ready(100)) == told(first.ready(100))


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
