"""The walk's regimes, from a journal."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from andrea.inspection.simplex import regimes
from mixer.analysis.simulate import simulate
from mixer.config.curriculum import Curriculum
from mixer.journal.file import Journal
from mixer.journal.tables import JournalTables, read_tables


@pytest.fixture
def story(tmp_path: Path) -> JournalTables:
    curriculum = Curriculum(
        total_steps=300, batch_rows=8, sequence_length=32, sources=[{"name": name} for name in "HGD"],
        floors={"H": 0.5}, caps={"D": 0.25}, curriculum_warmup_steps=60, curriculum_warmup_sources=["H", "G"],
        pivots=[{"name": "polish", "at_step": 200, "floors": {"H": 0.7}, "caps": {"D": 0.0}}],
        phases="andrea", policy="ucb",
    )  # fmt: skip
    with Journal.create(tmp_path / "walk.jsonl") as opened:
        for _ in simulate(curriculum, 300, journal=opened):
            pass
    return read_tables(tmp_path / "walk.jsonl")


def test_each_regime_has_its_dimension_and_its_share_of_the_simplex(story: JournalTables) -> None:
    warmup, firehose, polish = regimes(story)
    assert [(r.name, r.start, r.end) for r in (warmup, firehose, polish)] == [
        ("warmup", 0, 60), ("firehose", 60, 200), ("polish", 200, story.end),
    ]  # fmt: skip
    assert [r.dimension for r in (warmup, firehose, polish)] == [1, 2, 1]
    # of the segment, H above 0.5 is half; of the triangle, the share is counted by uniform draws; above 0.7, 0.3
    draws = np.random.default_rng(0).dirichlet(np.ones(3), 200_000)
    assert warmup.volume_share == pytest.approx(0.5)
    assert firehose.volume_share == pytest.approx(((draws[:, 0] >= 0.5) & (draws[:, 2] <= 0.25)).mean(), abs=0.005)
    assert polish.volume_share == pytest.approx(0.3)


def test_path_and_evenness_are_those_of_the_weights(story: JournalTables) -> None:
    _, firehose, polish = regimes(story)
    inside = [phase for phase in story.phases if 60 <= phase["start"] < 200]
    weights = np.array([phase["weights"] for phase in inside])
    assert firehose.num_phases == len(inside)
    assert firehose.path_length == pytest.approx(0.5 * np.abs(weights[1:] - weights[:-1]).sum())
    entropies = [math.exp(stats.entropy(row)) for row in weights]
    expected = np.average(entropies, weights=[phase["length"] for phase in inside])
    assert firehose.mean_effective_sources == pytest.approx(expected)
    assert firehose.largest_weight == weights.max()
    assert polish.largest_weight >= 0.7
    steps = sum(phase["length"] for phase in inside)
    random = sum(phase["length"] for phase in inside if phase["kind"] == "random")
    assert firehose.random_share == pytest.approx(random / steps)


def test_a_walk_that_has_not_begun_has_no_regimes(tmp_path: Path, story: JournalTables) -> None:
    assert regimes(JournalTables(header=story.header)) == []
