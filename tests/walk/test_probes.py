"""Held-out losses: taken once from each rank, whatever their order, and the same decisions again from the journal."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixer.config.curriculum import Curriculum
from mixer.config.pivots import Pivot
from mixer.config.probes import probe_compute, probe_notes
from mixer.errors import (
    ConfigError,
    FeedbackError,
    InvalidLossError,
    ProbeNotOfferedError,
    RepeatedRowsError,
    UnknownSourceError,
)
from mixer.journal.file import Journal, read_journal
from mixer.losses import SourceLosses, add_losses
from mixer.replay import Replay
from mixer.replay.fork import fork
from mixer.replay.verify import audit
from mixer.sampling.phases import Phase
from mixer.walk.walk import Walk
from tests.support.curricula import batch_counts, curriculum, noisy_losses, same_phases

ROWS = 4  # of each source in a probe
HELD_OUT = {"name": "water_filling", "losses": "heldout"}
AIMED = {"name": "linear", "losses": "heldout"}
TARGET = {"name": "goal", "local": "topics", "role": "target"}
AIMING = (AIMED, *({"name": name, "reward": "target_gain"} for name in ("ucb", "d_ucb", "sw_ucb")))


def probed(num_sources: int = 3, **fields: Any) -> Curriculum:
    """A curriculum that probes in each phase, with a policy that learns from nothing else."""
    given: dict[str, Any] = {
        "holdout": 0.1,
        "probes": {"rows": ROWS},
        "policy": HELD_OUT,
        "phases": {"initial_random": 1, "random_probability": 0.0},
    }
    return curriculum(num_sources, **{**given, **fields})


def held_out(run: Curriculum, step: int, rows: int = ROWS) -> SourceLosses:
    """Made-up held-out losses of a probe, each source's at a pace of its own."""
    number = len(run.probed_names)
    counts = np.full(number, rows, dtype=np.int64)
    means = 2.0 + np.round(256 * np.exp(-step * (1 + np.arange(number)) / 300)) / 256  # exact in any number of parts
    tokens = counts * run.sequence_length
    return SourceLosses(rows=counts, tokens=tokens, loss_sums=means * tokens, square_sums=means**2 * counts)


def parts(losses: SourceLosses, num_ranks: int) -> list[SourceLosses]:
    """Deal the rows of a probe out to ranks, all rows of a source alike."""
    found = []
    for rank in range(num_ranks):
        rows = np.array([len(range(rank, int(rows), num_ranks)) for rows in losses.rows], dtype=np.int64)
        share = rows / losses.rows
        tokens = (losses.tokens * share).astype(np.int64)
        part = SourceLosses(
            rows=rows,
            tokens=tokens,
            loss_sums=losses.loss_sums * share,
            square_sums=losses.square_sums * share,
            rank=rank,
        )
        found.append(part)
    return found


def drive(
    walk: Walk,
    until: int,
    *,
    since: int = 0,
    answers: bool = True,
    losses: Callable[[Curriculum, int], SourceLosses] = held_out,
) -> list[Phase]:
    """Train up to a step, answering each probe before its step is trained on."""
    run = walk.curriculum
    phases = []
    for step in range(since, until):
        phase = walk.phase_at(step)
        phases.append(phase)
        if answers and walk.probe_step(step) == step:
            walk.report_probe(step, losses(run, step))
        walk.report(step, noisy_losses(run, step, batch_counts(run, phase, step)))
    return phases


def lines(path: Path, kind: str) -> list[dict[str, Any]]:
    return [record for record in read_journal(path) if record["type"] == kind]


# What is offered, and what is taken.


@pytest.mark.parametrize("every", ["phase", 1, 3])
def test_the_first_step_of_each_nth_phase_offers_a_probe(every: Any) -> None:
    run = probed(probes={"rows": ROWS, "every": every})
    walk = Walk(run)
    phases = dict.fromkeys(drive(walk, 200))
    n = 1 if every == "phase" else every
    expected = {phase.start for phase in phases if phase.index % n == 0}
    assert {step for step in range(200) if walk.probe_step(step) == step} == expected
    assert walk.probe_step(199) == max(expected)


@settings(max_examples=25)
@given(st.integers(1, 5), st.randoms(use_true_random=False), st.integers(0, 9))
def test_answers_count_once_each_in_any_order_and_from_any_number_of_ranks(
    num_ranks: int, rng: random.Random, lag: int
) -> None:
    run = probed(feedback_lag=lag)
    plain, shared = Walk(run), Walk(run)
    mine: list[tuple[int, SourceLosses]] = []
    for step in range(120):
        assert same_phases([plain.phase_at(step)], [shared.phase_at(step)])
        if plain.probe_step(step) == step:
            losses = held_out(run, step)
            assert plain.report_probe(step, losses)
            assert not plain.report_probe(step, losses)
            mine = [(step, part) for part in parts(losses.on_grid(), num_ranks) for _ in range(2)]
            rng.shuffle(mine)
            assert sum(shared.report_probe(step, part) for step, part in mine) == num_ranks
    assert plain.state_dict()["policy"] == shared.state_dict()["policy"]
    assert np.any(plain.state_dict()["policy"]["count"])


def test_a_decision_uses_probes_of_steps_below_its_start_less_the_lag(tmp_path: Path) -> None:
    run = probed(feedback_lag=9)
    with Journal.create(tmp_path / "run.jsonl") as journal:
        drive(Walk(run, journal=journal), 300)
    offered = {line["step"] for line in lines(tmp_path / "run.jsonl", "probe")}
    used: set[int] = set()
    for line in lines(tmp_path / "run.jsonl", "phase"):
        ready = {step for step in offered if step < line["start"] - 9} - used
        used |= ready
        found = line.get("probes")
        assert (found is None) == (not ready)
        if found is not None:
            assert (found["reports"], found["last_step"]) == (len(ready), max(ready))
            assert found["rows"] == [ROWS * len(ready)] * 3


@pytest.mark.parametrize("policy", ["ucb", "water_filling", "andrea", "odm"])
@pytest.mark.parametrize("answers", [True, False])
def test_probes_that_no_policy_uses_or_nobody_answers_change_no_decision(policy: str, answers: bool) -> None:
    settings: dict[str, Any] = {"policy": policy, "guard": "off"}
    without = drive(Walk(probed(**settings, probes=None)), 400, answers=False)
    assert same_phases(drive(Walk(probed(**settings)), 400, answers=answers), without)


def test_a_policy_that_learns_from_held_out_losses_decides_by_them() -> None:
    run = probed()
    assert not same_phases(drive(Walk(run), 300), drive(Walk(run), 300, answers=False))


def test_targets_are_measured_and_nothing_else_of_the_run_changes() -> None:
    target = {"name": "goal", "local": "topics", "role": "target"}
    plain = probed()
    run = probed(sources=[target, *(source.model_dump() for source in plain.sources)])
    assert run.names == plain.names
    assert run.probed_names == (*plain.names, "goal")
    one, other = Walk(run), Walk(plain)
    assert same_phases(drive(one, 300), drive(other, 300))
    assert one.state_dict()["policy"] == other.state_dict()["policy"]


def bent(name: str) -> Callable[[Curriculum, int], SourceLosses]:
    """Return ``held_out`` with other losses of one source or target."""

    def losses(run: Curriculum, step: int) -> SourceLosses:
        found = held_out(run, step)
        is_bent = np.array([other == name for other in run.probed_names])
        sums = np.where(is_bent, found.loss_sums * (1 + step % 7), found.loss_sums)
        return replace(found, loss_sums=sums, square_sums=np.zeros(sums.size))

    return losses


def learned(run: Curriculum, losses: Callable[[Curriculum, int], SourceLosses]) -> dict[str, Any]:
    """Return where a walk stands after some phases, and what its policies have learned."""
    walk = Walk(run)
    drive(walk, 100, losses=losses)
    state = walk.state_dict()
    return {key: state[key] for key in ("phases", "policy")}


@settings(max_examples=25)
@given(st.sampled_from(AIMING), st.data())
def test_the_losses_that_targets_name_decide_and_no_other(policy: dict[str, Any], data: st.DataObject) -> None:
    names = ("source-0", "source-1", "source-2", "goal", "other")
    weights = st.dictionaries(st.sampled_from(names), st.sampled_from([0.0, 0.5, 3.0]), max_size=5)
    wanted = data.draw(weights.filter(lambda table: not table or sum(table.values()) > 0))
    sources = [*(source.model_dump() for source in probed().sources), TARGET, {**TARGET, "name": "other"}]
    run = probed(sources=sources, policy={**policy, "targets": wanted or None})
    counts = {name for name in names if wanted.get(name, 0.0) > 0} if wanted else {"goal", "other"}
    plain = learned(run, held_out)
    for name in names:
        assert (learned(run, bent(name)) == plain) == (name not in counts)


def test_without_targets_of_its_own_a_policy_aims_at_the_targets_of_the_run_or_else_at_all_sources() -> None:
    for policy in AIMING:
        plain = probed(policy=policy)
        named = probed(policy={**policy, "targets": dict.fromkeys(plain.names, 1.0)})
        assert same_phases(drive(Walk(plain), 150), drive(Walk(named), 150))
        sources = [*(source.model_dump() for source in plain.sources), TARGET]
        aimed = probed(sources=sources, policy=policy)
        named = probed(sources=sources, policy={**policy, "targets": {"goal": 2.0}})
        assert same_phases(drive(Walk(aimed), 150), drive(Walk(named), 150))


def test_a_policy_that_takes_over_may_name_targets_too() -> None:
    sources = [*(source.model_dump() for source in probed().sources), TARGET]
    aimed = {**AIMED, "targets": {"goal": 1.0, "source-0": 1.0}}
    run = probed(sources=sources, pivots=[{"name": "aimed", "at_step": 100, "policy": aimed}])
    assert learned(run, bent("goal")) != learned(run, held_out)
    walk = Walk(probed(sources=sources))
    drive(walk, 50)
    with pytest.raises(UnknownSourceError, match="pivot live: policy: targets: unknown source 'gaol'"):
        walk.pivot(Pivot(name="live", policy={**AIMED, "targets": {"gaol": 1.0}}))
    with pytest.raises(
        ConfigError, match="pivot live: policy: targets: goal has `role: target`.*say `losses: heldout`"
    ):
        walk.pivot(Pivot(name="live", policy={"name": "linear", "targets": {"goal": 1.0}}))
    walk.pivot(Pivot(name="live", policy=aimed))
    drive(walk, 200, since=50)


@pytest.mark.parametrize(
    ("policy", "left"),
    [
        (HELD_OUT, ["goal", "other"]),
        (AIMED, []),
        ({**AIMED, "targets": {"other": 1.0, "goal": 0.0}}, ["goal"]),
        ({**AIMED, "targets": {"source-0": 1.0}}, ["goal", "other"]),
        ({"name": "ucb", "reward": "target_gain", "targets": {"goal": 1.0}}, ["other"]),
    ],
)
def test_the_check_names_the_targets_that_no_policy_looks_at(policy: dict[str, Any], left: list[str]) -> None:
    sources = [*(source.model_dump() for source in probed().sources), TARGET, {**TARGET, "name": "other"}]
    _, *notes = probe_notes(probed(sources=sources, policy=policy))
    assert [note.partition(", as")[0] for note in notes] == (
        [f"targets: {', '.join(left)}: measured alone"] if left else []
    )


# What is refused.


def test_an_answer_for_a_step_that_offers_no_probe_is_refused() -> None:
    walk = Walk(probed())
    drive(walk, 50)
    newest = walk.probe_step(49)
    assert newest is not None
    for step in (newest + 1, 1, 10_000):
        with pytest.raises(ProbeNotOfferedError, match=f"step {step} offers no probe.*{newest}"):
            walk.report_probe(step, held_out(walk.curriculum, step))
    silent = Walk(probed(probes=None, policy="ucb"))
    silent.phase_at(0)
    with pytest.raises(ProbeNotOfferedError, match="the curriculum asks for none"):
        silent.report_probe(0, held_out(silent.curriculum, 0))


def test_answers_that_cannot_be_are_refused_and_change_nothing() -> None:
    run = probed()
    walk = Walk(run)
    walk.phase_at(0)
    before = walk.state_dict()
    good = held_out(run, 0)
    tables = {name: getattr(good, name) for name in ("rows", "tokens", "loss_sums", "square_sums")}
    cases: list[tuple[dict[str, Any], type[FeedbackError], str]] = [
        ({"loss_sums": good.loss_sums * np.nan}, InvalidLossError, "loss of source-0 is nan"),
        ({"loss_sums": good.loss_sums * 1e6, "square_sums": good.square_sums * 0}, InvalidLossError, "nats a token"),
        ({"loss_sums": -good.loss_sums}, InvalidLossError, "not negative"),
        ({"rows": good.rows + 1, "tokens": good.tokens + 4}, FeedbackError, "has 4 rows of source-0 at most, but 5"),
        ({"tokens": good.tokens + 1}, FeedbackError, "a row has 4"),
        ({name: values[:2] for name, values in tables.items()}, FeedbackError, "shape"),
    ]
    for changes, error, message in cases:
        with pytest.raises(error, match=message):
            walk.report_probe(0, SourceLosses(**{**tables, **changes}))
    assert walk.state_dict() == before
    assert walk.report_probe(0, good)
    with pytest.raises(RepeatedRowsError, match="4 were reported before"):
        walk.report_probe(0, replace(good, rank=1))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"holdout": 0.0}, "no held-out rows to measure losses on"),
        ({"probes": None}, "losses is heldout, but there are no probes"),
        ({"probes": {"rows": 0}}, "greater than or equal to 1"),
        ({"probes": {"every": 0}}, "every"),
        ({"probes": {"every": "step"}}, "every"),
        ({"floors": {"goal": 0.1}}, "floors: goal has `role: target`"),
        ({"caps": {"goal": 0.1}}, "caps: goal has `role: target`"),
        ({"exclude": ["goal"]}, "exclude: goal has `role: target`"),
        ({"curriculum_warmup_steps": 20, "curriculum_warmup_sources": ["goal"]}, "warmup_sources: goal has"),
        ({"pivots": [{"name": "p", "at_step": 50, "floors": {"goal": 0.1}}]}, "pivot p: floors: goal has"),
        ({"policy": {"name": "static", "weights": {"goal": 1.0}}}, "policy: weights: goal has"),
        ({"policy": {"name": "ucb", "targets": {"goal": 1.0}}}, "policy: targets: goal has"),
        ({"policy": {"name": "ucb", "targets": {"goal": 1.0}}}, "say `reward: target_gain`, or take it out"),
        ({"policy": {"name": "linear", "targets": {"goal": 1.0}}}, "say `losses: heldout`, or take it out there"),
        ({"policy": {**HELD_OUT, "targets": {"goal": 1.0}}}, "water_filling .* choose `policy: {name: linear, losses"),
        (
            {"policy": {**AIMED, "targets": {"gaol": 1.0}}},
            "policy: targets: unknown source 'gaol'; did you mean 'goal'",
        ),
        ({"policy": {**AIMED, "targets": {"goal": 0.0}}}, "targets are all 0"),
        ({"policy": {**AIMED, "targets": {"goal": -1.0}}}, "not negative"),
        ({"policy": {**AIMED, "targets": {"a": 1.0}}, "holdout": 0}, "no row of a is held out"),
        (
            {"pivots": [{"name": "p", "at_step": 50, "policy": {"name": "linear", "targets": {"goal": 1}}}]},
            "pivot p: policy: targets: goal has .* say `losses: heldout`",
        ),
        (
            {"sources": [{"name": "a", "local": "b"}, {"name": "c", "local": "d", "role": "target", "max_epochs": 2}]},
            "source c: max_epochs of a target",
        ),
        ({"sources": [{"name": "goal", "local": "topics", "role": "target"}]}, "nothing can be drawn"),
    ],
)
def test_probes_and_targets_that_cannot_be_are_refused_at_once(fields: dict[str, Any], message: str) -> None:
    sources: list[dict[str, Any]] = [
        {"name": "a", "local": "topics", "tokens": 10_000},
        {"name": "goal", "local": "topics", "role": "target"},
    ]
    if fields == {"holdout": 0.0}:
        sources.pop()
    with pytest.raises(ConfigError, match=message):
        probed(**{"sources": sources, **fields})


@pytest.mark.parametrize(("every", "is_dear"), [(1, True), (10, False)])
def test_the_check_says_what_share_of_training_probes_take(every: int, is_dear: bool) -> None:
    run = probed(4, probes={"rows": 8, "every": every}, phases={"min_steps": 10, "max_steps": 20}, batch_rows=16)
    assert probe_compute(run) == pytest.approx(8 * 4 / (15 * 16 * every) / 3)
    (note,) = probe_notes(run)
    assert note.startswith("warning: ") == is_dear
    assert f"{probe_compute(run):.2%} of training" in note


def test_a_target_without_probes_is_refused() -> None:
    target = {"name": "goal", "local": "topics", "role": "target"}
    with pytest.raises(ConfigError, match="role: target of goal: a target is only measured, by probes"):
        probed(sources=[{"name": "a", "local": "topics"}, target], probes=None, policy="ucb")


def test_a_curriculum_without_probes_keeps_its_fingerprint() -> None:
    assert curriculum(3).fingerprint == "7ceb4bb78a25f1cb5634f7d4294e9ca0"


# Again: from a state, from the journal, after a pivot, in a fork.


@settings(max_examples=15)
@given(st.integers(1, 119), st.integers(0, 9))
def test_a_walk_goes_on_from_any_state_bit_for_bit(at: int, lag: int) -> None:
    run = probed(feedback_lag=lag)
    whole = Walk(run)
    drive(whole, at)
    resumed = Walk(run)
    resumed.load_state_dict(whole.state_dict())
    assert same_phases(drive(resumed, 240, since=at), drive(whole, 240, since=at))
    assert resumed.state_dict() == whole.state_dict()


@settings(max_examples=15)
@given(st.integers(20, 150), st.integers(0, 9))
def test_a_journal_with_probes_is_recomputed_bit_for_bit(
    tmp_path_factory: pytest.TempPathFactory, cut_at: int, lag: int
) -> None:
    path = tmp_path_factory.mktemp("probes") / "run.jsonl"
    target = {"name": "goal", "local": "topics", "role": "target"}
    run = probed(feedback_lag=lag, sources=[*(s.model_dump() for s in probed().sources), target])
    with Journal.create(path) as journal:
        walk = Walk(run, journal=journal)
        drive(walk, cut_at)
        walk.phase_at(cut_at)
        if walk.probe_step(cut_at) == cut_at:
            walk.report_probe(cut_at, held_out(run, cut_at))  # known before the decision is undone
        walk.pivot(Pivot(name="live", caps={"source-0": 0.5}), at_step=walk.first_cut(cut_at), cut=True)
        drive(walk, 200, since=cut_at)
    verdict = audit(path)
    assert verdict.difference is None
    again = Replay(path)
    assert [again.probe_step(step) for step in range(200)] == [walk.probe_step(step) for step in range(200)]


def test_an_undone_decision_gives_back_the_probes_that_it_used() -> None:
    run = probed()
    walk, other = Walk(run), Walk(run)
    start = next(phase.start for phase in drive(walk, 90) if phase.index == 3)
    walk = Walk(run)
    for each in (walk, other):
        drive(each, start)
    walk.phase_at(start)
    walk.pivot(Pivot(name="live", caps={"source-0": 0.5}), at_step=start, cut=True)
    other.pivot(Pivot(name="live", caps={"source-0": 0.5}), at_step=start)
    assert same_phases([walk.phase_at(start)], [other.phase_at(start)])


@pytest.mark.parametrize("probes", [{"rows": ROWS}, {"rows": 2 * ROWS, "every": 2}, None])
def test_a_fork_learns_from_the_probes_of_its_parent(tmp_path: Path, probes: Any) -> None:
    with Journal.create(tmp_path / "run.jsonl") as journal:
        walk = Walk(probed(), journal=journal)
        drive(walk, 100)
    new = probed(probes=probes, policy=HELD_OUT if probes else "ucb", caps={"source-0": 0.6})
    fork(tmp_path / "run.jsonl", walk.frontier, new, tmp_path / "fork.jsonl")
    with Journal.open(tmp_path / "fork.jsonl") as journal:
        forked = Walk(new, journal=journal)
        if probes:
            assert np.any(forked.state_dict()["policy"]["count"])
        drive(forked, 200, since=walk.frontier)
    assert audit(tmp_path / "fork.jsonl").difference is None


def test_a_replay_checks_answers_and_keeps_none(tmp_path: Path) -> None:
    run = probed()
    with Journal.create(tmp_path / "run.jsonl") as journal:
        drive(Walk(run, journal=journal), 100)
    again = Replay(tmp_path / "run.jsonl")
    assert again.report_probe(0, held_out(run, 0)) is False
    with pytest.raises(ProbeNotOfferedError):
        again.report_probe(1, held_out(run, 1))


def test_losses_add_up_to_the_same_whatever_their_order() -> None:
    run = probed()
    found = parts(held_out(run, 7).on_grid(), 3)
    one, other = add_losses(found), add_losses(found[::-1])
    assert one.loss_sums.tobytes() == other.loss_sums.tobytes()
