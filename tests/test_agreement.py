"""Ranks agree on a step: all are told the same, and whoever waits in vain is told for whom."""

from __future__ import annotations

import functools
import itertools
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st

from mixer import agreement
from mixer.agreement import CLEANED_EVERY, Agreement, Loop, Verdict
from mixer.errors import SourceUnavailableError, TopologyError

NAMES = ["s0", "s1", "s2"]


@functools.cache
def connections() -> list[Any]:
    """A real store, by two connections for each of up to four ranks."""
    make: Any = dist.TCPStore  # type: ignore[attr-defined]
    server = make("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    return [server, *(make("127.0.0.1", server.port, is_master=False) for _ in range(7))]


class Ranks:
    """Ranks as threads, with a real store between them."""

    _made = itertools.count()

    def __init__(self, world_size: int) -> None:
        prefix = f"{next(self._made)}"
        own: list[Any] = [dist.PrefixStore(prefix, connection) for connection in connections()]  # type: ignore[attr-defined]
        Agreement.prepare(own[0], world_size)
        self.all = [
            Agreement(own[2 * rank], own[2 * rank + 1], rank=rank, world_size=world_size) for rank in range(world_size)
        ]

    def do(self, job: Callable[[Agreement], Any]) -> list[Any]:
        """Let each rank do a job at once; return what each gave or raised."""
        given: list[Any] = [None] * len(self.all)

        def run(rank: Agreement) -> None:
            try:
                given[rank.rank] = job(rank)
            except (SourceUnavailableError, TopologyError) as error:
                given[rank.rank] = str(error)

        threads = [threading.Thread(target=run, args=(rank,), daemon=True) for rank in self.all]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(100)
            assert not thread.is_alive()
        return given

    def close(self) -> None:
        for rank in reversed(self.all):
            rank.close()


@pytest.fixture
def two(monkeypatch: pytest.MonkeyPatch) -> Iterator[Ranks]:
    monkeypatch.setattr(agreement, "BEAT_S", 0.1)
    monkeypatch.setattr(agreement, "LEAVING_S", 0.1)
    ranks = Ranks(2)
    yield ranks
    ranks.close()


def told(verdict: Verdict) -> tuple[str | None, dict[int, list[str]]]:
    name = None if verdict.problem is None else verdict.problem.name
    return name, {rank: list(names) for rank, names in verdict.readable.items()}


problems = st.none() | st.sampled_from(NAMES)
readables = st.none() | st.lists(st.sampled_from(NAMES), unique=True).map(sorted)


@settings(deadline=None, max_examples=20)
@given(
    st.integers(1, 4).flatmap(
        lambda world_size: st.lists(
            st.lists(st.tuples(problems, readables), min_size=world_size, max_size=world_size), min_size=1, max_size=5
        )
    )
)
def test_all_ranks_are_told_the_same_and_the_problem_of_the_lowest_rank_first(
    steps: list[list[tuple[str | None, list[str] | None]]],
) -> None:
    ranks = Ranks(len(steps[0]))

    def job(rank: Agreement) -> list[Any]:
        loop, verdicts = rank.begin(), []
        for step, said in enumerate(steps):
            problem, readable = said[rank.rank]
            error = None if problem is None else SourceUnavailableError(f"{problem} is down", name=problem)
            verdicts.append(rank.agree(loop, step, told, problem=error, readable=readable))
        return verdicts

    given = ranks.do(job)
    for step, said in enumerate(steps):
        lost = next((problem for problem, _ in said if problem is not None), None)
        readable = {rank: names for rank, (_, names) in enumerate(said) if names is not None}
        spoken = {verdicts[step][0] for verdicts in given}
        assert spoken == {lost}
        if lost is None:
            assert all(verdicts[step][1] == readable for verdicts in given)
    ranks.close()


def agreed(rank: Agreement, loop: Loop, step: int, check: Callable[[], None] | None = None) -> Verdict:
    return rank.agree(loop, step, lambda verdict: verdict, problem=None, readable=None, check=check)


def left() -> None:
    raise TopologyError("left")


def test_what_the_store_holds_does_not_grow(two: Ranks) -> None:
    def job(rank: Agreement) -> None:
        for _ in range(3):
            loop = rank.begin()
            for step in range(4 * CLEANED_EVERY):
                lost = SourceUnavailableError("down", name="s0") if step % 10 == 0 else None
                rank.agree(loop, step, told, problem=lost, readable=[])

    before = connections()[0].num_keys()
    two.do(job)
    assert connections()[0].num_keys() - before < 3 * CLEANED_EVERY


def test_a_loop_that_was_left_meets_nobody_of_the_next(two: Ranks) -> None:
    first, second = two.all
    loops = [rank.begin() for rank in two.all]
    two.do(lambda rank: agreed(rank, loops[rank.rank], 0))
    with pytest.raises(TopologyError, match="left"):
        agreed(first, loops[0], 1, left)
    again = [rank.begin() for rank in two.all]
    lost = SourceUnavailableError("down", name="s0")
    verdicts = two.do(
        lambda rank: rank.agree(again[rank.rank], 1, told, problem=lost if rank is second else None, readable=None)
    )
    assert verdicts == [("s0", {})] * 2
    with pytest.raises(TopologyError, match="step 1 is of a loop that was left"):
        agreed(first, loops[0], 1)


@pytest.mark.parametrize("how", ["while it waits", "as it hears", "restored"])
def test_who_leaves_a_loop_before_he_hears_what_others_followed_does_so_as_the_next_begins(
    two: Ranks, how: str
) -> None:
    first, second = two.all
    loops = [rank.begin() for rank in two.all]
    two.do(lambda rank: agreed(rank, loops[rank.rank], 4))
    lost = SourceUnavailableError("down", name="s0")
    heard: list[Any] = []

    def second_is_told() -> None:
        heard.append(second.agree(loops[1], 5, told, problem=lost, readable=None))

    if how == "as it hears":
        thread = threading.Thread(target=second_is_told)
        thread.start()
        with pytest.raises(TopologyError, match="left"):
            first.agree(loops[0], 5, lambda verdict: left(), problem=None, readable=None)
        thread.join()
    else:
        with pytest.raises(TopologyError, match="left"):
            agreed(first, loops[0], 5, left)
        second_is_told()
    assert heard == [("s0", {})]
    if how == "restored":
        first.forget()
    again = [rank.begin() for rank in two.all]

    def until_it_is_not_late(rank: Agreement) -> list[tuple[bool, int, str | None]]:
        verdicts = [agreed(rank, again[rank.rank], 3)]
        if verdicts[0].is_late:
            verdicts.append(agreed(rank, again[rank.rank], 3))
        return [(verdict.is_late, verdict.step, told(verdict)[0]) for verdict in verdicts]

    late = [] if how == "restored" else [(True, 5, "s0")]
    assert two.do(until_it_is_not_late) == [[*late, (False, 3, None)], [(False, 3, None)]]


def test_who_waits_for_a_rank_that_says_nothing_any_more_is_told_which(
    two: Ranks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agreement, "SILENT_S", 0.5)
    monkeypatch.setattr(agreement, "_ENDED", b"0 -1")  # as if it had not had the time to say so
    first, second = two.all
    second._is_closed.set()
    second._beats.join()
    monkeypatch.setattr(agreement, "_ENDED", b"ended")
    with pytest.raises(TopologyError, match="rank 1 is gone: nothing was heard of it for 0 s, and step 7 waits for it"):
        agreed(first, first.begin(), 7)


def test_who_waits_for_a_rank_that_has_ended_is_told_so(two: Ranks) -> None:
    first, second = two.all
    second.close()
    with pytest.raises(TopologyError, match="rank 1 has ended, and did not compose step 7"):
        agreed(first, first.begin(), 7)


def test_who_waits_for_a_rank_whose_worker_is_gone_is_told_so(two: Ranks) -> None:
    first, second = two.all
    loops = [rank.begin() for rank in two.all]
    two.do(lambda rank: agreed(rank, loops[rank.rank], 6))
    second.give_up(loops[1], 7)
    second.give_up(loops[1], 7)  # is said once
    with pytest.raises(TopologyError, match="rank 1 will not compose step 7: the worker that was to is gone"):
        agreed(first, loops[0], 7)


def test_ranks_that_stand_at_different_steps_or_iterate_more_often_are_told_so(two: Ranks) -> None:
    def other_step(rank: Agreement) -> Any:
        return agreed(rank, rank.begin(), 7 + rank.rank)

    def then_ends(job: Callable[[Agreement], Any]) -> list[Any]:
        def run(rank: Agreement) -> Any:
            try:
                return job(rank)
            except TopologyError as error:
                rank.close()
                return str(error)

        return two.do(run)

    steps = then_ends(other_step)
    assert steps[0].startswith("rank 1 stands at step 8 and this rank at step 7: load the state of one step")
    assert steps[1].startswith("rank 0 has ended, and did not compose step 8")


def test_a_rank_that_begins_once_more_than_another_ends_its_waiting(two: Ranks) -> None:
    first, second = two.all
    loop = first.begin()
    ahead = [second.begin() for _ in range(2)][-1]
    waiting = threading.Thread(target=lambda: agreed(second, ahead, 0))
    waiting.start()
    with pytest.raises(TopologyError, match=r"rank 1 has begun to iterate the data set anew \(2 times so far\)"):
        agreed(first, loop, 0)
    agreed(first, first.begin(), 0)
    waiting.join(100)
    assert not waiting.is_alive()


def test_ending_the_process_ends_the_waiting(two: Ranks) -> None:
    first = two.all[0]
    loop = first.begin()
    threading.Timer(0.2, first.close).start()
    with pytest.raises(TopologyError, match="step 0 was not composed by all ranks: this process ends"):
        agreed(first, loop, 0)
