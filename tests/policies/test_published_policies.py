"""ODM and ADO against second implementations written from their formulas, and under hard bounds."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.optimize
from hypothesis import given, settings
from hypothesis import strategies as st

from mixer.config.policy import AdoConfig, OdmConfig
from mixer.policies import AdoPolicy, OdmPolicy, make_policy
from mixer.policies.ado import MAX_POINTS
from mixer.policies.power_law import DELTA, MAX_ALPHA, MIN_LOG_EPS, fit_power_law
from mixer.types import Array
from mixer.walk.walk import Walk
from tests.policies.test_rewards import losses_of
from tests.support.curricula import curriculum, drive
from tests.support.strategies import problems

steps_of_losses = st.lists(
    st.tuples(st.lists(st.integers(0, 9), min_size=3, max_size=3), st.lists(st.floats(0, 12), min_size=3, max_size=3)),
    max_size=40,
)


@given(steps_of_losses, st.sampled_from([0.9, 0.0, 0.5]))
def test_odm_is_smoothed_perplexity_above_a_shrinking_floor(
    steps: list[tuple[list[int], list[float]]], a: float
) -> None:
    policy = OdmPolicy(OdmConfig(smoothing=a))
    state = policy.absorb(policy.initial(3), [losses_of(means, rows) for rows, means in steps], since=0, until=40)
    smoothed = [0.0, 0.0, 0.0]
    for rows, means in steps:
        for i in range(3):
            if rows[i]:
                smoothed[i] = a * smoothed[i] + (1 - a) * math.exp(losses_of(means, rows).means()[i])
    epsilon = min(1 / 3, math.sqrt(math.log(3) / (3 * max(len(steps), 1))))
    expected = [(1 - 3 * epsilon) * r / sum(smoothed) + epsilon if sum(smoothed) else 1 / 3 for r in smoothed]
    np.testing.assert_allclose(policy.point(state), expected, rtol=1e-9)


def test_odm_camps_on_the_source_with_the_highest_loss_and_a_pivot_makes_it_explore_again() -> None:
    policy = OdmPolicy(OdmConfig())
    state = policy.absorb(policy.initial(3), [losses_of([3.0, 2.0, 6.5])] * 400, since=0, until=400)
    assert policy.point(state).argmax() == 2
    assert policy.point(state)[2] > 0.8
    assert policy.point(policy.after_pivot(state))[1] > policy.point(state)[1]


def test_an_absurd_loss_overflows_nothing() -> None:
    policy = OdmPolicy(OdmConfig())
    state = policy.absorb(policy.initial(2), [losses_of([5000.0, 2.0])], since=0, until=1)
    assert np.isfinite(policy.point(state)).all()


@pytest.mark.parametrize("name", ["odm", "ado"])
@given(problem=problems(min_sources=2))
@settings(max_examples=40)
def test_hard_bounds_hold_where_the_published_method_has_none(name: str, problem: object) -> None:
    region = problem.region  # type: ignore[attr-defined]
    num = len(region.names)
    policy = make_policy(curriculum(num, policy={"name": name, **({"first_fit_step": 1} if name == "ado" else {})}))
    state = policy.initial(num)
    for i in range(6):
        means = [4.0 + k / (1 + i) for k in range(num)]
        state = policy.absorb(state, [losses_of(means, [1] * num)] * 3, since=3 * i, until=3 * i + 3)
    choice = policy.choose(state, region, region.lower, np.zeros(num))
    assert region.contains(choice.weights, atol=1e-12)


@pytest.mark.parametrize(("alpha", "beta", "eps"), [(0.3, 9.0, 2.0), (0.1, 5.0, 1.7), (0.7, 40.0, 3.0)])
@pytest.mark.parametrize("noise", [0.0, 0.02])
def test_the_power_law_fit_is_as_good_as_many_starts_of_l_bfgs(
    alpha: float, beta: float, eps: float, noise: float
) -> None:
    rng = np.random.default_rng(5)
    n = np.linspace(300, 60_000, 80)
    losses = (eps + beta * n**-alpha) * np.exp(noise * rng.standard_normal(80))
    ours = fit_power_law(n, losses)
    assert 0 <= ours.alpha <= MAX_ALPHA
    assert ours.log_eps >= MIN_LOG_EPS

    def objective(theta: Array) -> float:
        residual = np.log(losses) - np.log(np.exp(theta[2]) + np.exp(theta[1] - theta[0] * np.log(n)))
        size = np.abs(residual)
        return float(np.where(size <= DELTA, size**2 / 2, DELTA * (size - DELTA / 2)).sum()) * 1e4

    bounds = [(0, MAX_ALPHA), (-5, 12), (MIN_LOG_EPS, 3)]
    starts = [[a, b, e] for a in (0.1, 0.5) for b in (1.0, 3.0) for e in (0.6,)]
    best = min(
        scipy.optimize.minimize(objective, start, method="L-BFGS-B", bounds=bounds, options={"maxiter": 100}).fun
        for start in starts
    )
    assert ours.objective * 1e4 <= best * 1.02 + 1e-4
    if noise == 0.0:
        np.testing.assert_allclose(ours.loss(n), losses, rtol=2e-3)


def test_an_outlier_barely_moves_the_law() -> None:
    n = np.linspace(300, 60_000, 60)
    losses = 2.0 + 9.0 * n**-0.3
    spoiled = losses.copy()
    spoiled[30] = 0.13  # one memorised document
    np.testing.assert_allclose(fit_power_law(n, spoiled).loss(n), losses, rtol=5e-3)


def test_ado_plays_natural_shares_until_its_first_fit_and_then_its_formula() -> None:
    prior = np.array([0.5, 0.3, 0.2])
    policy = AdoPolicy(AdoConfig(first_fit_step=50, refit_steps=1000), prior=prior)
    state, region = policy.initial(3), curriculum(3).regimes[0].region
    rows, count = [4, 3, 1], 0.0
    for phase in range(10):
        before = state
        count += 8 * 10
        means = [2.0 + 9 * count**-0.3, 2.0 + 3 * count**-0.1, 4.0 + 8 * count**-0.5]
        state = policy.absorb(state, [losses_of(means, rows)] * 10, since=10 * phase, until=10 * phase + 10)
        if phase < 4:
            np.testing.assert_allclose(policy.choose(state, region, prior, np.zeros(3)).weights, prior)
    # by hand from here, one phase of ten steps: fits stay as they are
    track, shares, total, t = before["track"], before["shares"], float(before["rows"].sum()), before["fits"][1]
    for _ in range(10):
        total += 8
        shares = 0.9 * shares + 0.1 * np.array(rows) / 8
        speed = [
            max(before["alpha"][k], 0.05) * math.exp(before["log_beta"][k]) * total ** -before["alpha"][k] / total
            for k in range(3)
        ]
        score = np.array(speed) * prior * np.sqrt(shares)
        score = np.maximum(score / score.sum(), 0.01)
        score /= score.sum()
        track = (1 - 1 / (t + 1)) * track + score / (t + 1)
        t += 1
    chosen = policy.choose(state, region, prior, np.zeros(3))
    np.testing.assert_allclose(chosen.weights, 0.9 * track + 0.1 * score, rtol=1e-9)
    assert abs(chosen.weights - prior).max() > 0.02


@given(st.integers(1, 600), st.booleans(), st.integers(0, 5))
@settings(max_examples=30, deadline=None)
def test_a_curve_of_ado_has_at_most_256_points_which_are_means_of_as_many_phases_each(
    num_phases: int, same_step_size: bool, absent: int
) -> None:
    config = AdoConfig(first_fit_step=10**6, same_step_size=same_step_size)
    policy, rng = AdoPolicy(config, prior=np.full(2, 0.5)), np.random.default_rng(num_phases)
    state, middles, found, seen = policy.initial(2), [], [], np.zeros(2)
    for i in range(num_phases):
        rows, means = np.array([rng.integers(1, 9), 0 if i % 6 < absent else 2]), rng.uniform(1, 5, 2)
        losses = losses_of(means.tolist(), rows.tolist())
        state = policy.absorb(state, [losses], since=i, until=i + 1)
        middles.append(np.full(2, (seen + rows / 2).sum()) if same_step_size else seen + rows / 2)
        found.append(np.where(rows > 0, losses.means(), np.nan))
        seen += rows
    curves = state["curve_loss"].reshape(-1, 2)
    counts = np.broadcast_to(state["curve_n"].reshape(len(curves), -1), curves.shape)
    assert min(num_phases, MAX_POINTS // 2) <= len(curves) <= MAX_POINTS
    assert (np.diff(counts, axis=0) >= 0).all()
    if num_phases <= MAX_POINTS:
        np.testing.assert_array_equal(curves, np.nan_to_num(found))
        np.testing.assert_array_equal(counts, middles)
    elif num_phases <= 1.5 * MAX_POINTS:  # neighbours were averaged once: those of the first 257
        for i in range(MAX_POINTS // 2):
            pair = np.array(found[2 * i : 2 * i + 2])
            known = ~np.isnan(pair).all(axis=0)
            np.testing.assert_allclose(curves[i][known], np.nanmean(pair[:, known], axis=0))
            np.testing.assert_allclose(counts[i], np.mean(middles[2 * i : 2 * i + 2], axis=0))
        np.testing.assert_array_equal(curves[MAX_POINTS // 2 :], np.nan_to_num(found[MAX_POINTS:]))


def test_a_source_never_drawn_does_not_stop_ado() -> None:
    policy = AdoPolicy(AdoConfig(first_fit_step=100, refit_steps=5000), prior=np.full(2, 0.5))
    state = policy.initial(2)
    for phase in range(300):
        state = policy.absorb(state, [losses_of([5.0, 0.0], [3, 0])], since=phase, until=phase + 1)
    assert state["is_fitted"].tolist() == [1.0, 0.0]
    assert np.isfinite(policy.score(state)).all()


@pytest.mark.parametrize("name", ["odm", "ado"])
def test_their_walks_are_never_random_and_stay_in_the_region(name: str) -> None:
    run = curriculum(3, policy=name, floors={"source-0": 0.4}, caps={"source-2": 0.2})
    phases = drive(Walk(run), 300)
    assert {phase.kind for phase in phases} == {"bandit"}
    assert all(run.regimes[0].region.contains(phase.weights, atol=1e-12) for phase in phases)
