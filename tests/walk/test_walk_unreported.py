"""A walk that decides from losses says so when nobody ever reported one."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from mixer.config.curriculum import Curriculum
from mixer.journal.file import Journal
from mixer.losses import SourceLosses
from mixer.replay.verify import audit
from mixer.types import IntArray
from mixer.walk.walk import Walk
from tests.support.curricula import POLICIES, curriculum, drive, noisy_losses
from tests.support.engines import body, running, train
from tests.support.serving import write_run

DEAF = ("static", "proportional", "unimax", "random")


def a_walk(policy: Mapping[str, Any], **more: Any) -> Walk:
    return Walk(curriculum(policy=policy, phases={"initial_random": 0, "random_probability": 0.0}), **more)


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: "-".join(map(str, policy.values())))
def test_a_policy_that_learns_from_losses_is_named_once_if_there_are_none(
    policy: Mapping[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    walk = a_walk(policy)
    for step in range(300):
        walk.phase_at(step)
    told = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    if policy["name"] in DEAF:
        assert told == []
    else:
        second = next(
            phase for phase in map(a_walk(policy, on_silence=lambda _: None).phase_at, range(99)) if phase.index
        )
        assert len(told) == 1
        assert told[0].startswith(
            f"policy {policy['name']} decided the phase from step {second.start} without a single report of losses"
        )


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: "-".join(map(str, policy.values())))
def test_a_walk_looks_at_losses_where_other_losses_change_what_it_decides(policy: Mapping[str, Any]) -> None:
    def weights(seed: int) -> list[list[float]]:
        def told(run: Curriculum, step: int, rows: IntArray) -> SourceLosses:
            return noisy_losses(run.model_copy(update={"seed": seed}), step, rows)

        return [phase.weights.tolist() for phase in drive(Walk(curriculum(policy=policy)), 400, losses=told)]

    walk = a_walk(policy)
    assert walk.looks_at_losses == (weights(1) != weights(2))
    assert walk.looks_at_losses == (policy["name"] not in DEAF)  # the names that the warning gives


def test_a_single_report_is_enough_and_the_steps_within_the_lag_owe_none(caplog: pytest.LogCaptureFixture) -> None:
    drive(a_walk({"name": "ucb"}), 300)
    drive(a_walk({"name": "odm"}), 1)
    lagging = Walk(curriculum(feedback_lag=60, phases={"initial_random": 0, "random_probability": 0.0}))
    walk = a_walk({"name": "ucb"})
    drive(walk, 1)
    for step in range(61):
        lagging.phase_at(step)
        walk.phase_at(step)
    restored = a_walk({"name": "ucb"})
    restored.load_state_dict(walk.state_dict())
    restored.phase_at(300)
    assert caplog.records == []
    lagging.phase_at(150)
    assert len(caplog.records) == 1


def test_random_phases_owe_no_report(caplog: pytest.LogCaptureFixture) -> None:
    Walk(curriculum(phases={"random_probability": 1.0})).phase_at(500)
    assert caplog.records == []


def test_going_over_a_journal_says_nothing_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    a_walk({"name": "ucb"}, journal=Journal.create(tmp_path / "walk.jsonl")).phase_at(200)
    caplog.clear()
    assert audit(tmp_path / "walk.jsonl").difference is None
    assert caplog.records == []


def test_a_service_logs_it_with_the_name_of_the_run_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MIXER_CACHE", str(tmp_path / "cache"))
    phases = {"initial_random": 0, "random_probability": 0.0, "min_steps": 5, "max_steps": 9}
    run = Curriculum.from_yaml(write_run(tmp_path, phases=phases))
    with running(run, tmp_path / "heard") as engine:
        train(engine, range(30))
    assert "without a single report" not in caplog.text
    with running(run, tmp_path / "silent", feedback_wait_s=0.0) as engine:
        for step in range(31):
            body(engine, step)
    with running(run, tmp_path / "silent", feedback_wait_s=0.0) as engine:
        body(engine, 31)
    told = [record.getMessage() for record in caplog.records if "without a single report" in record.getMessage()]
    assert len(told) == 1
    assert told[0].startswith("run run: policy water_filling decided the phase from step ")
