"""Tokens are read beside the requests, never in their way: a database that hangs holds up nobody who is known."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import orjson
import pytest

from service import auth, guard
from service.auth import Token, TokenBook
from service.errors import StoreError
from service.guard import Guard
from service.metrics import Metrics
from service.settings import Settings


class Shelf:
    """Tokens in memory, behind a database that may be slow or down."""

    def __init__(self) -> None:
        self.tokens: list[Token] = []
        self.takes_s = 0.0
        self.is_down = False
        self.num_reads = 0

    def all(self) -> list[Token]:
        self.num_reads += 1
        time.sleep(self.takes_s)
        if self.is_down:
            raise StoreError("the database cannot be used")
        return list(self.tokens)

    def add(self, token: Token) -> None:
        self.tokens.append(token)

    def revoke(self, token_id: str, at: float) -> bool:
        self.tokens = [Token(**{**vars(t), "revoked_at": at}) if t.id == token_id else t for t in self.tokens]
        return True


async def _fine(_scope: Any, _receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b""})


async def ask(door: Guard, token: str = "", path: str = "/weights") -> tuple[int, str]:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(b"authorization", f"Bearer {token}".encode())] if token else []
    scope = {"type": "http", "method": "GET", "path": path, "headers": headers, "client": ("127.0.0.1", 1)}
    await door(scope, None, send)  # type: ignore[arg-type]
    status = sent[0]["status"]
    return status, orjson.loads(sent[1]["body"])["error"]["code"] if status >= 400 else ""


@pytest.fixture
def shelf(monkeypatch: pytest.MonkeyPatch) -> Shelf:
    monkeypatch.setattr(auth, "FRESH_S", 0.2)
    monkeypatch.setattr(guard, "TOKENS_TIMEOUT_S", 0.2)
    return Shelf()


def door_of(shelf: Shelf) -> tuple[Guard, TokenBook]:
    book = TokenBook(shelf)
    return Guard(_fine, settings=Settings(), book=book, metrics=Metrics(list)), book


def test_a_slow_database_holds_up_no_other_request_and_is_asked_once_for_all(shelf: Shelf) -> None:
    async def scene() -> None:
        door, book = door_of(shelf)
        token = book.create("train", "t")
        shelf.takes_s, shelf.num_reads = 0.1, 0
        first = [asyncio.create_task(ask(door, token)) for _ in range(50)]
        await asyncio.sleep(0)
        begin = time.perf_counter()
        assert await ask(door, path="/healthz") == (200, "")  # not in its way
        assert time.perf_counter() - begin < 0.05
        assert await asyncio.gather(*first) == [(200, "")] * 50
        assert shelf.num_reads == 1

    asyncio.run(scene())


def test_a_database_that_hangs_or_is_down_leaves_those_in_who_are_known(shelf: Shelf) -> None:
    async def scene() -> None:
        door, book = door_of(shelf)
        token = book.create("train", "t")
        assert await ask(door, token) == (200, "")
        shelf.takes_s = 1.0
        for _ in range(3):
            await asyncio.sleep(0.25)
            begin = time.perf_counter()
            assert await ask(door, token) == (200, "")
            assert time.perf_counter() - begin < 0.6
        shelf.takes_s, shelf.is_down = 0.0, True
        await asyncio.sleep(0.25)
        assert await ask(door, token) == (200, "")
        assert await ask(door, "mixer_00000000_wrong") == (401, "unauthorized")

    asyncio.run(scene())


def test_without_the_database_nobody_is_known_at_first(shelf: Shelf) -> None:
    async def scene() -> None:
        door, _ = door_of(shelf)
        shelf.is_down = True
        assert await ask(door) == (503, "store")
        shelf.is_down, shelf.takes_s = False, 1.0
        assert await ask(door) == (503, "store")

    asyncio.run(scene())


def test_a_revoked_token_is_refused_soon(shelf: Shelf) -> None:
    async def scene() -> None:
        door, book = door_of(shelf)
        token = book.create("train", "t")
        assert await ask(door, token) == (200, "")
        shelf.revoke(token.split("_")[1], 1.0)
        await asyncio.sleep(0.25)
        assert await ask(door, token) == (401, "unauthorized")

    asyncio.run(scene())
