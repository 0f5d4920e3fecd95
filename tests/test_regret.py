"""The synthetic laboratory: its gradients, its best walks, and known failures of published rewards on planted sources."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import scipy.optimize

from benchmarks.laboratory.synthetic import BATCH_ROWS, NOISE, ROW_TOKENS, World, best_walk, make_world
from benchmarks.regret import ARMS, QUIET, SETTINGS, Outcome, Setting, planted, run, table, train
from mixer.region.region import Region
from mixer.types import Array

KINDS = ("stationary", "transfer", "drifting", "rotting", "abrupt")
STEPS = 300


def region_of(world: World) -> Region:
    return Region([f"s{i}" for i in range(world.eps.size)], floors={"s2": 0.1}, caps={"s1": 0.2})


@pytest.mark.parametrize("kind", KINDS)
def test_the_gain_is_the_slope_of_the_goal(kind: str) -> None:
    world = make_world(kind, 9, steps=STEPS, seed=2)
    credit = np.random.default_rng(0).exponential(size=9) * STEPS * BATCH_ROWS * ROW_TOKENS / 9
    for i, gain in enumerate(world.gain(credit)):
        nudge = np.zeros(9)
        nudge[i] = 1e-4 * credit[i]
        fall = world.goal(credit - nudge) - world.goal(credit + nudge)
        assert gain == pytest.approx(fall / (2 * nudge[i]), rel=1e-4, abs=1e-15)


@pytest.mark.parametrize("kind", KINDS)
def test_no_walk_of_the_region_beats_the_best_one(kind: str) -> None:
    world = make_world(kind, 9, steps=STEPS, seed=3)
    region = region_of(world)
    best = best_walk(world, region, steps=STEPS)
    assert 0 <= best.gap + 1e-12 < 1e-4
    span = STEPS * BATCH_ROWS * ROW_TOKENS / len(world.rates)
    rng = np.random.default_rng(0)
    for _ in range(200):
        walk = np.stack([region.sample(rng) for _ in world.rates])
        near = 0.99 * best.walk + 0.01 * walk
        for other in (walk, near):
            assert world.goal(span * (other * world.rates).sum(axis=0)) >= best.loss - best.gap - 1e-12


def test_the_best_walk_is_that_of_a_general_solver() -> None:
    world = make_world("stationary", 9, steps=STEPS, seed=4)
    region = region_of(world)
    budget = STEPS * BATCH_ROWS * ROW_TOKENS
    found = scipy.optimize.minimize(
        lambda w: world.goal(budget * w),
        region.project(np.full(9, 1 / 9)),
        jac=lambda w: -budget * world.gain(budget * w),
        bounds=list(zip(region.lower, region.upper, strict=True)),
        constraints={"type": "eq", "fun": lambda w: w.sum() - 1.0},
        options={"ftol": 1e-14, "maxiter": 1000},
    )
    assert best_walk(world, region, steps=STEPS).loss == pytest.approx(found.fun, abs=1e-7)


def test_the_same_seed_gives_the_same_outcome_and_no_arm_beats_the_best_walk() -> None:
    for name in ("tight, 16", "late, 16", "missing, 16", "transfer, 16"):
        one = run(SETTINGS[name], ARMS["ucb"], steps=STEPS, seed=1)
        assert one == run(SETTINGS[name], ARMS["ucb"], steps=STEPS, seed=1)
        assert one.regret > 0


def test_tables_hold_means_over_seeds() -> None:
    outcomes = [
        ("here", "a", Outcome(0.001, 0.1, 0.3)),
        ("here", "a", Outcome(0.003, 0.3, 0.5)),
        ("here", "b", Outcome(0.004, float("nan"), float("nan"))),
    ]
    assert table(outcomes, ["a", "b"]) == [["here", pytest.approx(2.0), pytest.approx(4.0)]]
    assert planted(outcomes, ["a", "b"]) == [["a", pytest.approx(0.2), pytest.approx(0.4)]]


def shares_of(world: World, arm: dict[str, Any]) -> Array:
    learner = train(Setting("stationary", 9), world, arm, 800, 0)
    return np.asarray(learner.tokens / learner.tokens.sum())


def test_a_loss_level_reward_camps_on_noise_and_slopes_leave_it() -> None:
    world = make_world("stationary", 9, steps=800, seed=0)
    assert shares_of(world, {"policy": "odm"})[NOISE] > 0.3  # 6.5 nats that nothing lowers
    assert shares_of(world, {"policy": "water_filling", "phases": QUIET})[NOISE] < 1 / 9 / 2


def test_the_published_reward_of_andrea_camps_on_the_largest_spread_and_slopes_do_not() -> None:
    world = make_world("stationary", 9, steps=800, seed=0)
    spread = np.full(9, 0.2)
    spread[NOISE] = 2.0  # of documents, in a source that teaches nothing
    world = replace(world, spread=spread)
    assert shares_of(world, {"policy": "andrea", "phases": QUIET})[NOISE] > 0.3
    assert shares_of(world, {"policy": "water_filling", "phases": QUIET})[NOISE] < 1 / 9
