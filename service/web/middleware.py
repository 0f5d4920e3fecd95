"""The one ASGI middleware that every request passes: authentication, limits, request ids, metrics, security headers.

It is a single layer because each layer adds some microseconds to every batch. ``auth`` identifies who sends a request,
``browsers`` refuses foreign web pages, ``rates`` stores the counts of the rate limiter.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import secrets
import time
from collections.abc import Awaitable, Callable, MutableMapping
from concurrent.futures import Future
from typing import Any

import orjson
from limits import RateLimitItemPerMinute
from limits.strategies import FixedWindowRateLimiter

from mixer.errors import MixerError
from service.errors import (
    BodyTooLargeError,
    RateLimitError,
    RequestError,
    ServiceError,
    SlowClientError,
    UnauthorizedError,
    error_to_body,
    status_of,
)
from service.settings import Settings
from service.web.auth import FRESH_S, LOCAL, TokenBook
from service.web.browsers import READING, check_page, host_of
from service.web.metrics import Metrics
from service.web.rates import SteadyStorage

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Scope = MutableMapping[str, Any]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

OPEN_PATHS = ("/healthz", "/readyz", "/")  # these need no token
OPEN_FOLDER = "/dashboard/"  # the page's own files, which hold nothing of any run
PROBES = ("/healthz", "/readyz", "/metrics")  # not rate-limited: a refused liveness probe would restart the server
MAX_HEAD_BYTES = 16 * 1024
MAX_LOGGED = 200  # characters of a path
WRONG_PER_MINUTE = 100  # requests of one address without a valid token
TOKENS_TIMEOUT_S = 2.0  # for reading the tokens; after that the cached ones are used for as long again
LATE_S = 0.25  # a timer that fires so late shows that the loop was busy, not that the client was slow
SINGLE_FIELDS = frozenset(  # header fields that may occur once
    (
        b"host",
        b"authorization",
        b"content-type",
        b"content-encoding",
        b"content-length",
        b"transfer-encoding",
        b"origin",
        b"sec-fetch-site",
    )
)
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


class Gate:
    """Wraps the application, and sets ``scope["state"]["identity"]``.

    Args:
        app: the application.
        settings: the limits.
        book: the tokens.
        metrics: where requests are counted.
        may_change: whether the application has routes that change something.
    """

    def __init__(
        self, app: App, *, settings: Settings, book: TokenBook, metrics: Metrics, may_change: bool = True
    ) -> None:
        self._app, self._settings, self._book, self._metrics = app, settings, book, metrics
        self._may_change = may_change
        self._limiter = FixedWindowRateLimiter(SteadyStorage())
        self._rate = RateLimitItemPerMinute(settings.requests_per_minute)
        self._wrong_rate = RateLimitItemPerMinute(min(WRONG_PER_MINUTE, settings.requests_per_minute))
        self._prefix, self._numbers = secrets.token_hex(4), itertools.count()  # a random id per request takes 5 us
        self._reading: Future[None] | None = None  # the newest read of the tokens
        self._read_awaitable: asyncio.Future[None]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begin = time.perf_counter()
        headers = scope["headers"]
        request_id = _sent_id(headers) or f"{self._prefix}{next(self._numbers):08x}"
        state = scope.setdefault("state", {})
        state["request_id"] = request_id
        status = 0
        refusal: MixerError | None = None

        async def send_with_headers(message: Message) -> None:
            nonlocal status, refusal
            if refusal is not None:
                return
            if message["type"] == "http.response.start":
                has_waited = message["status"] < 400 and time.perf_counter() - begin > FRESH_S
                if has_waited and not await self.is_welcome(scope):
                    refusal = UnauthorizedError("the token was revoked while the request waited")
                    return
                status = message["status"]
                own = (*state.get("headers", SECURITY_HEADERS), (b"x-request-id", request_id.encode()))
                message["headers"] = [*message.get("headers", ()), *own]
            await send(message)

        try:
            is_open = scope["path"] in OPEN_PATHS or scope["path"].startswith(OPEN_FOLDER)
            if self._book.is_due and not is_open:
                await self._read_tokens()
            self._check(scope, headers, state, is_open=is_open)
            inner = receive if scope["method"] in ("GET", "HEAD") else _LimitedReceive(receive, self._settings)
            await self._app(scope, inner, send_with_headers)
            if refusal is not None:
                found, refusal = refusal, None
                await _answer(send_with_headers, found)
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

    async def is_welcome(self, scope: Scope) -> bool:
        """Return whether the token of an accepted request is still valid, after reading the tokens if that is due."""
        if "token" not in scope["state"]:  # the request was refused, or needs no token
            return True
        if self._book.is_due:
            await self._read_tokens()
        try:
            self._book.identify(scope["state"]["token"])
        except UnauthorizedError:
            return False
        return True

    def _note(self, scope: Scope, status: int, took_s: float) -> None:
        """Count a request, and log it if it failed or may have changed something."""
        state = scope["state"]
        route = getattr(scope.get("route"), "path", None) or state.get("route", "other")
        self._metrics.request(route, scope["method"], status, took_s)
        if status >= 400 or scope["method"] != "GET":
            identity = state.get("identity")
            fields = {
                "id": state["request_id"],
                "method": scope["method"],
                "path": scope["path"][:MAX_LOGGED],
                "status": status,
                "ms": round(took_s * 1000, 2),
                "who": identity.name if identity else None,
                "origin": origin_of(scope),
            }
            log.info("request", extra=fields)

    async def _read_tokens(self) -> None:
        """Read the tokens in a thread, once for all waiting requests; wait only if the cached ones are too old."""
        if self._reading is None or self._reading.done():
            self._reading = self._book.begin_reading()
            self._read_awaitable = asyncio.wrap_future(self._reading)
            # fetch the exception, or asyncio logs that nobody did
            self._read_awaitable.add_done_callback(lambda done: done.cancelled() or done.exception())
        if not self._book.is_stale:
            return
        reading, awaitable = self._reading, self._read_awaitable  # the second is done a little later than the first
        while not reading.done() and (left_s := TOKENS_TIMEOUT_S - self._book.reading_s) > 0:
            await asyncio.wait({awaitable}, timeout=left_s)
        if reading.done():
            reading.result()
        else:
            self._book.extend_cache()

    def _check(self, scope: Scope, headers: list[tuple[bytes, bytes]], state: dict[str, Any], *, is_open: bool) -> None:
        """Check the head of a request and who sends it; set the identity."""
        sent = _single_fields(scope, headers)
        _check_body(scope["method"], sent, self._settings.max_body_bytes)
        if is_open:
            identity = LOCAL
        else:
            token = sent.get(b"authorization", b"").decode("latin-1")
            try:
                identity = self._book.identify(token)
            except UnauthorizedError:
                self._count(self._wrong_rate, f"wrong {origin_of(scope)}", "unknown")
                raise
            state["token"] = token
        state["identity"] = identity
        if self._book.is_open:
            if is_open:  # other sites may link to the page
                sent = {b"host": sent.get(b"host", b"")}
            is_change = self._may_change and not is_open and scope["method"] not in READING
            check_page(sent, is_change=is_change, bound=self._settings.host)
        if scope["path"] not in PROBES:
            self._count(self._rate, identity.token_id or origin_of(scope), identity.name)

    def _count(self, rate: RateLimitItemPerMinute, key: str, name: str) -> None:
        """Count a request; raise RateLimitError if it exceeds the limit."""
        if not self._limiter.hit(rate, key):
            reset = self._limiter.get_window_stats(rate, key).reset_time
            raise RateLimitError(
                f"more than {rate.amount} requests of {name} ({key}) came within a minute",
                retry_after_s=max(1.0, reset - time.monotonic()),
            )


class _LimitedReceive:
    """A receive channel that bounds the size of a body, and the time until all of it has arrived."""

    def __init__(self, receive: Receive, settings: Settings) -> None:
        self._receive, self._left, self._is_whole = receive, settings.max_body_bytes, False
        self._timeout_s = settings.client_timeout_s
        self._deadline = time.monotonic() + self._timeout_s

    async def __call__(self) -> Message:
        if self._is_whole:
            return await self._receive()  # returns when the client disconnects
        message = await self._in_time()
        if message["type"] == "http.request":
            self._left -= len(message.get("body", b""))
            self._is_whole = not message.get("more_body", False)
            if self._left < 0:
                raise BodyTooLargeError("the body is larger than the limit of this server")
        return message

    async def _in_time(self) -> Message:
        while True:
            try:
                return await asyncio.wait_for(self._receive(), self._deadline - time.monotonic())
            except TimeoutError as error:
                late_s = time.monotonic() - self._deadline
                if late_s < LATE_S:
                    raise SlowClientError(f"the body did not come within {self._timeout_s:.4g} s") from error
                self._deadline += 2 * late_s  # the loop was busy, and has not read what may have arrived


def _single_fields(scope: Scope, headers: list[tuple[bytes, bytes]]) -> dict[bytes, bytes]:
    """Return those of SINGLE_FIELDS that a request has, by name.

    Raises:
        BodyTooLargeError: the head is too long.
        _HeadError: Host is missing or malformed, or a field occurs twice.
    """
    size = len(scope.get("raw_path", b"")) + len(scope.get("query_string", b""))
    sent: dict[bytes, bytes] = {}
    for name, value in headers:
        size += len(name) + len(value) + 4  # ": " and the end of the line
        if name in SINGLE_FIELDS:
            if name in sent:
                raise _HeadError(f"two fields {name.decode()}; which of them counts cannot be known")
            sent[name] = value
    size = max(size, scope["state"].get("head_bytes", 0))
    if size > MAX_HEAD_BYTES:
        raise BodyTooLargeError(f"the head of the request has {size} bytes; the limit is {MAX_HEAD_BYTES}")
    host = sent.get(b"host")
    if host is None:
        if scope.get("http_version", "1.0") != "1.0":
            raise _HeadError("no field Host")
    elif host_of(host.decode("latin-1")) is None:
        raise _HeadError(f"Host {host[:100].decode('latin-1')!r} is not a name or an address with or without a port")
    return sent


def _check_body(method: str, sent: dict[bytes, bytes], most: int) -> None:
    """Raise RequestError or BodyTooLargeError for a body that the server would not read."""
    encoding, length = sent.get(b"content-encoding", b""), sent.get(b"content-length", b"0")
    if encoding not in (b"identity", b""):
        raise RequestError(f"content-encoding {encoding[:100].decode('latin-1')!r}: bodies are sent as they are")
    if length.isdigit() and int(length) > most:
        raise BodyTooLargeError(f"the body has {int(length)} bytes; the limit is {most}")
    if method in ("GET", "HEAD") and (length != b"0" or b"transfer-encoding" in sent):
        raise RequestError(f"{method} with a body, which would say nothing")


class _HeadError(RequestError):
    """A head that HTTP itself forbids."""

    status = 400


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
    if status_of(error) == 400:
        headers["connection"] = "close"  # the rest of the stream cannot be trusted
    return headers


def _sent_id(headers: list[tuple[bytes, bytes]]) -> str | None:
    """Return the request id that a proxy sent, if it is safe to log."""
    for name, value in headers:
        if name == b"x-request-id" and len(value) <= 64 and value.replace(b"-", b"").isalnum():
            return value.decode("ascii", "replace")
    return None
