"""What `explain` says of a decision is what the walk knew when it made it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings

from mixer.analysis.explain import as_array, explain
from mixer.config.curriculum import Curriculum
from mixer.config.pivots import Pivot
from mixer.journal.file import Journal
from mixer.walk.walk import Walk
from tests.support.curricula import curricula, curriculum, drive


def walked(path: Path, run: Curriculum, steps: int = 200) -> Walk:
    with Journal.create(path) as journal:
        walk = Walk(run, journal=journal)
        drive(walk, steps)
    return walk


@given(curricula())
@settings(max_examples=20)
def test_every_step_of_every_walk_has_an_explanation(tmp_path_factory: pytest.TempPathFactory, run: Curriculum) -> None:
    path = tmp_path_factory.mktemp("walk") / "w"
    walk = walked(path, run, 80)
    for step in (0, 11, 40, 79):
        answer, phase = explain(path, step), walk.phase_at(step)
        regime = walk.regime_at(phase.start)
        assert answer["phase"]["kind"] == phase.kind
        np.testing.assert_array_equal(as_array(answer["sources"], "weight"), phase.weights)
        np.testing.assert_array_equal(as_array(answer["sources"], "floor"), regime.region.floors)
        np.testing.assert_array_equal(as_array(answer["sources"], "upper"), regime.region.upper)
        assert answer["regime"]["start"] == regime.start
        assert all(isinstance(words, str) and "nan" not in words for words in answer["words"])


def at_kind(path: Path, walk: Walk, kind: str, since: int = 100) -> dict[str, Any]:
    return explain(path, next(s for s in range(since, 200) if walk.phase_at(s).kind == kind))


def test_a_bandit_phase_names_the_vertex_the_bounds_and_what_had_arrived(tmp_path: Path) -> None:
    run = curriculum(3, floors={"source-0": 0.4}, caps={"source-1": 0.25}, policy={"name": "ucb", "eta": 1.0})
    walk = walked(tmp_path / "w", run)
    answer = at_kind(tmp_path / "w", walk, "bandit")
    rows = {row["source"]: row for row in answer["sources"]}
    best = max(rows.values(), key=lambda row: row["index"])
    assert best["vertex_binds"] in ("cap", "the others' floors")
    assert rows["source-0"]["vertex_binds"] == rows["source-0"]["binds"]  # eta 1: the weights are the vertex
    assert answer["feedback"]["last_step"] == answer["phase"]["start"] - 1
    assert answer["feedback"]["delay"] == 1
    assert any(f"{best['source']} to {best['vertex']:.4g}" in words for words in answer["words"])
    assert {"slope", "width", "repetition", "tokens", "index"} <= set(best)
    assert any("went 1 of the way" in words for words in answer["words"])


def test_a_random_phase_says_that_losses_had_no_part(tmp_path: Path) -> None:
    walk = walked(tmp_path / "w", curriculum(3, phases={"random_probability": 0.5}))
    answer = at_kind(tmp_path / "w", walk, "random")
    assert any("uniformly random point" in words and "of density 2;" in words for words in answer["words"])
    assert any("coin with probability 0.5" in words for words in answer["words"])
    assert answer["sources"][0]["vertex"] is None


def test_a_pivot_says_where_it_came_from_and_how_far_it_moved_the_walk(tmp_path: Path) -> None:
    run = curriculum(3, pivots=[{"name": "polish", "at_step": 100, "floors": {"source-1": 0.9}}])
    with Journal.create(tmp_path / "w") as journal:
        walk = Walk(run, journal=journal)
        drive(walk, 130)
        step = walk.pivot(Pivot(name="urgent", exclude=["source-2"], floors={}))
        drive(walk, step + 10, since=130)
    assert any("a pivot in the file, and the walk was moved" in w for w in explain(tmp_path / "w", 100)["words"])
    urgent = explain(tmp_path / "w", step)
    assert urgent["regime"]["origin"] == "a pivot asked for while the run went on"
    assert urgent["sources"][2]["binds"] == "excluded"
    assert any("has to end at step 100" in w for w in explain(tmp_path / "w", 50)["words"])


def test_no_feedback_and_unknown_sources_are_said(tmp_path: Path) -> None:
    run = curriculum(3, phases={"random_probability": 0.0, "initial_random": 0})
    with Journal.create(tmp_path / "w") as journal:
        Walk(run, journal=journal).phase_at(100)
    words = explain(tmp_path / "w", 60)["words"]
    assert any("No report had arrived" in w for w in words)
    assert any("Not enough is known of source-0, source-1, source-2 yet" in w for w in words)


@pytest.mark.parametrize("policy", ["static", "random", "odm"])
def test_policies_without_a_vertex_are_explained_too(tmp_path: Path, policy: str) -> None:
    walked(tmp_path / "w", curriculum(3, policy=policy))
    why = explain(tmp_path / "w", 150)["words"][1]
    expected = {"static": "never looks at losses", "random": "as every phase of this policy", "odm": "set the weights"}
    assert expected[policy] in why
