"""Exploration by setting: how often phases are random, where the walk goes on from, how far its steps go."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixer.analysis.explain import explain
from mixer.config.curriculum import Curriculum
from mixer.config.pivots import Pivot
from mixer.errors import ConfigError
from mixer.journal.file import Journal, read_journal
from mixer.replay.verify import audit
from mixer.walk.walk import Walk
from tests.support.curricula import curricula, curriculum, drive, same_phases

WITH_ETA = (
    {"name": "ucb"},
    {"name": "ucb", "reward": "loss"},
    {"name": "andrea"},
    {"name": "water_filling", "eta": 0.3},
)
RETURN = {"random_probability": 0.5, "initial_random": 2, "after_random": "return"}


def phase_lines(path: Path) -> list[dict[str, Any]]:
    return [record for record in read_journal(path) if record["type"] == "phase"]


def walked(path: Path, run: Curriculum, steps: int = 400) -> list[dict[str, Any]]:
    with Journal.create(path) as journal:
        drive(Walk(run, journal=journal), steps)
    return phase_lines(path)


@given(curricula(policies=WITH_ETA), st.data())
@settings(max_examples=25, deadline=None)
def test_explored_walks_keep_every_bound_go_on_from_a_state_and_are_replayed(
    tmp_path_factory: pytest.TempPathFactory, run: Curriculum, data: st.DataObject
) -> None:
    fields = run.model_dump(mode="json")
    phases = fields["phases"] | {"random_probability": 0.5, "random_decay": data.draw(st.sampled_from([None, 5.0]))}
    policy = fields["policy"] | {
        "eta_decay": data.draw(st.sampled_from(["none", "linear", "cosine"])),
        "eta_decay_over": data.draw(st.sampled_from(["run", "regime"])),
    }
    fields |= {"phases": phases | {"after_random": "return"}, "policy": policy, "total_steps": 90}
    run = Curriculum(**fields)
    path = tmp_path_factory.mktemp("exploration") / "run.jsonl"
    with Journal.create(path) as journal:
        walk = Walk(run, journal=journal)
        drive(walk, 50)
        walk.pivot(Pivot(name="cut"), walk.first_cut(0), cut=True)
        copy = Walk(run)
        copy.load_state_dict(walk.state_dict())
        assert same_phases(drive(walk, 110, since=50), drive(copy, 110, since=50))
    assert audit(path).difference is None
    for line in phase_lines(path):
        assert walk.regime_at(line["start"]).region.contains(line["weights"])


def test_after_an_excursion_the_walk_goes_on_from_where_it_was(tmp_path: Path) -> None:
    lines = walked(tmp_path / "w", curriculum(4, total_steps=400, phases=RETURN))
    home = np.full(4, 0.25)
    kinds = {line["kind"] for line in lines}
    for line in lines:
        np.testing.assert_array_equal(line["before"], home)
        home = np.array(line["weights"]) if line["kind"] != "random" else home
    assert kinds == {"random", "bandit"}
    step = next(line["start"] for line in lines if line["kind"] == "random")
    assert explain(tmp_path / "w", step)["phase"]["is_excursion"]
    assert any("excursion" in words for words in explain(tmp_path / "w", step)["words"])


def test_an_excursion_that_opens_a_regime_returns_into_its_region(tmp_path: Path) -> None:
    pivot = {"name": "half", "at_step": 63, "floors": {"source-3": 0.5}}
    run = curriculum(4, total_steps=400, phases=RETURN | {"random_probability": 0.9}, pivots=[pivot])
    lines = walked(tmp_path / "w", run)
    opening = next(line for line in lines if line["regime"] == "half")
    after = lines[opening["index"] + 1]
    assert opening["kind"] == "random"
    assert after["before"] == opening["landed"] != opening["weights"]


def test_the_chance_of_a_random_phase_falls_as_documented_and_the_first_are_sure(tmp_path: Path) -> None:
    phases = {"random_probability": 0.4, "initial_random": 2, "random_decay": 7.0}
    lines = walked(tmp_path / "w", curriculum(2, total_steps=400, phases=phases))
    expected = [1.0, 1.0] + [0.4 * (1 + j / 7) ** (-1 / 3) for j in range(len(lines) - 2)]
    np.testing.assert_allclose([line["probability_random"] for line in lines], expected)


@pytest.mark.parametrize("policy", WITH_ETA)
@pytest.mark.parametrize("decay", ["linear", "cosine"])
def test_eta_falls_to_nothing_at_the_end_of_the_run_or_of_each_regime(
    tmp_path: Path, policy: dict[str, Any], decay: str
) -> None:
    phases = {"random_probability": 0.0, "initial_random": 0}
    for over, spans in (("run", [(0, 400)]), ("regime", [(0, 200), (200, 400)])):
        fields = {"phases": phases, "pivots": [{"name": "later", "at_step": 200}], "total_steps": 400}
        chosen = policy | {"eta_decay": decay, "eta_decay_over": over}
        lines = walked(tmp_path / over, curriculum(3, policy=chosen, **fields))
        for line in lines:
            begin, end = next(span for span in spans if span[0] <= line["start"] < span[1])
            t = (line["start"] - begin) / (end - begin)
            share = 1 - t if decay == "linear" else (1 + math.cos(math.pi * t)) / 2
            assert line["eta"] == pytest.approx(0.3 * share)
            if line["vertex"] is None:  # water_filling aims at a point that the journal does not have
                continue
            origin, vertex = np.array(line["landed"] or line["before"]), np.array(line["vertex"])
            np.testing.assert_allclose(line["weights"], origin + line["eta"] * (vertex - origin), atol=1e-12)
        words = explain(tmp_path / over, 399)["words"]
        assert any(f"eta 0.3 is {lines[-1]['eta']:.4g} by now" in sentence for sentence in words)


def test_the_published_phases_have_one_name_whatever_the_defaults_are() -> None:
    phases = curriculum(20, phases="andrea", policy="andrea").phases
    assert (phases.initial_random, phases.random_probability, phases.after_random) == (16, 0.1, "stay")
    assert (phases.min_steps, phases.max_steps, phases.random_decay) == (7, 42, None)
    assert curriculum(11, phases="andrea").phases.initial_random == 11
    policy: Any = curriculum(2, policy="andrea").policy
    assert (policy.eta, policy.eta_decay) == (0.3, "none")


def test_settings_that_would_do_nothing_or_cannot_be_are_refused() -> None:
    never = {"random_probability": 0, "initial_random": 0}
    with pytest.raises(ConfigError, match="after_random: return has no effect"):
        curriculum(2, phases=never | {"after_random": "return"})
    with pytest.raises(ConfigError, match="random_decay has no effect"):
        curriculum(2, phases={"random_probability": 0, "random_decay": 5})
    for phases in ({"random_decay": 0}, {"random_decay": -1}, {"after_random": "elsewhere"}):
        with pytest.raises(ConfigError, match=next(iter(phases))):
            curriculum(2, phases=phases)
    with pytest.raises(ConfigError, match="eta_decay"):
        curriculum(2, policy={"name": "ucb", "eta_decay": "steps"})
    with pytest.raises(ConfigError, match="phases"):
        curriculum(2, phases="andre")


def test_only_settings_that_differ_from_before_shape_the_fingerprint_and_eta_decay_adds_total_steps() -> None:
    plain, phases = curriculum(2), {"after_random": "stay", "random_decay": None}
    assert curriculum(2, phases=phases, policy={"name": "ucb", "eta_decay": "none"}).fingerprint == plain.fingerprint
    assert curriculum(2, phases={"after_random": "return"}).fingerprint != plain.fingerprint
    assert curriculum(2, phases={"random_decay": 9}).fingerprint != plain.fingerprint
    decayed = [curriculum(2, policy={"name": "ucb", "eta_decay": "linear"}, total_steps=n) for n in (100, 200)]
    assert decayed[0].fingerprint != decayed[1].fingerprint
