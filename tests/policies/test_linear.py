"""The linear bandit: its regression against plain least squares, its draws, and what it learns about teaching."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixer.errors import ConfigError
from mixer.losses import SourceLosses
from mixer.policies import LinearPolicy, make_policy
from mixer.region.region import Region
from mixer.types import State
from tests.policies.test_rewards import losses_of
from tests.support.curricula import curriculum


def linear(num_sources: int = 3, *, seed: int = 0, **settings: Any) -> LinearPolicy:
    made = make_policy(curriculum(num_sources, seed=seed, policy={"name": "linear", **settings}))
    assert isinstance(made, LinearPolicy)
    return made


def probed(policy: LinearPolicy, phases: list[tuple[list[int], float]]) -> State:
    """Return what is remembered of phases of 10 steps, each with its rows and the held-out loss before it."""
    state = policy.initial(3)
    for i, (rows, level) in enumerate(phases):
        state = policy.absorb_probe(state, losses_of([level] * 3), step=10 * i)
        state = policy.absorb(state, [losses_of([5.0] * 3, rows)], since=10 * i, until=10 * i + 10)
    return state


phases_of_a_run = st.lists(
    st.tuples(st.lists(st.integers(1, 9), min_size=3, max_size=3), st.floats(1, 6)), min_size=3, max_size=12
)


@given(phases_of_a_run, st.sampled_from([0.1, 1.0]))
def test_theta_is_ridge_regression_on_the_mixtures(phases: list[tuple[list[int], float]], ridge: float) -> None:
    policy = linear(losses="heldout", kappa=0.0, width=0.0, ridge=ridge)
    parts = policy.index(probed(policy, phases))
    lengths = [math.log((10 * i + 110) / (10 * i + 100)) for i in range(len(phases) - 1)]
    x = np.array([d * np.array(rows) / sum(rows) for d, (rows, _) in zip(lengths, phases, strict=False)])
    y = -np.diff([level for _, level in phases])
    gram, mean = x.T @ x, (y @ lengths) / (np.array(lengths) @ lengths)
    extra = np.linalg.solve(gram + ridge * np.trace(gram) / 3 * np.eye(3), x.T @ (y - mean * x.sum(axis=1)))
    np.testing.assert_allclose(parts["mean"], mean + extra, rtol=1e-7, atol=1e-8)
    np.testing.assert_allclose(parts["index"], parts["mean"])


def test_a_single_fall_worked_by_hand() -> None:
    policy = linear(losses="heldout", width=0.0, ridge=3.0)
    state = probed(policy, [([8, 0, 0], 4.0), ([0, 4, 4], 3.0)])
    length = math.log(110 / 100)
    # all of it on the first source: mean fall m = 1 / length a e-fold, and nothing beyond the mean is left to explain
    np.testing.assert_allclose(policy.index(state)["mean"], np.full(3, 1 / length))
    assert state["exposure"].tolist() == [0, 4, 4]


def test_a_training_loss_belongs_to_the_middle_of_its_phase() -> None:
    policy = linear(kappa=0.0)
    state = policy.absorb(policy.initial(3), [losses_of([4.0, 2.0, 3.0], [2, 2, 4])], since=0, until=10)
    state = policy.absorb(state, [losses_of([2.0, 2.0, 0.0], [6, 2, 0])], since=10, until=20)
    length = math.log(115 / 105)
    proportions = np.array([1 + 3, 1 + 1, 2 + 0]) / 8
    np.testing.assert_allclose(state["cross"], length * proportions * 2 / 3)  # from 3 to 7 / 3 nats
    assert state["exposure"].tolist() == [3, 1, 0]


def test_a_source_seen_for_the_first_time_is_no_rise_of_the_loss() -> None:
    policy = linear(kappa=0.0)
    state = policy.absorb(policy.initial(3), [losses_of([4.0, 2.0, 0.0], [2, 2, 0])], since=0, until=10)
    state = policy.absorb(state, [losses_of([4.0, 2.0, 9.0], [2, 2, 2])], since=10, until=20)
    assert state["weight"][0] == 0
    state = policy.absorb(state, [losses_of([3.0, 2.0, 9.0], [2, 2, 2])], since=20, until=30)
    assert (state["weight"][0], state["level"][0]) == (1, pytest.approx(14 / 3))


def test_it_finds_what_teaches_others_which_slopes_of_its_own_cannot_show() -> None:
    policy, rng = linear(losses="heldout"), np.random.default_rng(0)
    phases, level = [], 6.0
    for i in range(80):
        rows = rng.multinomial(200, Region(["a", "b", "c"]).sample(rng))
        phases.append((rows.tolist(), level))
        share = rows / 200
        level -= math.log((10 * i + 110) / (10 * i + 100)) * (0.8 * share[1] + 0.2 * share[0])
        level += 0.002 * rng.standard_normal()
    parts = policy.index(probed(policy, phases))
    assert parts["mean"].argmax() == 1
    np.testing.assert_allclose(parts["mean"], [0.2, 0.8, 0.0], atol=0.15)


def test_draws_are_the_same_again_and_differ_between_decisions_and_seeds() -> None:
    phases = [([8, 1, 1], 4.0), ([1, 8, 1], 3.0), ([1, 1, 8], 2.9), ([3, 3, 3], 2.5)]
    policy = linear(losses="heldout")
    state = probed(policy, phases)
    index = policy.index(state)["index"]
    assert (policy.index(state)["index"] == index).all()
    assert (linear(losses="heldout", seed=1).index(state)["index"] != index).all()
    assert (policy.index({**state, "decisions": state["decisions"] + 1})["index"] != index).all()


def test_a_probe_after_no_new_rows_and_one_without_rows_teach_nothing() -> None:
    policy = linear(losses="heldout")
    state = policy.absorb_probe(policy.initial(3), losses_of([4.0] * 3), step=0)
    assert policy.absorb_probe(state, losses_of([2.0] * 3), step=10) is state
    empty: SourceLosses = losses_of([0.0] * 3, [0, 0, 0])
    assert policy.absorb_probe(state, empty, step=10) is state


def test_a_pivot_keeps_a_quarter_and_theta() -> None:
    policy = linear(losses="heldout", width=0.0)
    state = probed(policy, [([8, 1, 1], 4.0), ([1, 8, 1], 3.0), ([1, 1, 8], 2.9), ([3, 3, 3], 2.5)])
    after = policy.after_pivot(state)
    np.testing.assert_allclose(after["gram"], state["gram"] / 4)
    np.testing.assert_allclose(policy.index(after)["mean"], policy.index(state)["mean"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"ridge": 0}, "ridge"), ({"width": -1}, "width"), ({"losses": "x"}, "losses"), ({"targets": {"no": 1}}, "'no'")],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        linear(**settings)


def test_too_many_sources_for_pairs_are_refused() -> None:
    with pytest.raises(ConfigError, match="257 sources; .* at most 256"):
        linear(257)
