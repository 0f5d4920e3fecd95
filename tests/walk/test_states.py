"""Saved states of 16 sources: plain JSON data under every policy and lag, and what was saved goes on alike."""

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
from tests.support.curricula import MAX_LATE, POLICIES, drive, on_time, ragged, same_phases

K, ROWS, TOKENS = 16, 16, 1024
MAX_LAG = 16


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


def most_bytes(policy: Mapping[str, Any]) -> int:
    """Return what a state of its walk may have, with up to ``MAX_LAG`` and nothing that is late."""
    return {"andrea": 60_000, "odm": 60_000, "exp3": 60_000, "ado": 160_000}.get(
        policy["name"], 20_000
    )  # steps apart; their curves


@given(
    st.sampled_from(POLICIES),
    st.integers(0, MAX_LAG),
    st.integers(0, 2**32),
    st.integers(1, 250),
    st.integers(0, 60),
    st.booleans(),
)
@settings(max_examples=40)
def test_a_walk_goes_on_bit_for_bit_from_its_state_in_json(
    policy: Mapping[str, Any], feedback_lag: int, seed: int, num_steps: int, more: int, is_late: bool
) -> None:
    run = a_run(policy, feedback_lag=feedback_lag, seed=seed)
    late = ragged if is_late else on_time
    walk, restored = Walk(run), Walk(run)
    drive(walk, num_steps, losses=losses_of_rows, late=late)
    state = walk.state_dict(from_step=max(0, num_steps - MAX_LATE))  # the oldest step that is still to be reported
    if not is_late:
        assert len(json.dumps(walk.state_dict(from_step=num_steps))) < most_bytes(policy)
    restored.load_state_dict(json.loads(json.dumps(state)))
    assert restored.state_dict(from_step=max(0, num_steps - MAX_LATE)) == state
    both = [
        drive(each, num_steps + more, since=num_steps, losses=losses_of_rows, late=late) for each in (walk, restored)
    ]
    assert same_phases(*both)
    one, other = (json.dumps(each.state_dict(from_step=num_steps + more)) for each in (walk, restored))
    assert one == other


@pytest.mark.slow
@pytest.mark.parametrize("policy", POLICIES)
def test_states_do_not_grow_with_the_steps(policy: Mapping[str, Any]) -> None:
    if policy["name"] == "ado":
        policy = {"name": "ado"}  # a fit takes longer than all else
    walk = Walk(a_run(policy, feedback_lag=MAX_LAG))
    for step in range(12_000):
        drive(walk, step + 1, since=step, losses=losses_of_rows)
        if step % 1000 > 900:
            assert len(json.dumps(walk.state_dict(from_step=step + 1))) < most_bytes(policy)
