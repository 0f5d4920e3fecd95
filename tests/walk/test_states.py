"""Saved states of 16 prepared sources: small under every policy, lag and step, and what was saved goes on alike."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixer.config.curriculum import Curriculum
from mixer.losses import SourceLosses
from mixer.types import IntArray
from mixer.walk.walk import Walk
from tests.support.curricula import PEOPLE_REWARD, POLICIES, drive, on_time, ragged, same_phases

K, ROWS, TOKENS = 16, 16, 1024
MAX_BYTES = 4096 - 200  # a data set's place is a little more
MAX_LAG = 16
BY_STEP = ("andrea", "odm")  # keep each step that they cannot have learned from yet
SMALL = tuple(policy for policy in POLICIES if policy.get("reward") != PEOPLE_REWARD)


def a_run(policy: Mapping[str, Any], **fields: Any) -> Curriculum:
    sources = [{"name": f"source-{k:02d}", "local": "topics", "tokens": 10**9} for k in range(K)]
    return Curriculum(
        total_steps=200_000, batch_rows=ROWS, sequence_length=TOKENS, sources=sources, policy=policy, **fields
    )


def losses_of_rows(run: Curriculum, step: int, rows: IntArray) -> SourceLosses:
    """Each row has a loss of its own, so that squares say something."""
    rng = np.random.default_rng([run.seed, step])
    falling = (2.0 + np.arange(K) / 8 + 3.0 * (1 + step) ** -0.3)[:, None]
    sums = TOKENS * (falling + 0.4 * rng.standard_normal((K, ROWS))) * (np.arange(ROWS) < rows[:, None])
    return SourceLosses(rows, rows * TOKENS, sums.sum(axis=1), ((sums / TOKENS) ** 2).sum(axis=1))


def size_of(walk: Walk, step: int) -> int:
    """Return the bytes that a data set's state has of its walk before ``step``."""
    return len(json.dumps(walk.state_dict(from_step=step)))


@given(
    st.sampled_from(SMALL),
    st.integers(0, MAX_LAG),
    st.integers(0, 2**32),
    st.integers(1, 250),
    st.integers(0, 60),
    st.booleans(),
)
@settings(max_examples=40)
def test_a_state_of_16_sources_is_below_4_kb_and_its_walk_goes_on_bit_for_bit(
    policy: Mapping[str, Any], feedback_lag: int, seed: int, num_steps: int, more: int, is_late: bool
) -> None:
    run = a_run(policy, feedback_lag=feedback_lag, seed=seed)
    late = ragged if is_late and policy["name"] not in BY_STEP else on_time
    walk, restored = Walk(run), Walk(run)
    drive(walk, num_steps, losses=losses_of_rows, late=late)
    assert size_of(walk, num_steps) < MAX_BYTES
    if late is on_time:  # else a report may be of a step that the state says nothing about
        restored.load_state_dict(json.loads(json.dumps(walk.state_dict(from_step=num_steps))))
        both = [drive(each, num_steps + more, since=num_steps, losses=losses_of_rows) for each in (walk, restored)]
        assert same_phases(*both)
        assert size_of(walk, num_steps + more) < MAX_BYTES
        one, other = (json.dumps(each.state_dict(from_step=num_steps + more)) for each in (walk, restored))
        assert one == other


@pytest.mark.parametrize("policy", ["ucb", "static"])
@pytest.mark.parametrize("feedback_lag", [42, 80])
def test_what_waits_within_a_long_lag_is_a_few_sums(policy: str, feedback_lag: int) -> None:
    run = a_run({"name": policy}, feedback_lag=feedback_lag)
    walk = Walk(run)
    for step in range(300):
        drive(walk, step + 1, since=step, losses=losses_of_rows)
        assert len(walk._inbox._pending) <= 2 + feedback_lag // run.phase_law.min_steps
        assert size_of(walk, step + 1) < MAX_BYTES


@pytest.mark.slow
@pytest.mark.parametrize("policy", SMALL)
def test_a_state_stays_below_4_kb_over_thousands_of_steps(policy: Mapping[str, Any]) -> None:
    if policy["name"] == "ado":
        policy = {"name": "ado"}  # a fit takes longer than all else
    walk = Walk(a_run(policy, feedback_lag=MAX_LAG))
    for step in range(12_000):
        drive(walk, step + 1, since=step, losses=losses_of_rows)
        if step % 1000 > 900:
            assert size_of(walk, step + 1) < MAX_BYTES


def test_squares_wait_only_where_somebody_looks_at_them() -> None:
    def waiting(policy: Mapping[str, Any]) -> float:
        walk = Walk(a_run(policy))
        drive(walk, 5, losses=losses_of_rows)
        return float(sum(arrived.losses.square_sums.sum() for arrived in walk._inbox._pending))

    assert [waiting(policy) for policy in SMALL] == [0.0] * len(SMALL)
    assert waiting({"name": "ucb", "reward": PEOPLE_REWARD}) > 0
