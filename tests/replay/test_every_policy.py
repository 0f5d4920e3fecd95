"""A walk under each policy, in a run that uses every kind of regime: the same again from its journal and its state."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import pytest

from mixer.config.curriculum import Curriculum
from mixer.config.pivots import Pivot
from mixer.config.policy import PolicyConfig
from mixer.journal.file import Journal
from mixer.replay.verify import audit
from mixer.walk.walk import Walk
from tests.policies.test_bounds_of_policies import ALL, NAMES
from tests.support.curricula import curriculum, same_phases
from tests.walk.test_probes import ROWS, TARGET, drive

STEPS, PIVOT_STEP = 400, 220
IDS = ["-".join(str(policy[key]) for key in policy if key != "reference") for policy in ALL]


def run_under(policy: Mapping[str, Any]) -> Curriculum:
    """Return a run with probes, limits by epochs, excursions, weights by hand, and a second policy to the end."""
    few, many = 2_000, 1_000_000  # tokens: the first source is soon read through
    sources = [
        {"name": name, "local": "topics", "tokens": few if name == NAMES[0] else many, "max_epochs": 1.5}
        for name in NAMES
    ]
    if policy["name"] == "unimax":  # it has limits of its own
        for source in sources:
            del source["max_epochs"]
    other = "odm" if policy["name"] != "odm" else "exp3"
    return curriculum(
        len(NAMES),
        total_steps=STEPS,
        policy=dict(policy),
        sources=[*sources, TARGET],
        holdout=0.1,
        probes={"rows": ROWS},
        floors={NAMES[1]: 0.05},
        caps={NAMES[2]: 0.4},
        feedback_lag=3,
        phases={"random_probability": 0.3, "initial_random": 2, "random_decay": 10.0, "after_random": "return"},
        pivots=[
            {"name": "by-hand", "at_step": 100, "weights": dict.fromkeys(NAMES[1:], 0.2), "ramp_steps": 40},
            {"name": "back", "at_step": 160, "policy": policy["name"]},
            {"name": "other", "at_step": 300, "policy": other},
        ],
    )


def test_every_policy_is_tried() -> None:
    models = get_args(get_args(PolicyConfig)[0])
    assert {policy["name"] for policy in ALL} == {model.model_fields["name"].default for model in models}


@pytest.mark.parametrize("policy", ALL, ids=IDS)
def test_a_journal_and_a_state_give_the_same_decisions(policy: Mapping[str, Any], tmp_path: Path) -> None:
    run = run_under(policy)
    with Journal.create(tmp_path / "run.jsonl") as journal:
        walk = Walk(run, journal=journal)
        drive(walk, PIVOT_STEP)
        walk.pivot(Pivot(name="live", caps={NAMES[3]: 0.3}), at_step=walk.first_cut(PIVOT_STEP), cut=True)
        state = json.loads(json.dumps(walk.state_dict()))
        phases = drive(walk, STEPS, since=PIVOT_STEP)
    assert audit(tmp_path / "run.jsonl").difference is None
    resumed = Walk(run)
    resumed.load_state_dict(state)
    assert same_phases(drive(resumed, STEPS, since=PIVOT_STEP), phases)
