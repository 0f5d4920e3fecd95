"""Random decisions of every policy: none breaks a bound, and each is the same again from what a journal keeps."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from mixer.losses import SourceLosses
from mixer.policies import make_policy
from mixer.region.region import Region
from mixer.types import Array, State
from tests.support.curricula import POLICIES, curriculum
from tests.support.strategies import source_names

NUM_SOURCES = 6
NUM_LOSSES = 2_000  # different reports; decisions pick among them
NAMES = source_names(NUM_SOURCES)
REFERENCE = dict.fromkeys(NAMES, 2.0)
ALL: tuple[Mapping[str, Any], ...] = (
    *POLICIES,
    {"name": "ucb", "reward": "learnability_heldout"},
    {"name": "ucb", "reward": "target_gain"},
    {"name": "ucb", "reward": "excess", "reference": REFERENCE},
    {"name": "ucb", "reward": "velocity", "reference": REFERENCE},
    {"name": "water_filling", "losses": "heldout", "power": 2.0, "width": 1.0, "horizon": 30},
    {"name": "linear", "losses": "heldout"},
    {"name": "d_ucb", "reward": "velocity", "reference": REFERENCE, "eta": 1.0, "discount": 0.5},
    {"name": "sw_ucb", "reward": "target_gain"},
    {"name": "aioli", "eta": 50.0},
    {"name": "doremi", "reference": REFERENCE},
    {"name": "velocitune", "reference": REFERENCE},
    {"name": "skill_it", "graph": {NAMES[0]: {NAMES[1]: 1.0}}, "losses": "heldout"},
)


def random_region(rng: np.random.Generator) -> Region:
    """Return bounds around a random mixture, some of them pinned, some sources excluded."""
    inside = rng.dirichlet(np.full(NUM_SOURCES, 0.5))
    inside[inside < 0.01] = 0.0
    inside /= inside.sum()
    floors = inside * rng.choice([0.0, 0.3, 0.9, 1.0], NUM_SOURCES)
    caps = np.where(
        rng.uniform(size=NUM_SOURCES) < 0.5, 1.0, inside + (1 - inside) * rng.uniform(size=NUM_SOURCES) ** 3
    )
    exclude = [name for name, share in zip(NAMES, inside, strict=True) if share == 0 and rng.uniform() < 0.5]
    bounds = [dict(zip(NAMES, values.tolist(), strict=True)) for values in (floors, caps)]
    return Region(NAMES, floors=bounds[0], caps=bounds[1], exclude=exclude)


def random_losses(rng: np.random.Generator) -> SourceLosses:
    rows = rng.integers(0, 9, NUM_SOURCES) * (rng.uniform(size=NUM_SOURCES) < 0.7)
    means = rng.choice([0.0, 1e-3, 3.0, 11.0, 200.0], NUM_SOURCES) * rng.uniform(size=NUM_SOURCES)
    return SourceLosses(rows=rows, tokens=rows * 4, loss_sums=means * rows * 4, square_sums=means**2 * rows)


def decide(policy_fields: Mapping[str, Any], num: int, *, seed: int) -> list[bytes]:
    """Make ``num`` decisions, each checked against its region; return the weights' bits."""
    rng = np.random.default_rng(seed)
    run = curriculum(NUM_SOURCES, policy=dict(policy_fields))
    policy = make_policy(run)
    state: State = policy.initial(NUM_SOURCES)
    region, since, found = random_region(rng), 0, []
    weights: Array = region.project(np.full(NUM_SOURCES, 1 / NUM_SOURCES))
    losses = [random_losses(rng) for _ in range(min(num, NUM_LOSSES))]
    picked = rng.integers(0, len(losses), (num, 3)).tolist()  # drawn at once: a call for each takes longer than some
    lengths, nums_steps = rng.integers(7, 43, num).tolist(), rng.integers(0, 3, num).tolist()  # policies decide
    is_pivot, is_probed, is_saved = (rng.uniform(size=(3, num)) < [[0.05], [0.7], [0.02]]).tolist()
    alarmed = rng.uniform(size=(num, NUM_SOURCES)) < 0.1
    unique = rng.choice([0.0, 10.0, 1e6], (num, NUM_SOURCES))
    for i in range(num):
        until = since + lengths[i]
        if is_pivot[i]:
            region = random_region(rng)
            weights, state = region.project(weights), policy.after_pivot(state)
        if is_probed[i]:
            state = policy.absorb_probe(state, losses[picked[i][2]], step=since)
        steps = [losses[k] for k in picked[i][: nums_steps[i]]]
        state = policy.absorb(state, steps, since=since, until=until)
        weights = policy.choose(state, region, weights, unique[i], alarmed[i]).weights
        assert region.contains(weights, atol=1e-12), (policy_fields, region.lower, region.upper, weights)
        found.append(weights.tobytes())
        since = until
        if is_saved[i]:  # as a checkpoint keeps it
            state = {name: np.array(values) for name, values in json.loads(json.dumps(_plain(state))).items()}
    return found


def _plain(state: State) -> dict[str, list[float]]:
    return {name: values.tolist() for name, values in state.items()}


@pytest.mark.parametrize("policy", ALL, ids=lambda policy: "-".join(str(policy[k]) for k in policy if k != "reference"))
def test_no_decision_breaks_a_bound_and_each_is_the_same_again(policy: Mapping[str, Any]) -> None:
    if policy["name"] == "ado":
        policy = {"name": "ado", "first_fit_step": 100, "refit_steps": 1500}  # a fit takes longer than all else
    assert decide(policy, 150, seed=1) == decide(policy, 150, seed=1)


@pytest.mark.slow
@pytest.mark.parametrize("policy", ALL, ids=lambda policy: "-".join(str(policy[k]) for k in policy if k != "reference"))
def test_no_decision_of_a_million_breaks_a_bound(policy: Mapping[str, Any]) -> None:
    each = -(-1_000_000 // len(ALL))
    if policy["name"] == "ado":
        policy = {"name": "ado", "first_fit_step": 1000, "refit_steps": 100_000}
    decide(policy, each, seed=2)
