"""What a file may write shorter or in another unit means the same run as when it is written out."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixer.analysis.check import check
from mixer.config.curriculum import Curriculum
from mixer.config.pivots import Pivot
from mixer.errors import ConfigError
from mixer.walk.walk import Walk
from tests.walk.test_epochs import rows_drawn

SOURCES = [{"name": "web", "path": "a/web"}, {"name": "code", "path": "a/code"}]


def curriculum(**fields: Any) -> Curriculum:
    """Return a run of two sources, 512 tokens a batch."""
    return Curriculum(**{"total_steps": 1000, "batch_rows": 8, "sequence_length": 64, "sources": SOURCES, **fields})


@given(st.lists(st.integers(0, 10**6), min_size=2, max_size=2).filter(any))
def test_weights_beside_sources_are_the_runs_weights_divided_by_their_sum(weights: list[int]) -> None:
    beside = curriculum(sources=[{**source, "weight": w} for source, w in zip(SOURCES, weights, strict=True)])
    above = curriculum(weights={"web": weights[0] / sum(weights), "code": weights[1] / sum(weights)})
    assert beside.weights == above.weights
    assert beside.fingerprint == above.fingerprint


@given(st.integers(1, 50), st.integers(1, 50))
def test_proportions_are_divided_by_their_sum_wherever_weights_are_written(web: int, code: int) -> None:
    proportions, shares = {"web": web, "code": code}, {"web": web / (web + code), "code": code / (web + code)}
    assert curriculum(weights=proportions).weights == shares
    assert curriculum(policy={"name": "static", "weights": proportions}).policy.weights == shares  # type: ignore[union-attr]
    assert curriculum(pivots=[{"name": "p", "at_step": 100, "weights": proportions}]).pivots[0].weights == shares
    assert Pivot(name="live", weights=proportions).weights == shares


@pytest.mark.parametrize(
    "weights", [{"web": 0.5, "code": 0.4}, {"web": 7.0, "code": 0.3}, {"web": 3.0}, {"web": 0.6, "code": 0.6}]
)
def test_fractions_that_miss_a_sum_of_1_stay_a_mistake(weights: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="weights"):
        curriculum(weights=weights)


@given(st.integers(1, 10**9))
def test_total_tokens_are_the_fewest_steps_that_give_them(tokens: int) -> None:
    steps = _of_tokens(tokens)
    assert (steps - 1) * 512 < tokens <= steps * 512


def _of_tokens(tokens: int) -> int:
    return Curriculum(total_tokens=tokens, batch_rows=8, sequence_length=64, sources=SOURCES).total_steps  # type: ignore[arg-type]


@given(st.integers(10, 980))
def test_a_pivot_at_a_fraction_or_at_tokens_is_at_the_nearest_step(step: int) -> None:
    def at(**moment: float) -> int:
        return curriculum(pivots=[{"name": "p", "exclude": ["web"], **moment}]).pivots[0].at_step

    assert at(at_fraction=step / 1000) == at(at_tokens=step * 512) == at(at_step=step) == step
    assert at(at_tokens=step * 512 + 255) == step


def test_a_warmup_may_be_a_fraction_of_the_run_or_some_tokens() -> None:
    for warmup in ({"curriculum_warmup_fraction": 0.25}, {"curriculum_warmup_tokens": 250 * 512}):
        assert curriculum(**warmup, curriculum_warmup_sources=["web"]).curriculum_warmup_steps == 250


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"total_tokens": 5}, r"total_tokens 5 and total_steps 1000 say the same twice; keep one"),
        (
            {"curriculum_warmup_fraction": 1.0, "curriculum_warmup_sources": ["web"]},
            r"curriculum_warmup_fraction: 1\.0",
        ),
        ({"pivots": [{"name": "p", "at_step": 9, "at_fraction": 0.5}]}, r"pivot p: at_fraction 0\.5 and at_step 9"),
        ({"pivots": [{"name": "p", "at_fraction": "half"}]}, r"pivot p: at_fraction: 'half' is not a share of the run"),
        ({"pivots": [{"name": "p", "at_tokens": -1}]}, r"pivot p: at_tokens: -1 is not a number of tokens above 0"),
        ({"pivots": [{"name": "p", "at_tokens": 9}], "batch_rows": "x"}, r"at_tokens: needs batch_rows"),
        ({"sources": [{**SOURCES[0], "weight": 1}, SOURCES[1]]}, r"source code: needs a weight, as web has one"),
        ({"sources": [{**s, "weight": 1} for s in SOURCES], "weights": {"web": 1.0}}, r"keep one of the two"),
        ({"sources": [{**s, "weight": 0} for s in SOURCES]}, r"all weights are 0"),
        ({"sources": [{**s, "weight": math.nan} for s in SOURCES]}, r"weight of source web: nan is not a number"),
        ({"sources": [{**s, "max_tokens": 9} for s in SOURCES]}, r"the sources have only 18: web 9, code 9"),
    ],
)
def test_a_wrong_shorthand_is_refused_with_its_place(fields: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        curriculum(**fields)


def test_check_prints_the_weights_that_a_run_of_fixed_weights_will_use() -> None:
    beside = [{**SOURCES[0], "weight": 3, "tokens": 100}, {**SOURCES[1], "weight": 1, "tokens": 300}]
    assert check(curriculum(sources=beside)).regimes[0]["weights"] == {"web": 0.75, "code": 0.25}
    by_size = curriculum(sources=[{k: v for k, v in s.items() if k != "weight"} for s in beside], policy="proportional")
    assert check(by_size).regimes[0]["weights"] == {"web": 0.25, "code": 0.75}
    assert check(curriculum()).regimes[0]["weights"] is None  # a policy that learns decides


@pytest.mark.parametrize("policy", ["water_filling", "ucb", "static", "unimax"])
def test_a_source_gives_no_more_than_its_max_tokens(policy: str) -> None:
    sources = [{**SOURCES[0], "max_tokens": 64 * 800, "tokens": 10**9}, {**SOURCES[1], "tokens": 10**9}]
    walk = Walk(curriculum(sources=sources, policy=policy, total_steps=400))
    while walk.frontier < 400:
        walk.phase_at(walk.frontier)
    assert 700 <= rows_drawn(walk)[0] <= 802  # of 3,200; 2 rows of rounding


def test_check_notes_a_policy_that_never_decides() -> None:
    weights = {"web": 0.5, "code": 0.5}
    [note] = check(curriculum(weights=weights, policy="ucb")).notes
    assert note.startswith("policy ucb never decides: `weights` hold in every regime")
    handed_over = curriculum(weights=weights, policy="ucb", pivots=[{"name": "p", "at_step": 500, "policy": "ucb"}])
    assert check(handed_over).notes == ()
    assert check(curriculum(weights=weights)).notes == ()
