"""The fast lane gives what the framework gives; several batches in one answer are what they are one by one."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mixer.batches import RowBatch
from mixer.config import Curriculum
from mixer.dataset import MixtureDataset
from service.auth import FileShelf, TokenBook
from service.client import MixerClient, RemoteMixtureDataset
from service.errors import BatchDigestError
from service.guard import Guard
from service.lane import MAX_JOINED_BYTES, batches_of
from service.memory import Pool
from service.metrics import Metrics
from service.settings import Settings
from service.window import Built, Turns
from service.wire import Body, arrow_stream, decode, encode, joined, split
from tests.serving import STEPS, Served, get, reports, write_run

LANE = ("rank", "world_size", "wait_s")  # the order that the lane knows; any other goes to the framework


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("lane")
    with Served(write_run(folder), folder / "runs", "--feedback-wait-s", "0") as server:
        yield server


def answers(server: Served, path: str, **params: Any) -> list[tuple[int, bytes, dict[str, str]]]:
    """The same request by the lane, and in an order that only the framework takes."""
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
    lane, framework = answers(served, f"{prefix}/batches/{step}", **numbers)
    assert lane == framework
    assert lane[0] == status
    lane, framework = answers(served, f"{prefix}/batches", **{"from": step, "limit": 1, "every": 1}, **numbers)
    assert lane == framework
    assert lane[0] == status


def test_the_lane_serves_no_run_that_there_is_not(served: Served) -> None:
    lane, framework = answers(served, "/runs/other/batches/0", rank=0, world_size=1, wait_s=1)
    assert lane == framework
    assert lane[0] == 404


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
                for one, other in zip(rows[2:], alone[2:], strict=True):
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
        body = encode(batch, rank, world_size)
        assert body.data == arrow_stream(*columns)
        back = decode(body.data, step=3, phase=1)
        for one, other in zip(back[2:], columns, strict=True):
            assert (one == other).all()


@given(st.lists(st.integers(1, 5), max_size=6), st.integers(0, 2**31))
def test_joined_batches_come_apart_again_and_a_changed_byte_is_noticed(sizes: list[int], at: int) -> None:
    batches = [
        RowBatch(step, 2 * step, np.full((n, 3), step, np.uint16), np.arange(n), np.arange(n) + step)
        for step, n in enumerate(sizes)
    ]
    bodies = [encode(batch, 0, 1) for batch in batches]
    data = joined(bodies)
    for found, batch in zip(split(data), batches, strict=True):
        assert found[:2] == batch[:2]
        for one, other in zip(found[2:], batch[2:], strict=True):
            assert (one == other).all()
    if bodies:
        changed = bytearray(data)
        changed[len(bodies[0].head) + at % len(bodies[0].data)] ^= 1
        with pytest.raises(BatchDigestError, match="the batch of step 0 has XXH3-128"):
            list(split(bytes(changed)))


def test_other_ranks_get_their_rows_when_one_rank_had_them_all() -> None:
    rows = np.random.default_rng(0).integers(0, 9, (12, 5), dtype=np.uint16)
    built = Built(RowBatch(0, 0, rows, np.arange(12), np.arange(12)))
    assert (decode(built.body(0, 1).data, step=0, phase=0).rows == rows).all()
    assert not np.shares_memory(built.batch.rows, rows)
    for rank in range(4):
        assert (decode(built.body(rank, 4).data, step=0, phase=0).rows == rows[rank::4]).all()


def test_memory_goes_back_to_the_pool_when_nobody_looks_at_it_any_more() -> None:
    pool = Pool(num_pieces=2)
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
    """An engine that holds ten bodies of a size."""

    def __init__(self, num_bytes: int) -> None:
        self.num_bytes = num_bytes

    def held(self, step: int, _rank: int, _world_size: int) -> Body | None:
        return Body(bytes(self.num_bytes), step, 0) if step < 10 else None

    frontier = next_step = 10

    def note_served(self, _body: Body, _world_size: int) -> None:
        pass


@pytest.mark.parametrize(
    ("num_bytes", "limit", "expected"),
    [(100, 4, 4), (100, 50, 10), (MAX_JOINED_BYTES // 2, 9, 2), (2 * MAX_JOINED_BYTES, 9, 1)],
)
def test_an_answer_holds_what_is_at_hand_within_a_size(num_bytes: int, limit: int, expected: int) -> None:
    engine: Any = Held(num_bytes)
    assert len(asyncio.run(batches_of(engine, range(limit), 0, 1, 1.0))) == expected


@pytest.mark.parametrize("limit", [1, 60])
def test_no_request_too_many_gets_through_and_clients_are_counted_apart(tmp_path: Path, limit: int) -> None:
    statuses: list[int] = []

    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def send(message: Any) -> None:
        statuses.append(message.get("status", 0))

    async def ask_often() -> None:
        book = TokenBook(FileShelf(tmp_path / "none"))
        guard: Any = Guard(app, settings=Settings(requests_per_minute=limit), book=book, metrics=Metrics(lambda: []))
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

    async def batch(turns: Turns, name: str) -> None:
        await turns.take()
        order.append(name)

    async def small() -> None:
        await asyncio.sleep(0)
        order.append("small")

    async def all_at_once() -> None:
        turns = Turns()
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
