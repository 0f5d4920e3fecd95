"""Whose reports count, what a token of scope train can do to a run, and journals that vanish under a server."""

from __future__ import annotations

import asyncio
import json
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mixer.config.curriculum import Curriculum
from mixer.config.pivots import Pivot
from mixer.errors import FeedbackError, JournalError, RepeatedRowsError, StateMismatchError
from mixer.losses import SourceLosses
from mixer.replay.verify import audit
from mixer.sources.prepared.prepare import prepare
from mixer.types import IntArray
from service.client import MixerClient, RemoteMixtureDataset
from service.dashboard.columns import WalkColumns, Watch
from service.dashboard.overview import overview
from service.dashboard.series import series
from service.errors import NotReadyError
from service.runs.engine import Engine
from tests.support.engines import body, rows_of, running, train
from tests.support.serving import B, Served, T, losses_of, post, write_run
from tests.support.simulated import SimulatedRun


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("reports")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MIXER_CACHE", str(folder / "cache"))
        prepare(Curriculum.from_yaml(write_run(folder)), folder / "rows")
        yield folder


def curriculum_of(folder: Path, **changes: Any) -> Curriculum:
    return Curriculum.from_yaml(write_run(folder, prepared="rows", **changes))


def given_to(engine: Engine, step: int, rank: int, world_size: int) -> SourceLosses:
    """Ask for a batch, and return what an honest rank says of it."""
    return losses_of(rows_of(body(engine, step, rank, world_size)), rank)


# Who reports for whom.


@pytest.mark.parametrize(
    ("first", "second"),
    [((0, 1), (7, 8)), ((0, 2), (2, 8)), ((3, 8), (1, 2)), ((1, 4), (0, 1))],
)
@pytest.mark.parametrize("says_so", [True, False])
def test_one_batch_is_not_counted_as_two_ranks_of_two_numbers(
    folder: Path, tmp_path: Path, first: tuple[int, int], second: tuple[int, int], says_so: bool
) -> None:
    with running(curriculum_of(folder), tmp_path / "runs") as engine:
        for rank, world_size in (first, second):
            losses = given_to(engine, 0, rank, world_size)
            said = world_size if says_so else None
            if (rank, world_size) == first:
                assert engine.report(0, losses, said)
            else:
                with pytest.raises(RepeatedRowsError, match=rf"step 0 was reported by ranks of {first[1]} before"):
                    engine.report(0, losses, said)
        told = engine.watch.heard()[1]["tokens_of"]
        assert sum(told) == T * B // first[1]


def test_a_step_that_all_rows_were_reported_of_takes_no_more_after_a_restart_either(
    folder: Path, tmp_path: Path
) -> None:
    run = curriculum_of(folder)
    with running(run, tmp_path / "runs") as engine:
        train(engine, range(12), world_size=1)
    with running(run, tmp_path / "runs") as engine:
        for step in (11, 3):
            losses = given_to(engine, step, 7, 8)
            with pytest.raises(RepeatedRowsError, match=f"step {step} reports 1 rows more, but all 8 rows"):
                engine.report(step, losses)


def test_a_rank_reports_the_batch_that_it_was_given_and_no_other(folder: Path, tmp_path: Path) -> None:
    with running(curriculum_of(folder), tmp_path / "runs") as engine:
        mine = given_to(engine, 0, 0, 4)
        with pytest.raises(FeedbackError, match="step 0 was not given to rank 3, but to ranks of 4"):
            engine.report(0, replace(mine, rank=3))
        with pytest.raises(FeedbackError, match="not given to rank 0 of 2, but to ranks of 4"):
            engine.report(0, mine, 2)
        whole = losses_of(rows_of(body(engine, 0, 0, 1)), 0)
        with pytest.raises(FeedbackError, match=r"step 0: rank 0 of 4 reports \d rows of s\d, but it was given \d"):
            engine.report(0, whole, 4)
        assert engine.report(0, mine, 4)
        assert not engine.report(0, whole, 1)
        assert engine.said.differs(0, whole)
        assert engine.said.differs(0, mine) is False


@given(st.data())
@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_whatever_ranks_ask_and_say_no_row_counts_twice_and_honest_ranks_of_one_number_all_count(
    folder: Path, tmp_path: Path, data: st.DataObject
) -> None:
    ranks = [(rank, world_size) for world_size in (1, 2, 4, 8) for rank in range(world_size)]
    runs = Path(mkdtemp(dir=tmp_path))
    with running(curriculum_of(folder), runs) as engine:
        batch = rows_of(body(engine, 0, 0, 1))
        taken: set[tuple[int, int]] = set()
        for rank, world_size in data.draw(st.permutations(ranks)):
            losses = given_to(engine, 0, rank, world_size)
            try:
                if engine.report(0, losses, world_size):
                    taken.add((rank, world_size))
            except RepeatedRowsError:
                assert taken
        (world_size,) = {world_size for _, world_size in taken}
        assert len(taken) == world_size
    reports = feedback(runs / "run" / "journal.jsonl")
    counted: Counter[int] = Counter()
    for report in reports:
        counted.update(dict(zip(report["sources"], report["rows"], strict=True)))
    assert counted == Counter(batch.source_ids.tolist())


def feedback(journal: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in journal.read_text().splitlines()]
    return [line for line in lines if line["type"] == "feedback"]


def test_a_trainer_that_draws_by_the_weights_itself_reports_its_own_rows(folder: Path, tmp_path: Path) -> None:
    with running(curriculum_of(folder), tmp_path / "runs") as engine:
        own: IntArray = np.array([3, 1, 2, 2])  # the batch has two of each
        losses = SourceLosses(own, own * T, np.full(4, 6.0 * T), rank=0)
        while not engine.builder.is_ready:
            time.sleep(0.01)
        with pytest.raises(FeedbackError, match=r"step 0 reports 3 rows of s\d, but its batch has \d of it"):
            engine.report(0, losses)  # nobody asked for weights to draw by
        asyncio.run(engine.phase(0, 10, may_decide=True))
        assert engine.report(0, losses)
        with pytest.raises(RepeatedRowsError):
            engine.report(0, replace(losses, rank=1))


def test_over_http_a_second_report_hears_whether_the_first_said_otherwise(tmp_path: Path) -> None:
    with Served(write_run(tmp_path), tmp_path / "runs") as server, MixerClient(server.url) as client:
        names = tuple(client.config()["names"])
        losses = losses_of(client.batch(0, 1, 2), 1)
        assert client.report(0, losses, names, 2)
        told: dict[str, Any] = {
            "step": 0,
            "rank": 1,
            "sources": {
                names[i]: {
                    "rows": int(losses.rows[i]),
                    "tokens": int(losses.tokens[i]),
                    "loss_sum": losses.loss_sums[i],
                }
                for i in np.flatnonzero(losses.rows)
            },
        }
        other = post(server.url + "/feedback", json=told)
        assert (other.status_code, other.json()) == (200, {"is_new": False, "differs": True})
        for source, i in zip(told["sources"].values(), np.flatnonzero(losses.rows), strict=True):
            source["square_sum"] = losses.square_sums[i]
        assert post(server.url + "/feedback", json=told).json() == {"is_new": False, "differs": False}
        client.batch(0, 7, 8)
        refused = post(server.url + "/feedback", json={**told, "rank": 7, "world_size": 8})
        assert (refused.status_code, refused.json()["error"]["code"]) == (409, "repeated-rows")
        for wild in (
            {"loss_sum": 1e304},
            {"square_sum": 1e302},
            {"rows": 9 * 10**15, "tokens": 9 * 10**15},
            {"tokens": 10**12},
        ):
            name, usual = next(iter(told["sources"].items()))
            refused = post(server.url + "/feedback", json={**told, "rank": 0, "sources": {name: {**usual, **wild}}})
            assert refused.status_code == 422
        assert server.terminate() == 0
        server.start()
        assert audit(server.journal).difference is None


def test_a_trainer_goes_on_that_was_started_again_with_more_ranks(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with Served(write_run(tmp_path), tmp_path / "runs", "--feedback-wait-s", "0") as server:
        for world_size, expected in ((2, [True, True]), (4, [False, False, False, False])):
            for rank in range(world_size):
                dataset = RemoteMixtureDataset(server.url, rank, world_size, prefetch=1)
                batch = next(iter(dataset))
                losses = torch.full(batch["labels"].shape, 3.0)
                assert dataset.report(batch, losses) is expected[rank]
        assert "rank 3 of 4 was not counted, for its rows would count twice" in caplog.text
        assert len(feedback(server.journal)) == 2


# How far ahead.


def ask_ahead(engine: Engine, until: int) -> None:
    """Ask for the weights, and the batches, of step after step, as whoever wants all of a run decided."""
    for step in range(until):
        try:
            asyncio.run(engine.phase(step, 0.05, may_decide=True))
            asyncio.run(engine.batches.body(step, 0, 1, 0.05))
        except NotReadyError as error:
            if "no phase that rests on losses is decided beyond" in str(error):
                return


def test_whoever_asks_far_ahead_leaves_the_steps_that_a_trainer_needs(folder: Path, tmp_path: Path) -> None:
    run = curriculum_of(folder, total_steps=3000)
    with running(run, tmp_path / "runs", retain_steps=60, feedback_wait_s=0.0) as engine:
        train(engine, range(30), world_size=1)
        ask_ahead(engine, run.total_steps)
        assert engine.decisions.frontier <= 29 + 30 + run.phases.max_steps + 1
        with pytest.raises(
            NotReadyError, match=r"the newest report is of step 29, and no phase .* report the steps in"
        ):
            asyncio.run(engine.batches.body(engine.decisions.frontier + 1, 0, 1, 0.0))
        train(engine, range(30, 200), world_size=1)  # and goes on as far as it likes
        assert engine.decisions.frontier > 200


def test_a_run_that_nobody_reports_and_one_that_needs_no_losses_go_on(folder: Path, tmp_path: Path) -> None:
    for name, policy in (("ucb", {"name": "ucb"}), ("static", {"name": "static"})):
        run = curriculum_of(folder, policy=policy, total_steps=300)
        with running(run, tmp_path / name, retain_steps=20, feedback_wait_s=0.0) as engine:
            if name == "static":
                train(engine, range(1), world_size=1)
            for step in range(1, 150):
                body(engine, step, 0, 1)


# A journal that vanishes.


def moved(journal: Path) -> Callable[[], object]:
    aside = journal.with_suffix(".aside")
    journal.rename(aside)
    return lambda: aside.rename(journal)


def deleted(journal: Path) -> None:
    journal.unlink()


def replaced(journal: Path) -> Callable[[], object]:
    back = moved(journal)
    shutil.copy(journal.with_suffix(".aside"), journal)
    return back


def cut(journal: Path) -> Callable[[], object]:
    content = journal.read_bytes()
    with journal.open("rb+") as file:
        file.truncate(len(content) // 2)
    return lambda: journal.write_bytes(content)


def emptied(journal: Path) -> Callable[[], object]:
    content = journal.read_bytes()
    with journal.open("rb+") as file:
        file.truncate(0)
    return lambda: journal.write_bytes(content)


def grown(journal: Path) -> Callable[[], object]:
    content = journal.read_bytes()
    with journal.open("ab") as file:
        file.write(b"somebody's\n")
    return lambda: journal.write_bytes(content)


@pytest.mark.parametrize("vanish", [moved, deleted, replaced, cut, emptied, grown])
def test_a_report_is_refused_while_the_journal_is_not_where_it_was_written(
    folder: Path, tmp_path: Path, vanish: Callable[[Path], Callable[[], object] | None]
) -> None:
    run = curriculum_of(folder)
    with running(run, tmp_path / "runs") as engine:
        train(engine, range(10), world_size=1)
        journal = tmp_path / "runs" / "run" / "journal.jsonl"
        losses = given_to(engine, 10, 0, 1)
        lines = len(feedback(journal))
        back = vanish(journal)
        with pytest.raises(
            JournalError, match=r"journal\.jsonl: .*; it was moved, replaced or cut .* put the file back"
        ):
            engine.report(10, losses)
        if back is None:
            return
        back()
        assert len(feedback(journal)) == lines
        assert engine.report(10, losses)  # nothing was counted, and it goes on by itself
        train(engine, range(11, 20), world_size=1)
    assert audit(journal).difference is None
    with running(run, tmp_path / "runs") as engine:
        assert engine.walk.reported == {0: [[0, 19]]}


@pytest.mark.parametrize("vanish", [moved, emptied])
@pytest.mark.parametrize("is_killed", [False, True])
def test_a_run_whose_journal_is_gone_is_not_begun_anew(
    folder: Path, tmp_path: Path, vanish: Callable[[Path], Callable[[], object]], is_killed: bool
) -> None:
    run = curriculum_of(folder)
    journal = tmp_path / "runs" / "run" / "journal.jsonl"
    with running(run, tmp_path / "runs") as engine:
        train(engine, range(10), world_size=1)
        back = vanish(journal)
        if is_killed:
            engine.bury()
    with (
        pytest.raises(StateMismatchError, match=r"the database knows run run: steps up to \d+ .* Put the journal back"),
        running(run, tmp_path / "runs"),
    ):
        pass
    back()
    with running(run, tmp_path / "runs") as engine:
        train(engine, range(10, 20), world_size=1)


# Sums and tokens of one moment.


def test_losses_that_are_all_alike_are_shown_as_that_at_any_moment() -> None:
    run = Curriculum(
        total_steps=3000, batch_rows=8, sequence_length=32, sources=[{"name": name} for name in ("web", "code")]
    )
    watch = Watch()
    simulated = SimulatedRun(run)
    simulated.hasten(600)
    for line in simulated.lines:
        watch.add(line)
    is_over = threading.Event()

    def report() -> None:
        step = 0
        while not is_over.is_set():
            tokens = [32 * (1 + step % 5), 32 * (1 + step % 3)]
            counts = {"sources": [0, 1], "rows": [1, 1], "tokens": tokens, "loss_sums": [5.0 * n for n in tokens]}
            watch.add({"type": "feedback", "step": step % 600, "rank": 0, **counts, "square_sums": [0.0, 0.0]})
            step += 1

    writer = threading.Thread(target=report)
    writer.start()
    try:
        for _ in range(300):
            chronicle = watch.chronicle()
            shown = np.array(series(chronicle, per_point=1)["losses"])
            assert set(shown[~np.isnan(shown)].tolist()) <= {5.0}
            assert {source["loss"] for source in overview(chronicle)["sources"]} <= {5.0, None}
    finally:
        is_over.set()
        writer.join()


def test_a_copy_stays_as_it_was_whatever_comes_after_it() -> None:
    run = SimulatedRun(
        Curriculum(total_steps=3000, batch_rows=8, sequence_length=32, sources=[{"name": n} for n in ("web", "code")])
    )
    run.hasten(300)
    newest = run.walk.phase_at(run.step)
    for back in (newest.length - 1, 0):  # a cut, and an undone decision
        newest = run.walk.phase_at(run.step)
        copied = run.watch.chronicle()
        before = shown_of(copied)
        run.walk.pivot(Pivot(name=f"now-{back}", caps={"web": 0.5}), at_step=newest.start + back, cut=True)
        assert shown_of(copied) == before
        run.hasten(run.step + 200)
        assert shown_of(copied) == before
    copied = run.watch.chronicle()
    before = shown_of(copied)
    one = {"sources": [0, 1], "rows": [1, 1], "tokens": [32, 32], "loss_sums": [64.0, 64.0], "square_sums": [4.0, 4.0]}
    for step in (0, run.step - 1):
        run.watch.add({"type": "feedback", "step": step, "rank": 5, **one})
    assert shown_of(copied) == before
    assert shown_of(run.watch.chronicle()) != before


def shown_of(chronicle: WalkColumns) -> str:
    return repr((series(chronicle, per_point=1), overview(chronicle)["sources"]))
