"""Which phases a service may decide: those whose reports have come, or whose silent ranks have been waited for."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from service.runs.report_wait import ReportWait
from tests.support.calls import num_calls

WAIT_S = 5.0


@dataclass
class Recount:
    """The same rule, worked out anew from everything that was reported."""

    lag: int
    world_size: int = 0
    since: int = 0
    newest_start: int = 0
    had: set[tuple[int, int]] = field(default_factory=set)
    absent: set[int] = field(default_factory=set)
    waiting: tuple[int, float] | None = None

    def asked(self, step: int, world_size: int) -> None:
        if world_size != self.world_size:
            self.since = step if self.world_size else 0
            self.world_size, self.absent = world_size, set()
        self.since = min(self.since, step)

    def reported(self, step: int, rank: int) -> None:
        self.had.add((step, rank))
        self.absent.discard(rank)

    def decided(self, start: int) -> None:
        self.waiting, self.newest_start = None, start

    def is_over(self, start: int, now: float) -> bool:
        steps = range(max(self.since, self.newest_start - self.lag, 0), start - self.lag)
        missing = {
            rank for rank in range(self.world_size) for step in steps if (step, rank) not in self.had
        } - self.absent
        if not missing:
            return True
        if self.waiting is None or self.waiting[0] != start:
            self.waiting = (start, now)
        if now - self.waiting[1] < WAIT_S:
            return False
        self.absent |= missing
        return True


events = st.one_of(
    st.tuples(st.just("ask"), st.integers(0, 20), st.integers(1, 3)),
    st.tuples(st.just("report"), st.integers(0, 20), st.integers(0, 3)),
    st.tuples(st.just("report"), st.integers(0, 6), st.integers(0, 2)),
    st.tuples(st.just("decide"), st.integers(1, 6), st.just(0)),
    st.tuples(st.just("wait"), st.integers(0, 4), st.just(0)),
)


@given(st.lists(events, max_size=60), st.integers(0, 4))
def test_a_phase_is_due_exactly_when_a_recount_of_all_reports_says_so(
    happened: list[tuple[str, int, int]], lag: int
) -> None:
    now, start = 0.0, 4
    wait, recount = ReportWait(lag=lag, wait_s=WAIT_S, clock=lambda: now), Recount(lag)
    for event, number, other in happened:
        if event == "ask":
            wait.asked(number, other)
            recount.asked(number, other)
        elif event == "report":
            wait.reported(number, other)
            recount.reported(number, other)
        elif event == "decide":
            wait.decided(start)
            recount.decided(start)
            start += number
        else:
            now += number
        assert wait.is_over(start) == recount.is_over(start, now), (event, number, other)
        assert wait.absent == sorted(recount.absent)


def test_a_silent_rank_is_waited_for_once_until_it_reports_again() -> None:
    now = 0.0
    wait = ReportWait(lag=0, wait_s=5, clock=lambda: now)
    wait.asked(0, 2)
    for start in (4, 8):
        for step in range(start - 4, start):
            wait.reported(step, 0)
        is_first = start == 4
        assert wait.is_over(start) != is_first  # the second phase waits for nobody
        now += 5
        assert wait.is_over(start)
        assert wait.absent == [1]
        wait.decided(start)
    wait.reported(8, 1)
    assert wait.absent == []
    for step in range(8, 12):
        wait.reported(step, 0)
    assert not wait.is_over(12)


def test_a_cut_and_a_restart_count_anew() -> None:
    wait = ReportWait(lag=0, wait_s=5)
    wait.asked(0, 2)
    for step in range(4):
        wait.reported(step, 0)
    wait.reported(0, 1)
    assert not wait.is_over(4)
    wait.cut(0)
    assert wait.is_over(1)
    wait.resume({0: [[0, 9]], 1: [[0, 3], [5, 9]]}, since=0)
    assert wait.is_over(4)
    assert not wait.is_over(10)
    wait.reported(4, 1)
    assert wait.is_over(10)
    assert wait.last_reports() == {0: 9, 1: 9}


def test_a_report_of_thousands_of_ranks_takes_no_more_calls_than_one_of_a_few() -> None:
    def calls(num_ranks: int) -> int:
        wait = ReportWait(lag=0, wait_s=60)
        wait.asked(0, num_ranks)
        for rank in range(num_ranks):
            wait.reported(0, rank)
        assert not wait.is_over(8)

        def again() -> None:
            wait.reported(1, num_ranks - 1)
            wait.is_over(8)

        return num_calls(again)

    assert calls(4096) == calls(4)
