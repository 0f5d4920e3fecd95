"""The door of the server, one plain ASGI layer: limits, who sends, request ids, timing, headers that browsers obey.

One layer, because each costs every batch some microseconds.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import secrets
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import orjson
from limits import RateLimitItemPerMinute
from limits.strategies import FixedWindowRateLimiter

from mixer.errors import MixerError
from service.auth import LOCAL, Identity, TokenBook
from service.errors import (
    BodyTooLargeError,
    RateLimitError,
    RequestError,
    ServiceError,
    SlowClientError,
    error_to_body,
    status_of,
)
from service.metrics import Metrics
from service.rates import SteadyStorage
from service.settings import Settings

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Scope = MutableMapping[str, Any]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

OPEN_PATHS = ("/healthz", "/readyz", "/")
OPEN_FOLDER = "/dashboard/"  # the page's own files, which say nothing of any run
MAX_HEADER_BYTES = 16 * 1024
TOKENS_TIMEOUT_S = 2.0  # then those known are good for as long again
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
NO_SNIFFING = (b"x-content-type-options", b"nosniff")
SECURITY_HEADERS = (
    NO_SNIFFING,
    (b"content-security-policy", CONTENT_SECURITY_POLICY.encode()),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
)

log = logging.getLogger(__name__)


class Guard:
    """Wraps the application. ``scope["state"]["identity"]`` is who sends.

    Args:
        app: what is guarded.
        settings: limits.
        book: whose tokens are known.
        metrics: what is counted.
    """

    def __init__(self, app: App, *, settings: Settings, book: TokenBook, metrics: Metrics) -> None:
        self._app, self._settings, self._book, self._metrics = app, settings, book, metrics
        self._limiter = FixedWindowRateLimiter(SteadyStorage())
        self._rate = RateLimitItemPerMinute(settings.requests_per_minute)
        self._prefix, self._numbers = secrets.token_hex(4), itertools.count()  # a random id for each takes 5 us
        self._reading: asyncio.Task[None] | None = None  # of tokens

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or answer why not."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begin = time.perf_counter()
        headers = scope["headers"]
        request_id = _sent_id(headers) or f"{self._prefix}{next(self._numbers):08x}"
        state = scope.setdefault("state", {})
        state["request_id"] = request_id
        status = 0

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                own = (*state.get("headers", SECURITY_HEADERS), (b"x-request-id", request_id.encode()))
                message["headers"] = [*message.get("headers", ()), *own]
            await send(message)

        try:
            is_open = scope["path"] in OPEN_PATHS or scope["path"].startswith(OPEN_FOLDER)
            if self._book.is_due and not is_open:
                await self._read_tokens()
            self._check(scope, headers, state, is_open=is_open)
            inner = receive if scope["method"] in ("GET", "HEAD") else _Limited(receive, self._settings)
            await self._app(scope, inner, send_with_headers)
        except MixerError as error:
            if status:
                raise
            await _answer(send_with_headers, error)
        except Exception as error:
            if not status:
                problem = ServiceError(f"unexpected {type(error).__name__} in request {request_id}")
                await _answer(send_with_headers, problem)
            raise
        finally:
            self._note(scope, status, time.perf_counter() - begin)

    def _note(self, scope: Scope, status: int, took_s: float) -> None:
        """Count a request, and log it if it failed or changes something."""
        state = scope["state"]
        route = getattr(scope.get("route"), "path", None) or state.get("route", "other")
        self._metrics.request(route, scope["method"], status, took_s)
        if status >= 400 or scope["method"] != "GET":
            identity = state.get("identity")
            fields = {
                "id": state["request_id"],
                "method": scope["method"],
                "path": scope["path"],
                "status": status,
                "ms": round(took_s * 1000, 2),
                "who": identity.name if identity else None,
                "origin": origin_of(scope),
            }
            log.info("request", extra=fields)

    async def _read_tokens(self) -> None:
        """Have the tokens read in a thread, all requests one reading; wait for it if those known are too old."""
        if self._reading is None or self._reading.done():
            self._reading = asyncio.create_task(asyncio.to_thread(self._book.read))
            self._reading.add_done_callback(lambda reading: reading.cancelled() or reading.exception())  # seen
        if self._book.is_stale:
            done, late = await asyncio.wait({self._reading}, timeout=TOKENS_TIMEOUT_S)
            if late:
                self._book.wait_no_longer()
            for reading in done:
                reading.result()

    def _check(self, scope: Scope, headers: list[tuple[bytes, bytes]], state: dict[str, Any], *, is_open: bool) -> None:
        size, token, encoding, length = 0, None, b"identity", b"0"
        for name, value in headers:
            size += len(name) + len(value)
            if name == b"authorization":
                token = value.decode("latin-1")
            elif name == b"content-encoding":
                encoding = value
            elif name == b"content-length":
                length = value
        if size > MAX_HEADER_BYTES:
            raise BodyTooLargeError(f"the headers have {size} bytes; the limit is {MAX_HEADER_BYTES}")
        if encoding not in (b"identity", b""):
            raise RequestError(f"content-encoding {encoding.decode('latin-1')!r}: bodies are sent as they are")
        if int(length if length.isdigit() else b"0") > self._settings.max_body_bytes:
            raise BodyTooLargeError(f"the body has {int(length)} bytes; the limit is {self._settings.max_body_bytes}")
        identity = LOCAL if is_open else self._book.identify(token)
        state["identity"] = identity
        self._check_rate(identity, scope)

    def _check_rate(self, identity: Identity, scope: Scope) -> None:
        key = identity.name if identity is not LOCAL else origin_of(scope)
        if not self._limiter.hit(self._rate, key):
            reset = self._limiter.get_window_stats(self._rate, key).reset_time
            raise RateLimitError(
                f"{key} sent more than {self._settings.requests_per_minute} requests in a minute",
                retry_after_s=max(1.0, reset - time.monotonic()),
            )


class _Limited:
    """A receive that counts, and does not wait for ever: all of a body comes in time, not only the next byte."""

    def __init__(self, receive: Receive, settings: Settings) -> None:
        self._receive, self._left, self._is_whole = receive, settings.max_body_bytes, False
        self._timeout_s = settings.client_timeout_s
        self._deadline = time.monotonic() + self._timeout_s

    async def __call__(self) -> Message:
        if self._is_whole:
            return await self._receive()  # waits for the client to go away
        try:
            message = await asyncio.wait_for(self._receive(), self._deadline - time.monotonic())
        except TimeoutError as error:
            raise SlowClientError(f"the body did not come within {self._timeout_s:.4g} s") from error
        if message["type"] == "http.request":
            self._left -= len(message.get("body", b""))
            self._is_whole = not message.get("more_body", False)
            if self._left < 0:
                raise BodyTooLargeError("the body is larger than the limit of this server")
        return message


def origin_of(scope: Scope) -> str:
    """Return the address that a request came from."""
    client = scope.get("client")
    return str(client[0]) if client else "unknown"


async def _answer(send: Send, error: MixerError) -> None:
    body = orjson.dumps(error_to_body(error))
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    headers += [(name.encode(), value.encode()) for name, value in error_headers(error).items()]
    await send({"type": "http.response.start", "status": status_of(error), "headers": headers})
    await send({"type": "http.response.body", "body": body})


def error_headers(error: MixerError) -> dict[str, str]:
    """Return the headers that go with an error."""
    headers = {}
    retry_after_s = getattr(error, "retry_after_s", None)
    if retry_after_s is not None:
        headers["retry-after"] = str(max(1, round(retry_after_s)))
    if status_of(error) == 401:
        headers["www-authenticate"] = "Bearer"
    return headers


def _sent_id(headers: list[tuple[bytes, bytes]]) -> str | None:
    """Return the request id that a proxy gave, if it is harmless in a log."""
    for name, value in headers:
        if name == b"x-request-id" and len(value) <= 64 and value.replace(b"-", b"").isalnum():
            return value.decode("ascii", "replace")
    return None
