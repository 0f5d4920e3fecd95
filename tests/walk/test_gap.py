"""The guard's gap: training losses that fall while held-out losses do not, and the same alarms in every replay."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from mixer.analysis.explain import explain
from mixer.analysis.watch import Follower, frame
from mixer.config.curriculum import Curriculum
from mixer.config.policy import GuardConfig
from mixer.errors import ConfigError
from mixer.journal.file import Journal, read_journal
from mixer.journal.words import alarm_in_words
from mixer.losses import SourceLosses
from mixer.region.regimes import IN_ALARM
from mixer.replay.fork import fork
from mixer.replay.replay import Replay
from mixer.replay.verify import audit
from mixer.sampling.phases import Phase
from mixer.sampling.randomness import uniforms
from mixer.types import Array, IntArray, State
from mixer.walk.guard import NAMES, Alarm, Guard
from mixer.walk.reports import ReportSum
from mixer.walk.walk import Walk
from tests.support.curricula import batch_counts, curriculum, same_phases

TOKENS = 100
ROWS = 16
FELL = 120  # the step from which source-1 is learned by heart


def watched(
    train: Array, held_out: Array, *, unique: float = TOKENS, every: int = 1, **fields: Any
) -> tuple[list[tuple[int, Alarm]], State]:
    """Let a guard look at losses [N, K] with a probe in each ``every``-th decision; return the gaps that open."""
    guard, num = Guard(GuardConfig(**fields), TOKENS), train.shape[1]
    state, found = guard.initial(num), []
    for n, (means, others) in enumerate(zip(train, held_out, strict=True)):
        used = [ReportSum(n, n, losses_of(means))]
        probe = losses_of(others) if n % every == 0 else None
        state, begun = guard.look(
            state, used, probe, since=n, until=n + 1, unique_tokens=np.full(num, unique * ROWS)
        )  # fmt: skip
        found += [(n, alarm) for alarm in begun if alarm.detector == "gap"]
    return found, state


def losses_of(means: Array) -> SourceLosses:
    """Losses of ROWS rows of each source; NaN: none."""
    rows = np.where(np.isnan(means), 0, ROWS)
    return SourceLosses(rows=rows, tokens=rows * TOKENS, loss_sums=np.nan_to_num(means) * rows * TOKENS)


def noisy(means: Array, seed: int, sd: float = 0.05) -> Array:
    """Losses with Student's t noise of 5 degrees of freedom."""
    noise = np.random.default_rng(seed).standard_t(5, means.shape) * sd / np.sqrt(5 / 3)
    return np.asarray(np.maximum(means + noise, 0.01))


def curve(num: int, num_sources: int, fall: float = 0.3) -> Array:
    """Losses [N, K] that fall with the logarithm of the tokens, as one learns."""
    return np.tile(5.0 - fall * np.log(np.arange(num) + 1.0)[:, None], (1, num_sources))


@settings(max_examples=12)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0.0, 0.1, 0.5]), st.floats(0.0, 3.0), st.integers(1, 5))
def test_what_is_learned_opens_no_gap_however_wide_a_steady_one_is(
    seed: int, fall: float, width: float, every: int
) -> None:
    held_out = curve(400, 3, fall) + width
    assert watched(noisy(curve(400, 3, fall), seed), held_out, every=every)[0] == []


@settings(max_examples=12)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0.0, 0.002]), st.sampled_from([1, 3]))
def test_a_training_loss_that_falls_while_the_held_out_loss_stays_or_rises_is_found_soon(
    seed: int, rise: float, every: int
) -> None:
    train, held_out = curve(400, 3, 0.1), curve(400, 3, 0.1)
    late = np.maximum(np.arange(400) - 200.0, 0.0)
    train[:, 1] -= 0.01 * late
    held_out[200:, 1] = held_out[200, 1] + rise * late[200:]
    found, state = watched(noisy(train, seed), held_out, every=every)
    assert [alarm.source for _, alarm in found] == [1]
    ((at, alarm),) = found
    assert 200 < at < 200 + 70
    assert alarm.z < 0
    assert alarm.loss < alarm.expected
    assert alarm.held_out == pytest.approx(held_out[at, 1])
    assert Guard.in_alarm(state).tolist() == [False, True, False]


def test_a_held_out_loss_that_falls_too_is_no_gap() -> None:
    late = np.maximum(np.arange(400) - 200.0, 0.0)[:, None]
    train, held_out = 5.0 - 0.01 * late, 5.0 - 0.004 * late
    assert watched(noisy(train, 0), held_out)[0] == []
    assert len(watched(noisy(train, 0), held_out, gap_share=0.5)[0]) == 1


def test_losses_that_both_rise_are_no_gap() -> None:
    late = np.maximum(np.arange(400) - 200.0, 0.0)[:, None]
    assert watched(noisy(3.0 + 0.002 * late, 0), 3.0 + 0.01 * late)[0] == []


def test_an_alarm_ends_when_the_gap_stays_as_it_is() -> None:
    train, held_out = np.full((500, 2), 3.0), np.full((500, 2), 3.0)
    train[200:240, 0] -= 0.02 * np.arange(40)
    train[240:, 0] -= 0.8
    found, state = watched(noisy(train, 3), held_out)
    assert [alarm.source for _, alarm in found] == [0]
    assert watched(noisy(train, 3)[:235], held_out[:235])[1]["alarms"][0] > 0
    assert state["gap_rise"][0] == 0.0


def test_a_source_that_was_not_read_through_yet_is_not_judged_by_its_gap() -> None:
    train, held_out = np.full((300, 1), 3.0), np.full((300, 1), 3.0)
    train[150:] -= 0.01 * np.arange(150)[:, None]
    read_through = 200.0
    ((at, alarm),) = watched(noisy(train, 0), held_out, unique=TOKENS * read_through)[0]
    assert at >= read_through
    assert alarm.epochs is not None
    assert alarm.epochs > 1
    ((sooner, alarm),) = watched(noisy(train, 0), held_out, unique=0)[0]
    assert sooner < at
    assert alarm.epochs is None


def test_a_source_without_held_out_rows_has_no_gap() -> None:
    train, held_out = np.full((300, 2), 3.0), np.full((300, 2), 3.0)
    train[150:] -= 0.01 * np.arange(150)[:, None]
    held_out[:, 0] = np.nan
    assert [alarm.source for _, alarm in watched(noisy(train, 0), held_out)[0]] == [1]


@settings(max_examples=8)
@given(st.integers(0, 2**32 - 1), st.sampled_from([2.0**-4, 4.0]), st.permutations(range(3)))
def test_neither_the_unit_of_losses_nor_the_order_of_sources_matters(seed: int, unit: float, order: list[int]) -> None:
    train, held_out = noisy(np.full((300, 3), 3.0), seed), np.full((300, 3), 3.0)
    train[150:, 1] -= 0.01 * np.arange(150)
    expected, _ = watched(train, held_out)
    assert [alarm.source for _, alarm in expected] == [1]
    found, _ = watched(train[:, order] * unit, held_out[:, order] * unit)
    assert [(n, order[a.source], a.z) for n, a in found] == [(n, a.source, a.z) for n, a in expected]


# In a walk.


def probed(**fields: Any) -> Curriculum:
    """A curriculum with probes whose guard judges early: phases of 1 to 4 steps, 8 observations, small sources."""
    given_: dict[str, Any] = {
        "holdout": 0.1,
        "probes": {"rows": 4},
        "policy": "ucb",
        "phases": {"min_steps": 1, "max_steps": 4, "initial_random": 2},
        "guard": {"min_observations": 8, "drift_h": 1e6},
        "sources": [{"name": f"source-{i}", "local": "topics", "tokens": 500} for i in range(3)],
        "max_epochs": None,
    }
    return curriculum(3, **{**given_, **fields})


def drive(walk: Walk, until: int, *, since: int = 0) -> list[Phase]:
    """Train up to a step; from step FELL on the training loss of source-1 falls, and no held-out loss ever does."""
    run, phases = walk.curriculum, []
    for step in range(since, until):
        phases.append(walk.phase_at(step))
        if run.probes is not None and walk.probe_step(step) == step:
            number = len(run.probed_names)
            tokens = np.full(number, 4 * run.sequence_length)
            walk.report_probe(step, SourceLosses(rows=np.full(number, 4), tokens=tokens, loss_sums=3.0 * tokens))
        rows: IntArray = batch_counts(run, phases[-1], step)
        means = 3.0 + 0.05 * (uniforms(rows.size, run.seed, "test.losses", step) - 0.5)
        means[1] -= 0.01 * max(step - FELL, 0)
        tokens = rows * run.sequence_length
        walk.report(step, SourceLosses(rows=rows, tokens=tokens, loss_sums=means * tokens))
    return phases


def alarms_of(path: Path) -> list[dict[str, Any]]:
    return [record for record in read_journal(path) if record["type"] == "alarm"]


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"feedback_lag": 5},
        {"guard": {"min_observations": 8, "drift_h": 1e6, "action": "suspend"}, "floors": {"source-1": 0.2}},
        {"policy": {"name": "water_filling", "losses": "heldout"}, "probes": {"rows": 4, "every": 3}},
    ],
)
def test_an_alarm_for_a_gap_is_journalled_replayed_and_told(tmp_path: Path, fields: dict[str, Any]) -> None:
    path, run = tmp_path / "run.jsonl", probed(**fields)
    with Journal.create(path, fsync="never") as journal:
        phases = drive(Walk(run, journal=journal), 260)
    (alarm, *_) = alarms_of(path)
    assert (alarm["source"], alarm["detector"], alarm["held_out"]) == ("source-1", "gap", 3.0)
    assert FELL < alarm["step"] < 230
    assert run.guard is not None
    assert alarm["pivot"] == (
        f"{IN_ALARM}{alarm['decided_before']}-source-1" if run.guard.action == "suspend" else None
    )
    assert audit(path).difference is None
    assert same_phases([*map(Replay(path).phase_at, range(260))], phases)

    words = alarm_in_words(alarm)
    assert "may be learned by heart (gap: its training loss falls, its held-out loss does not)" in words
    assert "held-out loss 3" in words
    assert f"Alarm: {words}." in explain(path, alarm["decided_before"])["words"]
    follower = Follower(path)
    follower.poll()
    console = Console(width=300, record=True)
    console.print(frame(follower))
    assert f"alarm: {words}" in console.export_text()


@pytest.mark.parametrize("at", [100, 190])
def test_a_walk_restored_goes_on_bit_for_bit(at: int) -> None:
    walk = Walk(probed(feedback_lag=3))
    drive(walk, at)
    state = json.loads(json.dumps(walk.state_dict()))
    restored = Walk(walk.curriculum)
    restored.load_state_dict(state)
    assert same_phases(drive(restored, 260, since=at), drive(walk, 260, since=at))
    assert restored.state_dict() == walk.state_dict()
    assert walk.state_dict()["guard"]["alarms"][1] > 0


def test_without_probes_the_guard_knows_nothing_of_gaps_and_a_fork_with_probes_begins_to(tmp_path: Path) -> None:
    path, run = tmp_path / "run.jsonl", probed(probes=None)
    with Journal.create(path, fsync="never") as journal:
        walk = Walk(run, journal=journal)
        drive(walk, 60)
        assert set(walk.state_dict()["guard"]) == {*NAMES, "tide"}
    fork(path, walk.frontier, probed(), tmp_path / "fork.jsonl", fsync="never")
    with Journal.open(tmp_path / "fork.jsonl") as journal:
        drive(Walk(probed(), journal=journal), 260, since=walk.frontier)
    assert [alarm["detector"] for alarm in alarms_of(tmp_path / "fork.jsonl")] == ["gap"]
    assert audit(tmp_path / "fork.jsonl").difference is None


def test_settings_of_the_gap_count_only_where_they_are_given_and_need_probes() -> None:
    plain = {"min_observations": 8}
    assert GuardConfig(**plain).gap_h == 20.0
    assert curriculum(3, guard=plain).fingerprint == "ab030c32f74c95d7215bd71795c77a96"
    assert probed(guard={**plain, "gap_h": 30}).fingerprint != probed(guard=plain).fingerprint
    with pytest.raises(ConfigError, match="guard: gap_h is 30, but there are no probes.*ask for them"):
        curriculum(3, guard={"gap_h": 30})
    for setting, value in (("gap_h", 0), ("gap_share", 1.0), ("gap_k", -1)):
        with pytest.raises(ConfigError, match=setting):
            probed(guard={setting: value})
