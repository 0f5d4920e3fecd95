"""The walk as a whole: always inside its region, exact on resume, deaf to what must not move it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixer.config.curriculum import Curriculum
from mixer.config.pivots import Pivot
from mixer.errors import (
    ConfigError,
    FeedbackError,
    FutureFeedbackError,
    InfeasibleRegionError,
    InvalidLossError,
    PivotError,
    StateMismatchError,
    StepError,
    UnknownSourceError,
)
from mixer.journal.file import Journal
from mixer.losses import SourceLosses
from mixer.sampling.phases import Phase
from mixer.types import IntArray
from mixer.walk.walk import Walk
from tests.support.calls import num_calls
from tests.support.curricula import (
    MAX_LATE,
    batch_counts,
    curricula,
    curriculum,
    drive,
    noisy_losses,
    on_time,
    ragged,
    same_phases,
)

SIXTEEN = tuple(f"source-{i}" for i in range(16))
SEVEN = ["source-0", "source-2", "source-3", "source-7", "source-8", "source-11", "source-15"]


def phases_of(steps: list[Phase]) -> list[Phase]:
    """Return each phase once."""
    return list(dict.fromkeys(steps))


def report_of(walk: Walk, step: int, **changes: Any) -> SourceLosses:
    """Return what a trainer says of a step, with some of its tables replaced."""
    rows = batch_counts(walk.curriculum, walk.phase_at(step), step)
    losses = noisy_losses(walk.curriculum, step, rows)
    tables = {name: getattr(losses, name) for name in ("rows", "tokens", "loss_sums", "square_sums")}
    return SourceLosses(**{**tables, **changes})


def with_pivots(**fields: Any) -> Curriculum:
    """A curriculum with a warmup, two pivots, late feedback and few random phases."""
    settings: dict[str, Any] = {
        "floors": {"source-0": 0.2, "source-4": 0.1},
        "caps": {"source-1": 0.3},
        "curriculum_warmup_steps": 40,
        "curriculum_warmup_sources": ["source-0", "source-1", "source-2"],
        "pivots": [
            {"name": "first", "at_step": 75, "floors": {"source-3": 0.4}},
            {"name": "second", "at_step": 110, "caps": {"source-3": 0.6}, "exclude": ["source-0"]},
        ],
        "phases": {"initial_random": 2, "random_probability": 0.2},
        "feedback_lag": 6,
    }
    return curriculum(5, **{**settings, **fields})


# Whatever the curriculum.


@given(curricula(), st.booleans())
@settings(max_examples=60)
def test_weights_are_always_inside_the_region_of_their_regime(run: Curriculum, is_late: bool) -> None:
    walk = Walk(run)
    for phase in phases_of(drive(walk, 90, late=ragged if is_late else on_time)):
        regime = walk.regime_at(phase.start)
        assert phase.regime == regime.name
        assert regime.region.contains(phase.weights)
        assert (phase.weights >= regime.region.lower).all()
        assert (phase.weights <= regime.region.upper).all()
        if phase.start < run.curriculum_warmup_steps:
            asleep = [name not in run.curriculum_warmup_sources for name in run.names]
            assert (phase.weights[asleep] == 0).all()


@given(curricula())
@settings(max_examples=60)
def test_phases_tile_the_steps_and_end_on_every_boundary(run: Curriculum) -> None:
    walk = Walk(run)
    phases = phases_of([walk.phase_at(step) for step in range(120)])
    assert [phase.index for phase in phases] == list(range(len(phases)))
    start = 0
    for phase in phases:
        assert phase.start == start
        assert run.phases.min_steps <= phase.length <= run.phases.max_steps
        start = phase.end
    starts = {phase.start for phase in phases} | {start}
    assert {regime.start for regime in run.regimes if regime.start <= start} <= starts


@given(curricula(), st.integers(1, 60), st.booleans())
@settings(max_examples=40)
def test_a_walk_restored_from_json_goes_on_bit_for_bit(run: Curriculum, step: int, is_late: bool) -> None:
    late = ragged if is_late else on_time
    walk = Walk(run)
    drive(walk, step, late=late)
    state = json.loads(json.dumps(walk.state_dict(from_step=step - MAX_LATE - 1)))
    restored = Walk(run)
    restored.load_state_dict(state)
    assert restored.state_dict(from_step=step - MAX_LATE - 1) == state
    rest = drive(walk, step + 60, since=step, late=late)
    assert same_phases(drive(restored, step + 60, since=step, late=late), rest)
    assert restored.state_dict() == walk.state_dict()


@given(curricula(), st.permutations(range(40)), st.integers(0, 10))
@settings(max_examples=30)
def test_the_order_of_reports_between_two_decisions_changes_nothing(
    run: Curriculum, order: list[int], repeats: int
) -> None:
    one, other = Walk(run), Walk(run)
    for walk in (one, other):
        walk.phase_at(39)
    for step in range(40):
        assert one.report(step, report_of(one, step))
    for step in [*order, *order[:repeats]]:
        other.report(step, report_of(other, step))
    assert same_phases([one.phase_at(s) for s in range(40, 100)], [other.phase_at(s) for s in range(40, 100)])
    assert one.state_dict() == other.state_dict()


# Restoring at every step.


@pytest.mark.parametrize("is_journalled", [False, True])
def test_a_walk_resumes_from_every_step_across_warmup_and_pivots_with_feedback_pending(
    tmp_path: Path, is_journalled: bool
) -> None:
    run = with_pivots()

    def walk(journal: Journal | None) -> Walk:
        return Walk(run, journal=journal)

    first = Journal.create(tmp_path / "run.jsonl") if is_journalled else None
    reference, states, steps = walk(first), [], []
    for step in range(130):
        states.append(json.dumps(reference.state_dict(from_step=step - MAX_LATE - 1)))
        steps += drive(reference, step + 1, since=step, late=ragged)
    assert any(json.loads(state)["inbox"]["pending"] for state in states)
    if first:
        first.close()
    for step in range(0, 130, 3 if is_journalled else 1):
        journal = Journal.open(tmp_path / "run.jsonl") if is_journalled else None
        restored = walk(journal)
        restored.load_state_dict(json.loads(states[step]))
        end = min(step + 50, 130)  # the next phase or two, and the feedback that they wait for
        assert same_phases(drive(restored, end, since=step, late=ragged), steps[step:end]), step
        if end < 130 and not is_journalled:
            assert json.dumps(restored.state_dict(from_step=end - MAX_LATE - 1)) == states[end]
        if journal:
            journal.close()


def test_a_report_of_thousands_of_ranks_takes_no_more_calls_than_one_of_a_few() -> None:
    def calls(num_ranks: int) -> int:
        walk = Walk(curriculum(batch_rows=num_ranks))
        counts = batch_counts(walk.curriculum, walk.phase_at(0), 0)
        sources = np.eye(3, dtype=np.int64)[np.repeat(np.arange(3), counts)]
        losses = [SourceLosses(rows, 4 * rows, 4.0 * rows, rank=rank) for rank, rows in enumerate(sources)]
        for each in losses[:-1]:
            walk.report(0, each)
        return num_calls(lambda: walk.report(0, losses[-1]))

    assert calls(2048) == calls(8)


def test_a_state_is_plain_data_and_does_not_change_when_the_walk_goes_on() -> None:
    walk = Walk(with_pivots())
    drive(walk, 30)
    state = walk.state_dict(from_step=0)
    before = json.dumps(state)
    drive(walk, 130, since=30)
    assert json.dumps(state) == before


def test_a_state_of_another_curriculum_or_version_is_refused_naming_both() -> None:
    run, other = with_pivots(), with_pivots(seed=1)
    state = Walk(run).state_dict()
    walk = Walk(other)
    with pytest.raises(StateMismatchError, match=f"{run.fingerprint}, but this one is {other.fingerprint}"):
        walk.load_state_dict(state)
    with pytest.raises(StateMismatchError, match=r"walk state has version 6, .* reads version 1"):
        Walk(run).load_state_dict({**state, "version": 6})
    assert walk.state_dict() == Walk(other).state_dict()


def test_a_longer_run_keeps_its_walk() -> None:
    run, longer = with_pivots(total_steps=200), with_pivots(total_steps=900)
    walk = Walk(run)
    drive(walk, 60)
    restored = Walk(longer)
    restored.load_state_dict(walk.state_dict())
    assert same_phases(drive(restored, 130, since=60), drive(walk, 130, since=60))


def test_restoring_live_pivots_restores_the_plan() -> None:
    run = with_pivots()
    walk = Walk(run)
    drive(walk, 80)
    walk.pivot(Pivot(name="live", caps={"source-3": 0.45}), at_step=walk.frontier + 20)
    restored = Walk(run)
    restored.load_state_dict(json.loads(json.dumps(walk.state_dict())))
    assert [regime.name for regime in restored.regimes] == [regime.name for regime in walk.regimes]
    assert same_phases(drive(restored, 160, since=80), drive(walk, 160, since=80))


# Feedback.


def test_losses_within_the_lag_change_nothing_and_those_before_it_do() -> None:
    run = curriculum(4, feedback_lag=9, phases={"initial_random": 0, "random_probability": 0.0}, policy="andrea")
    reference = Walk(run)
    drive(reference, 100)
    decided = reference.phase_at(100).start

    def weights_if_changed(changed: int) -> list[float]:
        def losses(run: Curriculum, step: int, rows: IntArray) -> SourceLosses:
            told = noisy_losses(run, step, rows)
            factor = 0.1 if step == changed else 1.0
            return SourceLosses(rows=told.rows, tokens=told.tokens, loss_sums=told.loss_sums * factor)

        walk = Walk(run)
        drive(walk, decided, losses=losses)
        return [float(index) for index in _decision(walk)["rewards"]]

    unchanged = weights_if_changed(-1)
    for step in range(decided - 9, decided):
        assert weights_if_changed(step) == unchanged, step
    for step in range(decided - 14, decided - 9):
        assert weights_if_changed(step) != unchanged, step


def _decision(walk: Walk) -> dict[str, list[float]]:
    """Decide one more phase and return what the policy knew then."""
    walk.phase_at(walk.frontier)
    return dict(walk.state_dict()["policy"])


def test_rows_beyond_those_of_a_step_that_was_learned_from_are_refused() -> None:
    walk = Walk(curriculum(3, policy="odm"))
    drive(walk, 30)
    again = replace(report_of(walk, 3), rank=1)
    with pytest.raises(FeedbackError, match=r"^step 3 reports 8 rows more, but all 8 rows .* report each row once$"):
        walk.report(3, again)
    none: IntArray = np.zeros(3, dtype=np.int64)
    assert walk.report(3, SourceLosses(rows=none, tokens=none, loss_sums=np.zeros(3), rank=1))  # nothing is new


def test_a_report_that_comes_late_is_learned_from_by_the_next_decision() -> None:
    run = curriculum(3)
    prompt, late = Walk(run), Walk(run)
    drive(prompt, 50)
    for step in range(50):
        late.phase_at(step)
    for step in range(50):
        assert late.report(step, report_of(late, step))
    for walk in (prompt, late):
        walk.phase_at(walk.frontier)
    assert late.state_dict()["inbox"] == prompt.state_dict()["inbox"]
    tokens = [walk.state_dict()["policy"]["tokens"] for walk in (late, prompt)]
    assert tokens[0] == tokens[1]


def test_a_repeated_report_changes_nothing_even_after_it_was_used_or_if_it_says_something_else() -> None:
    walk = Walk(curriculum(3))
    drive(walk, 60)
    walk.phase_at(walk.frontier)
    before = walk.state_dict()
    assert not walk.report(3, report_of(walk, 3))
    assert not walk.report(3, report_of(walk, 3, loss_sums=np.full(3, 9.0) * (report_of(walk, 3).rows > 0)))
    assert walk.state_dict() == before


def test_every_rank_reports_its_own_part_and_the_sum_is_learned_from() -> None:
    run = curriculum(3)
    whole, parts = Walk(run), Walk(run)
    drive(whole, 100)
    for step in range(100):
        rows = batch_counts(run, parts.phase_at(step), step)
        told = noisy_losses(run, step, rows)
        for rank in (1, 0):
            mine = rows // 2 if rank else rows - rows // 2
            share = np.divide(mine, rows, out=np.zeros(3), where=rows > 0)
            parts.report(
                step,
                SourceLosses(rows=mine, tokens=mine * 4, loss_sums=told.loss_sums * share, rank=rank),
            )
    weights = [walk.phase_at(99).weights for walk in (whole, parts)]
    np.testing.assert_allclose(weights[0], weights[1], atol=1e-12)


@pytest.mark.parametrize(
    ("step", "changes", "error", "message"),
    [
        (5, {"loss_sums": np.array([1.0, np.nan, 1.0])}, InvalidLossError, "step 5: loss of source-1 is nan"),
        (5, {"loss_sums": np.array([1.0, -2.0, 1.0])}, InvalidLossError, r"source-1 is -2\.0"),
        (5, {"loss_sums": np.array([np.inf, 1.0, 1.0])}, InvalidLossError, "source-0 is inf"),
        (5, {"rows": np.array([1, 1])}, FeedbackError, "rows have shape"),
        (-1, {}, StepError, "feedback for step -1"),
        (10_000, {}, FutureFeedbackError, r"feedback for step 10000, but phases are decided up to step \d+ only"),
    ],
)
def test_feedback_that_cannot_be_is_refused_and_changes_nothing(
    tmp_path: Path, step: int, changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    path = tmp_path / "run.jsonl"
    with Journal.create(path) as journal:
        walk = Walk(curriculum(3), journal=journal)
        drive(walk, 5)
        walk.phase_at(5)
        before, content = walk.state_dict(), path.read_bytes()
        with pytest.raises(error, match=message):
            walk.report(step, report_of(walk, 5, **changes))
        assert walk.state_dict() == before
        assert path.read_bytes() == content
        assert walk.report(5, report_of(walk, 5))  # the step can still be told rightly


def test_numbers_of_numpy_are_as_good_as_plain_ones() -> None:
    plain, numpy = Walk(curriculum(3)), Walk(curriculum(3))
    for walk in (plain, numpy):
        walk.phase_at(0)
    losses = report_of(plain, 0)
    assert plain.report(0, losses)
    told = {name: getattr(losses, name).tolist() for name in ("rows", "tokens", "loss_sums", "square_sums")}
    zero: Any = np.int64(0)
    assert numpy.report(zero, SourceLosses(**told, rank=zero))
    assert json.dumps(numpy.state_dict()) == json.dumps(plain.state_dict())


def test_feedback_on_the_first_step_of_an_undecided_phase_is_from_the_future() -> None:
    walk = Walk(curriculum(3))
    losses = report_of(Walk(curriculum(3)), 0)
    with pytest.raises(FutureFeedbackError, match="up to step -1 only; ask for the phase"):
        walk.report(0, losses)
    end = walk.phase_at(0).end
    assert walk.report(end - 1, report_of(walk, end - 1))
    with pytest.raises(FutureFeedbackError, match=f"feedback for step {end}, "):
        walk.report(end, losses)


def test_losses_of_a_source_that_its_phase_does_not_draw_are_refused() -> None:
    walk = Walk(curriculum(3, exclude=["source-2"]))
    walk.phase_at(0)
    ones = np.ones(3, dtype=np.int64)
    with pytest.raises(FeedbackError, match="step 0 reports 1 rows of source-2, whose weight is 0 in that phase"):
        walk.report(0, SourceLosses(rows=ones, tokens=ones, loss_sums=np.ones(3)))


# Regimes.


def test_a_regime_begins_at_the_projection_of_where_the_walk_stood(tmp_path: Path) -> None:
    run = with_pivots(phases={"initial_random": 1, "random_probability": 0.0})
    with Journal.create(tmp_path / "run.jsonl") as journal:
        walk = Walk(run, journal=journal)
        phases = phases_of(drive(walk, 130))
        records = [record for record in journal.records() if record["type"] == "phase"]
    begun = 0
    for earlier, phase, record in zip(phases, phases[1:], records[1:], strict=False):
        if phase.start not in (40, 75, 110):
            continue
        landed = walk.regime_at(phase.start).region.project(earlier.weights)
        assert record["landed"] == landed.tolist()
        np.testing.assert_allclose(phase.weights, 0.7 * landed + 0.3 * np.array(record["vertex"]), atol=1e-12)
        begun += 1
    assert begun == 3


def test_a_pivot_leaves_a_quarter_of_the_statistics_and_the_end_of_warmup_all() -> None:
    run = with_pivots(policy={"name": "ucb", "kappa": 0.0}, feedback_lag=200)
    walk = Walk(run)
    drive(walk, 40)
    for step, kept in ((40, 1.0), (75, 0.25), (110, 0.25)):
        walk.phase_at(step - 1)
        walk._now.learned = replace(walk._now.learned, policy={name: np.ones(5) for name in walk._now.learned.policy})
        walk.phase_at(step)
        assert walk.state_dict()["policy"]["weight"] == [kept] * 5, step
        assert walk.state_dict()["policy"]["tokens"] == [1.0] * 5


def test_sixteen_sources_warm_up_on_seven_while_the_floors_of_the_others_sleep() -> None:
    floors = {"source-0": 0.1, "source-1": 0.2, "source-15": 0.05}
    run = curriculum(
        16, floors=floors, curriculum_warmup_steps=300, curriculum_warmup_sources=SEVEN, phases={"initial_random": 2}
    )
    walk = Walk(run)
    awake = np.array([name in SEVEN for name in SIXTEEN])
    drawn = np.zeros(16)
    for phase in phases_of(drive(walk, 500)):
        assert (phase.weights[~awake] == 0).all() == (phase.start < 300)
        assert phase.weights[0] >= 0.1
        assert phase.weights[15] >= 0.05
        assert phase.start < 300 or phase.weights[1] >= 0.2
        if phase.end == 300:
            drawn = phase.drawn.astype(np.float64)
    assert (drawn[~awake] == 0).all()
    assert (drawn[awake] > 0).all()
    assert [regime.name for regime in run.regimes] == ["warmup", "firehose"]
    assert run.regimes[0].region.dimension == 6
    assert run.regimes[1].region.dimension == 15


def test_a_pivot_during_warmup_redraws_the_smaller_simplex() -> None:
    pivot = {"name": "early", "at_step": 20, "floors": {"source-2": 0.6}}
    walk = Walk(with_pivots(pivots=[pivot]))
    weights = {phase.start: phase.weights for phase in phases_of(drive(walk, 80))}
    assert [(regime.name, regime.start) for regime in walk.regimes] == [("warmup", 0), ("early", 20), ("early", 40)]
    assert (weights[20][3:] == 0).all()
    assert weights[20][2] >= 0.6
    assert weights[40][2] >= 0.6


# Live pivots.


def test_a_live_pivot_takes_force_at_the_end_of_the_newest_phase() -> None:
    for policy in ("ucb", "andrea", "static", "random", "unimax"):
        walk = Walk(curriculum(4, policy=policy))
        drive(walk, 50)
        frontier, before = walk.frontier, walk.phase_at(walk.frontier - 1)
        assert walk.pivot(Pivot(name="live", floors={"source-3": 0.7}, exclude=("source-0",))) == frontier
        assert walk.phase_at(frontier - 1) is before
        phases = phases_of(drive(walk, frontier + 60, since=50))
        for phase in phases:
            assert (phase.regime == "live") == (phase.start >= frontier)
            if phase.start >= frontier:
                assert phase.weights[3] >= 0.7
                assert phase.weights[0] == 0


def test_a_live_pivot_at_a_given_step_has_a_phase_end_there() -> None:
    walk = Walk(curriculum(4))
    drive(walk, 50)
    at_step = walk.frontier + 61
    assert walk.pivot(Pivot(name="live", caps={"source-0": 0.1}), at_step=at_step) == at_step
    phases = phases_of(drive(walk, at_step + 30, since=50))
    assert at_step in {phase.start for phase in phases}
    assert all((phase.weights[0] <= 0.1) or phase.start < at_step for phase in phases)


@pytest.mark.parametrize(
    ("fields", "at", "error", "message"),
    [
        (
            {"floors": {"source-0": 0.5}},
            -1,
            PivotError,
            r"phases are decided up to step \d+; ask for step \d+ or later",
        ),
        ({"floors": {"source-0": 0.5}}, 3, PivotError, r"\d+ is 3 steps after the end of the newest phase at step \d+"),
        (
            {"floors": {"source-0": 0.6, "source-1": 0.6}},
            0,
            InfeasibleRegionError,
            r"regime live .* floors sum to 1\.2",
        ),
        ({"floors": {"sorce-0": 0.6}}, 0, UnknownSourceError, "unknown source 'sorce-0'; did you mean 'source-0'"),
        ({"name": "firehose"}, 0, PivotError, "there is a regime named firehose already; give the pivot another"),
        ({"name": "later", "floors": {"source-0": 0.9}}, 0, InfeasibleRegionError, "regime planned"),
    ],
)
def test_a_live_pivot_that_cannot_be_changes_nothing(
    tmp_path: Path, fields: dict[str, Any], at: int, error: type[Exception], message: str
) -> None:
    run = curriculum(3, pivots=[{"name": "planned", "at_step": 5000, "exclude": ["source-1", "source-2"]}])
    if fields.get("name") == "later":  # feasible now, but not with what is planned after it
        run = curriculum(3, pivots=[{"name": "planned", "at_step": 5000, "caps": {"source-0": 0.5}}])
    path = tmp_path / "run.jsonl"
    with Journal.create(path) as journal:
        walk = Walk(run, journal=journal)
        drive(walk, 50)
        before, content, regimes = walk.state_dict(), path.read_bytes(), walk.regimes
        with pytest.raises(error, match=message):
            walk.pivot(Pivot(**{"name": "live", **fields}), at_step=walk.frontier + at)
        assert walk.state_dict() == before
        assert path.read_bytes() == content
        assert walk.regimes == regimes


def test_a_live_pivot_respects_the_epochs_that_unimax_promised() -> None:
    sources = [{"name": f"source-{i}", "local": "topics", "tokens": 130_000} for i in range(3)]
    walk = Walk(curriculum(3, sources=sources, policy={"name": "unimax", "max_epochs": 1.0}))
    walk.phase_at(0)
    with pytest.raises(InfeasibleRegionError, match="caps sum to 0.8125"):
        walk.pivot(Pivot(name="live", exclude=("source-0",)))
    assert len(walk.regimes) == 1


def test_before_the_first_step_bounds_belong_in_the_file() -> None:
    with pytest.raises(PivotError, match="pivot live at step 0: write its bounds into the curriculum instead"):
        Walk(curriculum(3)).pivot(Pivot(name="live", floors={"source-0": 0.5}))


# Steps, and sizes of sources.


def test_a_walk_over_ten_thousand_sources_keeps_every_bound() -> None:
    names = [f"source-{i}" for i in range(10_000)]
    walk = Walk(curriculum(10_000, floors={"source-7": 0.3}, exclude=names[100:200], phases={"initial_random": 1}))
    for phase in phases_of(drive(walk, 60)):
        assert walk.regimes[0].region.contains(phase.weights)
        assert phase.weights[7] >= 0.3
        assert (phase.weights[100:200] == 0).all()


def test_steps_before_the_beginning_or_long_past_are_refused() -> None:
    walk = Walk(curriculum(2, phases={"min_steps": 1, "max_steps": 1}, policy="static"))
    with pytest.raises(StepError, match="step is -1; steps count from 0"):
        walk.phase_at(-1)
    walk.phase_at(400)
    with pytest.raises(StepError, match="step 9 lies in a phase that is no longer held; .* begins at step 145"):
        walk.phase_at(9)
    assert walk.phase_at(145).start == 145


def test_a_size_learned_on_the_way_discounts_repetition_from_the_next_decision() -> None:
    sources = [{"name": "small", "local": "topics"}, {"name": "sized", "local": "topics", "tokens": 10**6}]
    walk = Walk(curriculum(2, sources=sources))
    walk.learn_unique_tokens("small", 50)
    walk.learn_unique_tokens("sized", 1)  # what the curriculum says stands
    walk.learn_unique_tokens("small", 60)  # and so does what was learned first
    assert walk.state_dict()["unique_tokens"] == [50, 10**6]
    with pytest.raises(UnknownSourceError, match="unknown source 'smal'; the sources are small, sized"):
        walk.learn_unique_tokens("smal", 5)
    with pytest.raises(ConfigError, match="small has 0 distinct tokens; a source has at least one"):
        walk.learn_unique_tokens("small", 0)
    drive(walk, 200)
    unsized = Walk(curriculum(2, sources=sources))
    assert walk.phase_at(199).weights[0] < drive(unsized, 200)[-1].weights[0]
