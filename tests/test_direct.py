"""Batches over sockets of our own: an answer is read however it comes, and asked for otherwise if it is not plain."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixer.batches import RowBatches
from service.calls import TransientError
from service.client import MixerClient
from service.direct import Direct, NotPlainError
from service.errors import UnreachableError
from service.wire import encode


class Scripted:
    """A connection that brings bytes in given pieces, and then its end."""

    def __init__(self, data: bytes, cuts: list[int]) -> None:
        ends = [*sorted({cut % len(data) for cut in cuts} - {0}), len(data)]
        self._pieces = [data[begin:end] for begin, end in zip([0, *ends], ends, strict=False)]
        self.is_closed = False
        self.sent = b""

    def sendall(self, data: bytes) -> None:
        self.sent += data

    def recv(self, most: int) -> bytes:
        piece = self._pieces.pop(0) if self._pieces else b""
        if piece[most:]:
            self._pieces.insert(0, piece[most:])
        return piece[:most]

    def recv_into(self, room: memoryview) -> int:
        piece = self.recv(len(room))
        room[: len(piece)] = piece
        return len(piece)

    def close(self) -> None:
        self.is_closed = True


def over(connection: Any) -> Direct:
    """Return what asks over this connection, one that is new."""
    direct = Direct("http://there:1/at", {"authorization": "Bearer me"}, None, connect_s=1, read_s=1)
    direct._opened = lambda: connection  # type: ignore[method-assign]
    return direct


@given(st.binary(max_size=9000), st.lists(st.integers(0, 20_000)), st.sampled_from([200, 404]))
def test_an_answer_is_read_however_it_is_cut(body: bytes, cuts: list[int], status: int) -> None:
    head = f"HTTP/1.1 {status} As It Is\r\nContent-Length:  {len(body)}\r\nX-Mixer-Step: 7\r\n\r\n"
    connection = Scripted(head.encode() + body, cuts)
    direct = over(connection)
    answer = direct.get("/batches?from=0")
    assert (answer.status, bytes(answer.content), answer.headers["x-mixer-step"]) == (status, body, "7")
    assert connection.sent.startswith(b"GET /at/batches?from=0 HTTP/1.1\r\nhost: there:1\r\n")
    assert b"\r\nauthorization: Bearer me\r\n" in connection.sent
    assert not connection.is_closed
    direct.close()
    assert connection.is_closed


@given(st.integers(1, 5000), st.data())
def test_an_answer_that_ends_early_may_come_whole_the_next_time(length: int, data: st.DataObject) -> None:
    whole = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % length + bytes(length)
    connection = Scripted(whole[: data.draw(st.integers(1, len(whole) - 1))], [])
    with pytest.raises(TransientError):
        over(connection).get("/")
    assert connection.is_closed


@pytest.mark.parametrize(
    "head",
    [
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked",
        "HTTP/1.1 200 OK\r\ncontent-length: 2\r\ntransfer-encoding: chunked",
        "HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-encoding: gzip",
        "HTTP/1.1 200 OK\r\ncontent-length: two",
        "HTTP/1.1 200 OK\r\ncontent-length: 1",
        "HTTP/1.1 100 Continue\r\ncontent-length: 2",
        "HTTP/1.0 200 OK\r\ncontent-length: 2",
        "SSH-2.0",
        "HTTP/1.1 200 OK\r\n" + "x: y\r\n" * 20_000,
    ],
)
def test_an_answer_that_is_not_plain_is_not_read(head: str) -> None:
    connection = Scripted(head.encode() + b"\r\n\r\nab", [])
    with pytest.raises(NotPlainError):
        over(connection).get("/")
    assert connection.is_closed


def test_a_connection_that_is_to_close_is_not_used_again() -> None:
    connection = Scripted(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: Close\r\n\r\n", [])
    over(connection).get("/")
    assert connection.is_closed


ROWS, NUMBERS = np.arange(2 * 3 * 5, dtype=np.uint16).reshape(2, 3, 5), np.zeros((2, 3), dtype=np.int64)
RECORDS = bytes(encode(RowBatches(range(2), 0, ROWS, NUMBERS, NUMBERS), 0, 1).pieces(range(2))[0])


@contextmanager
def answering(*, in_pieces: bool, keeps: bool = True) -> Iterator[tuple[str, list[str]]]:
    """Run a server that has two batches for whoever asks; gives its URL and what was asked with which agent."""
    agents: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            agents.append(self.headers.get("user-agent", "").partition("/")[0])
            self.send_response(200)
            self.send_header(*(("transfer-encoding", "chunked") if in_pieces else ("content-length", len(RECORDS))))  # type: ignore[arg-type]
            self.end_headers()
            self.wfile.write(b"%x\r\n%s\r\n0\r\n\r\n" % (len(RECORDS), RECORDS) if in_pieces else RECORDS)
            self.close_connection = not keeps  # without a word

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", agents
        finally:
            server.shutdown()
            thread.join()


def test_what_a_proxy_sends_in_pieces_is_asked_for_otherwise_from_then_on() -> None:
    with answering(in_pieces=True) as (url, agents), MixerClient(url, patience_s=0) as client:
        for _ in range(2):
            assert [batch.rows.tolist() for batch in client.batches(range(2))] == ROWS.tolist()
    assert agents == ["curriculum-mixer", "python-urllib3", "python-urllib3"]


def test_a_connection_that_the_server_closed_meanwhile_costs_no_try() -> None:
    with answering(in_pieces=False, keeps=False) as (url, agents), MixerClient(url, patience_s=0) as client:
        for _ in range(3):
            assert [batch.step for batch in client.batches(range(2))] == [0, 1]
    assert agents == ["curriculum-mixer"] * 3


def test_where_nobody_listens_one_sentence_says_so() -> None:
    with answering(in_pieces=False) as (url, _), MixerClient(url, patience_s=0) as client:
        client.batches(range(2))
    with MixerClient(url, patience_s=0) as client, pytest.raises(UnreachableError, match="gave up on"):
        client.batches(range(2))
