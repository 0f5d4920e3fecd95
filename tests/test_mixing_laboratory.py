"""The laboratory for mixtures: its corpora, its figures, and that a run is done once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from benchmarks.laboratory.arms import ARMS, OF_PROBES, Setting
from benchmarks.laboratory.corpora import _number, is_held_out
from benchmarks.laboratory.report import paired, steps_to_reach, table
from mixer.config.curriculum import Curriculum

TOKENS = {"prose": 90_000, "code": 400_000, "noise": 300_000, "gully": 2_000, "echo": 350_000}


def a_run(arm: str, seed: int, *losses: float) -> dict[str, Any]:
    curve = [(100 * (i + 1), {"prose": loss, "code": loss + 1}) for i, loss in enumerate(losses)]
    return {"arm": arm, "seed": seed, "curve": curve, "drawn": {"noise": 0.1}, "deciding_share": 0.001, "cpu_s": 9.0}


@given(st.lists(st.tuples(st.floats(0, 9), st.floats(0, 9)), min_size=3, max_size=9))
def test_intervals_are_those_of_the_paired_t_test(pairs: list[tuple[float, float]]) -> None:
    ours, theirs = zip(*pairs, strict=True)
    mean, half = paired(ours, theirs)
    if np.std(np.subtract(ours, theirs)) > 1e-9:
        interval = stats.ttest_rel(ours, theirs).confidence_interval(0.95)
        assert (mean - half, mean + half) == pytest.approx((interval.low, interval.high))


def test_steps_to_reach_a_loss_lie_between_two_evaluations() -> None:
    run = a_run("default", 0, 4.0, 3.0, 2.0)
    assert steps_to_reach(run, 3.0) == pytest.approx(250)  # the means are 4.5, 3.5 and 2.5
    assert steps_to_reach(run, 1.0) == float("inf")


def test_the_table_pairs_runs_of_one_seed_with_the_references() -> None:
    runs = [a_run("uniform", s, 4.0, 3.0 + s / 10) for s in range(3)]
    runs += [a_run("default", s, 4.0, 2.9 + s / 10) for s in range(3)]
    columns, rows = table(runs)
    best = dict(zip(columns, rows[0], strict=True))
    assert (best["arm"], best["mean less uniform"], best["mean less unimax-4"]) == ("default", "-0.1000 ± 0.0000", "")


def test_a_study_with_a_target_is_judged_on_its_loss_alone() -> None:
    def aimed(arm: str, target: float, prose: float) -> dict[str, Any]:
        return {**a_run(arm, 0), "target": "exam", "curve": [(100, {"exam": target, "prose": prose, "code": 2.0})]}

    columns, rows = table([aimed("uniform", 3.0, 1.0), aimed("default", 2.9, 5.0)])
    best = dict(zip(columns, rows[0], strict=True))
    assert (best["arm"], best["mean loss"], best["target less uniform"]) == ("default", "3.5000", "-0.1000 ± nan")


@pytest.mark.parametrize("arm", ARMS)
def test_every_arm_is_a_curriculum_that_can_be_run(arm: str) -> None:
    setting = Setting(TOKENS, total_steps=600, batch_tokens=2048)
    sources = [{"name": name, "data_files": f"{name}.jsonl", "tokens": tokens} for name, tokens in TOKENS.items()]
    base = {"total_steps": 600, "batch_rows": 16, "sequence_length": 128, "sources": sources}
    probes = {"holdout": 0.05, "probes": {}} if arm in OF_PROBES else {}
    curriculum = Curriculum(**{**base, **probes, **ARMS[arm](setting)})
    if arm.startswith("ucb") and "4 epochs" in arm:
        [regime] = curriculum.regimes
        assert (regime.region.upper * 600 * 2048 <= np.array([4.001 * tokens for tokens in TOKENS.values()])).all()


def test_a_tenth_of_all_documents_is_held_out_whatever_their_order() -> None:
    share = np.mean([is_held_out(f"document {i}") for i in range(5_000)])
    assert 0.08 < share < 0.12


def test_numbers_of_a_dictionary_index_are_of_base_64() -> None:
    assert [_number(digits) for digits in ("A", "B", "BA", "/", "D0")] == [0, 1, 64, 63, 244]


@pytest.mark.slow
def test_a_run_learns_and_is_not_done_twice(tmp_path: Path, gathered: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks.laboratory.experiment import Study, run

    monkeypatch.setenv("MIXER_CACHE", str(gathered))
    study = Study("python", epochs=4, steps=20)
    found = run(study, "water_filling", 0, tmp_path)
    first, last = (np.mean(list(losses.values())) for _, losses in (found["curve"][0], found["curve"][-1]))
    assert last < first
    assert sum(found["drawn"].values()) == pytest.approx(1)
    [path] = (tmp_path / "runs").glob("*.json")
    path.write_text(json.dumps({"arm": "kept"}), encoding="utf-8")
    assert run(study, "water_filling", 0, tmp_path) == {"arm": "kept"}
