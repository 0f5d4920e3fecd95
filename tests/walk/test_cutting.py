"""Pivots that cut the phase in force: what is undone, what stays, and that a restored walk cuts alike."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from mixer.config.curriculum import Curriculum
from mixer.config.pivots import Pivot
from mixer.errors import InfeasibleRegionError, PivotError
from mixer.journal.file import Journal, read_journal
from mixer.journal.lookup import JournalIndex
from mixer.journal.tables import read_tables
from mixer.replay.verify import audit
from mixer.sampling.phases import Phase
from mixer.walk.walk import Walk
from tests.support.curricula import (
    MAX_LATE,
    POLICIES,
    batch_counts,
    curricula,
    curriculum,
    drive,
    noisy_losses,
    on_time,
    ragged,
    same_phases,
)
from tests.support.strategies import source_names

LIVE = Pivot(name="live", floors={"source-0": 0.25}, caps={}, exclude=())


def phases_of(steps: list[Phase]) -> list[Phase]:
    return list(dict.fromkeys(steps))


def cut(walk: Walk, step: int, pivot: Pivot = LIVE) -> int:
    """Cut, unless the curriculum has planned what cannot follow from there."""
    try:
        return walk.pivot(pivot, step, cut=True)
    except PivotError as error:
        assume("cannot fill that" not in str(error))
        raise


@given(curricula(), st.integers(0, 50), st.integers(0, 40), st.booleans())
@settings(max_examples=30)
def test_a_cut_keeps_every_step_before_it_and_begins_the_new_regime_there(
    run: Curriculum, trained: int, ahead: int, is_late: bool
) -> None:
    late = ragged if is_late else on_time
    walk = Walk(run)
    drive(walk, trained, late=late)
    newest = walk.phase_at(trained + ahead)
    step = max(newest.start, trained, 1) + (ahead % 3)
    assume(newest.start <= step < newest.end)
    before = [walk.phase_at(s) for s in range(step)]
    counts = [batch_counts(run, walk.phase_at(s), s).tolist() for s in range(step)]
    assert cut(walk, step) == step
    assert walk.frontier == step
    after = walk.phase_at(step)
    assert (after.start, after.regime) == (step, "live")
    assert walk.regime_at(step).region.contains(after.weights)
    for s in range(step):
        phase = walk.phase_at(s)
        assert phase.end <= step
        assert phase.weights.tobytes() == before[s].weights.tobytes()
        assert batch_counts(run, phase, s).tolist() == counts[s]
    assert after.drawn.tolist() == np.sum([*counts, np.zeros(len(run.names), dtype=int)], axis=0).tolist()
    assert after.index == (walk.phase_at(step - 1).index + 1)
    starts = {phase.start for phase in phases_of(drive(walk, step + 60, since=step, late=late))}
    planned = {regime.start for regime in walk.regimes if step <= regime.start < step + 60}
    assert planned <= starts


@given(curricula(), st.integers(1, 50), st.booleans())
@settings(max_examples=30)
def test_a_cut_at_the_first_step_of_the_newest_phase_is_as_if_that_had_never_been_decided(
    run: Curriculum, trained: int, is_late: bool
) -> None:
    late = ragged if is_late else on_time
    hasty, patient = Walk(run), Walk(run)
    for walk in (hasty, patient):
        drive(walk, trained, late=late)
    step = hasty.frontier
    for walk in (hasty, patient):  # what comes before the phase's first step, and may be late
        drive(walk, step, since=trained, late=late)
    hasty.phase_at(step)
    assert cut(hasty, step) == step
    patient.pivot(LIVE, step)
    one, other = (walk.state_dict() for walk in (hasty, patient))
    assert (one["before"], other["before"] is None) == (None, False)
    assert one == {**other, "before": None}
    rest = [drive(walk, step + 80, since=step, late=late) for walk in (hasty, patient)]
    assert same_phases(*rest)
    assert hasty.state_dict() == patient.state_dict()


@given(curricula(), st.integers(1, 50), st.integers(0, 5), st.booleans())
@settings(max_examples=20)
def test_a_walk_restored_before_or_after_a_cut_goes_on_bit_for_bit(
    run: Curriculum, trained: int, into: int, is_late: bool
) -> None:
    late = ragged if is_late else on_time
    walk = Walk(run)
    drive(walk, trained, late=late)
    newest = walk.phase_at(trained)
    step = newest.start + into if newest.start + into >= trained else trained
    assume(newest.start < step < newest.end)  # states of delivery leave out what would undo a decision
    restored = restore(run, walk, trained)
    for each in (walk, restored):
        cut(each, step)
    assert restored.state_dict(trained - MAX_LATE - 1) == walk.state_dict(trained - MAX_LATE - 1)
    third = restore(run, walk, trained)
    rest = [drive(each, step + 70, since=step, late=late) for each in (walk, restored, third)]
    assert same_phases(rest[0], rest[1])
    assert same_phases(rest[0], rest[2])


def restore(run: Curriculum, walk: Walk, step: int) -> Walk:
    restored = Walk(run)
    restored.load_state_dict(json.loads(json.dumps(walk.state_dict(step - MAX_LATE - 1))))
    return restored


@given(curricula(), st.integers(0, 50), st.integers(0, 40), st.booleans())
@settings(max_examples=30)
def test_the_first_cut_is_the_first_step_at_which_a_pivot_is_not_refused(
    run: Curriculum, trained: int, ahead: int, is_late: bool
) -> None:
    walk = Walk(run)
    drive(walk, trained, late=ragged if is_late else on_time)
    walk.phase_at(trained + ahead)
    state = walk.state_dict()
    first = walk.first_cut(trained)
    assert trained <= first <= walk.frontier
    for step in range(max(trained, 1), first):
        with pytest.raises(PivotError):
            walk.pivot(LIVE, step, cut=True)
    assert walk.state_dict() == state
    assert walk.pivot(LIVE, first, cut=True) == first


@given(
    st.sampled_from(POLICIES),
    st.integers(0, 2**32),
    st.integers(20, 60),
    st.integers(1, 10),
    st.lists(st.integers(0, 10), min_size=2, max_size=2),
)
@settings(max_examples=40)
def test_where_sources_may_be_lost_no_decision_hangs_on_which_reports_within_the_lag_came_before_a_cut(
    policy: Mapping[str, Any], seed: int, trained: int, lag: int, behind: list[int]
) -> None:
    """So that ranks which are told of a loss at different moments decide alike."""
    lost = [{"name": n, "local": "topics", "tokens": 10**6, "on_failure": "suspend"} for n in source_names(4)]
    run = curriculum(sources=lost, seed=seed, policy=policy, feedback_lag=lag, phases={"initial_random": 1})

    def cut_after_reports(behind: int) -> list[Phase]:
        """Report up to ``behind`` steps before the cut by then, and everything else within the lag."""
        walk, late = Walk(run), max(0, min(behind, lag) - 1)
        before = drive(walk, trained, late=lambda step: late)
        walk.pivot(LIVE, trained, cut=True)
        for step in range(max(0, trained - late), trained):
            walk.report(step, noisy_losses(run, step, batch_counts(run, walk.phase_at(step), step)))
        return before + drive(walk, trained + 120, since=trained)

    assume(Walk(run).phase_at(trained).start < trained)
    assert same_phases(*map(cut_after_reports, behind))


def test_a_run_that_was_told_on_its_way_that_sources_may_be_lost_is_audited_as_it_decided(tmp_path: Path) -> None:
    """The journal's header says `on_failure: stop`, which is no part of what a run is."""
    path = tmp_path / "walk.jsonl"
    sources = [{"name": name, "local": "topics"} for name in source_names(4)]
    for seed in range(8):
        fields: dict[str, Any] = {"seed": seed, "feedback_lag": 8, "phases": {"initial_random": 1}}
        first = curriculum(sources=sources, **fields)
        with Journal.create(path) as journal:
            walk = Walk(first, journal=journal)
            drive(walk, 60)
            state = walk.state_dict()
        second = curriculum(sources=[{**source, "on_failure": "suspend"} for source in sources], **fields)
        with Journal.open(path) as journal:
            walk = Walk(second, journal=journal)
            walk.load_state_dict(state)
            drive(walk, walk.phase_at(120).start, since=60)
            step = walk.phase_at(120).start + 1
            drive(walk, step, since=step - 1, late=lambda step: 4)
            walk.pivot(
                Pivot(name=f"without-{step}-source-1", floors={}, caps={}, exclude=("source-1",)), step, cut=True
            )
            drive(walk, step + 60, since=step)
        assert audit(path).difference is None
        path.unlink()


def test_where_a_cut_may_not_be_it_says_where_it_may() -> None:
    walk = Walk(curriculum(3))
    drive(walk, 100)
    newest = walk.phase_at(100)
    for step, message in (
        (newest.start - 1, f"phases before the newest are decided up to step {newest.start - 1}; ask for"),
        (99, "losses of step 99 were reported, so it was trained on as it was; ask for step 100 or later"),
        (-3, "pivot live at step -3: phases before"),
    ):
        state = walk.state_dict()
        with pytest.raises(PivotError, match=message):
            walk.pivot(LIVE, step, cut=True)
        assert walk.state_dict() == state
    with pytest.raises(PivotError, match=f"or later, or cut the newest phase from step {newest.start} on"):
        walk.pivot(LIVE, 100)
    fresh = Walk(curriculum(3))
    fresh.phase_at(0)
    with pytest.raises(PivotError, match="pivot live at step 0: write its bounds into the curriculum"):
        fresh.pivot(LIVE, 0, cut=True)


def test_a_cut_that_leaves_no_whole_phases_to_a_planned_pivot_is_refused() -> None:
    run = curriculum(3, pivots=[{"name": "planned", "at_step": 100, "caps": {"source-1": 0.5}}])
    walk = Walk(run)
    while walk.frontier < 100:
        walk.phase_at(walk.frontier)
    with pytest.raises(PivotError, match="the start of planned at step 100 is 3 steps after the cut at step 97"):
        walk.pivot(LIVE, 97, cut=True)


def test_a_second_pivot_does_not_undo_what_the_first_left() -> None:
    walk = Walk(curriculum(3))
    drive(walk, 60)
    drive(walk, walk.frontier, since=60)
    step = walk.frontier
    before = walk.phase_at(step - 1)
    walk.phase_at(step)
    walk.pivot(LIVE, step, cut=True)
    with pytest.raises(PivotError, match=f"ask for step {before.start + 1} or later"):
        walk.pivot(Pivot(name="again", caps={"source-1": 0.5}), before.start, cut=True)
    assert walk.pivot(Pivot(name="again", caps={"source-1": 0.5}), step, cut=True) == step
    assert walk.phase_at(step).regime == "again"


@given(
    curricula(),
    st.lists(st.tuples(st.integers(0, 30), st.integers(0, 15), st.integers(1, 5)), min_size=1, max_size=4),
    st.booleans(),
)
@settings(max_examples=60)
def test_whatever_is_cut_no_decision_learns_from_steps_within_the_lag(
    tmp_path_factory: pytest.TempPathFactory, run: Curriculum, cuts: list[tuple[int, int, int]], is_late: bool
) -> None:
    late, path, step = ragged if is_late else on_time, tmp_path_factory.mktemp("cuts") / "run.jsonl", 0
    with Journal.create(path, fsync="never") as journal:
        walk = Walk(run, journal=journal)
        for i, (ahead, trained, back) in enumerate(cuts):
            walk.phase_at(step + ahead)  # as a loader that composes ahead does
            drive(walk, step + trained, since=step, late=late)
            step += trained
            newest = walk.phase_at(walk.frontier - 1)
            for at in (newest.start, newest.start - back):  # the first undoes it, the second goes back further
                with contextlib.suppress(PivotError, InfeasibleRegionError):
                    walk.pivot(LIVE.model_copy(update={"name": f"{i}-{at}"}), max(step, at), cut=True)
        walk.phase_at(walk.frontier)
    decisions = [r for r in read_journal(path) if r["type"] == "phase" and r["feedback"] is not None]
    assert all(r["feedback"]["last_step"] < r["start"] - run.feedback_lag for r in decisions)


def test_a_decision_after_a_cut_leaves_what_was_summed_for_a_later_one_to_the_next(tmp_path: Path) -> None:
    law = {"min_steps": 3, "max_steps": 20}
    seed = next(seed for seed in range(100) if curriculum(3, seed=seed, phases=law).phase_law.length(0) == 20)
    with Journal.create(tmp_path / "run.jsonl") as journal:
        walk = Walk(curriculum(3, feedback_lag=4, phases=law, seed=seed), journal=journal)
        drive(walk, 14)  # the decision at 20 would learn from all of it, one at 17 from steps below 13 alone
        walk.pivot(LIVE, 17, cut=True)
        walk.phase_at(walk.phase_at(17).end)
    _, at_cut, after = (r["feedback"] for r in read_journal(tmp_path / "run.jsonl") if r["type"] == "phase")
    assert at_cut is None
    assert (after["first_step"], after["last_step"], after["reports"]) == (0, 13, 14)


@pytest.mark.parametrize("into", [0, 3])
def test_the_journal_says_that_a_phase_was_cut_and_the_story_has_what_was_really_played(
    tmp_path: Path, into: int
) -> None:
    run, path = curriculum(3), tmp_path / "run.jsonl"
    with Journal.create(path) as journal:
        walk = Walk(run, journal=journal)
        drive(walk, 60)
        trained = walk.frontier
        drive(walk, trained, since=60)
        step = walk.phase_at(trained).start + into
        frontier = walk.frontier
        walk.pivot(LIVE, step, cut=True)
        undecided = read_tables(path)
        drive(walk, step + 40, since=step)
        played = phases_of([walk.phase_at(s) for s in range(step + 40)])
    (line,) = [record for record in read_journal(path) if record["type"] == "pivot"]
    assert (line["at_step"], line["decided_before"]) == (step, frontier)
    story = read_tables(path)
    shape = [(phase["index"], phase["start"], phase["length"]) for phase in story.phases]
    assert shape == [(phase.index, phase.start, phase.length) for phase in played]
    for earlier, later in zip(story.phases, story.phases[1:], strict=False):
        assert (np.array(earlier["drawn"]) + earlier["counts"]).tolist() == later["drawn"]
    lookup = JournalIndex(path)
    for phase in played:
        found = lookup.phase_at(phase.end - 1)
        assert (found["index"], found["start"], found["length"]) == (phase.index, phase.start, phase.length)
        before = lookup.before(found)
        assert (before and before["index"]) == (phase.index - 1 if phase.index else None)
    last = undecided.phases[-1]  # what the next decision will find
    assert (np.array(last["drawn"]) + last["counts"]).tolist() == walk.phase_at(step).drawn.tolist()
