"""Limits by epochs: no source is read more often than `max_epochs` says, and what gives way says so."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from mixer.analysis.check import check
from mixer.analysis.explain import explain
from mixer.config.curriculum import Curriculum
from mixer.config.pivots import Pivot
from mixer.errors import ConfigError
from mixer.journal.file import Journal, read_journal
from mixer.region.epochs import epoch_caps
from mixer.replay.verify import audit
from mixer.sampling.draws import phase_counts
from mixer.types import IntArray
from mixer.walk.walk import Walk
from tests.support.curricula import POLICIES, curricula, curriculum, drive
from tests.support.strategies import Problem, problems, source_names

LIMITED = tuple(policy for policy in POLICIES if policy["name"] != "unimax")


def rows_drawn(walk: Walk) -> IntArray:
    """Return the rows drawn of each source up to the planned end of the run, or as far as phases are decided, [K]."""
    run, end = walk.curriculum, min(walk.frontier, walk.curriculum.total_steps)
    newest = walk.phase_at(end - 1)
    counts, _ = phase_counts(newest, seed=run.seed, method=run.draws, batch_rows=run.batch_rows)
    return np.asarray(newest.drawn + counts[: end - newest.start].sum(axis=0))


def limited_run(tokens: list[int | None], **fields: Any) -> Curriculum:
    names = source_names(len(tokens))
    sources = [{"name": name, "local": "topics", "tokens": n} for name, n in zip(names, tokens, strict=True)]
    return curriculum(len(tokens), **{"sources": sources, "total_steps": 300, "max_epochs": 4, **fields})


@st.composite
def limited_runs(draw: st.DrawFn) -> Curriculum:
    """Runs of 2 to 8 sources and one region that limits by epochs bind, and that can be filled."""
    problem: Problem = draw(problems(min_sources=2, max_sources=8))
    total, batch_rows = draw(st.integers(50, 200)), draw(st.integers(1, 16))
    needed = total * batch_rows * 4
    least = np.maximum(problem.feasible * needed, 1.0)  # so much of each source fills the run
    spare = draw(st.lists(st.sampled_from([1.0, 1.0, 1.5, 20.0]), min_size=least.size, max_size=least.size))
    limits = draw(st.lists(st.sampled_from([0.5, 1.0, 4.0, "run"]), min_size=least.size, max_size=least.size))
    sources = []
    for name, tokens, factor, limit in zip(problem.names, least.tolist(), spare, limits, strict=True):
        own = {} if limit == "run" else {"max_epochs": limit}
        n = int(np.ceil(tokens * factor / (2.0 if limit == "run" else limit))) + 1
        sources.append({"name": name, "local": "topics", "tokens": n, **own})
    return curriculum(
        len(problem.names),
        sources=sources,
        floors=problem.floors,
        caps=problem.caps,
        exclude=problem.exclude,
        total_steps=total,
        batch_rows=batch_rows,
        max_epochs=2.0,
        seed=draw(st.integers(0, 2**63 - 1)),
        phases={"min_steps": 3, "max_steps": 9, "random_probability": draw(st.sampled_from([0.0, 0.3]))},
        policy=draw(st.sampled_from(LIMITED)),
    )


@given(limited_runs())
@settings(max_examples=60, deadline=None)
def test_no_source_gives_more_rows_than_its_epochs_but_for_two_of_rounding(run: Curriculum) -> None:
    walk = Walk(run)
    drive(walk, run.total_steps)
    drawn = rows_drawn(walk) * run.sequence_length
    for i, (source, limit) in enumerate(zip(run.sources, run.epoch_limits, strict=True)):
        assert source.tokens is not None
        assert limit is not None
        forced = walk.regimes[0].region.floors[i] * run.total_steps * run.batch_tokens
        assert drawn[i] <= max(limit * source.tokens, forced) + 2 * run.sequence_length, source.name


@given(problems(min_sources=2), st.data())
@settings(max_examples=200)
def test_caps_by_epochs_leave_weights_within_the_bounds_and_factors_are_the_smallest(
    problem: Problem, data: st.DataObject
) -> None:
    region, num = problem.region, len(problem.names)
    numbers = st.floats(1, 1e9)
    allowed = np.array(data.draw(st.lists(st.one_of(numbers, st.just(np.inf)), min_size=num, max_size=num)))
    used = np.array(data.draw(st.lists(st.floats(0, 1e9), min_size=num, max_size=num)))
    phase, rest = data.draw(numbers), data.draw(st.floats(1, 1e3))
    assume(np.isfinite(allowed).any())
    found = epoch_caps(region, allowed=allowed, used=used, left=phase * rest, phase_tokens=phase)
    weights = found.region.project(np.full(num, 1 / num))
    assert abs(weights.sum() - 1) < 1e-12
    assert region.contains(weights)
    over = (weights > found.caps + 1e-9) & (weights > region.floors + 1e-9)
    assert not over.any()
    assert found.cap_factor >= 1
    assert found.epoch_factor >= 1
    if found.epoch_factor == 1:  # no limit is passed within the phase
        assert (weights * phase <= np.maximum(allowed - used, region.floors * phase) + 1e-6 * phase + 1e-6).all()
    if found.cap_factor * found.epoch_factor > 1 + 1e-6:  # caps a little lower leave no weights
        assert np.minimum(region.caps, np.maximum(region.floors, found.caps * (1 - 1e-6))).sum() < 1 + 1e-9


@given(curricula(policies=LIMITED), st.data())
@settings(max_examples=25, deadline=None)
def test_walks_with_limits_keep_every_bound_and_are_replayed_bit_for_bit(
    tmp_path_factory: pytest.TempPathFactory, run: Curriculum, data: st.DataObject
) -> None:
    tokens = data.draw(st.lists(st.integers(1, 3000), min_size=len(run.names), max_size=len(run.names)))
    fields = run.model_dump(mode="json")
    for source in fields["sources"]:
        source["tokens"] = None  # learned while the run goes on: nothing is refused beforehand
    if fields["policy"]["name"] == "proportional":
        fields["policy"] = {"name": "static"}
    run = Curriculum(**{**fields, "total_steps": 100, "max_epochs": data.draw(st.sampled_from([1.0, 4.0]))})
    path = tmp_path_factory.mktemp("limits") / "run.jsonl"
    with Journal.create(path) as journal:
        walk = Walk(run, journal=journal)
        drive(walk, 30)
        for name, n in zip(run.names, tokens, strict=True):
            if n % 3:
                walk.learn_unique_tokens(name, n)
        drive(walk, 130, since=30)  # further than was planned
    verdict = audit(path)
    assert verdict.difference is None
    assert verdict.decisions > 0
    for record in read_journal(path):
        if record["type"] == "phase":
            region = walk.regime_at(record["start"]).region
            assert region.contains(record["weights"])
            if "epochs" in record:
                assert (np.array(record["weights"]) <= np.array(record["epochs"]["upper"]) + 1e-12).all()


def test_a_small_source_ends_at_its_limit_and_others_take_what_it_leaves() -> None:
    walk = Walk(limited_run([100, 10**6, 10**6], policy="static"))
    drive(walk, 300)
    epochs = rows_drawn(walk)[0] * 4 / 100
    assert 3.9 <= epochs <= 4.08
    assert walk.phase_at(walk.frontier - 1).weights[1] == pytest.approx(walk.phase_at(walk.frontier - 1).weights[2])


def test_a_sources_own_limit_wins_and_null_is_none() -> None:
    run = limited_run([100, 100, 10**6], policy="static")
    fields = run.model_dump(mode="json")
    fields["sources"][0]["max_epochs"], fields["sources"][1]["max_epochs"] = 1.5, None
    own = Curriculum(**fields)
    assert own.epoch_limits == (1.5, None, 4.0)
    walk = Walk(own)
    drive(walk, 300)
    epochs = rows_drawn(walk)[:2] * 4 / 100
    assert epochs[0] <= 1.58
    assert epochs[1] > 20


def test_floors_win_over_epochs() -> None:
    walk = Walk(limited_run([100, 10**6], floors={"source-0": 0.5}, policy="static"))
    drive(walk, 300)
    np.testing.assert_allclose(walk.phase_at(walk.frontier - 1).weights, [0.5, 0.5])


def test_a_run_that_its_epochs_cannot_fill_is_refused_with_its_numbers() -> None:
    with pytest.raises(ConfigError, match=r"steps 0 to 299 need 9,600 tokens.* only 8,400: source-0 400, .*8,000"):
        limited_run([100, 2000])
    with pytest.raises(ConfigError, match=r"allow 1\.14 times the epochs or more, make it 38 steps shorter"):
        limited_run([100, 2000])
    assert limited_run([100, 2300]).has_epoch_limits


def test_a_regime_that_its_epochs_cannot_fill_is_refused_though_the_run_could_be() -> None:
    pivot = {"name": "late", "at_step": 210, "exclude": ["source-1"]}
    with pytest.raises(ConfigError, match=r"steps 210 to 299 need 2,880 tokens.* only 400: source-0 400"):
        limited_run([100, 10**6], pivots=[pivot])
    floors = {"floors": {"source-0": 0.5}, "caps": {"source-1": 0.5}}  # what floors force elsewhere is gone
    with pytest.raises(ConfigError, match=r"need 2,880 tokens"):
        limited_run([1000, 10**6], **floors, pivots=[{**pivot, "floors": {}, "caps": {}}])


def test_a_warmup_on_a_small_source_uses_it_up_sooner_and_passes_no_limit(tmp_path: Path) -> None:
    run = limited_run([200, 10**6], curriculum_warmup_steps=14, curriculum_warmup_sources=["source-0"], policy="static")
    with Journal.create(tmp_path / "w") as journal:
        walk = Walk(run, journal=journal)
        drive(walk, 300)
    first = next(record for record in read_journal(tmp_path / "w") if record["type"] == "phase")
    assert first["epochs"]["cap_factor"] == pytest.approx(300 / 25)
    assert first["epochs"]["epoch_factor"] == 1
    assert rows_drawn(walk)[0] * 4 <= 800 + 8
    assert any("all were raised together, by a factor of 12" in words for words in explain(tmp_path / "w", 0)["words"])


def test_tokens_learned_too_late_raise_all_limits_together_and_the_log_and_journal_say_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with Journal.create(tmp_path / "w") as journal, caplog.at_level(logging.WARNING):
        walk = Walk(limited_run([None, None], policy="static"), journal=journal)
        drive(walk, 100)
        assert not caplog.records
        walk.learn_unique_tokens("source-0", 100)
        walk.learn_unique_tokens("source-1", 300)
        drive(walk, 300, since=100)
    records = [record for record in read_journal(tmp_path / "w") if record["type"] == "phase"]
    assert "epochs" not in records[0]
    assert records[-1]["epochs"]["epoch_factor"] > 4
    assert [r.getMessage() for r in caplog.records if "max_epochs cannot be kept" in r.getMessage()].__len__() == 1
    words = explain(tmp_path / "w", 290)["words"]
    assert any("all limits were raised together" in sentence for sentence in words)


def test_explain_says_which_weight_stands_at_its_cap_by_epochs(tmp_path: Path) -> None:
    with Journal.create(tmp_path / "w") as journal:
        drive(Walk(limited_run([100, 10**6, 10**6], policy="static"), journal=journal), 300)
    answer = explain(tmp_path / "w", 150)
    small = answer["sources"][0]
    assert small["binds"] == "cap by epochs"
    assert small["upper"] == small["weight"] < 0.1
    assert small["tokens_drawn"] <= 400
    assert any(sentence.startswith("max_epochs leaves") for sentence in answer["words"])


def test_check_notes_what_limits_allow_and_of_which_sources_nothing_is_known() -> None:
    notes = check(limited_run([100, None])).notes
    assert "source source-0: max_epochs 4 of 100 tokens allows 0.04167 of the run's tokens at most" in notes[0]
    assert "source source-1: max_epochs 4 has no effect until it was read through" in notes[1]
    assert not check(limited_run([100, None], max_epochs=None)).notes
    assert "policy unimax has its own" in check(limited_run([10**6, 10**6], policy="unimax")).notes[0]


@pytest.mark.parametrize("value", [0, -1, "4", True, float("nan"), float("inf")])
def test_a_limit_that_cannot_be_is_refused(value: object) -> None:
    with pytest.raises(ConfigError, match="max_epochs"):
        limited_run([10**6, 10**6], max_epochs=value)
    with pytest.raises(ConfigError, match="max_epochs"):
        curriculum(1, sources=[{"name": "a", "local": "topics", "max_epochs": value}])


def test_a_sources_limit_under_unimax_is_refused() -> None:
    sources = [{"name": "a", "local": "topics", "tokens": 10**9, "max_epochs": 2}]
    with pytest.raises(ConfigError, match="unimax, which has its own"):
        curriculum(1, sources=sources, policy="unimax")


def test_limits_shape_the_fingerprint_with_total_steps_and_runs_without_keep_theirs() -> None:
    plain = curriculum(2)
    assert curriculum(2, max_epochs=None).fingerprint == plain.fingerprint
    assert curriculum(2, total_steps=20_000).fingerprint == plain.fingerprint
    limited = curriculum(2, max_epochs=4)
    assert limited.fingerprint != plain.fingerprint
    assert curriculum(2, max_epochs=4, total_steps=20_000).fingerprint != limited.fingerprint
    assert Curriculum(**limited.model_dump(mode="json")).fingerprint == limited.fingerprint


def test_a_walk_with_limits_goes_on_from_its_state(tmp_path: Path) -> None:
    run = limited_run([100, 10**6, 10**6])
    whole, part = Walk(run), Walk(run)
    drive(whole, 150)
    drive(part, 150)
    resumed = Walk(run)
    resumed.load_state_dict(part.state_dict())
    drive(whole, 300, since=150)
    drive(resumed, 300, since=150)
    np.testing.assert_array_equal(whole.phase_at(299).weights, resumed.phase_at(299).weights)


def test_a_live_pivot_that_leaves_too_little_text_is_kept_and_told_of(caplog: pytest.LogCaptureFixture) -> None:
    walk = Walk(limited_run([100, 10**6], policy="static"))
    drive(walk, 100)
    step = walk.pivot(Pivot(name="small", exclude=["source-1"]))
    with caplog.at_level(logging.WARNING):
        drive(walk, 300, since=100)
    assert walk.phase_at(step).weights[0] == 1.0
    assert any("max_epochs cannot be kept" in record.getMessage() for record in caplog.records)


def test_auto_is_four_epochs_under_water_filling_and_no_limit_under_another_policy() -> None:
    limits = {
        policy: limited_run([100, 1000], max_epochs="auto", policy=policy).epoch_limits
        for policy in ("water_filling", "ucb", "static", "unimax")
    }
    assert limits == {"water_filling": (4.0, 4.0), "ucb": (None, None), "static": (None, None), "unimax": (None, None)}


def test_a_run_that_four_epochs_cannot_fill_is_refused_if_they_were_asked_for_and_under_auto_reads_all_alike() -> None:
    tokens: list[int | None] = [100, 200, 400]
    with pytest.raises(ConfigError, match="max_epochs: steps 0 to 299 need"):
        limited_run(tokens, policy="water_filling", max_epochs=4)
    run = limited_run(tokens, policy="water_filling", max_epochs="auto")
    walk = Walk(run)
    drive(walk, run.total_steps)
    epochs = rows_drawn(walk) * run.sequence_length / np.array([100, 200, 400])
    needed = run.total_steps * run.batch_tokens / 700
    assert needed > 4
    assert np.abs(epochs - needed).max() < 0.1 * needed


def test_auto_leaves_the_fingerprint_of_a_run_without_limits_as_it_was() -> None:
    assert curriculum(2, max_epochs="auto").fingerprint == curriculum(2, max_epochs=None).fingerprint
