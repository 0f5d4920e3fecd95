"""Aioli: values worked by hand, the released form as a second implementation, its cycle, and what it is refused for."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixer.errors import ConfigError
from mixer.policies import AioliPolicy, make_policy
from mixer.types import Array, State
from tests.policies.test_rewards import losses_of
from tests.support.curricula import curriculum


def made(num_sources: int = 2, **fields: Any) -> AioliPolicy:
    policy = make_policy(curriculum(num_sources, policy={"name": "aioli", **fields}, seed=5))
    assert isinstance(policy, AioliPolicy)
    return policy


def decided(policy: AioliPolicy, state: State, step: int, *, probe: Array | None, rows: list[int]) -> State:
    """Return the memory after the decision at ``step``: first the last phase's probe, then its rows."""
    if probe is not None:
        state = policy.absorb_probe(state, losses_of(probe.tolist()), step=step - 10)
    return policy.absorb(state, [losses_of([1.0] * len(rows), rows)] if rows else [], since=step - 10, until=step)


def learned(policy: AioliPolicy, levels: list[Array], rows: list[list[int]], state: State | None = None) -> State:
    """Return the memory after a LearnParams: ``levels`` are held-out losses before each phase and after the last."""
    num = levels[0].size
    state = policy.initial(num) if state is None else state
    state = decided(policy, state, 0, probe=None, rows=[])
    for p, level in enumerate(levels):
        state = decided(policy, state, 10 * (p + 1), probe=level, rows=rows[p] if p < len(rows) else [0] * num)
    return state


def shares(logs: list[float]) -> list[float]:
    total = sum(math.exp(x) for x in logs)
    return [math.exp(x) / total for x in logs]


def test_what_sources_teach_is_solved_normalised_and_exponentiated() -> None:
    policy = made(eta=2.0, ema=0.25)
    levels = [np.array(x) for x in ([5.0, 5.0], [4.0, 4.75], [3.5, 4.0])]
    state = learned(policy, levels, [[6, 2], [2, 6]])
    # falls 1 and 1/4 after 6 + 2 rows, 1/2 and 3/4 after 2 + 6: 6 a + 2 b = 1, 2 a + 6 b = 1/2 for the first loss, so
    # a = 5/32, b = 1/32; for the second 6 c + 2 d = 1/4, 2 c + 6 d = 3/4, so c = 0, d = 1/8
    taught = np.array([[5 / 32, 1 / 32], [0.0, 4 / 32]]) / (10 / 32)
    np.testing.assert_allclose(state["law"].reshape(2, 2), taught, atol=1e-12)
    np.testing.assert_allclose(policy.means(state), [0.5, 0.5], atol=1e-12)
    np.testing.assert_allclose(policy.point(state), [0.5, 0.5], atol=1e-12)
    assert not state["gram"].any()
    again = state | {"place": np.full(1, -1.0), "at": np.full(1, -1.0), "seen": np.zeros(2)}
    levels = [np.array(x) for x in ([5.0, 5.0], [4.0, 5.0], [4.0, 5.5])]
    state = learned(policy, levels, [[8, 0], [0, 8]], again)
    # 1/8 of source 0 for loss 0, -1/16 of source 1 for loss 1; less the minimum: 3, 1 and 1, 0 sixteenths of 5
    new = np.array([[3.0, 1.0], [1.0, 0.0]]) / 5
    np.testing.assert_allclose(state["law"].reshape(2, 2), 0.75 * new + 0.25 * taught, atol=1e-12)
    np.testing.assert_allclose(policy.point(state), shares([2 * (0.6 + 0.125), 2 * (0.15 + 0.125)]), atol=1e-12)


@given(
    num=st.integers(2, 5), rounds=st.integers(1, 3), one_hot=st.sampled_from([0.625, 1.0]), seed=st.integers(0, 10**6)
)
def test_phases_of_equal_length_give_what_the_released_code_gives(
    num: int, rounds: int, one_hot: float, seed: int
) -> None:
    policy = made(num, rounds=rounds, one_hot=one_hot, eta=3.0)
    rng = np.random.default_rng(seed)
    smoothed = np.full((num, num), (1 - one_hot) / (num - 1))
    np.fill_diagonal(smoothed, one_hot)
    state, level = policy.initial(num), np.full(num, 9.0)
    falls, counts = np.zeros((num, num)), np.zeros(num)
    state = decided(policy, state, 0, probe=None, rows=[])
    for p in range(rounds * num):
        mixture = policy.point(state)
        source = int(mixture.argmax())
        np.testing.assert_allclose(mixture, smoothed[source], atol=1e-12)
        rows = [round(w * 8000 * (num - 1)) for w in mixture]
        before, level = level, level - np.round(rng.uniform(-0.1, 0.5, num), 3)
        state = decided(policy, state, 10 * (p + 1), probe=before, rows=rows)
        falls[:, source] += (before - level) / rounds
        counts[source] += 1
    assert counts.tolist() == [rounds] * num  # each source as often as any other
    np.testing.assert_allclose(policy.point(state), np.full(num, 1 / num))  # the last fall is not known yet
    state = decided(policy, state, 10 * (rounds * num + 1), probe=level, rows=[0] * num)
    taught = np.stack([np.linalg.solve(smoothed, row) for row in falls])
    taught -= min(0.0, taught.min())
    expected = shares((3.0 * (taught / taught.sum()).sum(axis=0)).tolist())
    np.testing.assert_allclose(policy.point(state), expected, rtol=1e-4)  # rows are whole numbers, sums on a grid


def test_learn_params_comes_again_in_another_order_and_takes_its_share_of_the_phases() -> None:
    policy, state = made(7, learn_share=0.35), made(7).initial(7)
    points = []
    for p in range(40):
        state = decided(policy, state, 10 * p, probe=None, rows=[])
        points.append(policy.point(state))
    is_learning = [point.max() > 0.5 for point in points]
    assert is_learning == ([True] * 7 + [False] * 13) * 2
    orders = [[int(point.argmax()) for point in points[start : start + 7]] for start in (0, 20)]
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(7))
    assert orders[0] != orders[1]
    pivoted = policy.after_pivot(state)
    assert policy.point(pivoted).max() > 0.5
    assert pivoted["place"] == 0


def test_without_probes_answered_it_is_uniform_and_a_late_part_of_a_probe_changes_nothing() -> None:
    policy, state = made(3), made(3).initial(3)
    for p in range(5):
        state = decided(policy, state, 10 * p, probe=None, rows=[4, 4, 4])
    np.testing.assert_allclose(policy.point(state), np.full(3, 1 / 3))
    state = policy.absorb_probe(state, losses_of([3.0, 3.0, 3.0]), step=40)
    again = policy.absorb_probe(state, losses_of([9.0, 3.0, 3.0]), step=40)
    assert all(np.array_equal(state[name], again[name]) for name in state)


def test_mixtures_that_the_region_makes_equal_give_equal_weights() -> None:
    levels = [np.array([5.0 - p, 4.0]) for p in range(3)]
    state = learned(made(), levels, [[4, 4], [4, 4]])
    np.testing.assert_allclose(made().point(state), [0.5, 0.5], atol=1e-12)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"probes": None, "holdout": 0.1}, "aioli learns from held-out losses .* there are no probes"),
        (
            {
                "holdout": 0.0,
                "sources": [
                    {"name": "a", "local": "topics"},
                    {"name": "t", "local": "topics", "role": "target"},
                ],
            },
            "no held-out rows of the sources",
        ),
        ({"policy": {"name": "aioli", "one_hot": 0.25}}, "one_hot is 0.25, no more than the 0.333"),
        ({"policy": {"name": "aioli", "learn_share": 1.0}}, "learn_share"),
        ({"policy": {"name": "aioli", "ema": 1.0}}, "ema"),
    ],
)
def test_what_aioli_cannot_work_with_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        curriculum(3, **{"policy": {"name": "aioli"}, **fields})
    with pytest.raises(ConfigError, match="policy aioli: 257 sources"):
        curriculum(257, policy={"name": "aioli"})
