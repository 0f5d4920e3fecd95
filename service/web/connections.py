"""What a connection may cost: uvicorn's protocol, which lets clients be slow for ever, made to lose patience.

Closed are connections that bring no whole head of a request in time, or one without end, while an answer is under way
too, and those that take no byte of an answer for as long. How long a body may take is the guard's to say.

uvicorn promises nothing of its protocol: ``pyproject.toml`` has an upper bound for it, and a test names what is used.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, ClassVar

import orjson
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from service.errors import BodyTooLargeError, RequestError, error_body
from service.web.middleware import LATE_S

MAX_OPEN_BYTES = 64 * 1024  # of a head, a trailer or a line of a chunk without end; the guard answers shorter heads
MAX_WAITING = 256  # requests sent before the one under way is answered
PIECE_BYTES = 4096  # bytes are taken in pieces of this size, each looked at


class Connection(HttpToolsProtocol):
    """One connection. ``timeout_s`` is the longest wait for its client."""

    timeout_s: ClassVar[float] = 30.0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._open_bytes = 0  # since the last thing that came whole: a head, or a piece of a body
        self._is_in_head = self._came_whole = False
        self._head_timer: _Timer | None = None
        self._read_timer: _Timer | None = None
        self._answering: RequestResponseCycle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for a request."""
        super().connection_made(transport)
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait for nothing more."""
        self._stop_timers()
        if self._answering is not None:  # uvicorn tells the newest request alone, and answers the oldest first
            self._answering.disconnected = True
            self._answering.message_event.set()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take bytes of a request, or of what a client goes on sending after its answer."""
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

    # What the parser calls.

    def on_message_begin(self) -> None:
        """Begin a head."""
        self._is_in_head = True
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a field of a head. One of a trailer is dropped: it must not pass for one of the head."""
        if self._is_in_head:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Go on to the body."""
        self._is_in_head, self._came_whole = False, True
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None
        self.scope["state"]["head_bytes"] = self._open_bytes  # at least: blanks between fields are no part of them
        super().on_headers_complete()

    def on_chunk_header(self) -> None:
        """A line with the size of a chunk came whole."""
        self._came_whole = self._is_answering

    def on_body(self, body: bytes) -> None:
        """Take a piece of a body."""
        self._came_whole = self._is_answering  # what comes after the answer is not taken any more
        super().on_body(body)

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP in the one shape of errors."""
        self._refuse(400, RequestError.code, msg)

    # What the transport says of a client that reads, or does not.

    def pause_writing(self) -> None:
        """Begin to watch whether the client reads."""
        super().pause_writing()
        self._watch_reader(self.transport.get_write_buffer_size())

    def resume_writing(self) -> None:
        """The client reads."""
        if self._read_timer is not None:
            self._read_timer.cancel()
            self._read_timer = None
        super().resume_writing()

    def timeout_keep_alive_handler(self) -> None:
        """Close a connection without requests; at once if its client did not even read the last answer."""
        if self.transport.get_write_buffer_size():
            self.transport.abort()
        super().timeout_keep_alive_handler()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._answering = cycle
        super()._start_asgi_task(cycle, app)

    def _expect_head(self) -> None:
        self._head_timer = _Timer(self.loop, self.timeout_s, self._lose_patience)

    def _lose_patience(self) -> None:
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
        """Say why the connection is closed, unless that would tear an answer, or pass for that of another request."""
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
    """Calls ``then`` after a while; a loop that comes late itself has that while to come round to what has arrived."""

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
        """Do not call."""
        self._handle.cancel()


def connection_class(timeout_s: float) -> type[Connection]:
    """Return connections of this patience, as uvicorn makes them."""
    return type("Connection", (Connection,), {"timeout_s": timeout_s})
