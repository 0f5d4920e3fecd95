"""Weights written by hand, ramps to them, and policies that take over at pivots."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from mixer.analysis.explain import explain
from mixer.analysis.simulate import simulate
from mixer.cli import app
from mixer.config.curriculum import Curriculum
from mixer.config.pivots import Pivot
from mixer.errors import ConfigError, MixerError, PivotError, UnknownSourceError, WeightsError
from mixer.journal.file import Journal
from mixer.journal.words import told
from mixer.policies.fixed import proportional
from mixer.region.region import Region
from mixer.replay.fork import fork
from mixer.replay.verify import audit
from mixer.sampling.phases import Phase
from mixer.walk.walk import Walk
from tests.support.curricula import POLICIES, curricula, curriculum, drive, same_phases
from tests.support.simulated import SimulatedRun

HALF, TURNED = {"source-0": 0.5, "source-1": 0.3, "source-2": 0.2}, {"source-0": 0.2, "source-1": 0.2, "source-2": 0.6}
NAMEABLE = [dict(policy) for policy in POLICIES if ":" not in policy.get("reward", "")]


def distinct(phases: list[Phase]) -> list[Phase]:
    """Return the phases of steps, each once."""
    return list({phase.index: phase for phase in phases}.values())


def within(region: Region, share: float) -> dict[str, float]:
    """Return a mixture of a region by name, at a share of the way between two of its vertices."""
    order = np.arange(len(region.names), dtype=float)
    ends = region.best_vertex(order), region.best_vertex(-order)
    weights = region.project((1 - share) * ends[0] + share * ends[1])
    return dict(zip(region.names, weights.tolist(), strict=True))


@st.composite
def scheduled(draw: st.DrawFn) -> Curriculum:
    """Draw curricula whose regimes have weights, ramps and policies of their own."""
    run = draw(curricula())
    data = run.model_dump(mode="json")
    ends = [*(regime.start for regime in run.regimes[1:]), run.total_steps]
    rule = None
    by_name = {pivot["name"]: pivot for pivot in data["pivots"]}
    for regime, end in zip(run.regimes, ends, strict=True):
        is_top = regime.start == run.warmup[0] and regime.name not in by_name
        fields = by_name.get(regime.name) if regime.name in by_name else data if is_top else None
        if fields is None:
            continue
        kind = draw(st.sampled_from(["weights", "ramp", "policy", "none"]))
        if kind == "none" and rule == "weights":
            kind = "weights"  # the new bounds may exclude those in force
        if kind in ("weights", "ramp"):
            fields["weights"] = within(regime.region, draw(st.floats(0, 1)))
            if kind == "ramp" and end > regime.start:
                fields["ramp_steps"] = draw(st.integers(1, min(end - regime.start, 60)))
            rule = "weights"
        elif kind == "policy":
            if fields is not data:
                fields["policy"] = draw(st.sampled_from([*NAMEABLE, {"name": run.policy.name}]))
            rule = "policy"
    return Curriculum(**data)


LAST = 90  # steps, more than the pivots of ``curricula`` need


@settings(max_examples=60)
@given(scheduled())
def test_every_phase_keeps_the_bounds_of_its_regime(run: Curriculum) -> None:
    walk = Walk(run)
    for phase in distinct(drive(walk, LAST)):
        region = walk.regime_at(phase.start).region
        assert ((phase.weights >= region.lower) & (phase.weights <= region.upper)).all()


@settings(max_examples=60)
@given(scheduled())
def test_a_ramp_is_monotone_in_each_weight_and_ends_at_the_weights_to_the_last_bit(run: Curriculum) -> None:
    walk = Walk(run)
    phases = distinct(drive(walk, LAST))
    for regime, rule in zip(run.regimes, run.rules, strict=True):
        if rule.weights is None:
            continue
        target = rule.target(regime.region)
        inside = [phase for phase in phases if phase.regime == regime.name and phase.start >= regime.start]
        assert {phase.kind for phase in inside} <= {"fixed"}
        for phase in inside:
            if phase.end >= rule.ramp_end:
                assert phase.weights.tobytes() == target.tobytes()
        for earlier, later in zip(inside, inside[1:], strict=False):
            assert (np.abs(later.weights - target) <= np.abs(earlier.weights - target) + 1e-12).all()
            assert ((later.weights - target) * (earlier.weights - target) >= -1e-12).all()


@settings(max_examples=40)
@given(scheduled(), st.integers(1, LAST - 1))
def test_a_walk_resumed_at_any_step_goes_on_alike(run: Curriculum, at: int) -> None:
    whole = drive(Walk(run), LAST)
    walk = Walk(run)
    drive(walk, at)
    resumed = Walk(run)
    resumed.load_state_dict(json.loads(json.dumps(walk.state_dict())))
    assert same_phases(drive(resumed, LAST, since=at), whole[at:])


@settings(max_examples=25)
@given(scheduled())
def test_a_journal_of_weights_and_policies_is_recomputed_bit_for_bit(
    tmp_path_factory: pytest.TempPathFactory, run: Curriculum
) -> None:
    path = tmp_path_factory.mktemp("replay") / "journal.jsonl"
    with Journal.create(path) as journal:
        drive(Walk(run, journal=journal), LAST)
    assert audit(path).difference is None


LAW = {"min_steps": 10, "max_steps": 10}


def test_a_ramp_has_the_point_of_each_phases_middle_and_the_weights_at_its_end() -> None:
    pivots = [{"name": "turn", "at_step": 20, "weights": TURNED, "ramp_steps": 40}]
    run = curriculum(3, weights=HALF, pivots=pivots, phases=LAW)
    weights = [phase.weights for phase in distinct(drive(Walk(run), 100))]
    start, end = np.array([0.5, 0.3, 0.2]), np.array([0.2, 0.2, 0.6])
    assert weights[0].tolist() == weights[1].tolist() == [0.5, 0.3, 0.2]
    for phase, share in ((2, 0.125), (3, 0.375), (4, 0.625)):
        np.testing.assert_allclose(weights[phase], (1 - share) * start + share * end, atol=1e-12)
    assert [w.tolist() for w in weights[5:]] == [[0.2, 0.2, 0.6]] * 5


def test_a_ramp_begins_at_the_nearest_point_of_the_new_region() -> None:
    pivot = {"name": "turn", "at_step": 20, "caps": {"source-0": 0.4}, "weights": TURNED, "ramp_steps": 20}
    run = curriculum(3, weights=HALF, pivots=[pivot], phases=LAW)
    landed = run.regimes[1].region.project([0.5, 0.3, 0.2])
    third = distinct(drive(Walk(run), 40))[2]
    np.testing.assert_allclose(third.weights, 0.75 * landed + 0.25 * np.array([0.2, 0.2, 0.6]), atol=1e-12)


def test_after_a_warmup_the_weights_of_the_top_level_hold_from_the_second_regime_on() -> None:
    warmup = {"curriculum_warmup_steps": 20, "curriculum_warmup_sources": ["source-0", "source-1"]}
    run = curriculum(3, weights=HALF, phases=LAW, **warmup)
    phases = distinct(drive(Walk(run), 60))
    assert [phase.kind for phase in phases[:2]] == ["random", "random"]
    assert all(phase.weights.tolist() == [0.5, 0.3, 0.2] for phase in phases[2:])


def test_a_pivot_without_weights_and_policy_leaves_the_weights_in_force() -> None:
    run = curriculum(3, weights=HALF, pivots=[{"name": "wide", "at_step": 20, "floors": {"source-2": 0.1}}], phases=LAW)
    assert all(phase.weights.tolist() == [0.5, 0.3, 0.2] for phase in drive(Walk(run), 60))


def test_a_policy_takes_over_at_a_pivot_and_gives_back(tmp_path: Path) -> None:
    pivots: list[dict[str, Any]] = [
        {"name": "free", "at_step": 40, "policy": "ucb"},
        {"name": "fixed", "at_step": 120, "weights": TURNED},
        {"name": "drawn", "at_step": 160, "policy": {"name": "random"}},
        {"name": "own", "at_step": 200, "policy": "water_filling"},
    ]
    run = curriculum(3, weights=HALF, pivots=pivots, phases={**LAW, "initial_random": 0}, policy="water_filling")
    with Journal.create(tmp_path / "j.jsonl") as journal:
        phases = distinct(drive(Walk(run, journal=journal), 240))
    kinds = [phase.kind for phase in phases]
    assert set(kinds[:4]) == {"fixed"} == set(kinds[12:16])
    assert "bandit" in kinds[4:12]
    assert set(kinds[16:20]) == {"random"}
    assert set(kinds[20:]) == {"bandit"}
    lines = [json.loads(line) for line in (tmp_path / "j.jsonl").read_text().splitlines()]
    rules = [line.get("rule") for line in lines if line["type"] == "phase"]
    assert rules[0] == {"weights": [0.5, 0.3, 0.2]}
    assert rules[4]["policy"]["name"] == "ucb"
    assert rules[-1] is None
    assert audit(tmp_path / "j.jsonl").difference is None


def test_a_policy_that_takes_over_has_learned_from_the_whole_run() -> None:
    law = {**LAW, "random_probability": 0.0, "initial_random": 0}
    free = {"name": "free", "at_step": 100}
    handed = curriculum(3, weights=HALF, pivots=[{**free, "policy": "ucb"}], policy="ucb", phases=law)
    watched = curriculum(3, policy={"name": "static", "weights": HALF}, pivots=[{**free, "policy": "ucb"}], phases=law)
    first = [distinct(drive(Walk(run), 110))[-1] for run in (handed, watched)]
    assert first[0].weights.tobytes() == first[1].weights.tobytes()
    late = Walk(handed)
    drive(late, 100)
    learned = late.state_dict()["policy"]
    assert min(learned["count"]) == 9, "of the nine decisions that had reports"


def test_a_pivot_that_only_hands_over_leaves_what_was_learned() -> None:
    def weight_of(**fields: Any) -> float:
        walk = Walk(curriculum(3, policy="ucb", pivots=[{"name": "p", "at_step": 50, **fields}], phases=LAW))
        drive(walk, 60)
        return float(sum(walk.state_dict()["policy"]["weight"]))

    assert weight_of(policy="ucb") > 3 * weight_of()


def test_a_policy_without_settings_has_those_of_the_runs_own_of_that_name() -> None:
    own = {"name": "ucb", "eta": 0.07}
    pivots = [
        {"name": "a", "at_step": 100, "policy": "ucb"},
        {"name": "b", "at_step": 200, "policy": {"name": "ucb", "eta": 0.3}},
    ]
    run = curriculum(3, policy=own, pivots=pivots)
    assert [rule.policy.eta for rule in run.rules] == [0.07, 0.07, 0.3]  # type: ignore[union-attr]
    assert Curriculum(**run.model_dump(mode="json")).fingerprint == run.fingerprint


def test_curricula_without_the_fields_do_not_mention_them() -> None:
    run = curriculum(3, policy={"name": "proportional"}, pivots=[{"name": "a", "at_step": 100}])
    data = run.model_dump(mode="json")
    assert not {"weights", "ramp_steps"} & data.keys()
    assert data["pivots"] == [{"name": "a", "floors": None, "caps": None, "exclude": None, "at_step": 100}]
    assert data["policy"] == {"name": "proportional"}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"weights": {"source-0": 0.5, "source-1": 0.4}}, r"weights sum to 0\.9, not 1; raise them by 0\.1"),
        ({"weights": {"source-0": 0.7, "source-1": 0.4}}, r"weights sum to 1\.1, not 1; lower them by 0\.1"),
        ({"weights": {"source-0": 1.5}}, r"weights\.source-0: .*less than or equal to 1"),
        ({"weights": {"source-9": 1.0}}, r"weights: unknown source 'source-9'; did you mean"),
        ({"weights": HALF, "caps": {"source-0": 0.3}}, r"weight of source-0 is 0\.5, above its cap 0\.3 in regime fir"),
        ({"weights": HALF, "floors": {"source-2": 0.4}}, r"weight of source-2 is 0\.2, below its floor 0\.4"),
        ({"weights": HALF, "exclude": ["source-1"]}, r"weight of source-1 is 0\.3, above its cap 0, as it is excluded"),
        ({"ramp_steps": 5}, r"ramp_steps: a ramp of 5 steps leads nowhere without weights"),
        ({"weights": HALF, "ramp_steps": 0}, r"ramp_steps: .*greater than or equal to 1"),
        ({"weights": HALF, "ramp_steps": 10_001}, r"ramp_steps is 10001, but regime firehose has 10000 steps"),
        ({"policy": {"name": "proportional", "temperature": 0}}, r"temperature: .*got 0"),
        ({"policy": {"name": "proportional", "temperature": -1.0}}, r"temperature: .*got -1\.0"),
    ],
)
def test_what_cannot_be_is_refused_with_the_number(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        curriculum(3, **fields)


@pytest.mark.parametrize(
    ("pivots", "message"),
    [
        ([{"weights": {"source-0": 0.5}}], r"pivots\.0\.weights: weights sum to 0\.5"),
        ([{"weights": {"source-9": 1.0}}], r"pivot p0: weights: unknown source 'source-9'"),
        ([{"ramp_steps": 3}], r"pivots\.0\.ramp_steps: a ramp of 3 steps leads nowhere"),
        ([{"weights": HALF, "ramp_steps": 101}, {}], r"pivot p0: ramp_steps is 101, but regime p0 has 100 steps"),
        ([{"weights": HALF, "policy": "ucb"}], r"policy ucb would never decide, as weights hold"),
        (
            [{"weights": HALF}, {"exclude": ["source-0"]}],
            r"regime p1 \(from step 200\): its bounds exclude the weights",
        ),
        ([{"policy": "uct"}], r"pivots\.0\.policy: unknown name 'uct'; did you mean 'ucb'"),
        ([{"policy": {"name": "ucb", "targets": {"x": 1.0}}}], r"pivot p0: policy: targets: unknown source 'x'"),
        ([{"policy": {"name": "ucb", "reward": "target_gain"}}], r"pivot p0: policy ucb: reward is target_gain, but"),
        ([{"policy": {"name": "doremi", "reference": {}}}], r"pivot p0: policy doremi needs a reference loss"),
    ],
)
def test_pivots_that_cannot_be_are_refused_with_their_place(pivots: list[dict[str, Any]], message: str) -> None:
    planned = [{"name": f"p{i}", "at_step": 100 * (i + 1), **pivot} for i, pivot in enumerate(pivots)]
    with pytest.raises(ConfigError, match=message):
        curriculum(3, pivots=planned)


def test_weights_that_a_pivot_at_the_warmups_end_replaces_are_refused() -> None:
    warmup = {"curriculum_warmup_steps": 100, "curriculum_warmup_sources": ["source-0"]}
    with pytest.raises(ConfigError, match="weights: they are never in force"):
        curriculum(3, weights=HALF, pivots=[{"name": "p", "at_step": 100, "policy": "ucb"}], **warmup)


def live(tmp_path: Path, *pivots: tuple[Pivot, int], end: int = 200, **fields: Any) -> tuple[list[Phase], Path]:
    """Drive a run to ``end``, with pivots each asked for at a step, and return its phases and its journal."""
    path = tmp_path / "live.jsonl"
    since, phases = 0, []
    with Journal.create(path) as journal:
        walk = Walk(curriculum(3, phases={**LAW, "initial_random": 0}, **fields), journal=journal)
        for pivot, step in pivots:
            phases += drive(walk, step, since=since)
            walk.pivot(pivot)
            since = step
        return distinct(phases + drive(walk, end, since=since)), path


def test_live_pivots_take_weights_ramps_and_policies_and_are_replayed(tmp_path: Path) -> None:
    phases, path = live(
        tmp_path,
        (Pivot(name="fixed", weights=HALF, ramp_steps=20), 50),
        (Pivot(name="free", policy="ucb"), 100),
        (Pivot(name="level", policy={"name": "static"}), 150),
        policy="water_filling",
    )
    assert [phase.weights.tolist() for phase in phases[6:10]] == [[0.5, 0.3, 0.2]] * 4
    assert {phase.kind for phase in phases[15:]} == {"fixed"}
    assert audit(path).difference is None
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    asked = [line for line in lines if line["type"] == "pivot"]
    assert (asked[0]["weights"], asked[0]["ramp_steps"]) == (HALF, 20)
    assert "policy" not in asked[0]
    assert asked[1]["policy"]["name"] == "ucb"
    assert "weights" not in asked[1]


def test_a_live_ramp_resumes_and_a_cut_within_it_still_arrives() -> None:
    run = curriculum(3, weights=HALF, phases={"min_steps": 4, "max_steps": 20})
    walk = Walk(run)
    drive(walk, 40)
    start = walk.pivot(Pivot(name="turn", weights=TURNED, ramp_steps=60))
    drive(walk, start + 8, since=40)
    middle = walk.first_cut(start + 8)
    walk.pivot(Pivot(name="nudge", floors={"source-2": 0.1}), middle, cut=True)
    other = Walk(run)
    other.load_state_dict(json.loads(json.dumps(walk.state_dict())))
    phases = drive(walk, start + 70, since=start + 8)
    assert same_phases(drive(other, start + 70, since=start + 8), phases)
    seconds = [phase.weights[2] for phase in distinct(phases)]
    assert seconds == sorted(seconds)
    assert phases[-1].weights.tolist() == [0.2, 0.2, 0.6]


@pytest.mark.parametrize(
    ("pivot", "error", "message"),
    [
        ({"weights": HALF, "caps": {"source-0": 0.3}}, WeightsError, r"pivot p: the weight of source-0 is 0\.5, above"),
        ({"weights": {"source-9": 1.0}}, UnknownSourceError, r"pivot p: weights: unknown source 'source-9'"),
        ({"weights": HALF, "ramp_steps": 99}, PivotError, r"ramp_steps is 99, but regime p has \d+ steps"),
        ({"policy": {"name": "proportional"}}, ConfigError, r"pivot p: policy proportional needs `tokens:`"),
        ({"policy": "water_filling"}, PivotError, r"pivot p: policy water_filling with these settings plans with tot"),
        ({"policy": {"name": "ucb", "eta_decay": "linear"}}, PivotError, r"plans with total_steps"),
        ({"policy": "odm"}, PivotError, r"pivot p: policy odm learns from each step by itself"),
        ({"exclude": ["source-0"]}, WeightsError, r"pivot p: regime p .*exclude the weights in force, of weights"),
    ],
)
def test_live_pivots_that_cannot_be_are_refused_and_nothing_changes(
    pivot: dict[str, Any], error: type[MixerError], message: str
) -> None:
    sources = [{"name": f"source-{i}", "local": "topics"} for i in range(3)]
    later = [{"name": "later", "at_step": 100}]
    walk = Walk(curriculum(3, sources=sources, policy="ucb", weights=HALF, pivots=later, phases=LAW))
    drive(walk, 20)
    before = walk.state_dict()
    with pytest.raises(error, match=message):
        walk.pivot(Pivot(name="p", **pivot))
    assert walk.state_dict() == before


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"weights": {"source-0": 0.5}}, r"pivot p: weights: weights sum to 0\.5, not 1"),
        ({"ramp_steps": 4}, r"pivot p: ramp_steps: a ramp of 4 steps leads nowhere without weights"),
        ({"weights": HALF, "policy": "ucb"}, r"pivot p: policy: policy ucb would never decide"),
        ({"policy": "uct"}, r"pivot p: policy: unknown name 'uct'"),
    ],
)
def test_pivots_that_make_no_sense_by_themselves_cannot_be_made(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Pivot(name="p", **fields)


def test_a_source_that_is_suspended_moves_written_weights_and_stops_no_run() -> None:
    walk = Walk(curriculum(3, weights=HALF, phases=LAW))
    drive(walk, 20)
    walk.pivot(Pivot(name="without-20-source-0", exclude=["source-0"]))
    weights = drive(walk, 40, since=20)[-1].weights
    np.testing.assert_allclose(weights, [0, 0.55, 0.45])
    walk.pivot(Pivot(name="with-all-40", exclude=[]))
    assert drive(walk, 60, since=40)[-1].weights.tolist() == [0.5, 0.3, 0.2]


def test_a_fork_may_take_over_weights_and_policies_and_begins_where_its_parent_was(tmp_path: Path) -> None:
    _, path = live(tmp_path, (Pivot(name="fixed", weights=HALF), 50), policy="ucb", end=100)
    pivots = [
        {"name": "turn", "at_step": 100, "weights": TURNED, "ramp_steps": 40},
        {"name": "free", "at_step": 160, "policy": "odm"},
    ]
    new = curriculum(3, phases={**LAW, "initial_random": 0}, policy="ucb", pivots=pivots)
    fork(path, 100, new, tmp_path / "fork.jsonl")
    with Journal.open(tmp_path / "fork.jsonl") as journal:
        phases = distinct(drive(Walk(new, journal=journal), 200, since=100))
    np.testing.assert_allclose(phases[0].weights, 0.875 * np.array([0.5, 0.3, 0.2]) + 0.125 * np.array([0.2, 0.2, 0.6]))
    assert phases[3].weights.tolist() == [0.2, 0.2, 0.6]
    assert audit(tmp_path / "fork.jsonl").difference is None


def test_a_run_of_written_weights_waits_for_no_losses_and_one_that_hands_over_does(
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert not Walk(curriculum(3, weights=HALF)).looks_at_losses
    assert Walk(curriculum(3, weights=HALF, pivots=[{"name": "free", "at_step": 100, "policy": "ucb"}])).looks_at_losses
    walk = Walk(curriculum(3, weights=HALF))
    with caplog.at_level(logging.WARNING):
        walk.phase_at(300)
    assert "single report" not in caplog.text


def test_default_limits_by_epochs_leave_written_weights_alone_and_given_ones_hold() -> None:
    sources = [
        {"name": f"source-{i}", "local": "topics", "tokens": tokens} for i, tokens in enumerate([640, 10**6, 10**6])
    ]
    fields = {"sources": sources, "weights": HALF, "total_steps": 1000, "phases": LAW}
    free = Walk(curriculum(3, policy="water_filling", **fields))
    assert free.phase_at(500).weights.tolist() == [0.5, 0.3, 0.2]
    limited = Walk(curriculum(3, policy="ucb", max_epochs=4.0, **fields))
    assert limited.phase_at(0).weights[0] == pytest.approx(4 * 640 / 32_000)


@pytest.mark.parametrize(
    ("temperature", "expected"),
    [
        (1.0, [0.01, 0.09, 0.9]),
        (2.0, [1 / (4 + 90**0.5), 3 / (4 + 90**0.5), 90**0.5 / (4 + 90**0.5)]),
        (1e6, [1 / 3] * 3),
    ],
)
def test_a_temperature_flattens_proportional_weights(temperature: float, expected: list[float]) -> None:
    tokens = np.array([1e6, 9e6, 9e7])
    np.testing.assert_allclose(proportional(tokens, temperature), expected, rtol=1e-4)
    sources = [{"name": f"source-{i}", "local": "topics", "tokens": int(n)} for i, n in enumerate(tokens)]
    run = curriculum(3, sources=sources, policy={"name": "proportional", "temperature": temperature})
    np.testing.assert_allclose(Walk(run).phase_at(0).weights, expected, rtol=1e-4)


EXAMPLE = Path(__file__).parents[2] / "configs" / "stages.yaml"


def test_the_example_of_the_documents_walks_its_stages(tmp_path: Path) -> None:
    run = Curriculum.from_yaml(EXAMPLE)
    with Journal.create(tmp_path / "j.jsonl") as journal:
        phases = {phase.start: phase for _, phase in simulate(run, 3000, journal=journal)}
    by_regime = {
        name: [p for p in phases.values() if p.regime == name] for name in ("firehose", "mix", "free", "polish")
    }
    assert {p.weights.tolist()[0] for p in by_regime["firehose"]} == {0.7}
    assert by_regime["mix"][-1].weights.tolist() == [0.5, 0.3, 0.2]
    assert "bandit" in {p.kind for p in by_regime["free"]}
    assert by_regime["polish"][-1].weights.tolist() == [0.3, 0.35, 0.35]
    assert audit(tmp_path / "j.jsonl").difference is None


def test_explain_says_that_weights_are_written_and_where_a_ramp_leads(tmp_path: Path) -> None:
    fixed = Pivot(name="fixed", weights=HALF, ramp_steps=40)
    _, path = live(tmp_path, (fixed, 50), (Pivot(name="free", policy="linear"), 100), policy="ucb")
    ramp, held, free = (explain(path, step) for step in (55, 95, 195))
    assert ramp["written"] == {"weights": HALF, "ramp_end": 90}
    assert "a ramp, which arrives at step 90 at the weights that are written by hand" in " ".join(ramp["words"])
    assert "The weights are written by hand, and no policy decides: source-0 0.5" in " ".join(held["words"])
    assert (free["policy"]["name"], "written" in free) == ("linear", False)


def test_check_lists_who_decides_in_each_regime() -> None:
    result = CliRunner().invoke(app, ["check", "--json", str(EXAMPLE)])
    regimes = json.loads(result.stdout)["regimes"]
    assert [(r["policy"], r["ramp_end"]) for r in regimes] == [(None, None), (None, 1000), ("ucb", None), (None, 2600)]
    assert regimes[1]["weights"] == {"docstrings": 0.5, "code": 0.3, "licences": 0.2}
    shown = CliRunner().invoke(app, ["check", str(EXAMPLE)]).stdout
    assert "weights written by hand, reached by a ramp at step 1000" in " ".join(shown.split())


def test_a_pivot_is_told_in_words(tmp_path: Path) -> None:
    fixed = {
        "type": "pivot",
        "name": "p",
        "at_step": 9,
        "decided_before": 9,
        "floors": None,
        "caps": None,
        "exclude": None,
    }
    assert (
        told({**fixed, "weights": {"a": 1.0}, "ramp_steps": 7}, ["a"])
        == "pivot p: weights {'a': 1.0} after a ramp of 7 steps"
    )
    assert told({**fixed, "policy": {"name": "ucb"}}, ["a"]) == "pivot p: policy ucb decides"


def test_a_preview_refuses_bounds_that_exclude_the_weights_in_force() -> None:
    from service.dashboard.preview import preview

    run = SimulatedRun(curriculum(3, weights=HALF))
    run.advance(100)
    said = preview(run.watch.chronicle(), floors=None, caps={"source-0": 0.3}, exclude=None)
    assert (said["is_feasible"], said["code"]) == (False, "weights")
    assert "the weight of source-0 is 0.5, above its cap 0.3" in said["problem"]


def test_the_name_of_the_runs_own_policy_in_a_pivot_means_its_settings_even_those_that_it_cannot_do_without() -> None:
    own = {"name": "doremi", "reference": dict.fromkeys(curriculum(3).names, 2.0)}
    run = curriculum(3, policy=own, pivots=[{"name": "back", "at_step": 100, "policy": "doremi"}])
    assert run.pivots[0].policy == run.policy
