"""What a connection may cost: uvicorn's protocol, which lets clients be slow for ever, made to lose patience.

Closed are connections that bring no whole head of a request in time, or one without end, and those that take no byte of
an answer for as long. Bodies are the guard's.
"""

from __future__ import annotations

import asyncio
from typing import Any, ClassVar

import orjson
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from service.errors import BodyTooLargeError, RequestError, error_body

MAX_HEAD_BYTES = 64 * 1024  # more than the guard lets through, which can answer in detail


class Connection(HttpToolsProtocol):
    """One connection. ``timeout_s`` is the longest wait for its client."""

    timeout_s: ClassVar[float] = 30.0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._head_bytes = 0
        self._head_timer: asyncio.TimerHandle | None = None
        self._read_timer: asyncio.TimerHandle | None = None
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
        super().data_received(data)
        if self.transport.is_closing() or (self.cycle is not None and not self.cycle.response_complete):
            return
        if self._head_timer is None:
            self._expect_head()
        self._head_bytes += len(data)
        if self._head_bytes > MAX_HEAD_BYTES:
            self._refuse(413, BodyTooLargeError.code, f"more than {MAX_HEAD_BYTES} bytes before a request")

    def on_headers_complete(self) -> None:
        """Go on to the body."""
        self._head_bytes = 0
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None
        super().on_headers_complete()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP in the one shape of errors."""
        self._refuse(400, RequestError.code, msg)

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
        self._head_bytes = 0
        self._head_timer = self.loop.call_later(self.timeout_s, self._lose_patience)

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

        self._read_timer = self.loop.call_later(self.timeout_s, look)

    def _refuse(self, status: int, code: str, message: str) -> None:
        body = orjson.dumps(error_body(code, message, RequestError.hint))
        head = b"content-type: application/json\r\nconnection: close\r\ncontent-length: %d\r\n\r\n" % len(body)
        self.transport.write(STATUS_LINE[status] + head + body)
        self.transport.close()

    def _stop_timers(self) -> None:
        for timer in (self._head_timer, self._read_timer):
            if timer is not None:
                timer.cancel()
        self._head_timer = self._read_timer = None


def connection_class(timeout_s: float) -> type[Connection]:
    """Return connections of this patience, as uvicorn makes them."""
    return type("Connection", (Connection,), {"timeout_s": timeout_s})
