"""What a page that watches a run is told: columns, state, outlines, previews; without a server."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mixer.analysis.simulate import simulate
from mixer.config.curriculum import Curriculum
from mixer.config.pivots import Pivot
from mixer.journal.file import Journal, read_journal
from mixer.region.region import Region
from mixer.replay.fork import fork
from mixer.walk.walk import Walk
from service.dashboard.columns import Table, WalkColumns, Watch
from service.dashboard.overview import overview
from service.dashboard.preview import preview
from service.dashboard.projection import corners, outline, walk_on_paper
from service.dashboard.series import COLUMNS, series, span_of
from tests.support.simulated import SimulatedRun
from tests.support.strategies import Problem, problems

NAMES = ["web", "code", "books", "chat"]
ALARM: dict[str, Any] = {
    "type": "alarm", "step": 3, "detector": "cliff", "loss": 0.1, "expected": 3.0, "z": -9.0, "epochs": None,
    "pivot": None, "why_not": None,
}  # fmt: skip


def curriculum(**fields: Any) -> Curriculum:
    return Curriculum(
        total_steps=2000, batch_rows=8, sequence_length=32, sources=[{"name": name} for name in NAMES],
        **{"floors": {"web": 0.3}, "pivots": [{"name": "polish", "at_step": 105, "caps": {"code": 0.1}}], **fields},
    )  # fmt: skip


@pytest.fixture(scope="module")
def run() -> SimulatedRun:
    run = SimulatedRun(curriculum())
    run.advance(1200)
    return run


@pytest.fixture(scope="module")
def chronicle(run: SimulatedRun) -> WalkColumns:
    return run.watch.chronicle()


@given(points=st.integers(1, 100), from_step=st.integers(0, 1300), width=st.integers(1, 1300), top=st.integers(2, 6))
def test_columns_of_any_window_keep_to_their_points_and_stack_to_one(
    chronicle: WalkColumns, points: int, from_step: int, width: int, top: int
) -> None:
    found = series(chronicle, points=points, from_step=from_step, to_step=from_step + width, top=top)
    size = len(found["steps"])
    assert 1 <= size <= points + 1  # a window that begins within a point has its rest too
    for name in COLUMNS:
        assert [len(row) for row in found[name]] == [size] * (len(found["names"]) + (found["num_others"] > 0))
    assert np.sum(found["weights"], axis=0) == pytest.approx(1, abs=1e-4)
    assert np.sum(found["proportions"], axis=0) == pytest.approx(1, abs=1e-4)
    assert found["steps"][0] <= min(from_step, found["end"])
    assert found["until"] >= min(from_step + width, found["end"])


def test_points_of_single_phases_are_what_the_journal_says(run: SimulatedRun, chronicle: WalkColumns) -> None:
    found = series(chronicle)
    phases = [line for line in run.lines if line["type"] == "phase"]
    assert found["per_point"] == 1
    assert list(found["steps"]) == [phase["start"] for phase in phases]
    assert np.transpose(found["weights"]) == pytest.approx(np.array([phase["weights"] for phase in phases]), abs=2e-5)
    counts = np.array([phase["counts"] for phase in phases])
    assert np.transpose(found["proportions"]) == pytest.approx(counts / counts.sum(axis=1, keepdims=True), abs=2e-5)
    assert sum(found["num_random"]) == sum(phase["kind"] == "random" for phase in phases)
    for name in ("index", "width"):
        said = [phase["parts"].get(name) or [None] * 4 for phase in phases]
        np.testing.assert_allclose(np.transpose(found[name]), np.array(said, dtype=np.float64), rtol=1e-4)


def test_points_of_several_phases_average_over_steps(chronicle: WalkColumns) -> None:
    fine, coarse = series(chronicle), series(chronicle, per_point=4)
    lengths = np.diff([*fine["steps"], fine["until"]])
    for k, first in enumerate(range(0, len(lengths), 4)):
        part = slice(first, first + 4)
        mean = np.average(np.array(fine["weights"])[:, part], axis=1, weights=lengths[part])
        assert np.array(coarse["weights"])[:, k] == pytest.approx(mean, abs=2e-5)
        tail = np.array(fine["index"])[:, part]
        for i, row in enumerate(tail):
            known = row[~np.isnan(row)]
            assert coarse["index"][i][k] == pytest.approx(known[-1], rel=1e-4) if known.size else True


def test_losses_are_those_reported_in_the_phases_of_a_point(tmp_path: Path) -> None:
    with Journal.create(tmp_path / "walk.jsonl") as journal:
        for _ in simulate(curriculum(), 400, journal=journal):
            pass
    chronicle = watched(read_journal(tmp_path / "walk.jsonl"))
    found = series(chronicle, per_point=2)
    edges = [*found["steps"], found["until"]]
    sums, tokens = np.zeros((2, 4, len(found["steps"])))
    for record in read_journal(tmp_path / "walk.jsonl"):
        if record["type"] == "feedback":
            k = int(np.searchsorted(edges, record["step"], side="right")) - 1
            sums[record["sources"], k] += record["loss_sums"]
            tokens[record["sources"], k] += record["tokens"]
    expected = np.divide(sums, tokens, out=np.full_like(sums, np.nan), where=tokens > 0)
    np.testing.assert_allclose(np.array(found["losses"]), expected, rtol=1e-4)
    now = {source["name"]: source for source in overview(chronicle)["sources"]}
    assert sum(source["tokens"] for source in now.values()) == tokens.sum()
    assert now["web"]["loss"] is not None


def test_the_last_points_asked_for_again_join_those_there(run: SimulatedRun) -> None:
    growing = SimulatedRun(curriculum())
    growing.advance(500)
    before = series(growing.watch.chronicle(), points=10)
    growing.advance(500)
    tail = series(growing.watch.chronicle(), from_step=before["steps"][-1], per_point=before["per_point"])
    whole = series(growing.watch.chronicle(), per_point=before["per_point"])
    assert [*before["steps"][:-1], *tail["steps"]] == list(whole["steps"])
    for name in COLUMNS:
        joined = np.concatenate([np.array(before[name])[:, :-1], np.array(tail[name])], axis=1)
        settled = slice(0, -2) if name == "losses" else slice(None)  # reports of the newest phase were still to come
        np.testing.assert_array_equal(joined[:, settled], np.array(whole[name])[:, settled])


def test_small_sources_are_added_up_without_losing_rows(chronicle: WalkColumns) -> None:
    whole, folded = series(chronicle), series(chronicle, top=2)
    assert folded["num_others"] == 3
    kept = whole["names"].index(folded["names"][0])
    others = [i for i in range(4) if i != kept]
    assert folded["weights"][1] == pytest.approx(np.array(whole["weights"])[others].sum(axis=0), abs=2e-5)


def test_nothing_decided_yet_is_told_as_nothing() -> None:
    run = SimulatedRun(curriculum())
    found = series(run.watch.chronicle())
    assert found["steps"] == []
    state = overview(run.watch.chronicle())
    assert state["phase"] is None
    assert [source["weight"] for source in state["sources"]] == [0, 0, 0, 0]
    assert walk_on_paper(run.watch.chronicle())["points"] == []
    assert preview(run.watch.chronicle(), floors={"web": 0.9}, caps=None, exclude=None)["landed"][0] == 0.9


ROWS = st.lists(st.none() | st.floats(), min_size=2, max_size=2) | st.floats()


@example([("append", 1.0), ("pop", 1.0), ("append", 2.0)])  # a pivot undoes the only phase
@given(st.lists(st.tuples(st.sampled_from(["append", "append", "append", "pop", "look", "end"]), ROWS), max_size=200))
def test_a_table_has_the_rows_that_were_appended_whenever_somebody_looks(calls: list[tuple[str, Any]]) -> None:
    table, rows = Table(2), list[Any]()
    ended: list[tuple[Table, list[Any]]] = []
    for what, row in calls:
        if what == "append":
            table.append(row)
            rows.append(
                [
                    x if x is not None and np.isfinite(x) else None
                    for x in ([row] * 2 if isinstance(row, float) else row)
                ]
            )
        elif what == "pop" and rows and not ended:  # a row that takes the place of one taken away is seen in both
            table.pop()
            rows.pop()
        elif what == "look":
            assert len(table.rows) == len(rows)
        elif what == "end":
            ended.append((table.ended(), list(rows)))
    for each, expected in [(table, rows), *ended]:
        np.testing.assert_array_equal(each.rows, np.array(expected, dtype=np.float64).reshape(-1, 2))


def test_a_snapshot_does_not_move_while_the_run_goes_on() -> None:
    run = SimulatedRun(curriculum())
    run.advance(300)
    snapshot = run.watch.chronicle()
    before = series(snapshot), overview(snapshot)["sources"], len(snapshot.entries)
    run.advance(900)
    after = series(snapshot), overview(snapshot)["sources"], len(snapshot.entries)
    assert list(after[0]["steps"]) == list(before[0]["steps"])
    assert after[2] == before[2]
    for was, now in zip(before[1], after[1], strict=True):
        assert was["weight"] == now["weight"]
        assert was["tokens"] == now["tokens"]


@pytest.mark.parametrize("back", [4, 0])
def test_a_pivot_that_cuts_the_newest_phase_leaves_what_is_left_of_it(back: int) -> None:
    run = SimulatedRun(curriculum(pivots=[]))
    run.hasten(300)
    newest = run.walk.phase_at(run.step)  # decided, and not one step of it reported
    undone = watched(run.lines)
    step = newest.start + back
    run.walk.pivot(Pivot(name="now", caps={"web": 0.35}), at_step=step, cut=True)
    found = run.watch.chronicle()
    assert found.end == step == run.walk.frontier
    assert found.newest["index"] == newest.index - (back == 0)
    assert len(found.starts) == len(undone.starts) - (back == 0)
    assert "cuts the newest phase" in found.entries[-1].text
    run.hasten(900)
    after = overview(run.watch.chronicle())
    assert sum(source["rows"] for source in after["sources"]) == 8 * after["end"]
    for source in after["sources"]:
        assert source["proportion"] == pytest.approx(source["mean_weight"], abs=1 / after["end"])


def watched(lines: Iterable[Mapping[str, Any]]) -> WalkColumns:
    return watched_lines(lines).chronicle()


def watched_lines(lines: Iterable[Mapping[str, Any]]) -> Watch:
    watch = Watch()
    for line in lines:
        watch.add(line)
    return watch


def test_a_fork_shows_what_it_shares_as_its_parent_had_it(tmp_path: Path) -> None:
    parent = SimulatedRun(curriculum(), tmp_path / "parent")
    parent.hasten(300)
    parent.walk.pivot(Pivot(name="live", floors={"code": 0.05, "web": 0.9}))  # no room for it in the fork's bounds
    parent.hasten(600)
    parent.close()
    child = curriculum(floors={"web": 0.2, "books": 0.3}, pivots=[{"name": "last", "at_step": 1500}])
    fork(tmp_path / "parent", parent.walk.phase_at(599).start, child, tmp_path / "child")
    found = watched(read_journal(tmp_path / "child"))
    assert [regime.name for regime in found.regimes] == ["firehose", "polish", "live", "last"]
    assert found.regimes[0].region.lower.tolist() == [0.3, 0, 0, 0]
    with Journal.open(tmp_path / "child") as journal:
        walk = Walk(child, journal=journal)
        walk.phase_at(walk.frontier)
    found = watched(read_journal(tmp_path / "child"))
    assert [regime.name for regime in found.regimes] == ["firehose", "polish", "live", "firehose", "last"]
    assert found.regimes[3].bounds.floors == {"web": 0.2, "books": 0.3}
    assert [entry.type for entry in found.entries][-2:] == ["fork", "phase"]
    assert preview(found, floors=None, caps=None, exclude=["code"])["is_feasible"]


def test_ranks_that_lag_come_first() -> None:
    run = SimulatedRun(curriculum(), num_ranks=3)
    run.advance(50, (0, 7, 2))
    assert [(rank["rank"], rank["step"], rank["lag"]) for rank in overview(run.watch.chronicle())["ranks"]] == [
        (1, 42, 7), (2, 47, 2), (0, 49, 0),
    ]  # fmt: skip


def test_sources_are_found_by_name_and_the_largest_come_first(chronicle: WalkColumns) -> None:
    weights = [source["weight"] for source in overview(chronicle)["sources"]]
    assert weights == sorted(weights, reverse=True)
    assert [source["name"] for source in overview(chronicle, query="OO")["sources"]] == ["books"]
    assert len(overview(chronicle, limit=2)["sources"]) == 2


def test_proportions_and_averaged_weights_agree(chronicle: WalkColumns) -> None:
    for source in overview(chronicle)["sources"]:
        assert source["proportion"] == pytest.approx(source["mean_weight"], abs=2 / (8 * 1200))


@settings(max_examples=50)
@given(problem=problems(), seed=st.integers(0, 2**32 - 1))
def test_no_mixture_of_a_region_lies_outside_its_outline(problem: Problem, seed: int) -> None:
    hull, places = outline(problem.region), corners(len(problem.names))
    points = problem.region.sample(np.random.default_rng(seed), 20) @ places
    angles = np.linspace(0, 2 * np.pi, 90, endpoint=False)
    directions = np.stack([np.cos(angles), np.sin(angles)])
    slack = 1e-3  # between two of the directions tried the outline cuts a corner
    assert ((points @ directions).max(axis=0) <= (hull @ directions).max(axis=0) + slack).all()


def test_the_outline_of_three_sources_has_exactly_its_vertices() -> None:
    region = Region(["a", "b", "c"], floors={"a": 0.2}, caps={"b": 0.5, "c": 0.6})
    expected = {tuple(point) for point in np.round(region.vertices() @ corners(3), 6)}
    assert {tuple(point) for point in np.round(outline(region), 6)} == expected


def test_an_outline_goes_round_once() -> None:
    hull = outline(Region([f"s{i}" for i in range(9)], floors={"s1": 0.2}, caps={"s4": 0.3}))
    edges = np.roll(hull, -1, axis=0) - hull
    turns = edges[:, 0] * np.roll(edges, -1, axis=0)[:, 1] - edges[:, 1] * np.roll(edges, -1, axis=0)[:, 0]
    assert (turns > -1e-9).all()
    assert np.arctan2(*(hull - hull.mean(axis=0)).T[::-1]).size == len({tuple(point) for point in hull.tolist()})


def test_a_preview_is_what_the_pivot_then_does() -> None:
    run = SimulatedRun(curriculum())
    run.advance(300)
    bounds: dict[str, Any] = {"floors": {"code": 0.2, "chat": 0.35}, "caps": {"web": 0.25}, "exclude": ("books",)}
    said = preview(run.watch.chronicle(), **bounds)
    step = run.walk.pivot(Pivot(name="new", **bounds))
    run.walk.phase_at(step)
    landed = run.lines[-1]
    assert said["at_step"] == step == landed["start"]
    assert said["landed"] == landed["landed"]
    assert said["distance"] == pytest.approx(landed["distance"])
    assert said["log_volume"] == landed["log_volume"]
    assert said["lower"] == landed["region"]["lower"]
    assert said["upper"] == landed["region"]["upper"]


def test_tables_left_out_of_a_preview_stay_in_force(chronicle: WalkColumns) -> None:
    said = preview(chronicle, floors=None, caps=None, exclude=["chat"])
    assert said["upper"][1] == 0.1  # of the polish
    assert said["lower"][0] >= 0.3
    assert said["upper"][3] == 0


@pytest.mark.parametrize(
    ("bounds", "code", "problem"),
    [
        (
            {"floors": {"web": 0.7, "chat": 0.5}},
            "infeasible-region",
            "^floors sum to 1.2, .*lower them by 0.2 in total",
        ),
        ({"floors": {"wob": 0.7}}, "unknown-source", "unknown source 'wob'; did you mean 'web'"),
        ({"exclude": ["web"]}, "infeasible-region", "web is excluded but has a floor of 0.3"),
    ],
)
def test_a_pivot_that_cannot_be_is_told_why(
    chronicle: WalkColumns, bounds: dict[str, Any], code: str, problem: str
) -> None:
    said = preview(chronicle, **{"floors": None, "caps": None, "exclude": None, **bounds})
    assert not said["is_feasible"]
    assert said["code"] == code
    assert re.search(problem, said["problem"])
    assert "preview" not in said["problem"]


def test_a_span_begins_where_its_points_do(chronicle: WalkColumns) -> None:
    span = span_of(chronicle, points=1000, from_step=500, to_step=None, per_point=8)
    assert span.first % 8 == 0
    assert span.edges[0] == span.first


# --- times, alarms that last, silence, all sources together ---


def test_lines_are_listed_with_their_times_and_those_of_older_journals_without() -> None:
    for time_of in (None, lambda step: 1e9 + step):
        run = SimulatedRun(curriculum(), time_of=time_of)
        run.hasten(300)
        chronicle = run.watch.chronicle()
        state = overview(chronicle)
        regimes = {regime["name"]: regime["at"] for regime in state["regimes"]}
        listed = [entry.shown() for entry in chronicle.entries if entry.type == "phase"]
        if time_of is None:
            assert (
                {entry["at"] for entry in listed}
                == {state["phase"]["at"], state["began_at"], *regimes.values()}
                == {None}
            )
        else:
            assert [entry["at"] for entry in listed] == [time_of(entry["step"]) for entry in listed]
            assert state["phase"]["at"] == listed[-1]["at"]
            assert regimes == {"firehose": 1e9, "polish": 1e9 + 105}


@given(
    calls=st.lists(
        st.tuples(st.sampled_from(["alarm", "judged", "random"]), st.sets(st.sampled_from(NAMES))), max_size=20
    )
)
def test_an_alarm_lasts_until_a_decision_that_looks_at_its_source_lets_go_of_it(
    run: SimulatedRun, calls: list[tuple[str, set[str]]]
) -> None:
    watch = watched_lines([line for line in run.lines if line["type"] == "header"])
    template = next(line for line in run.lines if line["type"] == "phase")
    lasting = set[str]()
    for step, (what, names) in enumerate(calls):
        if what == "alarm":
            for name in names:
                watch.add({**ALARM, "source": name, "decided_before": step})
            lasting |= names
        phase_kind = "random" if what == "random" else "bandit"
        parts: dict[str, Any] = {}
        if phase_kind == "bandit":
            held = names if what == "judged" else lasting
            lasting = set(held)
            parts = {"index": [1.0] * 4, "alarm": [float(name in held) for name in NAMES]}
        watch.add({**template, "start": step, "length": 1, "kind": phase_kind, "parts": parts, "region": None})
        state = overview(watch.chronicle())
        assert {alarm["source"] for alarm in state["alarms"] if alarm["is_lasting"]} == lasting & {
            alarm["source"] for alarm in state["alarms"]
        }


def test_an_alarm_of_the_newest_lines_lasts_before_anything_was_decided_on_it(run: SimulatedRun) -> None:
    watch = watched_lines(run.lines)
    watch.add({**ALARM, "source": "books", "decided_before": run.watch.chronicle().end})
    [alarm] = overview(watch.chronicle())["alarms"]
    assert (alarm["source"], alarm["is_lasting"]) == ("books", True)


@given(st.lists(st.floats(0.01, 300), min_size=1, max_size=80), st.floats(0, 5000))
def test_a_run_is_silent_since_its_newest_step_and_stalls_by_how_long_its_steps_take(
    gaps: list[float], since: float
) -> None:
    now = [0.0]
    watch = Watch(lambda: now[0])
    report: dict[str, Any] = {"type": "feedback", "rank": 0, "sources": [], "loss_sums": [], "tokens": []}
    watch.add({"type": "header", "curriculum": curriculum().model_dump(mode="json"), "parent": None})
    watch.add({**report, "step": 0})
    for step, gap in enumerate(gaps, start=1):
        now[0] += gap
        watch.add({**report, "step": step})
        watch.add({**report, "step": 0, "rank": 1})  # a rank that is late is no new step
    now[0] += since
    silence = watch.silence()
    assert silence["quiet_s"] == pytest.approx(since, abs=1e-6)
    assert silence["stall_s"] >= 60
    assert silence["stall_s"] >= 5 * min(gaps[-32:]) - 1e-6
    assert silence["stall_s"] <= max(60, 5 * max(gaps[-32:]) + 1e-6)


def test_a_record_is_never_silent() -> None:
    assert Watch(is_live=False).silence() == {}


@given(per_point=st.sampled_from([1, 2, 8]), top=st.integers(1, 6))
def test_the_loss_of_all_sources_is_weighted_by_their_tokens(chronicle: WalkColumns, per_point: int, top: int) -> None:
    found = series(chronicle, per_point=per_point, top=top)
    phases = np.searchsorted(chronicle.starts, [*found["steps"], found["until"]])
    sums, tokens = chronicle.reported.table().sum(axis=2)
    expected = [sums[a:b].sum() / tokens[a:b].sum() for a, b in itertools.pairwise(phases)]
    np.testing.assert_allclose(found["loss"], expected, rtol=1e-4)
