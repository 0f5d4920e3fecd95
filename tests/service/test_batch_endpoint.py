"""Batches without the framework are what it gives; several batches in one answer are what they are one by one."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mixer.config.curriculum import Curriculum
from mixer.dataset import MixtureDataset
from mixer.delivery.batch import RowBatch, RowBatches
from mixer.system.memory import BufferPool
from service.client import MixerClient, RemoteMixtureDataset
from service.client.dataset import AHEAD_BYTES, AHEAD_S, AHEAD_STEPS, LEAST_AHEAD, Ahead
from service.errors import BatchDigestError
from service.runs.cache import BuiltBatches
from service.runs.waiting import FairQueue
from service.settings import Settings
from service.web.auth import FileTokens, TokenBook
from service.web.batch_endpoint import MAX_JOINED_BYTES, batches_of
from service.web.metrics import Metrics
from service.web.middleware import Gate
from service.wire.batches import HEAD_BYTES, Encoded, arrow_stream, decode, encode, split
from tests.support.engines import body, running
from tests.support.serving import STEPS, Served, get, reports, write_run

QUERY = ("rank", "world_size", "wait_s")  # the order that the direct knows; any other goes to the framework


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("direct")
    with Served(write_run(folder), folder / "runs", "--feedback-wait-s", "0") as server:
        yield server


def answers(server: Served, path: str, **params: Any) -> list[tuple[int, bytes, dict[str, str]]]:
    """The same request by the direct, and in an order that only the framework takes."""
    found = []
    for order in (params, dict(reversed(params.items()))):
        answer = get(server.url + path, params=order)
        kept = ("content-type", "etag", "content-digest", "x-mixer-step", "x-mixer-phase", "cache-control")
        found.append((answer.status_code, answer.content, {k: v for k, v in answer.headers.items() if k in kept}))
        is_lane = "content-security-policy" not in answer.headers and answer.status_code < 400
        assert is_lane == (order is params and answer.status_code < 400)
    return found


@pytest.mark.parametrize("prefix", ["", "/runs/run"])
@pytest.mark.parametrize(
    ("step", "rank", "world_size", "status"),
    [(0, 0, 1, 200), (3, 1, 2, 200), (5, 7, 8, 200), (0, 2, 2, 422), (0, 0, 3, 422), (STEPS, 0, 1, 410)],
)
def test_the_fast_lane_answers_as_the_framework_does(
    served: Served, prefix: str, step: int, rank: int, world_size: int, status: int
) -> None:
    numbers = {"rank": rank, "world_size": world_size, "wait_s": 20.0}
    direct, framework = answers(served, f"{prefix}/batches/{step}", **numbers)
    assert direct == framework
    assert direct[0] == status
    direct, framework = answers(served, f"{prefix}/batches", **{"from": step, "limit": 1, "every": 1}, **numbers)
    assert direct == framework
    assert direct[0] == status


def test_the_lane_serves_no_run_that_there_is_not(served: Served) -> None:
    direct, framework = answers(served, "/runs/other/batches/0", rank=0, world_size=1, wait_s=1)
    assert direct == framework
    assert direct[0] == 404


def test_several_batches_are_those_that_come_one_by_one(served: Served) -> None:
    with MixerClient(served.url) as client:
        for every in (1, 3):
            steps, found = range(2, 2 + 8 * every, every), list[RowBatch]()
            while len(found) < len(steps):
                found += client.batches(steps[len(found) :], 1, 2)
            assert [rows.step for rows in found] == list(steps)
            for rows in found:
                alone = client.batch(rows.step, 1, 2)
                assert rows.phase == alone.phase
                for one, other in zip(rows[2:5], alone[2:5], strict=True):
                    assert (one == other).all()


def test_steps_that_are_built_come_together_whichever_ranks_ask(served: Served) -> None:
    with MixerClient(served.url) as client:
        for step in range(6):
            client.batch(step, 0, 1)
        for world_size in (8, 4):
            assert [rows.step for rows in client.batches(range(6), 1, world_size)] == list(range(6))


@given(
    st.integers(1, 9),
    st.integers(1, 40),
    st.sampled_from([np.uint8, np.uint16, np.uint32]),
    st.integers(1, 4),
    st.integers(0, 2**32 - 1),
)
def test_a_body_is_what_arrow_itself_writes(num_rows: int, length: int, dtype: Any, world_size: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    num_rows *= world_size
    rows = rng.integers(0, np.iinfo(dtype).max, (num_rows, length), dtype=dtype, endpoint=True)
    batch = RowBatch(3, 1, rows, rng.integers(0, 2**16, num_rows), rng.integers(0, 2**62, num_rows))
    for rank in range(world_size):
        mine = slice(rank, None, world_size)
        columns = rows[mine].copy(), batch.source_ids[mine].astype(np.uint16), batch.row_numbers[mine].copy()
        body = encode(RowBatches.of(batch), rank, world_size).body(3)
        assert body.data == arrow_stream(*columns)
        as_read = pa.ipc.open_stream(body.data).read_next_batch().to_pydict()
        assert [as_read[key] for key in ("rows", "source_ids", "row_numbers")] == [each.tolist() for each in columns]
        for _ in range(2):  # read by Arrow, and then as one of the same shape
            back = decode(body.data, step=3, phase=1)
            for one, other in zip(back[2:5], columns, strict=True):
                assert (one == other).all()
                assert not one.flags.writeable or one is back.source_ids


def test_a_body_as_long_as_one_of_another_shape_is_read_as_what_it_is() -> None:
    numbers = np.arange(4)
    for rows in (np.arange(24, dtype=np.uint16).reshape(4, 6), np.arange(12, dtype=np.uint32).reshape(4, 3)):
        for _ in range(2):
            data = encode(RowBatches.of(RowBatch(0, 0, rows, numbers, numbers)), 0, 1).body(0).data
            back = decode(data, step=0, phase=0)
            assert back.rows.dtype == rows.dtype
            assert (back.rows == rows).all()


@given(st.integers(1, 6), st.integers(1, 5), st.integers(1, 2), st.integers(0, 2**31))
def test_records_come_apart_again_and_a_changed_byte_is_noticed(
    num_steps: int, num_rows: int, every: int, at: int
) -> None:
    rng = np.random.default_rng(at)
    shape = (num_steps, num_rows)
    rows = rng.integers(0, 99, (*shape, 3), dtype=np.uint16)
    batches = RowBatches(range(7, 7 + num_steps), 2, rows, rng.integers(0, 9, shape), rng.integers(0, 2**40, shape))
    encoded, steps = encode(batches, 0, 1), range(7, 7 + num_steps, every)
    data = b"".join(encoded.pieces(steps))
    for found, step in zip(split(data), steps, strict=True):
        assert found[:2] == (step, 2)
        for one, other in zip(found[2:5], batches[2:5], strict=True):
            assert (one == other[step - 7]).all()
    changed = bytearray(data)
    changed[HEAD_BYTES + at % len(encoded.body(7).data)] ^= 1
    with pytest.raises(BatchDigestError, match="the batch of step 7 has XXH3-128"):
        list(split(bytes(changed)))


def test_lines_of_any_width_are_read() -> None:
    numbers = np.ones((2, 3), dtype=np.int64)
    encoded = encode(RowBatches(range(5, 7), 1, np.ones((2, 3, 4), dtype=np.uint8), numbers, numbers), 0, 1)
    short = b"".join(
        b"%d %d 1 %s\n%s"
        % (len(piece) - HEAD_BYTES, step, bytes(piece[:HEAD_BYTES])[-33:-1], bytes(piece[HEAD_BYTES:]))
        for step in encoded.steps
        for piece in encoded.pieces(range(step, step + 1))
    )
    assert [rows.step for rows in split(short)] == [5, 6]


def test_other_ranks_get_their_rows_when_one_rank_had_them_all() -> None:
    rows = np.random.default_rng(0).integers(0, 9, (2, 12, 5), dtype=np.uint16)
    numbers = np.tile(np.arange(12), (2, 1))
    built = BuiltBatches(RowBatches(range(2), 0, rows, numbers, numbers))

    def rows_of(step: int, rank: int, world_size: int) -> Any:
        return decode(built.encoded(rank, world_size).body(step).data, step=step, phase=0).rows

    assert (rows_of(1, 0, 1) == rows[1]).all()
    assert not np.shares_memory(built.batches.rows, rows)
    for rank in range(4):
        for step in range(2):
            assert (rows_of(step, rank, 4) == rows[step, rank::4]).all()


def test_memory_goes_back_to_the_pool_when_nobody_looks_at_it_any_more() -> None:
    pool = BufferPool(num_pieces=2)
    first = np.frombuffer(pool.take(100), dtype=np.uint8)
    address = first.ctypes.data
    part = pa.py_buffer(memoryview(first)[10:20])  # type: ignore[arg-type]  # as batches are parts of an answer
    last = first[90:]
    assert np.frombuffer(pool.take(100), dtype=np.uint8).ctypes.data != address
    del first
    assert np.frombuffer(pool.take(50), dtype=np.uint8).ctypes.data != address
    del part
    assert np.frombuffer(pool.take(50), dtype=np.uint8).ctypes.data != address  # the end of it is still looked at
    del last
    taken = [np.frombuffer(pool.take(100), dtype=np.uint8) for _ in range(3)]
    assert address in [array.ctypes.data for array in taken]


class Held:
    """An engine that holds ten steps, three encoded together, one after the other."""

    def __init__(self, row_length: int) -> None:
        self._rows, self._numbers = np.zeros((3, 1, row_length), dtype=np.uint8), np.zeros((3, 1), dtype=np.int64)
        self.batches = self.waits = self  # the parts of an engine that an answer asks

    def at_hand(self, steps: range, _rank: int, _world_size: int, room: int) -> tuple[Encoded, range] | None:
        first = steps[0] // 3 * 3
        built = RowBatches(range(first, first + 3), 0, self._rows, self._numbers, self._numbers).until(10)
        encoded = encode(built, 0, 1)
        return (encoded, encoded.among(steps, room)) if steps[0] < 10 else None

    builder = SimpleNamespace(next=10)
    num_served = 0

    def is_coming(self, _step: int) -> bool:
        return False

    def note_range(self, steps: range) -> None:
        pass

    def note_served(self, num_batches: int, num_bytes: int, _world_size: int) -> None:
        self.num_served += num_batches
        self.num_bytes = num_bytes


@pytest.mark.parametrize(
    ("num_bytes", "limit", "every", "expected"),
    [
        (100, 4, 1, 4),
        (100, 50, 1, 10),
        (100, 3, 4, 3),
        (MAX_JOINED_BYTES // 2, 9, 1, 2),
        (MAX_JOINED_BYTES // 2, 9, 2, 2),
        (2 * MAX_JOINED_BYTES, 9, 1, 1),
    ],
)
def test_an_answer_holds_what_is_at_hand_within_a_size(num_bytes: int, limit: int, every: int, expected: int) -> None:
    engine: Any = Held(num_bytes)
    steps = range(0, limit * every, every)
    data = b"".join(asyncio.run(batches_of(engine, steps, 0, 1, 1.0)))
    assert [rows.step for rows in split(data)] == list(steps[:expected])
    assert (engine.num_served, engine.num_bytes) == (expected, len(data))


@pytest.mark.parametrize("limit", [1, 60])
def test_no_request_too_many_gets_through_and_clients_are_counted_apart(tmp_path: Path, limit: int) -> None:
    statuses: list[int] = []

    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def send(message: Any) -> None:
        statuses.append(message.get("status", 0))

    async def ask_often() -> None:
        book = TokenBook(FileTokens(tmp_path / "none"))
        guard: Any = Gate(app, settings=Settings(requests_per_minute=limit), book=book, metrics=Metrics(lambda: []))
        for client in ("a", "b"):
            for _ in range(limit + 5):
                scope = {"type": "http", "method": "GET", "path": "/weights", "headers": [], "client": (client, 1)}
                await guard(scope, None, send)

    asyncio.run(ask_often())
    assert (statuses.count(200), statuses.count(429)) == (2 * limit, 10)


def test_a_remote_data_set_has_the_tokenizer_and_the_regions_of_the_run(
    served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MIXER_CACHE", str(tmp_path / "cache"))
    local = MixtureDataset(Curriculum.from_yaml(write_run(tmp_path)))
    remote = RemoteMixtureDataset(served.url, 0, 1)
    assert remote.tokenizer.fingerprint == local.tokenizer.fingerprint
    text = "alpha beta gamma"
    assert remote.tokenizer.decode(remote.tokenizer.encode([text])[0]) == text
    assert remote.walk.names == local.walk.names
    region, expected = remote.walk.region_at(0), local.walk.regime_at(0).region
    assert (region.lower == expected.lower).all()
    assert (region.upper == expected.upper).all()
    assert remote.walk.frontier > 0
    assert remote.walk.phase_at(0).weights.tolist() == local.walk.phase_at(0).weights.tolist()


def test_small_requests_come_between_batches_whose_clients_may_be_gone() -> None:
    order: list[str] = []

    async def batch(turns: FairQueue, name: str) -> None:
        await turns.take()
        order.append(name)

    async def small() -> None:
        await asyncio.sleep(0)
        order.append("small")

    async def all_at_once() -> None:
        turns = FairQueue()
        batches = [asyncio.create_task(batch(turns, f"batch {n}")) for n in range(5)]
        others = [asyncio.create_task(small())]
        await asyncio.sleep(0)
        batches[1].cancel()
        await asyncio.gather(*batches, *others, return_exceptions=True)
        await asyncio.sleep(0.01)
        await turns.take()  # nobody waits any more

    asyncio.run(all_at_once())
    assert order[0] == "batch 0"
    assert order.index("small") <= 2  # not behind all of them
    assert sorted(order) == ["batch 0", "batch 2", "batch 3", "batch 4", "small"]


@pytest.mark.parametrize("prefetch", [4, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 32))])
def test_fetching_ahead_never_waits_for_losses_of_a_batch_that_it_keeps_back(tmp_path: Path, prefetch: int) -> None:
    with Served(write_run(tmp_path), tmp_path / "runs", "--feedback-wait-s", "60") as server:
        dataset = RemoteMixtureDataset(server.url, 0, 1, prefetch=prefetch)
        begin = time.monotonic()
        for batch in dataset:
            dataset.report(batch, torch.full(batch["labels"].shape, 3.0))
        assert time.monotonic() - begin < 110  # two ends of phases waited for in vain take 120 s
    assert [step for step, *_ in reports(server.journal)] == list(range(STEPS))


def test_threads_of_a_data_set_that_is_left_end_though_the_server_is_gone(tmp_path: Path) -> None:
    before = set(threading.enumerate())  # some of data sets that other tests left may still be ending
    with Served(write_run(tmp_path), tmp_path / "runs", "--feedback-wait-s", "60") as server:
        batches = iter(RemoteMixtureDataset(server.url, 0, 1, prefetch=8, patience_s=100))
        next(batches)  # nothing is reported: the threads wait for a phase that is not decided
        threads = [t for t in threading.enumerate() if "remote-batches" in t.name and t not in before]
        assert threads
        server.kill()
        batches.close()  # type: ignore[attr-defined]  # a generator
        for thread in threads:
            thread.join(90)  # sooner than its patience ends
            assert not thread.is_alive()


@pytest.mark.parametrize(("policy", "is_decided"), [("static", True), ("ucb", False)])
def test_a_range_that_is_asked_for_has_phases_decided_that_rest_on_no_losses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, policy: str, is_decided: bool
) -> None:
    monkeypatch.setenv("MIXER_CACHE", str(tmp_path / "cache"))
    chosen = {"name": policy} | ({"weights": {f"s{k}": 0.25 for k in range(4)}} if policy == "static" else {})
    curriculum = Curriculum.from_yaml(write_run(tmp_path, policy=chosen))
    with running(curriculum, tmp_path / "runs", ahead_steps=16) as engine:
        body(engine, 0)
        first = engine.decisions.frontier
        engine.batches.note_range(range(1, 17))
        assert engine.waits.is_coming(first) == is_decided or engine.builder.next > first
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and (engine.decisions.frontier == first) == is_decided:
            time.sleep(0.01)
            if not is_decided and engine.builder.next == first:  # all that is decided is built
                break
        assert (engine.decisions.frontier > first) == is_decided


@pytest.mark.parametrize(
    ("given", "step_s", "num_bytes", "expected"),
    [
        (None, 1.0, 1000, LEAST_AHEAD),
        (None, AHEAD_S / 10, 1000, 10),
        (None, 0.0, AHEAD_BYTES // 50, 50),
        (None, 0.0, 1, AHEAD_STEPS),
        (None, 0.0, 2 * AHEAD_BYTES, LEAST_AHEAD),
        (7, 0.0, 1, 7),
    ],
)
def test_as_many_batches_are_on_their_way_as_a_trainer_takes_in_a_moment(
    given: int | None, step_s: float, num_bytes: int, expected: int
) -> None:
    ahead = Ahead(given)
    for _ in range(200):
        ahead.note(step_s, num_bytes)
    assert ahead.num == pytest.approx(expected, abs=1 if step_s == AHEAD_S / 10 else 0)
