"""Published rules that name a mixture, and the rewards with references or probes: values worked by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixer.errors import ConfigError
from mixer.losses import SourceLosses
from mixer.policies import BoundedUcb, Learnability, Policy, make_policy
from mixer.policies.point import PointPolicy
from mixer.policies.rewards import ExcessReward, TargetGainReward, VelocityReward
from mixer.types import Array, State
from tests.policies.test_rewards import losses_of
from tests.support.curricula import curriculum
from tests.support.strategies import problems, source_names

REFERENCE = {"source-0": 2.0, "source-1": 1.0, "source-2": 3.0}
RULES: dict[str, dict[str, Any]] = {
    "exp3": {"name": "exp3"},
    "softmax": {"name": "softmax", "temperature": 2.0, "smoothing": 0.5},
    "doremi": {"name": "doremi", "reference": REFERENCE, "eta": 0.5, "smoothing": 0.1},
    "velocitune": {"name": "velocitune", "reference": REFERENCE, "eta": 2.0, "smoothing": 0.1},
    "skill_it": {
        "name": "skill_it",
        "graph": {"source-0": {"source-0": 1.0, "source-1": 2.0}, "source-2": {"source-2": 1.0}},
        "eta": 0.25,
        "window": 2,
    },
}


def made(policy: str | dict[str, Any]) -> Policy:
    return make_policy(curriculum(3, policy=RULES[policy] if isinstance(policy, str) else policy))


def after(policy: Policy, phases: list[SourceLosses]) -> State:
    state = policy.initial(3)
    for i, losses in enumerate(phases):
        state = policy.absorb(state, [losses], since=10 * i, until=10 * i + 10)
    return state


def point_of(policy: Policy, state: State) -> Array:
    assert isinstance(policy, PointPolicy)
    return policy.point(state)


def shares(logs: list[float]) -> list[float]:
    total = sum(math.exp(x) for x in logs)
    return [math.exp(x) / total for x in logs]


ONE, TWO = losses_of([4.0, 3.0, 5.0]), losses_of([2.0, 3.0, 0.0], [1, 1, 0])


def test_softmax_is_over_smoothed_losses() -> None:
    policy = made("softmax")
    np.testing.assert_allclose(point_of(policy, after(policy, [ONE, TWO])), shares([3.0 / 2, 3.0 / 2, 5.0 / 2]))
    unknown = after(policy, [losses_of([4.0, 2.0, 0.0], [1, 1, 0])])
    np.testing.assert_allclose(point_of(policy, unknown), shares([2.0, 1.0, 1.5]))  # the mean of the others


def test_exp3_divides_losses_by_ten_and_by_the_chance_of_the_source() -> None:
    policy = made("exp3")
    one = after(policy, [ONE])
    np.testing.assert_allclose(one["mean"], [1.2, 0.9, 1.5])  # from the uniform mixture
    np.testing.assert_allclose(point_of(policy, one), np.full(3, 1 / 3))  # eps is 1 / K still
    state = after(policy, [ONE] * 20)
    floors = {t: min(1 / 3, math.sqrt(math.log(3) / (3 * t))) for t in (19, 20)}
    soft = shares([floors[19] * r for r in state["mean"]])
    np.testing.assert_allclose(point_of(policy, state), [(1 - 3 * floors[20]) * p + floors[20] for p in soft])


def test_doremi_climbs_the_excess_and_mixes_in_the_uniform_mixture() -> None:
    policy = made("doremi")
    one = np.array(shares([1.0, 1.0, 1.0])) * 0.9 + 0.1 / 3  # excess 2, 2, 2
    np.testing.assert_allclose(point_of(policy, after(policy, [ONE])), one)
    two = np.array(shares([math.log(w) + 0.5 * e for w, e in zip(one, [0.0, 2.0, 2.0], strict=True)]))
    np.testing.assert_allclose(point_of(policy, after(policy, [ONE, TWO])), two * 0.9 + 0.1 / 3)  # the third's is kept


def test_velocitune_favours_what_has_most_left_to_learn() -> None:
    policy = made("velocitune")
    state = after(policy, [ONE, TWO])
    np.testing.assert_allclose(state["mean"], [0.0, 1.0, 1.0])
    one = np.full(3, 1 / 3)
    two = np.array(shares([0.0, 2.0, 2.0])) * 0.9 + 0.1 / 3
    np.testing.assert_allclose(point_of(policy, after(policy, [ONE])), one)
    np.testing.assert_allclose(point_of(policy, state), two)


def test_skill_it_sums_losses_over_a_window_and_weighs_them_by_the_graph() -> None:
    policy = made("skill_it")
    state = after(policy, [losses_of([9.0, 9.0, 9.0]), ONE, TWO])  # the first has left the window
    sums = [4.0 + 2.0, 3.0 + 3.0, 5.0 + 5.0]
    expected = shares([0.25 * (sums[0] + 2 * sums[1]), 0.0, 0.25 * sums[2]])
    np.testing.assert_allclose(point_of(policy, state), expected)
    heldout = made({**RULES["skill_it"], "losses": "heldout"})
    probed = heldout.initial(3)
    for i, losses in enumerate(
        (losses_of([9.0] * 4), losses_of([4.0, 3.0, 5.0, 1.0]), losses_of([2.0, 3.0, 5.0, 1.0]))
    ):
        probed = heldout.absorb_probe(probed, losses, step=10 * i)  # the fourth is a target
        probed = heldout.absorb(probed, [losses_of([7.0] * 3)], since=10 * i, until=10 * i + 10)
    np.testing.assert_allclose(point_of(heldout, probed), expected)


@pytest.mark.parametrize("name", list(RULES))
def test_before_the_first_loss_all_weights_are_equal(name: str) -> None:
    policy = made(name)
    np.testing.assert_allclose(point_of(policy, policy.initial(3)), np.full(3, 1 / 3))


@pytest.mark.parametrize("name", list(RULES))
def test_absurd_losses_overflow_nothing(name: str) -> None:
    policy = made(name)
    state = after(policy, [losses_of([1e150, 0.0, 5.0]), losses_of([0.0, 1e150, 0.0]), losses_of([1e9, 1e-9, 0.0])] * 9)
    assert np.isfinite(point_of(policy, state)).all()
    assert point_of(policy, state).sum() == pytest.approx(1)


@pytest.mark.parametrize("name", list(RULES))
@given(problem=problems(min_sources=2), losses=st.lists(st.floats(0, 12), min_size=12, max_size=12))
def test_rules_keep_every_bound(name: str, problem: Any, losses: list[float]) -> None:
    names = problem.names
    fields = dict(RULES[name])
    if "reference" in fields:
        fields["reference"] = dict.fromkeys(names, 2.0)
    if "graph" in fields:
        fields["graph"] = {names[0]: {names[-1]: 1.0}}
    policy = make_policy(curriculum(len(names), policy=fields))
    state = policy.absorb(policy.initial(len(names)), [losses_of(losses[: len(names)])] * 3, since=0, until=10)
    region, start = problem.region, problem.region.project(np.zeros(len(names)))
    choice = policy.choose(state, region, start, np.zeros(len(names)))
    assert region.contains(choice.weights)
    alarmed = np.arange(len(names)) == 0
    assert region.contains(policy.choose(state, region, start, np.zeros(len(names)), alarmed).weights)


def test_excess_is_the_loss_above_the_reference_and_velocity_the_share_that_is_left() -> None:
    reference = np.array([2.0, 1.0, 3.0])
    _, excess = ExcessReward(reference).update({}, TWO)
    np.testing.assert_allclose(excess, [0.0, 2.0, np.nan])
    velocity = VelocityReward(reference)
    state, first = velocity.update(velocity.initial(3), losses_of([4.0, 0.5, 0.0], [1, 1, 0]))
    np.testing.assert_allclose(first, [1.0, 0.0, np.nan])  # the second began below its reference
    _, later = velocity.update(state, losses_of([2.5, 0.4, 5.0]))
    np.testing.assert_allclose(later, [0.25, 0.0, 1.0])


def test_target_gain_credits_the_rows_between_two_probes() -> None:
    reward = TargetGainReward(np.array([0.5, 0.5, 0.0]))
    state = reward.initial(3)
    assert np.isnan(reward.update(state, ONE)[1]).all()
    state = reward.absorb_probe(state, losses_of([4.0, 2.0, 9.0]))  # 3 nats over what is wanted
    state, rewards = reward.update(state, losses_of([1.0] * 3, [6, 2, 0]))
    assert np.isnan(rewards).all()
    state = reward.absorb_probe(state, losses_of([3.0, 2.0, 9.0]))  # 2.5
    assert state["credited"].tolist() == [6, 2, 0]
    state, rewards = reward.update(state, losses_of([1.0] * 3, [0, 0, 5]))
    np.testing.assert_allclose(rewards, [0.5 / 8, 0.5 / 8, np.nan])
    again = reward.absorb_probe(state, losses_of([3.0, 0.0, 9.0], [1, 0, 1]))  # only the first was held out: 3 nats
    assert again["fall"][0] == pytest.approx(-0.5 / 5)
    reward = TargetGainReward(np.array([0.0, 0.0, 1.0, 2.0, 1.0]))  # two targets behind the sources
    state = reward.absorb_probe(reward.initial(3), losses_of([9.0, 9.0, 6.0, 1.0, 2.0]))
    assert state["level"][0] == (6 + 2 * 1 + 2) / 4
    state, _ = reward.update(state, losses_of([1.0] * 3, [6, 2, 0]))
    assert reward.absorb_probe(state, losses_of([9.0, 9.0, 6.0, 0.0, 2.0], [1, 1, 1, 0, 1]))["credited"].size == 3


def test_the_bandit_counts_the_rows_that_a_target_gain_came_from() -> None:
    policy = made({"name": "ucb", "reward": "target_gain", "gamma": 1.0})
    assert isinstance(policy, BoundedUcb)
    state = policy.initial(3)
    for i, (level, rows) in enumerate([(4.0, [6, 2, 0]), (3.0, [0, 0, 5]), (2.9, [1, 1, 1])]):
        state = policy.absorb_probe(state, losses_of([level] * 3), step=10 * i)
        state = policy.absorb(state, [losses_of([1.0] * 3, rows)], since=10 * i, until=10 * i + 10)
    assert state["rows"].tolist() == [6, 2, 5]  # the last phase waits for the next probe
    assert state["sums"][0] / 6 > state["sums"][2] / 5  # a fall of 1 / 8 a row, then of 0.1 / 5


def test_held_out_learnability_fits_probes_at_the_tokens_before_them() -> None:
    policy = made({"name": "ucb", "reward": "learnability_heldout"})
    assert isinstance(policy, Learnability)
    state, tokens = policy.initial(3), 0
    for i in range(5):
        probe = losses_of([5.0 - 0.5 * math.log(tokens + 32), 6.0, 6.0, 1.0])
        state = policy.absorb_probe(state, probe, step=10 * i)
        state = policy.absorb(state, [losses_of([9.0 - i] * 3, [8, 8, 8])], since=10 * i, until=10 * i + 10)
        tokens += 32
    index = policy.index(state, np.zeros(3))
    np.testing.assert_allclose(index["slope"], [0.5, 0.0, 0.0], atol=1e-12)
    assert index["index"][0] > index["index"][1]


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        ({"name": "ucb", "reward": "excess"}, "reward excess needs reference"),
        ({"name": "ucb", "reference": REFERENCE}, "reference is for the rewards excess and velocity"),
        ({"name": "ucb", "reward": "velocity", "reference": {"source-0": 1.0}}, "missing: source-1, source-2"),
        ({"name": "doremi"}, "reference"),
        ({"name": "doremi", "reference": {"source-0": 1.0}}, "doremi needs a reference loss .* missing: source-1"),
        ({"name": "doremi", "reference": {**REFERENCE, "nobody": 1.0}}, "reference: unknown source 'nobody'"),
        ({"name": "velocitune", "reference": {**REFERENCE, "source-0": -1.0}}, "reference"),
        ({"name": "skill_it", "graph": {"nobody": {}}}, "graph: unknown source 'nobody'"),
        ({"name": "skill_it", "graph": {"source-0": {"no": 1.0}}}, "graph: source-0: unknown source 'no'"),
        ({"name": "skill_it", "graph": {"source-0": {"source-1": -1.0}}}, "not negative in graph"),
        ({"name": "skill_it", "graph": {}, "window": 0}, "window"),
        ({"name": "softmax", "temperature": 0}, "temperature"),
        ({"name": "exp3", "eta": 1}, "eta"),
    ],
)
def test_settings_that_cannot_be_are_refused(policy: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        curriculum(3, policy=policy)


def test_a_setting_that_is_not_given_changes_no_fingerprint_and_no_journal() -> None:
    assert "reference" not in curriculum(3).model_dump(mode="json")["policy"]
    assert "reference" not in curriculum(3).model_dump(mode="json", exclude_none=True)["policy"]
    given_one = curriculum(3, policy={"name": "ucb", "reward": "excess", "reference": REFERENCE})
    assert given_one.model_dump(mode="json")["policy"]["reference"] == REFERENCE
    assert tuple(REFERENCE) == source_names(3)
