"""Which source each row comes from: counts within one, no drift, marginals, ranks, and sources of weight 0."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixer.delivery.batch import Planner
from mixer.sampling import draws
from mixer.sampling.draws import (
    FEW,
    _smallest,
    initial_owed,
    multinomial_counts,
    phase_counts,
    plan_rows,
    systematic_counts,
)
from mixer.sampling.phases import Phase
from mixer.system import kernels
from mixer.types import Array, IntArray
from mixer.walk.walk import Walk
from tests.support.curricula import batch_counts, curriculum, drive
from tests.support.strategies import decimal_points, lopsided_points, source_names

weights_of_any_kind = st.integers(1, 12).flatmap(lambda num: st.one_of(decimal_points(num), lopsided_points(num)))


def changing_weights(rng: np.random.Generator, num_sources: int, num_phases: int) -> list[tuple[Array, int]]:
    """Weights and lengths of phases as a walk makes them: steps towards corners, now and then a teleport."""
    weights, phases = rng.dirichlet(np.ones(num_sources)), []
    for _ in range(num_phases):
        phases.append((weights / weights.sum(), int(rng.integers(7, 43))))
        if rng.random() < 0.2:
            weights = rng.dirichlet(np.full(num_sources, 10 ** rng.uniform(-1, 1)))
        else:
            weights = 0.7 * weights + 0.3 * np.eye(num_sources)[rng.integers(num_sources)]
    return phases


def phase_with(weights: Array, *, start: int = 0, length: int = 10, owed: Array | None = None) -> Phase:
    return Phase(
        index=0,
        start=start,
        length=length,
        kind="bandit",
        regime="firehose",
        names=source_names(weights.size),
        weights=weights,
        drawn=np.zeros(weights.size, dtype=np.int64),
        owed=np.zeros(weights.size) if owed is None else owed,
    )


@given(weights_of_any_kind, st.integers(1, 64), st.integers(0, 2**63 - 1))
def test_every_batch_is_full_and_each_count_within_one_of_what_the_weight_earns(
    weights: Array, batch_rows: int, seed: int
) -> None:
    owed = initial_owed(seed, weights, batch_rows)
    counts, _ = systematic_counts(weights, owed, length=12, batch_rows=batch_rows)
    assert (counts.sum(axis=1) == batch_rows).all()
    assert (np.abs(counts - weights * batch_rows) < 1).all()
    assert (counts[:, weights == 0] == 0).all()
    other = np.roll(weights, 1)  # what is owed under one mixture is no claim on sources that the next leaves out
    counts, _ = systematic_counts(other, owed, length=12, batch_rows=batch_rows)
    assert (counts.sum(axis=1) == batch_rows).all()
    assert (np.abs(counts - other * batch_rows) < 1).all()
    assert (counts[:, other == 0] == 0).all()


@given(weights_of_any_kind, st.integers(1, 64), st.integers(0, 1000))
def test_independent_draws_fill_the_batch_and_leave_weight_0_alone(weights: Array, batch_rows: int, seed: int) -> None:
    counts = multinomial_counts(weights, seed=seed, start=3, length=4, batch_rows=batch_rows)
    assert (counts.sum(axis=1) == batch_rows).all()
    assert (counts[:, weights == 0] == 0).all()


@given(weights_of_any_kind, st.integers(1, 64), st.integers(0, 1000))
def test_what_is_owed_is_what_was_earned_and_not_drawn(weights: Array, batch_rows: int, seed: int) -> None:
    before = initial_owed(seed, weights, batch_rows)
    assert before.sum() == pytest.approx(0, abs=1e-9)
    assert (np.abs(before) < 1).all()
    for method in ("systematic", "multinomial"):
        phase = phase_with(weights, owed=before)
        counts, after = phase_counts(phase, seed=seed, method=method, batch_rows=batch_rows)
        np.testing.assert_allclose(after, before + 10 * weights * batch_rows - counts.sum(axis=0), atol=1e-9)


def test_running_counts_stay_within_two_rows_of_the_weights_over_thousands_of_steps_while_random_ones_drift() -> None:
    rng = np.random.default_rng(1)
    worst = {"systematic": 0.0, "multinomial": 0.0}
    for seed in range(12):
        num_sources, batch_rows = int(rng.integers(2, 20)), int(rng.integers(1, 48))
        phases = changing_weights(rng, num_sources, 120)  # about 3,000 steps
        for method in worst:
            owed, start = initial_owed(seed, phases[0][0], batch_rows), 0
            error = np.zeros(num_sources)
            for weights, length in phases:
                phase = phase_with(weights, start=start, length=length, owed=owed)
                counts, owed = phase_counts(phase, seed=seed, method=method, batch_rows=batch_rows)
                errors = error + np.cumsum(weights * batch_rows - counts, axis=0)
                worst[method] = max(worst[method], float(np.abs(errors).max()))
                error, start = errors[-1], start + length
    assert worst["systematic"] < 2
    assert worst["multinomial"] > 20


MARGINALS = (  # weights, batch_rows
    ([0.5, 0.3, 0.2], 8),  # one source earns whole rows
    ([0.69, 0.29, 0.01, 0.01], 1),
    ([0.35, 0.35, 0.15, 0.15, 0.0], 2),
    ([0.41, 0.22, 0.17, 0.09, 0.05, 0.03, 0.02, 0.01], 16),
)


@pytest.mark.parametrize(("table", "batch_rows"), MARGINALS)
def test_over_many_seeds_a_source_is_drawn_with_exactly_its_weight(table: list[float], batch_rows: int) -> None:
    weights, num_seeds = np.array(table), 1500
    total = np.zeros((20, weights.size))
    for seed in range(num_seeds):
        owed = initial_owed(seed, weights, batch_rows)
        total += systematic_counts(weights, owed, length=20, batch_rows=batch_rows)[0]
    share = weights * batch_rows % 1
    tolerance = 4.5 * np.sqrt(share * (1 - share) / num_seeds) + 1e-12  # 160 numbers: one in 1,000 runs goes beyond
    for step in (0, 1, 7, 19):
        assert (np.abs(total[step] / num_seeds - weights * batch_rows) <= tolerance).all(), step


def test_after_a_change_of_weights_marginals_are_a_quarter_row_off_at_most_and_exact_again_in_five_batches() -> None:
    changes = [np.array(w) for w in ([0.55, 0.29, 0.16], [0.12, 0.47, 0.41], [0.623, 0.051, 0.326])]
    num_seeds, num_steps = 1500, 12
    bias = np.zeros((len(changes), num_steps, 3))
    for seed in range(num_seeds):
        owed = initial_owed(seed, changes[0], 8)
        for i, weights in enumerate(changes):
            counts, owed = systematic_counts(weights, owed, length=num_steps, batch_rows=8)
            bias[i] += (counts - weights * 8) / num_seeds
    noise = 4.5 * 0.5 / math.sqrt(num_seeds)
    assert np.abs(bias[0]).max() < noise
    assert np.abs(bias[:, 0]).max() < 0.25 + noise
    assert np.abs(bias[:, 5:]).max() < noise
    assert np.abs(bias.cumsum(axis=0).sum(axis=1)).max() < 1  # rows, summed over the run


def test_independent_draws_have_the_weights_as_marginals() -> None:
    weights = np.array([0.5, 0.3, 0.2, 0.0])
    counts = multinomial_counts(weights, seed=4, start=0, length=4000, batch_rows=16)
    rows = counts.sum()
    tolerance = 4.5 * np.sqrt(weights * (1 - weights) / rows) + 1e-12
    assert (np.abs(counts.sum(axis=0) / rows - weights) <= tolerance).all()


@given(weights_of_any_kind, st.integers(1, 64), st.integers(0, 1000), st.integers(0, 10**9))
def test_the_plan_of_a_phase_is_its_counts_and_numbers_each_sources_rows_without_gaps(
    weights: Array, batch_rows: int, seed: int, start: int
) -> None:
    counts = systematic_counts(weights, np.zeros(weights.size), length=9, batch_rows=batch_rows)[0]
    drawn = np.arange(weights.size) * 1000
    source_ids, numbers = plan_rows(counts, drawn, seed=seed, start=start)
    for batch, sources in zip(counts, source_ids, strict=True):
        assert np.bincount(sources, minlength=weights.size).tolist() == batch.tolist()
    expected = drawn.copy()
    for sources, row_numbers in zip(source_ids, numbers, strict=True):  # batch by batch, each source goes on
        for i in np.unique(sources):
            mine = np.sort(row_numbers[sources == i])
            assert mine.tolist() == list(range(expected[i], expected[i] + mine.size))
            expected[i] += mine.size
    shorter = plan_rows(counts[:4], drawn, seed=seed, start=start)  # a phase cut short keeps the batches it had
    assert (shorter[0] == source_ids[:4]).all()
    assert (shorter[1] == numbers[:4]).all()


def test_draws_are_a_function_of_seed_phase_and_step() -> None:
    run = curriculum(5, seed=3)
    once, again, other = Walk(run), Walk(run), Walk(curriculum(5, seed=4))
    drive(once, 120)

    def rows(walk: Walk, step: int) -> list[int]:
        source_ids, _ = Planner(walk.curriculum, walk.phase_at).plan(walk.phase_at(step))
        return [int(i) for i in source_ids[step - walk.phase_at(step).start]]

    steps = [17, 3, 99, 3, 0]  # in any order, as often as one likes
    drive(again, 120)
    assert [rows(once, step) for step in steps] == [rows(again, step) for step in steps]
    assert rows(once, 0) != rows(other, 0)
    source_ids, _ = plan_rows(np.full((50, 2), 8), np.zeros(2, dtype=np.int64), seed=3, start=0)
    assert len({tuple(batch.tolist()) for batch in source_ids}) == 50


@given(weights_of_any_kind, st.integers(1, 64), st.integers(0, 1000), st.integers(1, 5))
def test_appending_sources_of_weight_0_moves_no_draw(
    weights: Array, batch_rows: int, seed: int, num_appended: int
) -> None:
    def rows(weights: Array, method: str) -> tuple[list[list[int]], IntArray]:
        phase = phase_with(weights, owed=initial_owed(seed, weights, batch_rows))
        counts, _ = phase_counts(phase, seed=seed, method=method, batch_rows=batch_rows)
        return plan_rows(counts, np.zeros_like(counts[0]), seed=seed, start=0)[0].tolist(), counts

    appended = np.concatenate([weights, np.zeros(num_appended)])
    for method in ("systematic", "multinomial"):
        assert rows(weights, method)[0] == rows(appended, method)[0]
        assert (rows(appended, method)[1][:, weights.size :] == 0).all()


def test_a_walk_that_gains_an_excluded_source_draws_the_same_rows() -> None:
    few = curriculum(3, policy="static")
    more = curriculum(4, policy={"name": "static", "weights": {f"source-{i}": 1 / 3 for i in range(3)}})
    excluded = curriculum(4, policy="static", exclude=["source-3"])
    for other in (more, excluded):
        for step in range(100):
            phases = Walk(few).phase_at(step), Walk(other).phase_at(step)
            assert phases[0].length == phases[1].length
            counts = [batch_counts(few, phase, step)[:3].tolist() for phase in phases]
            assert counts[0] == counts[1]


def test_weights_that_mean_whole_rows_draw_exactly_those() -> None:
    weights = np.array([0.29, 0.57, 0.14])  # times 100: 28.999999999999996, 56.99999999999999, 14.000000000000002
    beside = np.array([0.29, 0.304, 0.406])
    for seed in range(20):
        counts, _ = systematic_counts(weights, initial_owed(seed, weights, 100), length=5, batch_rows=100)
        assert counts.tolist() == [[29, 57, 14]] * 5
        counts, _ = systematic_counts(beside, initial_owed(seed, np.full(3, 1 / 3), 100), length=5, batch_rows=100)
        assert counts[:, 0].tolist() == [29] * 5


def test_the_largest_number_below_1_draws_the_last_source_that_has_a_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    def largest(num: int, *key: object) -> Array:
        return np.full(num, 1.0 - 2.0**-53)

    monkeypatch.setattr("mixer.sampling.draws.uniforms", largest)
    weights = np.array([*[0.1] * 10, 0.0])  # they sum to 0.9999999999999999
    assert multinomial_counts(weights, seed=0, start=0, length=1, batch_rows=4).tolist() == [[0] * 9 + [4, 0]]


def test_the_number_0_draws_the_first_source_that_has_a_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mixer.sampling.draws.uniforms", lambda num, *_key: np.zeros(num))
    weights = np.array([0.0, 0.5, 0.5])
    assert multinomial_counts(weights, seed=0, start=0, length=1, batch_rows=4).tolist() == [[0, 4, 0]]


def test_draws_and_their_order_are_those_of_every_release() -> None:
    counts = multinomial_counts(np.array([0.5, 0.3, 0.2]), seed=7, start=11, length=3, batch_rows=8)
    assert counts.tolist() == [[5, 2, 1], [5, 1, 2], [4, 4, 0]]
    source_ids, numbers = plan_rows(counts, np.array([100, 200, 300]), seed=7, start=11)
    assert source_ids.tolist() == [[2, 1, 0, 0, 0, 0, 0, 1], [0, 0, 2, 0, 1, 0, 0, 2], [0, 1, 1, 1, 0, 1, 0, 0]]
    assert numbers.tolist() == [
        [300, 200, 103, 101, 104, 100, 102, 201],
        [109, 106, 302, 107, 202, 105, 108, 301],
        [113, 205, 204, 206, 112, 203, 110, 111],
    ]
    one, _ = plan_rows(counts[:1], np.array([100, 200, 300]), seed=7, start=11)  # of a phase that was cut to one step
    assert one.tolist() == source_ids[:1].tolist()


@given(st.lists(st.integers(0, 4), min_size=1, max_size=3 * FEW), st.data())
def test_the_smallest_of_many_are_those_of_a_stable_sort(values: list[int], data: st.DataObject) -> None:
    array, num = np.array(values, dtype=np.float64), data.draw(st.integers(0, len(values)))
    assert sorted(_smallest(array, num).tolist()) == sorted(array.argsort(kind="stable")[:num].tolist())


@pytest.mark.parametrize("num_sources", [FEW - 1, FEW, FEW + 1, 3 * FEW])
def test_ties_among_many_sources_go_to_the_first_and_come_round_to_all(
    num_sources: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights, owed = np.full(num_sources, 1 / num_sources), np.zeros(num_sources)
    expected = np.arange(num_sources).reshape(-1, 3) if num_sources % 3 == 0 else None
    for compiled in (kernels.compiled, None):
        monkeypatch.setattr(draws, "compiled", compiled)
        counts, _ = systematic_counts(weights, owed, length=num_sources // 3, batch_rows=3)
        assert counts.max() == 1
        assert (counts.sum(axis=1) == 3).all()
        assert np.flatnonzero(counts[0]).tolist() == [0, 1, 2]
        if expected is not None:
            assert [np.flatnonzero(row).tolist() for row in counts] == expected.tolist()
