"""Estimates from random phases, on walks whose truth is known."""

from __future__ import annotations

from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats

from mixer.analysis import effects as module
from mixer.analysis.effects import Outcomes, effects, measured, one_phase_effects, random_against_bandit
from mixer.analysis.simulate import simulate
from mixer.config.curriculum import Curriculum
from mixer.config.pivots import Pivot
from mixer.errors import EvidenceError, UnknownSourceError
from mixer.journal.file import Journal
from mixer.journal.tables import JournalTables, read_tables
from mixer.sampling.randomness import generator
from mixer.types import Array
from mixer.walk.walk import Walk
from tests.support.curricula import curriculum, drive


def walk_story(seed: int, num_phases: int = 120, chance: float = 0.5, num_sources: int = 3) -> JournalTables:
    """Return phases as the law and the region give them; what bandit phases play is of no matter here."""
    run = curriculum(
        num_sources, seed=seed, phases={"random_probability": chance, "initial_random": 0}, caps={"source-0": 0.6}
    )
    story, region, start = JournalTables(header={"curriculum": run.model_dump(mode="json")}), run.regimes[0].region, 0
    for index in range(num_phases):
        kind = "random" if run.phase_law.is_random(index) else "bandit"
        weights = region.sample(generator(seed, "phase.point", index)) if kind == "random" else region.lower
        length = run.phase_law.length(index)
        record = {"type": "phase", "index": index, "start": start, "length": length, "kind": kind, "parts": {}}
        record["region"] = {} if index == 0 else None
        story.add({**record, "regime": "firehose", "weights": weights.tolist(), "probability_random": chance})
        start += length
    return story


def as_outcomes(values: Array) -> Outcomes:
    return Outcomes("made up", values, values - values.mean())


def noise(seed: int, num: int) -> Array:
    return np.random.default_rng(seed + 10_000).standard_t(4, num)


def test_without_an_effect_p_values_are_uniform(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "NUM_DRAWS", 99)
    monkeypatch.setattr(module, "MIN_WINDOWS", 2)
    singles, joint, coins = [], [], []
    for seed in range(60):
        story = walk_story(seed, 90)
        outcomes = as_outcomes(noise(seed, 90))
        found = one_phase_effects(story, outcomes)
        singles.append(found.p_values[0])
        joint.append(found.p_value)
        coins.append(random_against_bandit(story, outcomes).p_value)
    for name, values in (("one source", singles), ("any source", joint), ("coins", coins)):
        assert scipy.stats.kstest(values, "uniform").pvalue > 1e-3, name
        assert np.mean(np.array(values) <= 0.1) < 0.25, name


def test_a_planted_effect_is_found_and_its_error_is_honest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "NUM_DRAWS", 99)
    z, contrasts = [], []
    for seed in range(25):
        story = walk_story(seed, 160)
        values = 0.5 * story.weights()[:, 0] + 0.1 * noise(seed, 160)
        found = one_phase_effects(story, as_outcomes(values))
        assert found.p_values[0] < 0.05
        z.append((found.slopes[0] - 0.5) / found.errors[0])
        kinds = np.array([phase["kind"] == "random" for phase in story.phases])
        both = kinds & np.roll(kinds, 1)
        contrasts.append(random_against_bandit(story, as_outcomes(2.0 * both + 0.1 * noise(seed, 160))).difference)
    assert abs(np.mean(z)) < 0.5
    assert 0.7 < np.std(z) < 1.4
    assert np.mean(contrasts) == pytest.approx(2.0, abs=0.6)  # Horvitz-Thompson is unbiased, if wide


def test_the_slope_and_its_error_are_those_of_a_textbook_regression() -> None:
    story = walk_story(3, 100)
    outcomes = as_outcomes(noise(3, 100) + story.weights()[:, 1])
    found = one_phase_effects(story, outcomes)
    used = np.array([phase["kind"] == "random" for phase in story.phases])
    w, y = story.weights()[used], outcomes.values[used]
    for i in range(3):
        design = np.stack([np.ones(used.sum()), w[:, i]], axis=1)
        inverse = np.linalg.inv(design.T @ design)
        coefficients = inverse @ design.T @ y
        residual = y - design @ coefficients
        hat = np.einsum("ij,jk,ik->i", design, inverse, design)
        covariance = inverse @ (design.T * (residual**2 / (1 - hat))) @ design @ inverse
        assert found.slopes[i] == pytest.approx(coefficients[1])
        assert found.errors[i] == pytest.approx(np.sqrt(covariance[1, 1]))


def test_few_phases_get_every_permutation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MIN_PHASES", 6)
    story = walk_story(11, 14, chance=0.5)
    used = np.array([phase["kind"] == "random" for phase in story.phases])
    outcomes = as_outcomes(np.where(np.cumsum(used) <= 6, noise(11, 14), np.nan))
    outcomes = Outcomes("", outcomes.values, outcomes.values)
    found = one_phase_effects(story, outcomes)
    keep = used & ~np.isnan(outcomes.values)
    w, y = story.weights()[keep][:, 0], outcomes.values[keep]
    actual = abs(np.corrcoef(w, y)[0, 1])
    as_large = [abs(np.corrcoef(w, np.array(order))[0, 1]) >= actual - 1e-9 for order in permutations(y)]
    assert found.is_exact
    assert found.num_phases == 6
    assert found.p_values[0] == pytest.approx(np.mean(as_large))


def test_the_family_is_never_surer_than_its_members() -> None:
    found = one_phase_effects(walk_story(5), as_outcomes(noise(5, 120)))
    assert (found.family_p_values >= found.p_values).all()
    assert found.p_value == found.family_p_values.min()


def test_the_contrast_is_the_horvitz_thompson_sum_written_out() -> None:
    story = walk_story(9, 300, chance=0.4)
    outcomes = as_outcomes(noise(9, 300))
    found = random_against_bandit(story, outcomes, carry_over=2)
    kinds = [phase["kind"] for phase in story.phases]
    values = outcomes.adjusted[2:] - outcomes.adjusted[2:].mean()
    total = 0.0
    for p in range(2, 300):
        window = set(kinds[p - 2 : p + 1])
        total += values[p - 2] * {("random",): 1 / 0.4**3, ("bandit",): -1 / 0.6**3}.get(tuple(window), 0.0)
    assert found.difference == pytest.approx(total / 298)
    assert found.random_windows == sum(set(kinds[p - 2 : p + 1]) == {"random"} for p in range(2, 300))


def run_of(path: Path, steps: int, **fields: Any) -> Path:
    names = ["web", "code", "books"]
    fields = {"policy": "ucb", **fields}
    run = Curriculum(
        total_steps=steps, batch_rows=8, sequence_length=32, sources=[{"name": name, "tokens": 10**6} for name in names],
        **fields,
    )  # fmt: skip
    with Journal.create(path) as journal:
        for _ in simulate(run, steps, journal=journal):
            pass
    return path


def test_a_real_journal_gives_both_answers(tmp_path: Path) -> None:
    path = run_of(tmp_path / "w", 3000, phases={"random_probability": 0.5})
    answer = effects(path)
    assert answer["num_phases"] >= 40
    assert [row["source"] for row in answer["sources"]] == ["web", "code", "books"]
    assert all(0 < row["p_value"] <= 1 and row["standard_error"] > 0 for row in answer["sources"])
    assert answer["contrast"]["random_windows"] >= 10
    assert effects(path) == answer  # the permutations are seeded
    story = read_tables(path)
    own = measured(story, "fall:web").values
    losses = story.phase_losses()[:, 0]
    np.testing.assert_array_equal(own[1:-1], losses[:-2] - losses[2:])


def test_phases_that_a_pivot_cut_or_undid_do_not_count(tmp_path: Path) -> None:
    run = curriculum(3, phases={"random_probability": 0.5, "initial_random": 0, "min_steps": 4, "max_steps": 10})
    cut, undone = set(), []
    with Journal.create(tmp_path / "w", fsync="never") as journal:
        walk = Walk(run, journal=journal)
        for i in range(60):
            phase = walk.phase_at(walk.frontier)
            step = phase.end
            if i % 6 == 5:
                step = phase.start + (2 if i % 12 == 5 else 0)
                walk.pivot(Pivot(name=f"cut-{i}", caps={"source-0": 0.9 - i / 100}), step, cut=True)
                if step > phase.start:
                    cut.add(phase.index)
                else:
                    undone.append(phase.index)
            drive(walk, step, since=phase.start)
        drive(walk, walk.frontier + 1, since=walk.frontier)
        num_phases = walk.phase_at(walk.frontier - 1).index + 1
    story = read_tables(tmp_path / "w")
    assert story.cut == cut
    assert (len(cut), len(undone)) == (5, 5)
    assert [phase["index"] for phase in story.phases] == list(range(num_phases))
    counted = [p["index"] for p in story.phases[1:-1] if p["kind"] == "random" and p["index"] not in cut]
    answer = effects(tmp_path / "w")
    assert answer["num_phases"] == len(counted)
    assert answer["num_cut"] == sum(story.phases[index]["kind"] == "random" for index in cut) > 0
    outcomes = measured(story, "fall")
    found = one_phase_effects(story, outcomes)
    loud = outcomes.adjusted.copy()
    loud[sorted(cut)] += 1000.0  # nobody looks at these
    again = one_phase_effects(story, Outcomes("", outcomes.values, loud))
    np.testing.assert_array_equal(again.slopes, found.slopes)
    windows = random_against_bandit(story, outcomes, carry_over=0)
    assert windows.random_windows == len(counted)


def test_regions_under_one_name_are_not_compared_with_each_other() -> None:
    story = walk_story(4, 120)
    story.phases[60]["region"] = {}  # a fork, or the end of a warmup in which a pivot fell
    for phase in story.phases[60:]:
        phase["weights"] = [phase["weights"][0] / 10, 0.5, 0.5 - phase["weights"][0] / 10]
    level = 5.0 * (np.arange(120) >= 60)  # the run was elsewhere then; no weight did that
    one, other = (one_phase_effects(story, as_outcomes(noise(4, 120) + add)) for add in (0.0, level))
    np.testing.assert_allclose(one.slopes, other.slopes)


def test_too_few_random_phases_are_refused_with_how_many_are_needed(tmp_path: Path) -> None:
    path = run_of(tmp_path / "w", 400)
    with pytest.raises(
        EvidenceError,
        match=r"\d random phases have an outcome, at least 20 are needed; at a probability of 0.1 that takes about [\d,]+ more steps",
    ):
        effects(path)
    fixed = run_of(tmp_path / "fixed", 200, policy="static")
    with pytest.raises(EvidenceError, match="no random phase, and at least 20 are needed"):
        effects(fixed)
    never_bandit = run_of(tmp_path / "random", 900, policy="random")
    assert "random phases alone" in effects(never_bandit)["contrast"]["refused"]


def test_an_outcome_that_is_none_is_refused(tmp_path: Path) -> None:
    path = run_of(tmp_path / "w", 100)
    with pytest.raises(UnknownSourceError, match="unknown source 'wev'; did you mean 'web'"):
        effects(path, outcome="fall:wev")
    with pytest.raises(EvidenceError, match="known are fall, loss"):
        effects(path, outcome="accuracy")
