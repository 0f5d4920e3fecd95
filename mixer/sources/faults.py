"""What goes wrong while reading: faults of a network, which pass and are retried, and faults of the data, which do not.

`datasets` and huggingface_hub retry too, but in their own time: 20 times 5 to 60 s, and for as long as a server's
Retry-After says, which freezes a rank for an hour without a word. While one of our sources reads, each of their calls
is made once and with a time limit; the retries are here, said and bounded by the curriculum's ``retries``.
"""

from __future__ import annotations

import contextlib
import email.utils
import errno
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import datasets
import pyarrow as pa
import tenacity
from huggingface_hub import get_session
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import _http, httpx  # type: ignore[attr-defined]  # httpx, or the fork that the hub uses

from mixer.config.sources import RetriesConfig
from mixer.errors import (
    MalformedDataError,
    MissingDataError,
    MissingDependencyError,
    MixerError,
    SourceError,
    SourceUnavailableError,
)
from mixer.sources.batches import UnreadableFile

log = logging.getLogger("mixer.sources")

RETRIED_STATUSES = frozenset({408, 425, 429, *range(500, 600)})
RETRIED_ERRNOS = frozenset(
    {
        errno.ECONNABORTED,
        errno.ECONNREFUSED,
        errno.ECONNRESET,
        errno.EHOSTUNREACH,
        errno.ENETDOWN,
        errno.ENETUNREACH,
        errno.EPIPE,
        errno.ETIMEDOUT,
    }
)
HOPELESS = ("OfflineModeIsEnabled", "UnsupportedProtocol", "LocalEntryNotFoundError")  # waiting changes nothing
READING = ("GET", "HEAD")
NO_HANDLER = logging.NullHandler()
TIMEOUTS = ("connect", "read", "write", "pool")

Result = TypeVar("Result")


class NetworkFault(Exception):  # noqa: N818  # a signal that never leaves this package
    """One attempt that a network broke off; ``persist`` tries again or makes a SourceUnavailableError of it."""

    def __init__(self, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


def persist(
    call: Callable[[], Result],
    *,
    source: str,
    place: Callable[[], str],
    retries: RetriesConfig,
    first: NetworkFault | None = None,
) -> Result:
    """Return what ``call`` returns, calling it again after each NetworkFault, with waits that double and jitter.

    A server's Retry-After is waited for if it is longer, and given up at once if it is above ``retries.max_wait_s``.

    Args:
        call: one attempt; it leaves the place as it was when it raises.
        source: the source's name.
        place: says where the source stands.
        retries: how often and how long.
        first: what the first attempt has raised already, elsewhere.

    Raises:
        SourceUnavailableError: the last attempt failed too.
    """
    pending = [first] if first is not None else []
    began = time.monotonic()

    def attempt() -> Result:
        if pending:
            raise pending.pop()
        return call()

    def say(state: tenacity.RetryCallState) -> None:
        assert state.outcome is not None
        assert state.next_action is not None
        log.warning(
            "source %s: %s; attempt %d of %d, the next one in %.1f s",
            *(source, state.outcome.exception(), state.attempt_number, retries.attempts, state.next_action.sleep),
        )

    retrying = tenacity.Retrying(
        retry=tenacity.retry_if_exception_type(NetworkFault),
        stop=tenacity.stop_any(
            tenacity.stop_after_attempt(retries.attempts),
            _AsksTooMuch(retries),
        ),
        wait=_Waits(retries),
        before_sleep=say,
        reraise=True,
    )
    try:
        return retrying(attempt)
    except NetworkFault as fault:
        asked = fault.retry_after_s
        why = f", which asks to wait {asked:.0f} s" if asked is not None and asked > retries.max_wait_s else ""
        times = retrying.statistics["attempt_number"]
        raise SourceUnavailableError(
            f"source {source}: {fault}{why}; gave up {place()} after {times} attempt{'s' * (times > 1)} in "
            f"{time.monotonic() - began:.0f} s. Nothing is lost: read on when it is back, raise `retries`, or set its "
            "on_failure to suspend",
            name=source,
        ) from fault


class _AsksTooMuch(tenacity.stop.stop_base):
    """Whether a server asks for a longer wait than we are ready for."""

    def __init__(self, retries: RetriesConfig) -> None:
        self._max_wait_s = retries.max_wait_s

    def __call__(self, state: tenacity.RetryCallState) -> bool:
        return (_asked(state) or 0.0) > self._max_wait_s


class _Waits:
    """Seconds between two attempts."""

    def __init__(self, retries: RetriesConfig) -> None:
        self._doubling = tenacity.wait_exponential(multiplier=retries.wait_s, max=retries.max_wait_s)
        self._jitter = tenacity.wait_random(0, retries.wait_s)  # or all ranks would come back at once

    def __call__(self, state: tenacity.RetryCallState) -> float:
        return max(self._doubling(state), _asked(state) or 0.0) + self._jitter(state)


def _asked(state: tenacity.RetryCallState) -> float | None:
    fault = state.outcome.exception() if state.outcome is not None else None
    return fault.retry_after_s if isinstance(fault, NetworkFault) else None


def explained(
    name: str, error: Exception, files: tuple[Path, ...], bare: type[SourceError]
) -> MixerError | NetworkFault:
    """Return our error for one of `datasets`; ``bare`` is what a ValueError that is not pyarrow's means here."""
    if isinstance(error, MissingDependencyError):
        return MissingDependencyError(f"source {name}: {error}")
    if isinstance(error, MixerError):
        return error
    if isinstance(error, UnreadableFile):
        return MalformedDataError(f"source {name}: {error}")
    causes = [*_chain(error)]
    if not files and not any(name in repr(cause) for name in HOPELESS for cause in causes):
        for cause in filter(_is_of_network, causes):
            return NetworkFault(f"cannot be reached: {_brief(cause)}", _retry_after_s(cause))
    if isinstance(error, FileNotFoundError):
        return MissingDataError(f"source {name}: {error}")
    where = f" in {files[0] if len(files) == 1 else f'one of {len(files)} files'}" if files else ""
    message = f"source {name}: cannot be read{where}: {type(error).__name__}: {error}"
    if isinstance(error, pa.ArrowException | UnicodeError) or (files and isinstance(error, OSError)):
        return MalformedDataError(message)
    return (bare if isinstance(error, ValueError) else SourceError)(message)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and what led to it, the root first: it alone has the server's answer."""
    seen: list[BaseException] = []
    while error is not None and error not in seen:
        seen.append(error)
        error = error.__cause__ or error.__context__
    return reversed(seen)


def _is_of_network(error: BaseException) -> bool:
    if isinstance(error, HfHubHTTPError):
        return error.response is not None and error.response.status_code in RETRIED_STATUSES
    if isinstance(error, httpx.TransportError | ConnectionError | TimeoutError):
        return True
    if isinstance(error, OSError) and error.errno in RETRIED_ERRNOS:
        return True
    return type(error).__module__.partition(".")[0] == "aiohttp" and isinstance(error, OSError)


def _brief(error: BaseException) -> str:
    text = str(error).strip().split("\n")[0]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _retry_after_s(error: BaseException) -> float | None:
    """Return the seconds that a server asks to wait for, of either form that Retry-After may have."""
    headers = getattr(getattr(error, "response", None), "headers", None)
    value = headers.get("Retry-After") if headers is not None else None
    if value is None:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        try:
            return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
        except ValueError:
            return None


class _Calm:
    """The settings of two libraries while at least one source reads, in whatever thread; then as they were.

    They are global, and sources are read in several threads: the first to come saves them, the last restores them. So
    what else the process does with these libraries, such as pushing a checkpoint to the hub, keeps its retries. The hub
    has no setting for its own: the function that makes them is wrapped once, when the first source opens.
    """

    def __init__(self) -> None:
        self._reset()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._reset_in_child)

    def enter(self, timeout_s: float) -> None:
        """Calm the libraries; requests that read may from now on be silent for ``timeout_s`` at most."""
        with self._lock:
            self._num_inside += 1
            self._timeout_s = timeout_s
            if not hasattr(_http._http_backoff_base, "of_hub"):
                _http._http_backoff_base = _wrapped(_http._http_backoff_base)
            if self._num_inside == 1:
                self._quieten()
                self._let_calls_be_made_once()
            hooks = get_session().event_hooks
            if self._limit_time not in hooks["request"]:  # the session is replaced after some faults
                hooks["request"].append(self._limit_time)
                get_session().event_hooks = hooks

    @property
    def is_entered(self) -> bool:
        """Whether a source reads."""
        return self._num_inside > 0

    def leave(self) -> None:
        """Let the libraries be as they were, if nobody else reads."""
        with self._lock:
            self._num_inside -= 1
            if not self._num_inside:
                self._restore()

    def _quieten(self) -> None:
        """Keep them from logging errors that we raise with a better message.

        Not by their levels: each change of one empties the caches of every logger of the process.
        """
        for name in ("datasets", "huggingface_hub"):
            logger = logging.getLogger(name)
            self._set(logger, "handlers", [NO_HANDLER])
            self._set(logger, "propagate", False)

    def _let_calls_be_made_once(self) -> None:
        for name in ("STREAMING_READ_MAX_RETRIES", "STREAMING_OPEN_MAX_RETRIES"):
            self._set(datasets.config, name, 1)
        for name in (
            "STREAMING_READ_RETRY_INTERVAL",
            "STREAMING_READ_SERVER_UNAVAILABLE_RETRY_INTERVAL",
            "STREAMING_READ_RATE_LIMIT_RETRY_INTERVAL",
            "STREAMING_OPEN_RETRY_INTERVAL",
        ):
            self._set(datasets.config, name, 0)

    def _set(self, owner: Any, name: str, value: Any) -> None:
        self._undo.append(partial(setattr, owner, name, getattr(owner, name)))
        setattr(owner, name, value)

    def _restore(self) -> None:
        for undo in reversed(self._undo):
            undo()
        self._undo.clear()

    def _limit_time(self, request: Any) -> None:
        """Some requests of the hub's client have no time limit at all, and would wait for ever for a silent server."""
        if self._num_inside and (request.method in READING or "/paths-info/" in request.url.path):
            given = request.extensions.get("timeout") or {}
            request.extensions["timeout"] = {
                what: min(given.get(what) or self._timeout_s, self._timeout_s) for what in TIMEOUTS
            }

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._num_inside = 0
        self._timeout_s = 0.0
        self._undo: list[Callable[[], None]] = []

    def _reset_in_child(self) -> None:
        self._restore()  # whoever was inside is not in this process
        self._reset()


def _wrapped(backoff: Callable[..., Any]) -> Callable[..., Any]:
    """Return the hub's function that retries requests, which makes those that read once while a source reads."""

    def once(method: str, url: str, **options: Any) -> Any:
        is_ours = _CALM.is_entered and method in READING
        return backoff(method, url, **(options | {"max_retries": 0} if is_ours else options))

    once.of_hub = backoff  # type: ignore[attr-defined]
    return once


_CALM = _Calm()


@contextlib.contextmanager
def calm(timeout_s: float) -> Iterator[None]:
    """Keep `datasets` and the hub's client from logging, from retrying, and from waiting longer than ``timeout_s``."""
    _CALM.enter(timeout_s)
    try:
        yield
    finally:
        _CALM.leave()
