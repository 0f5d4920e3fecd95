"""Bounds on what a client may cost: uvicorn's HTTP protocol with timeouts and limits, which it lacks.

A connection is closed when the head of a request does not arrive whole within ``timeout_s``, when a head has no end,
and when the client reads no byte of an answer for ``timeout_s``. Heads that arrive during an answer count too.
``middleware`` bounds how long a body may take.

uvicorn's protocol is private: ``pyproject.toml`` has an upper bound for its version, and a test names what is used.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, ClassVar

import orjson
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from service.errors import BodyTooLargeError, RequestError, error_body
from service.web.middleware import LATE_S

MAX_OPEN_BYTES = 64 * 1024  # of a head, trailer or chunk line without end; middleware answers shorter heads
MAX_WAITING = 256  # pipelined requests
PIECE_BYTES = 4096  # data is parsed in pieces of this size, and the limits are checked after each


class Connection(HttpToolsProtocol):
    """One connection; ``timeout_s`` is the longest wait for its client."""

    timeout_s: ClassVar[float] = 30.0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._open_bytes = 0  # since the last complete element: a head, a chunk line or a piece of a body
        self._is_in_head = self._came_whole = False
        self._head_timer: _Timer | None = None
        self._read_timer: _Timer | None = None
        self._answering: RequestResponseCycle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the timer for the first request."""
        super().connection_made(transport)
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the timers, and end the answer in progress."""
        self._stop_timers()
        if self._answering is not None:  # uvicorn answers the oldest request first, but notifies only the newest
            self._answering.disconnected = True
            self._answering.message_event.set()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse data of a request, also what a client goes on sending after its answer."""
        for begin in range(0, len(data), PIECE_BYTES):
            if self.transport.is_closing():
                return
            piece = data[begin : begin + PIECE_BYTES]
            self._came_whole = False
            super().data_received(piece)
            self._open_bytes = 0 if self._came_whole else self._open_bytes + len(piece)
            if self._open_bytes > MAX_OPEN_BYTES or len(self.pipeline) > MAX_WAITING:
                self._refuse(413, BodyTooLargeError.code, f"more than {MAX_OPEN_BYTES} bytes before a request")
            elif self._head_timer is None and (self._is_in_head or not self._is_answering):
                self._expect_head()

    @property
    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    # The parser calls these.

    def on_message_begin(self) -> None:
        """A head begins."""
        self._is_in_head = True
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep a field of the head; drop one of a trailer, which must not pass for a field of the head."""
        if self._is_in_head:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """The head is complete."""
        self._is_in_head, self._came_whole = False, True
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None
        self.scope["state"]["head_bytes"] = self._open_bytes  # with the blanks between fields, which uvicorn drops
        super().on_headers_complete()

    def on_chunk_header(self) -> None:
        """The line with the size of a chunk is complete."""
        self._came_whole = self._is_answering

    def on_body(self, body: bytes) -> None:
        """Take a piece of a body."""
        self._came_whole = self._is_answering  # a body that goes on after the answer counts as open bytes
        super().on_body(body)

    def send_400_response(self, msg: str) -> None:
        """Refuse malformed HTTP with the usual error body."""
        self._refuse(400, RequestError.code, msg)

    # The transport calls these when the client stops reading, and when it goes on.

    def pause_writing(self) -> None:
        """Start to watch whether the client reads."""
        super().pause_writing()
        self._watch_reader(self.transport.get_write_buffer_size())

    def resume_writing(self) -> None:
        """The client reads again."""
        if self._read_timer is not None:
            self._read_timer.cancel()
            self._read_timer = None
        super().resume_writing()

    def timeout_keep_alive_handler(self) -> None:
        """Close an idle connection; abort it if its client has not read the last answer."""
        if self.transport.get_write_buffer_size():
            self.transport.abort()
        super().timeout_keep_alive_handler()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._answering = cycle
        super()._start_asgi_task(cycle, app)

    def _expect_head(self) -> None:
        self._head_timer = _Timer(self.loop, self.timeout_s, self._head_is_late)

    def _head_is_late(self) -> None:
        self._head_timer = None
        if not self.transport.is_closing():
            self.transport.close()

    def _watch_reader(self, before: int) -> None:
        def look() -> None:
            left = self.transport.get_write_buffer_size()
            if left < before:
                self._watch_reader(left)
            else:
                self.transport.abort()

        self._read_timer = _Timer(self.loop, self.timeout_s, look)

    def _refuse(self, status: int, code: str, message: str) -> None:
        """Close the connection with an error, unless its bytes would fall into an answer or answer another request."""
        is_of_body = not self._is_in_head and self.cycle is self._answering and not self.cycle.response_started
        if not self._is_answering or is_of_body:
            body = orjson.dumps(error_body(code, message, RequestError.hint))
            head = b"content-type: application/json\r\nconnection: close\r\ncontent-length: %d\r\n\r\n" % len(body)
            self.transport.write(STATUS_LINE[status] + head + body)
        self.transport.close()

    def _stop_timers(self) -> None:
        for timer in (self._head_timer, self._read_timer):
            if timer is not None:
                timer.cancel()
        self._head_timer = self._read_timer = None


class _Timer:
    """Calls ``then`` after ``wait_s``; a loop that fires late first gets that much time to read what has arrived."""

    def __init__(self, loop: asyncio.AbstractEventLoop, wait_s: float, then: Callable[[], None]) -> None:
        self._loop, self._then = loop, then
        self._start(wait_s)

    def _start(self, wait_s: float) -> None:
        self._due = self._loop.time() + wait_s
        self._handle = self._loop.call_later(wait_s, self._fire)

    def _fire(self) -> None:
        late_s = self._loop.time() - self._due
        if late_s > LATE_S:
            self._start(late_s)
        else:
            self._then()

    def cancel(self) -> None:
        """Cancel the call."""
        self._handle.cancel()


def connection_class(timeout_s: float) -> type[Connection]:
    """Return the class of connections with this timeout, which uvicorn instantiates."""
    return type("Connection", (Connection,), {"timeout_s": timeout_s})
