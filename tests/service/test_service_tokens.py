"""Tokens are read beside the requests, never in their way: a database that hangs holds up nobody who is known."""

from __future__ import annotations

import asyncio
import threading
import time
from types import SimpleNamespace
from typing import Any

import orjson
import pytest

from service.errors import StoreError
from service.settings import Settings
from service.web import auth
from service.web import middleware as guard
from service.web.auth import Token, TokenBook
from service.web.metrics import Metrics
from service.web.middleware import Gate


class TokenStorage:
    """Tokens in memory, behind a database that may hang or be down, and the clock of who reads them."""

    def __init__(self) -> None:
        self.tokens: list[Token] = []
        self.answers = threading.Event()
        self.answers.set()
        self.is_down = False
        self.num_reads = 0
        self.now = 1000.0

    def all(self) -> list[Token]:
        self.num_reads += 1
        assert self.answers.wait(60)
        if self.is_down:
            raise StoreError("the database cannot be used")
        return list(self.tokens)

    def add(self, token: Token) -> None:
        self.tokens.append(token)

    def revoke(self, token_id: str, at: float) -> bool:
        self.tokens = [Token(**{**vars(t), "revoked_at": at}) if t.id == token_id else t for t in self.tokens]
        return True

    def grow_old(self) -> None:
        """Let what was read before be too old."""
        self.now += 1.01 * auth.FRESH_S


async def _fine(_scope: Any, _receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b""})


async def ask(gate: Gate, token: str = "", path: str = "/weights") -> tuple[int, str]:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(b"authorization", f"Bearer {token}".encode())] if token else []
    scope = {"type": "http", "method": "GET", "path": path, "headers": headers, "client": ("127.0.0.1", 1)}
    await gate(scope, None, send)  # type: ignore[arg-type]
    status = sent[0]["status"]
    return status, orjson.loads(sent[1]["body"])["error"]["code"] if status >= 400 else ""


@pytest.fixture
def storage(monkeypatch: pytest.MonkeyPatch) -> TokenStorage:
    storage = TokenStorage()
    monkeypatch.setattr(
        auth, "time", SimpleNamespace(monotonic=lambda: storage.now, time=time.time, perf_counter=time.perf_counter)
    )
    monkeypatch.setattr(guard, "TOKENS_TIMEOUT_S", 60)
    return storage


def gate_of(storage: TokenStorage) -> tuple[Gate, TokenBook]:
    book = TokenBook(storage)
    return Gate(_fine, settings=Settings(), book=book, metrics=Metrics(list)), book


def test_a_slow_database_holds_up_no_other_request_and_is_asked_once_for_all(storage: TokenStorage) -> None:
    async def scene() -> None:
        gate, book = gate_of(storage)
        token = book.create("train", "t")
        storage.answers.clear()
        storage.num_reads = 0
        first = [asyncio.create_task(ask(gate, token)) for _ in range(50)]
        await asyncio.sleep(0)
        assert await ask(gate, path="/healthz") == (200, "")  # not in its way
        assert not any(task.done() for task in first)
        storage.answers.set()
        assert await asyncio.gather(*first) == [(200, "")] * 50
        assert storage.num_reads == 1

    asyncio.run(scene())


def test_a_database_that_hangs_or_is_down_leaves_those_in_who_are_known(
    storage: TokenStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scene() -> None:
        gate, book = gate_of(storage)
        token = book.create("train", "t")
        assert await ask(gate, token) == (200, "")
        storage.answers.clear()
        with monkeypatch.context() as patch:
            patch.setattr(guard, "TOKENS_TIMEOUT_S", 0.05)
            for _ in range(3):
                storage.grow_old()
                assert await ask(gate, token) == (200, "")
        assert storage.num_reads == 2  # the second one does not answer, and no third one is begun
        storage.is_down = True
        storage.answers.set()
        for _ in range(2):
            storage.grow_old()
            assert await ask(gate, token) == (200, "")
        assert await ask(gate, "mixer_00000000_wrong") == (401, "unauthorized")

    asyncio.run(scene())


def test_without_the_database_nobody_is_known_at_first(storage: TokenStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene() -> None:
        gate, _ = gate_of(storage)
        storage.is_down = True
        assert await ask(gate) == (503, "store")
        storage.is_down = False
        storage.answers.clear()
        monkeypatch.setattr(guard, "TOKENS_TIMEOUT_S", 0.05)
        assert await ask(gate) == (503, "store")
        storage.answers.set()

    asyncio.run(scene())


def test_a_revoked_token_is_refused_soon(storage: TokenStorage) -> None:
    async def scene() -> None:
        gate, book = gate_of(storage)
        token = book.create("train", "t")
        assert await ask(gate, token) == (200, "")
        storage.revoke(token.split("_")[1], 1.0)
        assert await ask(gate, token) == (200, "")
        storage.grow_old()
        assert await ask(gate, token) == (401, "unauthorized")

    asyncio.run(scene())
