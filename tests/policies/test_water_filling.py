"""The allocation by water-filling: values worked by hand, its optimum against a solver, and planted sources."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import scipy.optimize
from hypothesis import given
from hypothesis import strategies as st

from mixer.config.curriculum import Curriculum
from mixer.errors import ConfigError
from mixer.policies import WaterFillingPolicy, make_policy
from mixer.policies.water_filling import water_filled
from mixer.region.region import Region
from mixer.types import Array, State
from mixer.walk.walk import Walk
from tests.policies.test_rewards import losses_of
from tests.support.curricula import batch_counts, curriculum, drive
from tests.support.strategies import problems

FREE = Region(["a", "b", "c"])


def test_without_bounds_tokens_end_in_proportion_to_gains() -> None:
    # gains 3 : 2 : 1 of a total of 1 given and 1 had: 1, 2/3 and 1/3, of which 0.2, 0.3 and 0.5 were had. The third
    # has too much already, so it gets nothing, and the others share 1.5 in the ratio 3 : 2
    weights = water_filled(FREE, np.array([3.0, 2.0, 1.0]), np.array([0.2, 0.3, 0.5]))
    np.testing.assert_allclose(weights, [0.9 - 0.2, 0.6 - 0.3, 0.0], atol=1e-15)


def test_floors_and_caps_hold_and_the_rest_is_shared_by_gain() -> None:
    region = Region(["a", "b", "c", "d"], floors={"d": 0.1}, caps={"a": 0.3})
    weights = water_filled(region, np.array([8.0, 2.0, 1.0, 0.0]), np.zeros(4))
    np.testing.assert_allclose(weights, [0.3, 0.4, 0.2, 0.1], atol=1e-15)


def test_what_paying_sources_cannot_take_makes_the_others_level() -> None:
    region = Region(["a", "b", "c"], caps={"a": 0.4})
    weights = water_filled(region, np.array([1.0, 0.0, 0.0]), np.array([0.0, 0.1, 0.3]))
    np.testing.assert_allclose(weights, [0.4, 0.4, 0.2], atol=1e-15)  # 0.5 each with what they had
    np.testing.assert_allclose(water_filled(FREE, np.zeros(3), np.zeros(3)), np.full(3, 1 / 3), atol=1e-15)


@given(problems(), st.data())
def test_no_mixture_of_the_region_is_better(problem: Any, data: st.DataObject) -> None:
    region = problem.region
    num = len(region.names)
    values = st.lists(st.sampled_from([0.0, 1e-3, 0.1, 1.0, 7.0]), min_size=num, max_size=num)
    gain, filled = np.array(data.draw(values)), np.array(data.draw(values))
    weights = water_filled(region, gain, filled)
    assert region.contains(weights)
    level = filled + weights
    if not (gain > 0).any() or (level[gain > 0] <= 0).any():
        return
    gradient = np.divide(gain, level, out=np.zeros(num), where=gain > 0)
    best = region.best_vertex(gradient)  # the optimality condition of a concave program
    assert gradient @ (best - weights) <= 1e-9 * max(float(np.abs(gradient).max()), 1.0)


def test_it_agrees_with_a_general_solver() -> None:
    rng = np.random.default_rng(3)
    region = Region([f"s{i}" for i in range(8)], floors={"s0": 0.05, "s5": 0.1}, caps={"s1": 0.15, "s2": 0.2})
    for _ in range(5):
        gain, filled = rng.exponential(size=8), rng.exponential(size=8) * 0.2
        found = scipy.optimize.minimize(
            lambda w, gain=gain, filled=filled: -float(gain @ np.log(filled + w)),
            region.project(np.full(8, 1 / 8)),
            jac=lambda w, gain=gain, filled=filled: -gain / (filled + w),
            bounds=list(zip(region.lower, region.upper, strict=True)),
            constraints={"type": "eq", "fun": lambda w: w.sum() - 1.0},
            options={"ftol": 1e-14, "maxiter": 500},
        )
        np.testing.assert_allclose(water_filled(region, gain, filled), found.x, atol=1e-5)


def policy_of(num_sources: int = 3, **settings: Any) -> WaterFillingPolicy:
    """Return the policy with these settings; by default the optimum of the law, without a gate."""
    made = make_policy(
        curriculum(num_sources, policy={"name": "water_filling", "power": 1.0, "gate": 0.0, "least": 0.0, **settings})
    )
    assert isinstance(made, WaterFillingPolicy)
    return made


def learned(slopes: Array, *, points: Array | float = 10.0, tokens: Array | float = 100.0, step: int = 0) -> State:
    """Return what a policy remembers after straight lines of these slopes without noise."""
    num = slopes.size
    return {
        "tokens": np.zeros(num) + tokens,
        "count": np.zeros(num) + np.ceil(points),
        "points": np.zeros(num) + points,
        "weight": np.ones(num),
        "mean_x": np.zeros(num),
        "mean_y": np.zeros(num),
        "sxx": np.ones(num),
        "sxy": -slopes,
        "syy": slopes**2,
        "step": np.array([float(step)]),
    }


def test_the_solution_worked_by_hand() -> None:
    policy = policy_of(eta=0.5, prior=0.0, horizon=25, least_horizon=0.0)  # H: 25 batches of 8 rows of 4 tokens, 800
    state = learned(np.array([3.0, 2.0, -1.0]), tokens=np.array([160.0, 240.0, 400.0]))
    choice = policy.choose(state, FREE, np.array([0.2, 0.2, 0.6]), np.zeros(3))
    # N / H is 0.2, 0.3 and 0.5; c falls in vain: 1.5 is shared 3 : 2 by a and b
    np.testing.assert_allclose(choice.parts["index"], [0.7, 0.3, 0.0], atol=1e-15)
    np.testing.assert_allclose(choice.parts["gain"], [0.6, 0.4, 0.0])  # slopes over their mean, 5/3, times 1/3
    np.testing.assert_allclose(choice.weights, [0.45, 0.25, 0.3])
    assert choice.vertex is None


def test_a_slope_is_drawn_to_the_mean_by_a_prior_worth_some_observations() -> None:
    policy = policy_of(prior=5.0)
    state = learned(np.array([1.0, 0.0, 9.0]), points=np.array([15.0, 5.0, 1.0]))
    parts = policy.choose(state, FREE, np.full(3, 1 / 3), np.zeros(3)).parts
    # the third has too few observations; the mean of the others is (15 * 1 + 5 * 0) / 20
    np.testing.assert_allclose(parts["mean"], [(15 * 1 + 5 * 0.75) / 20, (5 * 0 + 5 * 0.75) / 10, 0.75])
    assert parts["slope"].tolist() == [1.0, 0.0, 0.0]


def test_optimism_power_targets_and_repetition_shape_the_gain() -> None:
    targets = {"source-0": 1.0, "source-1": 3.0}
    policy = policy_of(width=2.0, power=2.0, prior=0.0, targets=targets)
    state = learned(np.array([1.0, 1.0, 1.0]))
    state["syy"] = 1.0 + np.array([8.0, 0.0, 0.0])  # a residual of 8 over 8 degrees of freedom: an error of 1
    parts = policy.choose(state, FREE, np.full(3, 1 / 3), np.array([0.0, 10.0, 0.0])).parts
    repetition = math.exp(-(100 / 10 - 1) / 15.4)
    assert parts["width"].tolist() == [2.0, 0.0, 0.0]
    mean = (3 + 1 + 1) / 3
    np.testing.assert_allclose(parts["gain"], [0.25 * (3 / mean) ** 2, 0.75 * repetition / mean**2, 0.0])


def test_a_source_below_the_gate_fades_out_and_the_others_keep_what_they_have() -> None:
    policy = policy_of(4, power=0.0, gate=0.5, least=0.001, prior=0.0)
    parts = policy.choose(
        learned(np.array([1.5, 1.0, 1.3, 0.2])), Region(["a", "b", "c", "d"]), np.full(4, 0.25), np.zeros(4)
    ).parts  # the mean is 1, the gate stands at 0.5
    np.testing.assert_allclose(parts["gain"] / parts["gain"][0], [1.0, 1.0, 1.0, 0.4**4])
    parts = (
        policy_of(4, power=0.0, gate=0.5, least=0.1, prior=0.0)
        .choose(learned(np.array([1.5, 1.0, 1.5, -1.0])), Region(["a", "b", "c", "d"]), np.full(4, 0.25), np.zeros(4))
        .parts
    )
    np.testing.assert_allclose(parts["gain"] / parts["gain"][0], [1.0, 1.0, 1.0, 0.1])  # still in sight


def test_random_phases_happen_if_they_are_asked_for() -> None:
    def kinds(**settings: Any) -> set[str]:
        run = curriculum(3, policy={"name": "water_filling", **settings}, phases={"initial_random": 2})
        return {phase.kind for phase in drive(Walk(run), 200)}

    assert kinds() == {"bandit"}
    assert kinds(random_phases=True) == {"bandit", "random"}


def test_the_horizon_is_what_is_left_of_the_run_but_not_too_little() -> None:
    uneven = np.array([160.0, 240.0, 400.0])
    for step, horizon in ((0, 10_000 * 32.0), (9_999, 0.5 * 800.0)):
        state = learned(np.array([3.0, 2.0, 1.0]), tokens=uneven, step=step)
        parts = policy_of(prior=0.0).choose(state, FREE, np.full(3, 1 / 3), np.zeros(3)).parts
        expected = water_filled(FREE, np.array([3.0, 2.0, 1.0]), uneven / horizon)
        np.testing.assert_allclose(parts["index"], expected, atol=1e-12)


def test_before_any_slope_is_known_tokens_are_made_level() -> None:
    policy = policy_of(horizon=25, least_horizon=0.0)
    state = {**policy.initial(3), "tokens": np.array([160.0, 240.0, 400.0])}
    parts = policy.choose(state, FREE, np.full(3, 1 / 3), np.zeros(3)).parts
    np.testing.assert_allclose(parts["index"], np.full(3, 2 / 3) - [0.2, 0.3, 0.5])


def test_a_source_in_alarm_promises_nothing() -> None:
    alarmed = np.array([True, False, False])
    choice = policy_of().choose(learned(np.ones(3)), FREE, np.full(3, 1 / 3), np.zeros(3), alarmed)
    assert choice.parts["index"][0] == 0.0
    assert choice.parts["alarm"].tolist() == [1.0, 0.0, 0.0]


def test_held_out_slopes_come_from_probes_alone() -> None:
    policy = policy_of(losses="heldout")
    state, tokens = policy.initial(3), 0
    for i in range(6):
        probe = losses_of([5.0 - math.log(tokens + 32), 6.0, 4.0], [4, 4, 0])
        state = policy.absorb_probe(state, probe, step=10 * i)
        state = policy.absorb(state, [losses_of([9.0, 9.0 - i, 9.0 - i], [8, 8, 8])], since=10 * i, until=10 * i + 10)
        tokens += 32
    fit = policy.slopes(state, np.zeros(3))
    np.testing.assert_allclose(fit.slope, [1.0, 0.0, 0.0], atol=1e-12)
    assert fit.is_fitted.tolist() == [True, True, False]


def test_a_held_out_loss_without_new_tokens_of_the_source_is_no_observation() -> None:
    policy = policy_of(losses="heldout")
    state = policy.initial(3)
    for i, level in enumerate((5.0, 4.0, 3.0, 2.0)):  # falls by what the second source teaches
        state = policy.absorb_probe(state, losses_of([level, level, level], [4, 4, 0]), step=10 * i)
        state = policy.absorb(state, [losses_of([9.0] * 3, [0, 8, 8])], since=10 * i, until=10 * i + 10)
    assert state["count"].tolist() == [1, 4, 0]
    assert policy.slopes(state, np.zeros(3)).is_fitted.tolist() == [False, True, False]
    state = policy.absorb(state, [losses_of([9.0] * 3, [8, 0, 0])], since=40, until=50)
    state = policy.absorb_probe(state, losses_of([1.0] * 3), step=50)
    assert state["count"].tolist() == [2, 5, 1]


@pytest.mark.parametrize("transfer", [0.0, 0.3])
def test_on_held_out_losses_what_is_only_memorised_and_noise_fade_out(transfer: float) -> None:
    """Sources 0 to 3 learn, 4 is learned by heart, 5 is noise; its loss and that of 4 hold still on held-out rows."""

    def train(losses: str) -> Array:
        probes = {"rows": 8} if losses == "heldout" else None
        policy = {"name": "water_filling", "losses": losses}
        run = curriculum(6, policy=policy, total_steps=1500, probes=probes, holdout=0.1, guard=None)
        walk, tokens, late = Walk(run), np.zeros(6), []
        for step in range(1500):
            phase = walk.phase_at(step)
            shared = tokens + transfer * (tokens.sum() - tokens)
            held_out = np.array([*(1.0 + 4.0 * (1 + shared[:4] / 500) ** -0.3), 5.0, 6.5])
            if probes and walk.probe_step(step) == step:
                assert walk.report_probe(step, losses_of(held_out.tolist(), [8] * 6))
            rows = batch_counts(run, phase, step)
            train_losses = np.where(np.arange(6) == 4, 5.0 * np.exp(-tokens / 3000), held_out)
            walk.report(step, losses_of(train_losses.tolist(), rows.tolist()))
            tokens = tokens + 4.0 * rows
            late.append(phase.weights)
        return np.mean(late[750:], axis=0)

    means = {losses: train(losses) for losses in ("train", "heldout")}
    assert means["train"][4] > 0.15  # memorising pays in training losses
    assert means["heldout"][4:].max() < 0.02
    assert means["heldout"][:4].min() > 0.15


def test_noise_is_left_near_its_floor_and_equal_learners_stay_nearly_level() -> None:
    rng = np.random.default_rng(0)

    def losses(run: Curriculum, step: int, rows: Any) -> Any:
        tokens = seen["tokens"]
        means = [1.0 + 4.0 * (1 + n / 500) ** -0.3 for n in tokens[:3]] + [6.5]
        seen["tokens"] = tokens + 4.0 * rows
        return losses_of([m + 0.1 * rng.standard_normal() for m in means], rows.tolist())

    seen: dict[str, Array] = {"tokens": np.zeros(4)}
    phases = {"random_probability": 0.0, "initial_random": 4}
    walk = Walk(curriculum(4, policy="water_filling", total_steps=3000, phases=phases))
    phases_of_run = drive(walk, 3000, losses=losses)
    late = np.array([phase.weights for phase in phases_of_run[len(phases_of_run) // 2 :]])
    assert late[:, 3].max() < 0.1  # noise
    assert late[:, :3].min() > 0.2
    assert np.abs(np.diff(late, axis=0)).max() < 0.05  # no swinging


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"horizon": 0}, "horizon"),
        ({"power": -1}, "power"),
        ({"gate": 1.5}, "gate"),
        ({"least": -0.1}, "least"),
        ({"prior": -1}, "prior"),
        ({"least_horizon": -0.5}, "least_horizon"),
        ({"losses": "test"}, "losses"),
        ({"targets": {"nobody": 1.0}}, "policy: targets: unknown source 'nobody'"),
        ({"targets": {"source-0": 0.0}}, "targets are all 0"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        policy_of(**settings)


def test_the_length_of_the_run_counts_where_the_policy_plans_with_it() -> None:
    lengths, fixed = (1000, 2000), {"name": "water_filling", "horizon": 50}
    assert len({curriculum(3, policy="water_filling", total_steps=n).fingerprint for n in lengths}) == 2
    assert len({curriculum(3, policy=fixed, max_epochs=None, total_steps=n).fingerprint for n in lengths}) == 1
