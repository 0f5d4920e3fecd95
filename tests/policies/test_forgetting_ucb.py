"""D-UCB and SW-UCB: pulls, means and widths worked by hand, what is forgotten, and what is refused."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from mixer.errors import ConfigError
from mixer.policies import DUcbPolicy, SwUcbPolicy, make_policy
from mixer.region.region import Region
from mixer.types import Array, State
from tests.policies.test_rewards import losses_of
from tests.support.curricula import curriculum

# a pull is the 8 * (7 + 42) / 2 = 196 rows of a mean phase
ROWS = [(98, 294, 0), (196, 0, 0), (0, 392, 0)]  # pulls: (0.5, 1.5, 0), (1, 0, 0), (0, 2, 0)
MEANS = [(1.0, 5.0, 0.0), (9.0, 0.0, 0.0), (0.0, 0.5, 0.0)]
# losses as rewards; those so far are {1, 5}, {1, 5, 9}, {0.5, 1, 5, 9}, so that on their 20 % to 80 % scale the rewards
# are 0 and 1, then 1 for the first source, then 0 for the second


def made(**policy: Any) -> DUcbPolicy | SwUcbPolicy:
    made = make_policy(curriculum(3, policy={"reward": "loss", **policy}))
    assert isinstance(made, DUcbPolicy | SwUcbPolicy)
    return made


def after(policy: DUcbPolicy | SwUcbPolicy, num_phases: int = len(ROWS)) -> State:
    state = policy.initial(3)
    for i in range(num_phases):
        losses = [losses_of(list(MEANS[i]), list(ROWS[i]))]
        state = policy.absorb(state, losses, since=24 * i, until=24 * i + 24)
    return state


def assert_index(parts: dict[str, Array], means: list[float], widths: list[float]) -> None:
    """Check the first two sources; the third has no rewards."""
    np.testing.assert_allclose(parts["mean"], [*means, 0.0], rtol=1e-7, atol=1e-7)
    np.testing.assert_allclose(parts["width"], [*widths, 0.0], rtol=1e-7)
    np.testing.assert_allclose(parts["index"], [*(np.array(means) + widths), math.inf], rtol=1e-7)


def test_d_ucb_discounts_pulls_and_rewards_once_a_phase() -> None:
    policy = made(name="d_ucb", discount=0.5, xi=0.6)
    # after one phase: N = 0.5, 1.5; S = 0, 1.5; n = 2
    assert_index(
        policy.index(after(policy, 1)),
        [0.0, 1.0],
        [2 * math.sqrt(0.6 * math.log(2.0) / pulls) for pulls in (0.5, 1.5)],
    )
    # after three: N = 0.5 / 4 + 1 / 2, 1.5 / 4 + 2; S = 0 + 1 / 2, 1.5 / 4 + 0; n = 0.625 + 2.375
    assert_index(
        policy.index(after(policy)),
        [0.5 / 0.625, 0.375 / 2.375],
        [2 * math.sqrt(0.6 * math.log(3.0) / pulls) for pulls in (0.625, 2.375)],
    )


def test_sw_ucb_sums_the_last_phases_alone() -> None:
    policy = made(name="sw_ucb", window=2, xi=0.6)
    # after two phases: N = 0.5 + 1, 1.5; S = 0 + 1, 1.5
    assert_index(
        policy.index(after(policy, 2)), [1.0 / 1.5, 1.0], [math.sqrt(0.6 * math.log(2.0) / 1.5) for _ in range(2)]
    )
    # after three the first has left: N = 1, 2; S = 1, 0
    assert_index(policy.index(after(policy)), [1.0, 0.0], [math.sqrt(0.6 * math.log(2.0) / pulls) for pulls in (1, 2)])
    long = made(name="sw_ucb", window=50, xi=0.6)  # min(t, tau) is t
    assert_index(
        long.index(after(long)),
        [1.0 / 1.5, 1.5 / 3.5],
        [math.sqrt(0.6 * math.log(3.0) / pulls) for pulls in (1.5, 3.5)],
    )


def test_phases_without_a_report_pass_too() -> None:
    for policy, pulls in ((made(name="d_ucb", discount=0.5), 0.125), (made(name="sw_ucb", window=3), 0.5)):
        state = after(policy, 1)
        for i in (1, 2):
            state = policy.absorb(state, [], since=24 * i, until=24 * i + 24)
        assert state["pulls"].reshape(-1, 3).sum(axis=0)[0] == pulls
    gone = policy.absorb(state, [], since=72, until=96)
    assert policy.index(gone)["index"].tolist() == [math.inf] * 3
    assert gone["tokens"].tolist() == state["tokens"].tolist()


def test_a_pivot_keeps_a_quarter_of_every_pull() -> None:
    for policy in (made(name="d_ucb"), made(name="sw_ucb")):
        state = after(policy)
        pivoted = policy.after_pivot(state)
        assert (pivoted["pulls"] == state["pulls"] / 4).all()
        assert (pivoted["sums"] == state["sums"] / 4).all()
        np.testing.assert_allclose(policy.index(pivoted)["mean"], policy.index(state)["mean"])


def test_the_walk_goes_eta_of_the_way_to_the_best_vertex() -> None:
    region = Region(["a", "b", "c"], caps={"a": 0.7, "c": 0.2})
    start = np.array([0.2, 0.7, 0.1])
    for policy in (made(name="d_ucb", xi=0.0, eta=0.5), made(name="sw_ucb", xi=0.0, eta=0.5)):
        choice = policy.choose(after(policy), region, start, np.zeros(3))
        assert choice.vertex is not None
        np.testing.assert_allclose(choice.vertex, [0.7, 0.1, 0.2])  # the third is unknown, then the first is best
        np.testing.assert_allclose(choice.weights, [0.45, 0.4, 0.15])
        alarmed = np.array([True, False, True])
        alarm = policy.choose(after(policy), region, start, np.zeros(3), alarmed).vertex
        assert alarm is not None
        assert alarm[1] == 1.0


def test_less_than_one_pull_in_all_gives_no_width() -> None:
    policy = made(name="d_ucb")
    state = policy.absorb(policy.initial(3), [losses_of([1.0, 2.0, 3.0])], since=0, until=7)
    assert policy.index(state)["width"].tolist() == [0.0] * 3
    for i in range(1, 3000):
        state = policy.absorb(state, [], since=7 * i, until=7 * i + 7)
    assert policy.index(state)["index"].tolist() == [math.inf] * 3  # forgotten: to be tried again


@pytest.mark.parametrize("name", ["d_ucb", "sw_ucb"])
def test_rewards_with_probes_and_references_work_too(name: str) -> None:
    policy = made(name=name, reward="target_gain", targets={"source-0": 1.0})
    state = policy.initial(3)
    probes: list[tuple[float, list[int]]] = [(4.0, [98, 0, 98]), (3.0, [0, 196, 0]), (2.5, [1, 1, 1])]
    for i, (level, rows) in enumerate(probes):
        state = policy.absorb_probe(state, losses_of([level, 9.0, 9.0]), step=24 * i)
        state = policy.absorb(state, [losses_of([1.0] * 3, rows)], since=24 * i, until=24 * i + 24)
    mean = policy.index(state)["mean"]
    assert mean[0] == mean[2] > mean[1]  # a fall of 1 / 196 a row, then of 0.5 / 196
    excess = made(name=name, reward="excess", reference={"source-0": 1.0, "source-1": 5.0, "source-2": 0.0})
    seen = excess.absorb(excess.initial(3), [losses_of([3.0, 5.0, 1.0])], since=0, until=24)
    assert np.argsort(excess.index(seen)["mean"]).tolist() == [1, 2, 0]


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        ({"name": "d_ucb", "discount": 0}, "discount"),
        ({"name": "d_ucb", "discount": 1.1}, "discount"),
        ({"name": "d_ucb", "window": 5}, r"^policy\.d_ucb\.window: unknown key; known keys: name, "),
        ({"name": "sw_ucb", "window": 0}, "window"),
        ({"name": "sw_ucb", "window": 1001}, "window"),
        ({"name": "sw_ucb", "xi": -1}, "xi"),
        ({"name": "sw_ucb", "eta": 0}, "eta"),
        ({"name": "d_ucb", "reward": "learnability"}, "unknown reward 'learnability'"),
        ({"name": "d_ucb", "reward": "los"}, "did you mean 'loss'"),
        ({"name": "d_ucb", "reward": "velocity"}, "reward velocity needs reference"),
        ({"name": "sw_ucb", "reference": {"source-0": 1.0}}, "reference is for the rewards excess and velocity"),
        ({"name": "sw_ucb", "reward": "excess", "reference": {"source-0": 1.0}}, "missing: source-1, source-2"),
        ({"name": "sw_ucb", "reward": "target_gain", "targets": {"nobody": 1.0}}, "unknown source 'nobody'"),
    ],
)
def test_settings_that_cannot_be_are_refused(policy: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        curriculum(3, policy=policy)
