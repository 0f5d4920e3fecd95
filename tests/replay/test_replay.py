"""Replaying what was recorded: decisions recomputed bit for bit, batches delivered again, forks, two walks compared."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from typer.testing import CliRunner

from mixer.cli import app
from mixer.config.curriculum import Curriculum
from mixer.config.pivots import Pivot
from mixer.dataset import MixtureDataset
from mixer.errors import (
    ConfigError,
    FeedbackError,
    InfeasibleRegionError,
    JournalError,
    PivotError,
    StateMismatchError,
    StepError,
)
from mixer.journal.file import Journal, read_journal
from mixer.journal.lookup import JournalIndex
from mixer.journal.scan import FIRST, chained, ending
from mixer.journal.schema import journal_schema
from mixer.journal.tables import read_tables
from mixer.losses import SourceLosses
from mixer.replay.diff import compare
from mixer.replay.fork import fork
from mixer.replay.replay import Replay
from mixer.replay.verify import audit
from mixer.sampling.phases import Phase
from mixer.walk.walk import Walk
from tests.support.curricula import MAX_LATE, batch_counts, curricula, curriculum, drive, noisy_losses, on_time, ragged

SCHEMA = Path(__file__).parents[2] / "docs" / "journal.schema.json"
LIVE = Pivot(name="live", floors={"source-0": 0.25}, caps={}, exclude=())
cli = CliRunner()


def bits(phase: Phase) -> tuple[Any, ...]:
    arrays = (phase.weights.tobytes(), phase.drawn.tobytes(), phase.owed.tobytes())
    return (phase.index, phase.start, phase.length, phase.kind, phase.regime, *arrays)


def same(one: list[Phase], other: list[Phase]) -> bool:
    return [bits(phase) for phase in one] == [bits(phase) for phase in other]


def live_run(path: Path, run: Curriculum, data: st.DataObject) -> list[Phase]:
    """Record a run with whatever may happen: late reports, sizes learned, live pivots, cuts, restarts."""
    late = ragged if data.draw(st.booleans(), "late") else on_time
    events = data.draw(st.lists(st.sampled_from(["pivot", "cut", "restart", "size"]), max_size=3), "events")
    with Journal.create(path, fsync="never") as journal:
        walk = Walk(run, journal=journal)
        step = 0
        for number, event in enumerate([*events, "end"]):
            until = step + data.draw(st.integers(1, 40), "steps")
            state = json.loads(json.dumps(walk.state_dict(step - MAX_LATE - 1)))
            drive(walk, until, since=step, late=late)
            if event == "restart":
                walk = Walk(run, journal=journal)
                walk.load_state_dict(state)
                until = step
            elif event == "size":
                walk.learn_unique_tokens(run.names[0], 5000)
            elif event != "end":
                pivot = Pivot(name=f"live-{number}", floors={run.names[0]: 0.25}, caps={}, exclude=())
                at_step = until if event == "cut" else None
                with contextlib.suppress(PivotError, InfeasibleRegionError):  # of what is planned, or of UniMax
                    walk.pivot(pivot, at_step, cut=event == "cut")
            step = until
        decided: list[Phase] = []
        for start in range(max(0, walk.frontier - 1)):
            if start >= walk._now.phases.held[0].start:
                phase = walk.phase_at(start)
                if not decided or decided[-1] is not phase:
                    decided.append(phase)
    return decided


def check_replay(folder: Path, run: Curriculum, data: st.DataObject) -> None:
    path = folder / "run.jsonl"
    decided = live_run(path, run, data)
    verdict = audit(path)
    assert verdict.difference is None, str(verdict.difference)
    assert verdict.lines == sum(1 for _ in read_journal(path))
    replay = Replay(path)
    held = [phase for phase in replay.phases if decided and phase.start >= decided[0].start]
    assert same(held[: len(decided)], decided)
    lookup, phases = JournalIndex(path), read_tables(path).phases
    assert [(p["start"], p["length"]) for p in phases] == [(p.start, p.length) for p in replay.phases]
    for i, phase in enumerate(phases):
        assert lookup.phase_at(phase["start"] + phase["length"] - 1) == lookup.phase_at(phase["start"]) == phase
        assert lookup.before(phase) == (phases[i - 1] if i else None)
        opening = next(earlier for earlier in reversed(phases[: i + 1]) if earlier["region"] is not None)
        assert lookup.first_of_regime(phase)["region"] == opening["region"]
    with pytest.raises(StepError, match=f"for steps 0 to {replay.frontier - 1}|no phase yet"):
        lookup.phase_at(replay.frontier)


@given(curricula(), st.data())
@settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow])
def test_every_decision_of_any_run_is_recomputed_and_repeated_bit_for_bit(
    tmp_path_factory: pytest.TempPathFactory, run: Curriculum, data: st.DataObject
) -> None:
    check_replay(tmp_path_factory.mktemp("replay"), run, data)


@pytest.mark.slow
@pytest.mark.timeout(3000)
@given(curricula(), st.data())
@settings(max_examples=1000, suppress_health_check=[HealthCheck.too_slow], deadline=None)
def test_every_decision_of_a_thousand_runs_is_recomputed_and_repeated_bit_for_bit(
    tmp_path_factory: pytest.TempPathFactory, run: Curriculum, data: st.DataObject
) -> None:
    check_replay(tmp_path_factory.mktemp("replay"), run, data)


# Differences are found and named.


def recorded(path: Path, steps: int = 150, **fields: Any) -> Curriculum:
    run = curriculum(3, **{"phases": {"initial_random": 2, "max_steps": 14}, "feedback_lag": 2, **fields})
    with Journal.create(path, fsync="never") as journal:
        drive(Walk(run, journal=journal), steps, late=ragged)
    return run


def rewrite(path: Path, change: Any) -> None:
    """Change lines and make the chain anew, as somebody who knows how might."""
    digest, lines = FIRST, []
    for record in list(read_journal(path)):
        body = orjson.dumps(change(record))
        digest = chained(digest, body)
        lines.append(body[:-1] + ending(digest))
    path.write_bytes(b"".join(lines))


def test_an_edited_line_whose_chain_was_made_anew_is_found_by_recomputing(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    recorded(path)
    phases = [record for record in read_journal(path) if record["type"] == "phase"]

    def nudge(record: dict[str, Any]) -> dict[str, Any]:
        if record["number"] == phases[5]["number"]:
            record["weights"][1] = float(np.nextafter(record["weights"][1], 1))
        return record

    rewrite(path, nudge)
    difference = audit(path).difference
    assert difference is not None
    assert (difference.line, difference.step, difference.field) == (
        phases[5]["number"],
        phases[5]["start"],
        "weights[1]",
    )
    assert difference.recomputed == phases[5]["weights"][1]
    shown = cli.invoke(app, ["replay", str(path)])
    assert shown.exit_code == 1
    assert f"line {phases[5]['number']} (phase, step {phases[5]['start']}): weights[1] is" in shown.stdout
    assert "the line (or a report before it) was edited" in shown.stdout


def test_edited_losses_show_at_the_first_decision_that_used_them(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    recorded(path)
    number = next(r["number"] for r in read_journal(path) if r["type"] == "feedback" and r["step"] > 30)

    def double(record: dict[str, Any]) -> dict[str, Any]:
        if record["number"] == number:
            record["loss_sums"] = [2 * value for value in record["loss_sums"]]
        return record

    rewrite(path, double)
    difference = audit(path).difference
    assert difference is not None
    assert difference.kind == "phase"
    assert difference.line > number


@pytest.mark.parametrize(
    ("fields", "cause"),
    [
        ({"seed": 1}, "config field seed: 0 in the journal, 1 in the config"),
        ({"feedback_lag": 20}, "feedback_lag: 2 in"),
    ],
)
def test_another_config_is_named_as_the_cause(tmp_path: Path, fields: dict[str, Any], cause: str) -> None:
    path, other = tmp_path / "run.jsonl", tmp_path / "other.yaml"
    run = recorded(path)
    other.write_text(json.dumps({**run.model_dump(mode="json"), **fields}))
    shown = cli.invoke(app, ["replay", str(path), "--config", str(other)])
    assert shown.exit_code == 1, shown.output
    assert cause in shown.stdout
    assert "first difference: line" in shown.stdout


def test_under_another_config_a_fork_parts_at_its_first_decision_and_not_at_the_line_of_the_fork(
    tmp_path: Path,
) -> None:
    parent, child = tmp_path / "run.jsonl", tmp_path / "fork.jsonl"
    run = recorded(parent, 200)
    step = Replay(parent).phases[6].start
    new = Curriculum(**{**run.model_dump(mode="json"), "floors": {"source-2": 0.5}})
    fork(parent, step, new, child)
    with Journal.open(child) as journal:
        drive(Walk(new, journal=journal), step + 40, since=step)
    assert audit(child, curriculum=new).difference is None
    verdict = audit(child, curriculum=run)
    assert verdict.difference is not None
    assert (verdict.difference.kind, verdict.difference.step) == ("phase", step)
    assert verdict.causes == ["config field floors.source-2: 0.5 in the journal, None in the config"]


def test_a_walk_that_only_ends_sooner_says_which(tmp_path: Path) -> None:
    for name, steps in (("a", 60), ("b", 120)):
        recorded(tmp_path / name, steps)
    shown = cli.invoke(app, ["diff", str(tmp_path / "a"), str(tmp_path / "b")])
    assert shown.exit_code == 1
    assert f"the same phases up to step {Replay(tmp_path / 'a').frontier - 1}; {tmp_path / 'b'} has" in shown.stdout


def test_other_libraries_are_named_as_a_possible_cause(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    recorded(path)

    def older(record: dict[str, Any]) -> dict[str, Any]:
        if record["type"] == "header":
            record["libraries"]["numpy"] = "1.0"
        if record["type"] == "phase" and record["index"] == 4:
            record["owed"][0] += 1e-9
        return record

    rewrite(path, older)
    verdict = audit(path)
    assert verdict.difference is not None
    assert verdict.causes == [f"numpy was 1.0, now {np.__version__}"]


def test_a_sound_walk_says_so_as_words_and_as_json(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    recorded(path)
    shown = cli.invoke(app, ["replay", str(path)])
    assert shown.exit_code == 0, shown.output
    assert "every decision is the same to the last bit" in shown.stdout
    data = json.loads(cli.invoke(app, ["replay", str(path), "--json"]).stdout)
    assert data["is_same"] is True
    assert data["reports"] > 100


# A record in the place of a walk.


def batches(dataset: MixtureDataset, num: int) -> list[dict[str, Any]]:
    found = []
    for batch in dataset:
        tokens = batch["labels"].shape
        losses = np.abs(np.sin(np.arange(tokens.numel()).reshape(tokens) + batch["step"])) + 1
        dataset.report(batch, torch.from_numpy(losses))
        found.append({key: value.tolist() if hasattr(value, "tolist") else value for key, value in batch.items()})
        if len(found) == num:
            break
    return found


def test_a_replay_delivers_exactly_the_batches_of_the_run_and_ends_where_the_record_ends(tmp_path: Path) -> None:
    run, path = Curriculum.from_yaml(_local_config(tmp_path)), tmp_path / "run.jsonl"
    first = MixtureDataset(run, journal=path, provenance=True)
    original = batches(first, 40)
    first.walk.close_journal()
    replay = Replay(path)
    again = MixtureDataset(run, walk=replay, provenance=True)
    assert batches(again, 40) == original
    assert not again.walk.report(3, noisy_losses(run, 3, batch_counts(run, replay.phase_at(3), 3)))
    with pytest.raises(StepError, match=f"step {replay.frontier} lies past the end of the record"):
        batches(again, 10_000)


def test_a_replay_goes_on_from_a_state_of_the_run_and_from_its_own(tmp_path: Path) -> None:
    run, path = Curriculum.from_yaml(_local_config(tmp_path)), tmp_path / "run.jsonl"
    first = MixtureDataset(run, journal=path)
    batches(first, 12)
    state = first.state_dict()
    rest = batches(first, 20)
    first.walk.close_journal()
    for saved in (state, None):
        again = MixtureDataset(run, walk=Replay(path))
        if saved is None:
            batches(again, 12)
            saved = again.state_dict()
            again = MixtureDataset(run, walk=Replay(path))
        again.load_state_dict(saved)
        assert batches(again, 20) == rest


def _local_config(folder: Path) -> Path:
    """Write two small files of text and a curriculum over them."""
    for name in ("a", "b"):
        lines = [json.dumps({"text": f"{name} {i} " + "words of text " * (i % 7)}) for i in range(200)]
        (folder / f"{name}.jsonl").write_text("\n".join(lines))
    sources = [{"name": name, "data_files": f"{name}.jsonl", "on_exhausted": "repeat"} for name in ("a", "b")]
    config = {
        "total_steps": 500,
        "batch_rows": 4,
        "sequence_length": 8,
        "sources": sources,
        "tokenizer": {"train_vocab_size": 300},
    }
    (folder / "run.yaml").write_text(json.dumps(config))
    return folder / "run.yaml"


def test_what_a_record_cannot_do_is_refused_with_what_to_do_instead(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    run = recorded(path)
    replay = Replay(path)
    with pytest.raises(PivotError, match="a replay repeats what .* holds; to go on otherwise, fork it"):
        replay.pivot(LIVE)
    with pytest.raises(StepError, match="step is -1; steps count from 0"):
        replay.phase_at(-1)
    with pytest.raises(FeedbackError, match="rows have shape"):
        replay.report(3, SourceLosses(rows=np.ones(2), tokens=np.ones(2), loss_sums=np.ones(2)))  # type: ignore[arg-type]
    with pytest.raises(StateMismatchError, match="replay state has version 7"):
        replay.load_state_dict({"version": 7})
    with pytest.raises(StateMismatchError, match=run.fingerprint):
        replay.load_state_dict({**Replay(path).state_dict(), "fingerprint": "another"})
    with pytest.raises(StateMismatchError, match="walk state has version 'replay 1'"):
        Walk(run).load_state_dict(replay.state_dict())
    replay.learn_unique_tokens("source-1", 5)
    assert replay.regime_at(10).name == "firehose"


# Forks.


def test_a_fork_shares_history_and_goes_on_under_another_region_and_replays(tmp_path: Path) -> None:
    parent, child = tmp_path / "run.jsonl", tmp_path / "fork.jsonl"
    run = recorded(parent, 200)
    starts = [phase.start for phase in Replay(parent).phases]
    step = starts[6]
    new = Curriculum(**{**run.model_dump(mode="json"), "floors": {"source-2": 0.5}})
    told = fork(parent, step, new, child)
    assert told["digest"] == next(
        line["chain"] for line in map(json.loads, parent.read_text().splitlines()) if line["number"] == told["line"]
    )
    with Journal.open(child) as journal:
        walk = Walk(new, journal=journal)
        assert walk.frontier == step
        drive(walk, step + 90, since=step)
    replay = Replay(child)
    assert (walk.can_pivot, replay.can_pivot) == (True, False)
    for either in (walk, replay):
        assert (either.forked_from, either.forked_at) == (run.fingerprint, step)
    assert (Replay(parent).forked_from, Replay(parent).forked_at) == (None, None)
    assert same(replay.phases[:6], Replay(parent).phases[:6])
    assert all(phase.weights[2] >= 0.5 for phase in replay.phases[6:])
    assert [regime.start for regime in replay.regimes] == [0, step]
    assert replay.regime_at(step - 1).region.lower[2] == 0
    assert replay.regime_at(step).region.lower[2] == 0.5
    verdict = audit(child)
    assert verdict.difference is None
    assert verdict.decisions == len(replay.phases)
    header = next(read_journal(child))
    assert header["parent"]["fingerprint"] == run.fingerprint


def test_a_fork_under_the_same_curriculum_repeats_the_run_it_left(tmp_path: Path) -> None:
    for i, policy in enumerate(["ucb", "andrea", {"name": "ado", "first_fit_step": 20, "refit_steps": 15}]):
        parent, child = tmp_path / f"run-{i}.jsonl", tmp_path / f"fork-{i}.jsonl"
        run = curriculum(3, policy=policy, phases={"max_steps": 14})
        with Journal.create(parent) as journal:
            drive(Walk(run, journal=journal), 200)
        step = Replay(parent).phases[5].start
        fork(parent, step, run, child)
        with Journal.open(child) as journal:
            drive(Walk(run, journal=journal), 200, since=step)
        assert compare(parent, child)["is_same"], policy
        assert audit(child).difference is None


def test_a_policy_of_another_kind_has_learned_from_the_shared_reports(tmp_path: Path) -> None:
    parent, child, grandchild = (tmp_path / f"{name}.jsonl" for name in ("a", "b", "c"))
    run = recorded(parent, 200, policy="static")
    step = Replay(parent).phases[6].start
    bandit = Curriculum(**{**run.model_dump(mode="json"), "policy": {"name": "ucb"}})
    fork(parent, step, bandit, child)
    with Journal.open(child) as journal:
        walk = Walk(bandit, journal=journal)
        drive(walk, step + 60, since=step)
    first = next(r for r in read_journal(child) if r["type"] == "phase" and r["start"] == step)
    assert min(first["parts"]["tokens"]) > 0 or first["kind"] == "random"
    later = Replay(child).phases[8].start
    fork(child, later, run, grandchild)  # back to the first one
    with Journal.open(grandchild) as journal:
        drive(Walk(run, journal=journal), later + 50, since=later)
    assert audit(grandchild).difference is None
    with pytest.raises(StepError, match=f"is itself a fork of step {step}; fork its parent there"):
        fork(child, Replay(parent).phases[2].start, run, tmp_path / "d.jsonl")


def test_where_no_phase_begins_a_fork_is_refused_and_leaves_no_file(tmp_path: Path) -> None:
    parent, child = tmp_path / "run.jsonl", tmp_path / "fork.jsonl"
    run = recorded(parent, 100)
    starts = [phase.start for phase in Replay(parent).phases]
    with pytest.raises(StepError, match=f"no phase begins there; ask for step {starts[3]} or {starts[4]}"):
        fork(parent, starts[3] + 1, run, child)
    with pytest.raises(StepError, match="nothing would be shared"):
        fork(parent, 0, run, child)
    with pytest.raises(ConfigError, match="a fork keeps sources and their order"):
        fork(parent, starts[3], curriculum(2), child)
    planned = {"name": "polish", "at_step": starts[3] + 2, "exclude": ["source-0"]}
    with pytest.raises(ConfigError, match="the start of polish at step"):
        fork(
            parent,
            starts[3],
            Curriculum(
                **{**run.model_dump(mode="json"), "pivots": [planned], "phases": {"min_steps": 7, "max_steps": 14}}
            ),
            child,
        )
    assert not child.exists()
    fork(parent, Replay(parent).frontier, run, child)  # the frontier is a boundary too
    with pytest.raises(JournalError, match="File exists"):
        fork(parent, starts[3], run, child)


@pytest.mark.parametrize("fields", [{"seed": 9}, {"batch_rows": 9}, {"draws": "multinomial"}, {"sequence_length": 5}])
def test_a_fork_that_would_give_the_shared_history_other_rows_is_refused(
    tmp_path: Path, fields: dict[str, Any]
) -> None:
    run = recorded(tmp_path / "run.jsonl", 100)
    step = Replay(tmp_path / "run.jsonl").phases[3].start
    other = Curriculum(**{**run.model_dump(mode="json"), **fields})
    (field,) = fields
    with pytest.raises(ConfigError, match=f"the new config has {field} .* a fork changes bounds, pivots"):
        fork(tmp_path / "run.jsonl", step, other, tmp_path / "fork.jsonl")
    assert not (tmp_path / "fork.jsonl").exists()


def test_a_fork_of_a_fork_by_a_policy_that_needs_every_step_replays(tmp_path: Path) -> None:
    paths = [tmp_path / f"{name}.jsonl" for name in ("a", "b", "c")]
    run = curriculum(3, feedback_lag=20)  # reports wait at every fork
    with Journal.create(paths[0]) as journal:
        drive(Walk(run, journal=journal), 200)
    for i, policy in enumerate(["static", "andrea"]):
        new = Curriculum(**{**run.model_dump(mode="json"), "policy": {"name": policy}})
        step = Replay(paths[i]).phases[6 + i].start
        fork(paths[i], step, new, paths[i + 1])
        with Journal.open(paths[i + 1]) as journal:
            drive(Walk(new, journal=journal), step + 90, since=step)
        assert audit(paths[i + 1]).difference is None


def test_one_loss_for_several_sources_is_no_report(tmp_path: Path) -> None:
    recorded(tmp_path / "run.jsonl", 40)
    with Journal.create(tmp_path / "edited.jsonl") as journal:
        for line in read_journal(tmp_path / "run.jsonl"):
            record = {key: value for key, value in line.items() if key != "number"}
            if record["type"] == "feedback" and len(record["sources"]) > 1:
                record["loss_sums"] = record["loss_sums"][:1]  # numpy would give it to all of them
            journal.append(record)
    with pytest.raises(JournalError, match=r"line \d+: the arrays have lengths .*'loss_sums': 1"):
        audit(tmp_path / "edited.jsonl")


def test_the_command_forks_and_tells_two_walks_apart(tmp_path: Path) -> None:
    parent, child, config = tmp_path / "run.jsonl", tmp_path / "fork.jsonl", tmp_path / "new.yaml"
    run = recorded(parent, 200)
    step = Replay(parent).phases[5].start
    config.write_text(json.dumps({**run.model_dump(mode="json"), "caps": {"source-0": 0.1}}))
    done = cli.invoke(
        app, ["fork", str(parent), "--at-step", str(step), "--config", str(config), "--out", str(child), "--json"]
    )
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["step"] == step
    new = Curriculum.from_yaml(config)
    with Journal.open(child) as journal:
        drive(Walk(new, journal=journal), 180, since=step)
    shown = cli.invoke(app, ["diff", str(parent), str(child)])
    assert shown.exit_code == 1
    assert f"first difference: step {step} (phase 5)" in shown.stdout
    assert "config field caps" in shown.stdout
    data = json.loads(cli.invoke(app, ["diff", str(parent), str(child), "--json"]).stdout)
    spans = data["spans"]
    assert all(span["l1"] == 0 for span in spans if span["start"] < step)
    a, b = (Replay(path).phase_at(179).weights for path in (parent, child))
    assert spans[-1]["l1"] == pytest.approx(np.abs(a - b).sum())
    assert spans[-1]["l2"] == pytest.approx(np.linalg.norm(a - b))
    assert sum(span["steps"] for span in spans) == min(data["steps"])
    same_walk = cli.invoke(app, ["diff", str(parent), str(parent)])
    assert same_walk.exit_code == 0
    assert "the same phases to the last bit" in same_walk.stdout


# The schema.


def test_the_schema_in_the_documents_is_that_of_the_models() -> None:
    assert json.loads(SCHEMA.read_text()) == json.loads(json.dumps(journal_schema())), (
        "run python -m mixer.journal.schema > docs/journal.schema.json"
    )


@given(curricula(), st.data())
@settings(max_examples=10, suppress_health_check=[HealthCheck.too_slow])
def test_every_line_that_is_written_fits_the_schema(
    tmp_path_factory: pytest.TempPathFactory, run: Curriculum, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("schema") / "run.jsonl"
    live_run(path, run, data)
    check = Draft202012Validator(json.loads(SCHEMA.read_text()))
    kinds = set()
    for line in path.read_text().splitlines():
        record = json.loads(line)
        if record["type"] != "feedback" or "feedback" not in kinds:
            check.validate(record)
        kinds.add(record["type"])
        assert not check.is_valid({**record, "surprise": 1})
