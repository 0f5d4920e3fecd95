"""Requests for batches: an answer is read however it comes, and asked for again if it does not come whole."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest

from mixer.delivery.batch import RowBatches
from mixer.errors import ConfigError, MixerError
from service.client.calls import TransientError
from service.client.client import MixerClient
from service.client.transport import Direct
from service.errors import UnreachableError
from service.wire.batches import encode

ROWS, NUMBERS = np.arange(2 * 3 * 5, dtype=np.uint16).reshape(2, 3, 5), np.zeros((2, 3), dtype=np.int64)
RECORDS = bytes(encode(RowBatches(range(2), 0, ROWS, NUMBERS, NUMBERS), 0, 1).pieces(range(2))[0])


@contextmanager
def answering(
    *, in_pieces: bool = False, keeps: bool = True, says_so: bool = False, gives: int = len(RECORDS)
) -> Iterator[tuple[str, list[str]]]:
    """Run a server that has two batches for whoever asks; gives its URL and what was asked with which agent.

    Args:
        in_pieces: without a length.
        keeps: the connection, after an answer.
        says_so: that it does not.
        gives: bytes of the answer before it closes the connection.
    """
    agents: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            agents.append(f"{self.path.partition('?')[0]} {self.headers.get('user-agent')}")
            self.send_response(200)
            self.send_header(*(("transfer-encoding", "chunked") if in_pieces else ("Content-Length", len(RECORDS))))  # type: ignore[arg-type]
            if says_so:
                self.send_header("connection", "close")
            self.end_headers()
            body = RECORDS[:gives]
            half = len(body) // 2
            for part in (body[:half], body[half:]):
                self.wfile.write(b"%x\r\n%s\r\n" % (len(part), part) if in_pieces else part)
            if in_pieces:
                self.wfile.write(b"0\r\n\r\n")
            self.close_connection = not keeps or gives < len(RECORDS)

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/at", agents
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize("in_pieces", [False, True])
@pytest.mark.parametrize(("keeps", "says_so"), [(True, False), (False, False), (False, True)])
def test_batches_come_however_the_answer_is_sent_and_whether_or_not_the_connection_is_kept(
    in_pieces: bool, keeps: bool, says_so: bool
) -> None:
    with (
        answering(in_pieces=in_pieces, keeps=keeps, says_so=says_so) as (url, agents),
        MixerClient(url, patience_s=0) as client,
    ):
        for _ in range(3):
            assert [batch.rows.tolist() for batch in client.batches(range(2))] == ROWS.tolist()
        assert len(client._direct._idle) == (not says_so)
    assert agents == ["/at/batches curriculum-mixer"] * 3


@pytest.mark.parametrize("gives", [0, 1, len(RECORDS) // 2, len(RECORDS) - 1])
def test_an_answer_that_ends_early_may_come_whole_the_next_time(gives: int) -> None:
    with answering(gives=gives) as (url, _):
        direct = Direct(url, {}, None, connect_s=100, read_s=100)
        with pytest.raises(TransientError):
            direct.get("/batches")
        assert not direct._idle


def test_where_nobody_listens_one_sentence_says_so() -> None:
    with answering() as (url, _), MixerClient(url, patience_s=0) as client:
        client.batches(range(2))
    with MixerClient(url, patience_s=0) as client, pytest.raises(UnreachableError, match="gave up on"):
        client.batches(range(2))


@pytest.mark.parametrize("code", ["stalled", "not-ready", "run-state", "rate-limit", "store", "journal", "slow-client"])
@pytest.mark.parametrize("ask", [lambda client: client.batches(range(2)), lambda client: client.status()])
def test_what_the_server_went_on_answering_is_raised_by_its_class(code: str, ask: Any) -> None:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = b'{"error": {"code": "%s", "message": "row 3 is bad", "hint": "mend it"}}' % code.encode()
            self.send_response(503)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            with (
                MixerClient(f"http://127.0.0.1:{server.server_port}", patience_s=0) as client,
                pytest.raises(MixerError, match="row 3 is bad") as refusal,
            ):
                ask(client)
        finally:
            server.shutdown()
            thread.join()
    assert refusal.value.code == code


@pytest.mark.parametrize(
    "url",
    ["host:8642", "localhost", "", "/runs", "ftp://host", "http:/host", "http://", "http://:8642", "http://host:port",
     "http://host:99999", "http://ho st", "http://[::1", "http://host?run=a", "http://host#a"],
)  # fmt: skip
def test_a_url_that_is_none_is_refused_with_the_reason(url: str) -> None:
    with pytest.raises(ConfigError, match="give it as in http://host:8642"):
        MixerClient(url)


def test_a_server_that_never_was_there_is_told_sooner_than_one_that_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.client.client.ABSENT_S", 0.0)
    monkeypatch.setattr("service.client.client.PATIENCE_S", 0.6)
    with answering(keeps=False, says_so=True) as (url, _):
        client = MixerClient(url)
        client.batches(range(2))
    with pytest.raises(UnreachableError, match="gave up on") as gone:
        client.batches(range(2))
    with pytest.raises(UnreachableError, match="gave up on .* after 1 attempts in 0 s"):
        MixerClient(url).status()
    assert "after 1 attempts" not in str(gone.value)
