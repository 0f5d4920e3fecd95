"""Pivots now, which cut the phase in force while ranks are being served: what was given stays, also after a kill."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mixer.config.curriculum import Curriculum
from mixer.config.pivots import Pivot
from mixer.delivery.batch import RowBatch
from mixer.replay.verify import audit
from mixer.sources.prepared.prepare import prepare
from service.client.client import MixerClient
from service.errors import RequestError, StoreError
from service.runs.leases import LEASE, StepLeases
from service.storage.store import Store
from tests.support.engines import KilledError, assert_each_row_once, body, opened, rows_of, running, train
from tests.support.outages import Outage
from tests.support.serving import STEPS, get, losses_of, wait_until, write_run
from tests.support.serving import Served as Server

WITHOUT = Pivot(name="without-s2", exclude=("s2",))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("cuts")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MIXER_CACHE", str(folder / "cache"))
        prepare(Curriculum.from_yaml(write_run(folder)), folder / "rows")
        yield folder


def curriculum_of(folder: Path, kind: str) -> Curriculum:
    return Curriculum.from_yaml(write_run(folder, **({"prepared": "rows"} if kind == "prepared" else {})))


@pytest.fixture(params=["streamed", "prepared"])
def run(request: pytest.FixtureRequest, folder: Path) -> Curriculum:
    return curriculum_of(folder, request.param)


def journal(folder: Path) -> Path:
    return folder / "run" / "journal.jsonl"


def pivots(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in journal(folder).read_text().splitlines()]
    return [line for line in lines if line["type"] == "pivot"]


def test_it_begins_at_the_first_step_that_no_rank_was_given(run: Curriculum, tmp_path: Path) -> None:
    with running(run, tmp_path / "a") as undisturbed:
        expected = train(undisturbed, range(STEPS))
    with running(run, tmp_path / "b") as engine:
        given = train(engine, range(20))
        cut = 21
        while (
            not engine.decisions.records[-1]["start"] < cut < engine.decisions.frontier
        ):  # so that something is left to be cut
            given |= train(engine, range(cut - 1, cut))
            cut += 1
        given[cut - 1, 0] = bytes(body(engine, cut - 1, 0).data)  # rank 0 is a step ahead of rank 1
        frontier = engine.decisions.frontier
        assert engine.pivot(WITHOUT, "now") == cut < frontier
        assert (
            engine.decisions.records[-1]["start"] + engine.decisions.records[-1]["length"]
            == engine.decisions.frontier
            == cut
        )
        engine.report(cut - 1, losses_of(rows_of(body(engine, cut - 1, 0)), 0))
        given[cut - 1, 1] = bytes(body(engine, cut - 1, 1).data)
        engine.report(cut - 1, losses_of(rows_of(body(engine, cut - 1, 1)), 1))
        assert given == {key: expected[key] for key in given}
        after = train(engine, range(cut, STEPS))
        assert engine.decisions.since(cut, 1)[0]["regime"] == "without-s2"
        assert not any(2 in rows_of(body(engine, step, rank)).source_ids for step, rank in after)
        assert engine.patience.absent == []
        assert_each_row_once(engine, STEPS)
    assert audit(journal(tmp_path / "b")).difference is None


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # those of the killed
@pytest.mark.parametrize(
    ("kind", "instants"),
    [
        ("streamed", range(4)),  # before and after each write of the cut itself
        pytest.param("streamed", range(4, 40), marks=pytest.mark.slow),
        pytest.param("prepared", range(40), marks=pytest.mark.slow),
    ],
)
def test_a_kill_at_any_instant_leaves_a_run_that_was_cut_or_one_that_was_not(
    folder: Path, tmp_path: Path, kind: str, instants: range
) -> None:
    run, found = curriculum_of(folder, kind), set()
    for instant in instants:
        here, step = tmp_path / str(instant), None
        engine = opened(run, here)
        given = train(engine, range(18))
        engine.num_writes, (engine.kill_at, engine.is_after) = 0, (instant // 2, instant % 2 == 1)
        try:
            step = engine.pivot(WITHOUT, "now")
            given |= train(engine, range(18, 24))  # goes on, and is killed while it does
        except KilledError:
            pass
        engine.bury()
        was_cut = len(pivots(here)) == 1
        assert was_cut or step is None
        found.add((was_cut, step is not None))
        with running(run, here) as again:
            assert {key: body(again, *key).data for key in given} == given
            first = again.pivot(WITHOUT, "now")  # as the client does that heard nothing
            assert first == pivots(here)[0]["at_step"]
            assert was_cut or first > max(step for step, _ in given)
            given |= train(again, range(18, 36))
            assert {key: body(again, *key).data for key in given} == given
            assert all(2 not in rows_of(body(again, step)).source_ids for step in range(first, 36))
            assert_each_row_once(again, 36)
        assert len(pivots(here)) == 1
        assert audit(journal(here)).difference is None
        if step is not None and not engine.is_dead:
            break  # no write is left to be killed at
    assert found >= ({(False, False), (True, False)} if instants[0] == 0 else {(True, True)})


def test_nobody_waits_for_a_batch_of_the_phase_that_is_cut(folder: Path, tmp_path: Path) -> None:
    with running(curriculum_of(folder, "streamed"), tmp_path, ahead_steps=1) as engine:
        step = 16
        train(engine, range(step))
        while engine.decisions.frontier < step + 4:  # so that steps of the phase are left to be read
            train(engine, range(step, step + 1))
            step += 1
        wait_until(lambda: engine.builder.next == step + 1)
        reader = engine.builder.reader
        assert reader is not None
        is_reading, may_go_on, read = threading.Event(), threading.Event(), reader.read

        def slow(step: int) -> RowBatch:
            batch = read(step)
            is_reading.set()
            assert may_go_on.wait(100)
            return batch

        reader.read = slow  # type: ignore[method-assign]
        engine.builder.want(step)
        assert is_reading.wait(100)
        assert engine.pivot(WITHOUT, "now") == step  # while a batch of the phase is being read
        may_go_on.set()
        reader.read = read  # type: ignore[method-assign]
        train(engine, range(step, step + 20))
        assert all(2 not in rows_of(body(engine, s)).source_ids for s in range(step, step + 20))
        assert_each_row_once(engine, step + 20)


def test_a_source_out_of_reach_is_pivoted_out_and_back_in_and_no_row_is_lost(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = [{"name": f"s{k}", "data_files": f"s{k}.jsonl", "on_failure": "suspend"} for k in range(4)]
    curriculum = Curriculum.from_yaml(write_run(folder, sources=sources, retries={"attempts": 1}, total_steps=120))
    with running(curriculum, tmp_path, feedback_wait_s=0.0, retain_steps=200) as engine:
        train(engine, range(10))
        network = Outage(engine.builder.reader, 2, monkeypatch)
        network.is_down = True
        train(engine, range(10, 80))
        network.is_down = False
        train(engine, range(80, 120))
        out, back = pivots(tmp_path)
        assert (out["exclude"], back["exclude"]) == (["s2"], [])
        drawn = [2 in rows_of(body(engine, step, 0, 1)).source_ids for step in range(120)]
        assert any(drawn[10 : out["at_step"]])
        assert not any(drawn[out["at_step"] : back["at_step"]])
        assert any(drawn[back["at_step"] :])
        assert_each_row_once(engine, 120)
        assert engine.builder.problem is None
    assert audit(journal(tmp_path)).difference is None


def test_what_was_learned_before_an_undone_decision_is_not_waited_for_again(folder: Path, tmp_path: Path) -> None:
    with running(curriculum_of(folder, "prepared"), tmp_path, feedback_wait_s=200.0) as engine:
        train(engine, range(12))
        step = 12
        while True:  # until a phase is decided of which nobody was given a step
            engine.builder.want(step)
            wait_until(lambda: engine.decisions.frontier > step)  # noqa: B023  # it is called at once
            if engine.decisions.records[-1]["start"] == step:
                break
            train(engine, range(step, step + 1))
            step += 1
        index, begin = engine.decisions.records[-1]["index"], time.monotonic()
        assert engine.pivot(WITHOUT, "now") == step == engine.decisions.frontier
        train(engine, range(step, step + 10))
        assert time.monotonic() - begin < 200  # it was not waited for
        (again,) = [record for record in engine.decisions.records if record["index"] == index]
        assert (again["start"], again["regime"]) == (step, "without-s2")
        assert engine.patience.absent == []


def test_ranks_that_ask_while_it_is_cut_again_and_again_are_given_the_same_phases(folder: Path, tmp_path: Path) -> None:
    with running(curriculum_of(folder, "streamed"), tmp_path, feedback_wait_s=0.0) as engine:
        body(engine, 0)
        given: dict[tuple[int, int], tuple[bytes, int]] = {}
        is_over = threading.Event()

        def rank(number: int) -> None:
            for step in range(STEPS):
                time.sleep(0.002 * (number + 1))
                found = body(engine, step, number, 4)
                given[step, number] = (bytes(found.data), rows_of(found).phase)

        def pivot() -> None:
            for n in range(1000):
                before = len(given)
                while not is_over.wait(0.02) and len(given) == before:
                    pass  # a cut voids what is built: without a pause nobody would get anything on a slow machine
                if is_over.is_set():
                    return
                engine.pivot(Pivot(name=f"pivot-{n}", exclude=(f"s{1 + n % 3}",)), "now")

        threads = [threading.Thread(target=rank, args=(number,)) for number in range(4)]
        admin = threading.Thread(target=pivot)
        for thread in (*threads, admin):
            thread.start()
        for thread in threads:
            thread.join(150)
        is_over.set()
        admin.join(50)
        assert len(given) == 4 * STEPS
        assert len(pivots(tmp_path)) > 3
        for step in range(STEPS):
            assert len({given[step, number][1] for number in range(4)}) == 1
        assert all(body(engine, step, number, 4).data == data for (step, number), (data, _) in given.items())
        assert_each_row_once(engine, STEPS)
    assert audit(journal(tmp_path)).difference is None


def test_a_trainer_that_asked_for_weights_keeps_them(folder: Path, tmp_path: Path) -> None:
    with running(curriculum_of(folder, "prepared"), tmp_path, feedback_wait_s=0.0) as engine:
        phase = asyncio.run(engine.phase(10, 30, may_decide=True))
        asyncio.run(engine.phase(phase.end - 1, 30, may_decide=False))  # somebody only looks
        step = engine.pivot(WITHOUT, "now")
        assert step == min(11, phase.end)
        assert engine.decisions.at(10).weights.tolist() == phase.weights.tolist()


@pytest.mark.slow
def test_a_pivot_over_http_is_in_force_now_and_survives_kills(folder: Path, tmp_path: Path) -> None:
    cuts = (13, 25, 38, 52)
    server = Server(write_run(folder, prepared="rows"), tmp_path / "runs", "--feedback-wait-s", "60")
    with server, MixerClient(server.url, patience_s=150) as client:
        names = tuple(client.config()["names"])
        given: list[bytes] = []
        taken: list[int] = []

        def train_to(end: int) -> None:
            for step in range(len(given), end):
                rows = client.batch(step)
                given.append(rows.rows.tobytes())
                client.report(step, losses_of(rows, 0), names)

        for number, step in enumerate(cuts):
            train_to(step)
            killing = threading.Timer(0.004 * number**2, server.kill)
            killing.start()
            pivot = Pivot(name=f"p{number}", caps={"s1": 0.3 - number / 20})
            taken.append(client_pivots_until_it_is_there(server, client, killing, pivot))
        train_to(STEPS)
        assert [client.batch(step).rows.tobytes() for step in range(STEPS)] == given
        assert [client.weights(step).regime for step in taken] == [f"p{number}" for number in range(len(cuts))]
        assert client.weights(taken[0] - 1).regime == "firehose"
        assert all(step >= trained for step, trained in zip(taken, cuts, strict=True))
        lines = get(server.url + "/pivots").json()
        assert {(line["who"], line["origin"], line["detail"]["at"]) for line in lines} == {
            ("local", "127.0.0.1", "now")
        }
        assert {line["detail"]["name"] for line in lines} == {f"p{number}" for number in range(len(cuts))}
    assert audit(server.journal).difference is None


def client_pivots_until_it_is_there(server: Server, client: MixerClient, killing: threading.Timer, pivot: Pivot) -> int:
    """Pivot while the server is killed under it; start that again, and let the client find out."""

    def start_again() -> None:
        killing.join()
        server.start(wait=False)

    starting = threading.Thread(target=start_again)
    starting.start()
    taken = client.pivot(pivot, "now")
    starting.join()
    server.wait_ready()
    return taken.at_step


def test_no_step_is_handed_out_that_is_not_leased_and_none_that_was_is_cut(tmp_path: Path) -> None:
    store, now = Store.open(f"sqlite:///{tmp_path / 'a.db'}"), 0.0
    served = StepLeases(store, "run", clock=lambda: now)
    assert not served.claim(0)
    served.extend(0)
    assert [served.claim(step) for step in (0, LEASE - 1, LEASE)] == [True, True, False]
    assert served.close() == LEASE
    assert not served.claim(LEASE)
    assert served.claim(3)
    served.open()
    served.extend(LEASE)  # sooner than expected: twice as much
    assert served.claim(LEASE)
    after_a_kill = StepLeases(store, "run")
    assert after_a_kill.close() == LEASE + 2 * LEASE  # may all have been given
    served.settle()
    assert StepLeases(store, "run").close() == LEASE + 1
    store.close()


def test_a_database_that_is_down_stops_delivery_at_the_end_of_the_lease_alone(folder: Path, tmp_path: Path) -> None:
    with running(curriculum_of(folder, "prepared"), tmp_path, feedback_wait_s=0.0, ahead_steps=64) as engine:
        body(engine, 0)
        store, save = engine._parts.store, engine._parts.store.save

        def down(*_: Any, **__: Any) -> None:
            raise StoreError("the database cannot be used")

        store.save = down  # type: ignore[method-assign]
        lease = engine._parts.served._lease
        for step in range(1, lease):
            body(engine, step)
        with pytest.raises(StoreError):
            asyncio.run(engine.batches.body(lease, 0, 2, 60))
        assert engine.builder.problem is None
        store.save = save  # type: ignore[method-assign]
        assert rows_of(body(engine, lease)).step == lease


def test_what_was_looked_at_before_a_cut_and_claimed_after_it_is_not_handed_out(folder: Path, tmp_path: Path) -> None:
    with running(curriculum_of(folder, "prepared"), tmp_path, feedback_wait_s=0.0) as engine:
        body(engine, 0, 0, 1)
        wait_until(lambda: engine.batches.built(2) is not None)
        engine.batches.built(2).encoded(0, 1)  # type: ignore[union-attr]
        served = engine._parts.served
        claim_first = served.claim_first
        cuts: list[int] = []

        def claim_late(steps: range) -> int:
            if not cuts:
                cuts.append(engine.pivot(WITHOUT, "now"))
            return claim_first(steps)

        served.claim_first = claim_late  # type: ignore[method-assign]
        found = engine.batches.held(2, 0, 1)
        assert cuts == [1]
        assert found is None or rows_of(found).phase == rows_of(body(engine, 2, 0, 1)).phase
        given = body(engine, 2, 0, 1)
        assert found is None or bytes(found.data) == bytes(given.data)
        assert (rows_of(given).source_ids != engine.curriculum.names.index("s2")).all()


def test_as_many_ranks_as_a_batch_has_rows_are_given_theirs_and_report_them(folder: Path, tmp_path: Path) -> None:
    run = curriculum_of(folder, "prepared")
    with running(run, tmp_path) as engine:
        train(engine, range(3), world_size=run.batch_rows)
        assert engine.counters.reports == 3 * run.batch_rows
        with pytest.raises(RequestError, match=f"rank {run.batch_rows} of {run.batch_rows}: ranks count from 0"):
            engine.batches.check_ranks(run.batch_rows, run.batch_rows)


def test_the_depth_of_the_queue_is_how_many_batches_are_built_beyond_the_newest_asked_for(
    folder: Path, tmp_path: Path
) -> None:
    with running(curriculum_of(folder, "prepared"), tmp_path, feedback_wait_s=0.0) as engine:
        body(engine, 1, 0, 1)
        wait_until(lambda: engine.builder.next >= 4)
        before = -1
        while before != engine.builder.next:  # until nothing was built meanwhile
            before = engine.builder.next
            ahead = [step for step in range(2, 70) if engine.batches.built(step) is not None]
            depth = engine.builder.queue_depth
        assert depth == len(ahead) >= 2
