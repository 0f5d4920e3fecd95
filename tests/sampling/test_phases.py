"""The law of phases: lengths, boundaries and kinds, from the seed and the index alone."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from mixer.sampling.phases import Phase, PhaseLaw
from mixer.sampling.randomness import uniforms
from mixer.walk.walk import Walk
from tests.support.curricula import POLICIES, curriculum, drive, ragged


@st.composite
def laws(draw: st.DrawFn) -> PhaseLaw:
    min_steps = draw(st.integers(1, 30))
    return PhaseLaw(
        seed=draw(st.integers(0, 2**63 - 1)),
        min_steps=min_steps,
        max_steps=min_steps + draw(st.integers(0, 40)),
        random_probability=draw(st.floats(0, 1)),
        initial_random=draw(st.integers(0, 5)),
    )


@given(laws(), st.integers(1, 2000))
def test_lengths_stay_within_their_limits_and_end_exactly_on_every_boundary_that_fits(
    law: PhaseLaw, steps: int
) -> None:
    assume(law.fits(steps))
    left, index = steps, 0
    while left:
        length = law.length(index, left)
        assert law.min_steps <= length <= law.max_steps
        left, index = left - length, index + 1
        assert left >= 0
        assert law.fits(left)


@given(laws(), st.integers(0, 10**6))
def test_lengths_far_from_a_boundary_are_those_of_a_run_without_one(law: PhaseLaw, index: int) -> None:
    far = law.max_steps + law.min_steps * (law.max_steps + 1)  # from here on every number of steps can be filled
    assert law.length(index, far) == law.length(index)


@given(laws(), st.integers(0, 10**6), st.one_of(st.none(), st.integers(1, 3000)))
def test_a_length_is_drawn_from_all_that_leave_whole_phases_to_the_boundary(
    law: PhaseLaw, index: int, remaining: int | None
) -> None:
    assume(remaining is None or law.fits(remaining))
    lengths = range(law.min_steps, law.max_steps + 1)
    fitting = [n for n in lengths if remaining is None or (n <= remaining and law.fits(remaining - n))]
    _, draw = uniforms(2, law.seed, "phase", index)
    assert law.length(index, remaining) == fitting[int(draw * len(fitting))]


@given(laws(), st.integers(0, 300))
def test_steps_fit_exactly_if_some_number_of_phases_fills_them(law: PhaseLaw, steps: int) -> None:
    reachable = {0}
    for total in range(1, steps + 1):  # a second implementation, by counting up
        if any(total - length in reachable for length in range(law.min_steps, law.max_steps + 1)):
            reachable.add(total)
    assert law.fits(steps) == (steps in reachable)


@given(laws(), st.integers(0, 300))
@example(PhaseLaw(seed=0, min_steps=1, max_steps=1), 0)
@example(PhaseLaw(seed=0, min_steps=1, max_steps=1), 2)
def test_the_nearest_fits_are_the_nearest(law: PhaseLaw, steps: int) -> None:
    below, above = law.nearest_fits(steps)
    assert law.fits(above)
    assert not any(law.fits(n) for n in range(steps + 1, above))
    assert not any(law.fits(n) for n in range((below or 0) + 1, steps))
    assert below is None or (law.fits(below) and below < steps)


def test_a_length_that_cannot_reach_the_boundary_is_refused() -> None:
    with pytest.raises(ValueError, match="no phases of 7 to 42 steps fill 5 steps"):
        PhaseLaw(seed=0).length(3, 5)


def test_lengths_are_uniform_and_kinds_random_with_the_probability_asked_for() -> None:
    law, num = PhaseLaw(seed=5, random_probability=0.1), 20_000
    lengths = np.bincount([law.length(index) for index in range(num)], minlength=43)[7:]
    expected = num / lengths.size
    assert ((lengths - expected) ** 2 / expected).sum() < 73  # chi-squared with 35 degrees of freedom, p = 2e-4
    share = sum(law.is_random(index) for index in range(num)) / num
    assert share == pytest.approx(0.1, abs=4 * math.sqrt(0.1 * 0.9 / num))


def test_kind_and_length_are_independent_draws() -> None:
    law = PhaseLaw(seed=5, random_probability=0.5)
    lengths: dict[bool, list[int]] = {True: [], False: []}
    for index in range(20_000):
        lengths[law.is_random(index)].append(law.length(index))
    assert np.mean(lengths[True]) == pytest.approx(np.mean(lengths[False]), abs=4 * 10.4 * math.sqrt(2 / 10_000))


def test_the_first_phases_are_random_with_probability_one() -> None:
    law = PhaseLaw(seed=0, random_probability=0.0, initial_random=4)
    assert [law.is_random(index) for index in range(6)] == [True] * 4 + [False] * 2
    assert [law.probability_random(index) for index in range(6)] == [1.0] * 4 + [0.0] * 2


def test_random_phases_fade_with_the_cube_root_after_the_first_ones() -> None:
    law = PhaseLaw(seed=0, random_probability=0.5, initial_random=3, random_decay=8.0)
    assert [law.probability_random(index) for index in (0, 2, 3)] == [1.0, 1.0, 0.5]
    assert law.probability_random(3 + 7 * 8) == pytest.approx(0.25)  # (1 + 56 / 8)^(-1/3) = 1/2
    assert law.probability_random(3 + 26 * 8) == pytest.approx(0.5 / 3)


def test_kinds_are_those_of_every_release() -> None:
    law = PhaseLaw(seed=7, random_probability=0.3)
    assert [index for index in range(40) if law.is_random(index)] == [
        2,
        3,
        5,
        8,
        9,
        12,
        13,
        15,
        18,
        19,
        24,
        25,
        34,
        35,
        37,
        39,
    ]


def test_a_phase_names_its_weights_and_ends_after_its_last_step() -> None:
    zeros = np.zeros(2)
    phase = Phase(3, 20, 10, "bandit", "firehose", ("a", "b"), np.array([0.25, 0.75]), zeros.astype(np.int64), zeros)
    assert phase.by_source() == {"a": 0.25, "b": 0.75}
    assert phase.end == 30


def test_the_run_begins_with_as_many_random_phases_as_sources_at_most_16() -> None:
    assert curriculum(3).phase_law.initial_random == 3
    assert curriculum(40).phase_law.initial_random == 16
    assert curriculum(3, phases={"initial_random": 0}).phase_law.initial_random == 0


def test_kind_and_length_depend_on_seed_and_index_only() -> None:
    """Not on losses, nor on when they come, the policy, the bounds or the number of sources."""

    def law_of(phases: list[Phase]) -> list[tuple[int, bool]]:
        return [(phase.start, phase.kind == "random") for phase in phases]

    kept = {"seed": 11, "phases": {"initial_random": 2, "random_probability": 0.3}}
    reference = law_of(drive(Walk(curriculum(3, **kept)), 200))
    assert {kind for _, kind in reference} == {True, False}
    assert law_of(drive(Walk(curriculum(3, **kept)), 200, late=ragged)) == reference
    assert law_of([Walk(curriculum(3, **kept)).phase_at(step) for step in range(200)]) == reference
    assert law_of(drive(Walk(curriculum(7, **kept, floors={"source-2": 0.5})), 200)) == reference
    for policy in (
        *POLICIES[:4],
        {"name": "water_filling", "random_phases": True},
        {"name": "andrea"},
    ):  # those whose phases are random by chance
        assert law_of(drive(Walk(curriculum(3, **kept, policy=policy)), 200)) == reference
    assert law_of(drive(Walk(curriculum(3, **{**kept, "seed": 12})), 200)) != reference


@pytest.mark.parametrize(
    ("step", "sentence"),
    [
        (37, "the pivot at step 37 is 37 steps after the start, .* 10 to 12 .* move it to step 36 or 40"),
        (7, r"the pivot at step 7 is 7 steps after the start, .*; move it to step 10$"),
        (13, "move it to step 12 or 20"),
    ],
)
def test_a_boundary_that_no_phases_reach_names_the_nearest_steps_that_they_do(step: int, sentence: str) -> None:
    law = PhaseLaw(seed=0, min_steps=10, max_steps=12)
    (problem,) = law.boundary_problems([(step, "the pivot")])
    assert re.search(sentence, problem)


def test_a_boundary_is_measured_from_the_one_before_it() -> None:
    law = PhaseLaw(seed=0, min_steps=10, max_steps=12)
    assert law.boundary_problems([(10, "the warmup's end"), (30, "pivot a"), (30, "pivot b")]) == []
    problems = law.boundary_problems([(10, "the warmup's end"), (25, "pivot a"), (28, "pivot b")])
    assert len(problems) == 2
    assert "pivot a at step 25 is 15 steps after the warmup's end" in problems[0]
    assert "move it to step 22 or 30" in problems[0]
    assert "pivot b at step 28 is 3 steps after pivot a" in problems[1]
    assert "move it to step 35" in problems[1]
