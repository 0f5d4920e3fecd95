"""What trainers on other machines use: ``MixerClient``, ``AsyncMixerClient`` and ``RemoteMixtureDataset``.

Needs no web framework (``pip install 'curriculum-mixer[client]'``). Whatever may come right by itself, a server that is
being restarted for example, is tried again for ``patience_s``; then one sentence says what did not answer.
"""

from __future__ import annotations

import importlib
import os
import ssl
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar
from urllib.parse import urlencode

import httpx2
import orjson
import tenacity
import urllib3
from pydantic import BaseModel, TypeAdapter

from mixer import errors as mixer_errors
from mixer.batches import RowBatch
from mixer.config import Pivot
from mixer.errors import ConfigError, MixerError
from mixer.rewards import SourceLosses
from service import errors as service_errors
from service.errors import RefusedError, UnreachableError
from service.memory import Pool
from service.schemas import (
    Feedback,
    FeedbackTaken,
    ForkRequest,
    Phases,
    PivotRequest,
    PivotTaken,
    Run,
    Status,
    TokenizerFile,
    Weights,
)
from service.wire import DIGEST_HEADER, PHASE_HEADER, STEP_HEADER, check_digest, decode, split

if TYPE_CHECKING:
    from mixer.tokenizer import TextTokenizer
    from service.remote import RemoteMixtureDataset

__all__ = ["AsyncMixerClient", "MixerClient", "RemoteMixtureDataset"]

PATIENCE_S = 120.0
WAIT_S = 20.0  # of one request for a batch that is not built yet
CONNECT_S, READ_S = 5.0, 60.0
TRANSIENT = ("not-ready", "run-state", "rate-limit", "store", "stalled", "journal", "slow-client")

PIECE_BYTES = 64 << 10  # received at once
MAX_STEPS = 99  # of one answer
CONNECTIONS = 16  # kept for threads that share a client

Answer = TypeVar("Answer")
Model = TypeVar("Model", bound=BaseModel)


class _TransientError(Exception):
    """An answer, or none, that may be another in a moment."""

    def __init__(self, why: str, retry_after_s: float = 0.0) -> None:
        super().__init__(why)
        self.retry_after_s = retry_after_s


@dataclass(frozen=True)
class _Raw:
    """An answer as it came, whichever library it came through; names of headers are found in any case."""

    status: int
    headers: Mapping[str, str]
    content: bytes | memoryview


@dataclass(frozen=True)
class _Call(Generic[Answer]):
    """One request, and what to make of its answer."""

    method: str
    path: str
    read: Callable[[_Raw], Answer]
    params: Mapping[str, Any] = field(default_factory=dict)
    body: BaseModel | None = None

    @property
    def target(self) -> str:
        """Path and query."""
        params = {key: value for key, value in self.params.items() if value is not None}
        return f"{self.path}?{urlencode(params)}" if params else self.path

    @property
    def content(self) -> str | None:
        """What is sent."""
        return None if self.body is None else self.body.model_dump_json(exclude_none=True)

    @property
    def headers(self) -> dict[str, str]:
        """What goes with what is sent."""
        return {} if self.body is None else {"content-type": "application/json"}


class _Calls:
    """Every request of the API; the clients send them."""

    def __init__(self, run: str | None) -> None:
        self._prefix = "" if run is None else f"/runs/{run}"

    def weights(self, step: int | None, wait_s: float) -> _Call[Weights]:
        params = {"step": step, "wait_s": wait_s}
        return _Call("GET", f"{self._prefix}/weights", _model(Weights), params)

    def phases(self, from_step: int, limit: int) -> _Call[Phases]:
        return _Call("GET", f"{self._prefix}/phases", _model(Phases), {"from": from_step, "limit": limit})

    def batch(self, step: int, rank: int, world_size: int, wait_s: float) -> _Call[RowBatch]:
        params = {"rank": rank, "world_size": world_size, "wait_s": wait_s}
        return _Call("GET", f"{self._prefix}/batches/{step}", _read_batch, params)

    def batches(self, steps: range, rank: int, world_size: int, wait_s: float) -> _Call[list[RowBatch]]:
        limit = min(len(steps), MAX_STEPS)
        params: dict[str, Any] = {"from": steps[0], "limit": limit, "every": steps.step}
        params |= {"rank": rank, "world_size": world_size, "wait_s": wait_s}
        return _Call("GET", f"{self._prefix}/batches", _read_batches, params)

    def feedback(self, report: Feedback) -> _Call[FeedbackTaken]:
        return _Call("POST", f"{self._prefix}/feedback", _model(FeedbackTaken), body=report)

    def pivot(self, pivot: PivotRequest) -> _Call[PivotTaken]:
        return _Call("POST", f"{self._prefix}/pivots", _model(PivotTaken), body=pivot)

    def status(self) -> _Call[Status]:
        return _Call("GET", f"{self._prefix}/status", _model(Status))

    def config(self) -> _Call[dict[str, Any]]:
        return _Call("GET", f"{self._prefix}/config", _json)

    def tokenizer(self) -> _Call[TextTokenizer]:
        return _Call("GET", f"{self._prefix}/tokenizer", _read_tokenizer)

    def progress(self, step: int) -> _Call[dict[str, Any]]:
        return _Call("GET", f"{self._prefix}/progress", _json, {"step": step})

    def fork(self, run: str, request: ForkRequest) -> _Call[Run]:
        return _Call("POST", f"/runs/{run}/fork", _model(Run), body=request)

    def runs(self) -> _Call[list[Run]]:
        return _Call("GET", "/runs", lambda answer: TypeAdapter(list[Run]).validate_json(bytes(answer.content)))


class MixerClient:
    """Asks a service; safe to share between threads, and usable after a fork.

    Args:
        url: of the server, ``http://host:8642``.
        token: if the server has tokens; default: the variable MIXER_TOKEN.
        run: name of the run; the server's default one if None.
        patience_s: how long what may come right by itself is tried again.
        verify: an ``ssl.SSLContext`` for certificates of your own.

    Raises (every method):
        UnreachableError: the server did not answer, or kept answering that it cannot, for ``patience_s``.
        MixerError: what the server refused, with the class of the error's code where there is one.
    """

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        run: str | None = None,
        patience_s: float = PATIENCE_S,
        verify: ssl.SSLContext | None = None,
    ) -> None:
        self.url = url.rstrip("/")
        self._calls = _Calls(run)
        self._patience_s = patience_s
        self._headers, self._verify = _authorization(token), verify
        self._pool = Pool()
        self._pid, self._http = os.getpid(), self._opened()

    def _opened(self) -> urllib3.PoolManager:
        """Return new connections, which close when this client is forgotten."""
        http = urllib3.PoolManager(
            maxsize=CONNECTIONS,
            timeout=urllib3.Timeout(connect=CONNECT_S, read=READ_S),
            retries=False,  # tenacity's
            ssl_context=self._verify,
        )
        weakref.finalize(self, http.clear)
        return http

    def weights(self, step: int | None = None, *, wait_s: float = WAIT_S) -> Weights:
        """Return the weights of the phase that covers ``step``, or of the newest."""
        return self._send(self._calls.weights(step, wait_s))

    def phases(self, from_step: int = 0, limit: int = 100) -> Phases:
        """Return decisions, that which covers ``from_step`` first."""
        return self._send(self._calls.phases(from_step, limit))

    def batch(self, step: int, rank: int = 0, world_size: int = 1) -> RowBatch:
        """Return a rank's rows of a step, their digest checked; waits for a step that is not built yet.

        Raises:
            StepGoneError, RunEndedError: not any more.
        """
        return self._send(self._calls.batch(step, rank, world_size, WAIT_S))

    def batches(self, steps: range, rank: int = 0, world_size: int = 1) -> list[RowBatch]:
        """Return a rank's rows of the first of ``steps``, waited for, and of those after it that are at hand."""
        return self._send(self._calls.batches(steps, rank, world_size, WAIT_S))

    def feedback(self, report: Feedback) -> bool:
        """Tell what a rank saw in a step; it is durable when this returns. False if it was known."""
        taken = self._send(self._calls.feedback(report))
        return taken.is_new

    def report(self, step: int, losses: SourceLosses, names: tuple[str, ...]) -> bool:
        """Tell what a rank saw in a step, as a walk takes it."""
        return self.feedback(Feedback.of(step, losses, names))

    def pivot(self, pivot: Pivot, at: Any = "next") -> PivotTaken:
        """Redraw the region: at ``"next"``, the end of the newest phase, ``"now"``, which cuts it, or a later step."""
        return self._send(self._calls.pivot(PivotRequest(**pivot.model_dump(exclude_none=True), at=at)))

    def status(self) -> Status:
        """Return how the run is doing."""
        return self._send(self._calls.status())

    def config(self) -> dict[str, Any]:
        """Return the run's curriculum and the server's limits."""
        return self._send(self._calls.config())

    def tokenizer(self) -> TextTokenizer:
        """Return what turned text into token ids; raise TokenizerError if the run has only the ids."""
        return self._send(self._calls.tokenizer())

    def progress(self, step: int) -> dict[str, Any]:
        """Return what each source has given to the batches before ``step``."""
        return self._send(self._calls.progress(step))

    def fork(self, run: str, name: str, *, at_step: int | None = None, **changes: Any) -> Run:
        """Make a run that shares a run's history up to a step and goes on under these fields of the curriculum."""
        return self._send(self._calls.fork(run, ForkRequest(name=name, at_step=at_step, curriculum=changes)))

    def runs(self) -> list[Run]:
        """Return every run."""
        return self._send(self._calls.runs())

    def close(self) -> None:
        """Close the connections."""
        self._http.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_http": None, "_pid": 0, "_pool": Pool()}

    def _send(self, call: _Call[Answer]) -> Answer:
        if self._pid != os.getpid():  # a connection must not be shared with the process that forked this one
            self._pid, self._http = os.getpid(), self._opened()
        for attempt in tenacity.Retrying(**_retrying(self.url, self._patience_s)):
            with attempt:
                try:
                    answer = self._http.request(
                        call.method,
                        self.url + call.target,
                        body=call.content,
                        headers=self._headers | call.headers,
                        redirect=False,
                        preload_content=False,
                    )
                    content = self._content_of(answer)
                    answer.release_conn()
                except urllib3.exceptions.HTTPError as error:
                    raise _TransientError(str(error) or type(error).__name__) from error
                return _read(_Raw(answer.status, answer.headers, content), call)
        raise AssertionError("tenacity returns or raises")

    def _content_of(self, answer: urllib3.BaseHTTPResponse) -> bytes | memoryview:
        """Return a body; a large one lies in memory that other answers lay in before."""
        length = answer.headers.get("content-length", "")
        if not length.isdecimal() or int(length) < PIECE_BYTES:
            return answer.read()
        room = self._pool.take(int(length))
        begin = 0
        for piece in answer.stream(PIECE_BYTES):
            room[begin : begin + len(piece)] = piece
            begin += len(piece)
        return room


class AsyncMixerClient:
    """As ``MixerClient``, for asyncio."""

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        run: str | None = None,
        patience_s: float = PATIENCE_S,
        verify: ssl.SSLContext | None = None,
    ) -> None:
        self.url = url.rstrip("/")
        self._calls = _Calls(run)
        self._patience_s = patience_s
        self._http = httpx2.AsyncClient(
            base_url=self.url,
            headers=_authorization(token),
            timeout=httpx2.Timeout(READ_S, connect=CONNECT_S),
            verify=True if verify is None else verify,
            trust_env=False,
        )

    async def weights(self, step: int | None = None, *, wait_s: float = WAIT_S) -> Weights:
        """Return the weights of the phase that covers ``step``, or of the newest."""
        return await self._send(self._calls.weights(step, wait_s))

    async def phases(self, from_step: int = 0, limit: int = 100) -> Phases:
        """Return decisions, that which covers ``from_step`` first."""
        return await self._send(self._calls.phases(from_step, limit))

    async def batch(self, step: int, rank: int = 0, world_size: int = 1) -> RowBatch:
        """Return a rank's rows of a step, their digest checked; waits for a step that is not built yet."""
        return await self._send(self._calls.batch(step, rank, world_size, WAIT_S))

    async def feedback(self, report: Feedback) -> bool:
        """Tell what a rank saw in a step; it is durable when this returns. False if it was known."""
        taken = await self._send(self._calls.feedback(report))
        return taken.is_new

    async def pivot(self, pivot: Pivot, at: Any = "next") -> PivotTaken:
        """Redraw the region: at ``"next"``, the end of the newest phase, ``"now"``, which cuts it, or a later step."""
        return await self._send(self._calls.pivot(PivotRequest(**pivot.model_dump(exclude_none=True), at=at)))

    async def status(self) -> Status:
        """Return how the run is doing."""
        return await self._send(self._calls.status())

    async def config(self) -> dict[str, Any]:
        """Return the run's curriculum and the server's limits."""
        return await self._send(self._calls.config())

    async def fork(self, run: str, name: str, *, at_step: int | None = None, **changes: Any) -> Run:
        """Make a run that shares a run's history up to a step and goes on under these fields of the curriculum."""
        return await self._send(self._calls.fork(run, ForkRequest(name=name, at_step=at_step, curriculum=changes)))

    async def runs(self) -> list[Run]:
        """Return every run."""
        return await self._send(self._calls.runs())

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _send(self, call: _Call[Answer]) -> Answer:
        async for attempt in tenacity.AsyncRetrying(**_retrying(self.url, self._patience_s)):
            with attempt:
                try:
                    answer = await self._http.request(
                        call.method, call.target, content=call.content, headers=call.headers
                    )
                except (httpx2.TransportError, httpx2.DecodingError) as error:
                    raise _TransientError(str(error) or type(error).__name__) from error
                return _read(_Raw(answer.status_code, answer.headers, answer.content), call)
        raise AssertionError("tenacity returns or raises")


def _authorization(token: str | None) -> dict[str, str]:
    token = token if token is not None else os.environ.get("MIXER_TOKEN")
    return {"authorization": f"Bearer {token}"} if token else {}


def _retrying(url: str, patience_s: float) -> dict[str, Any]:
    doubling = tenacity.wait_random_exponential(multiplier=0.05, max=2.0)  # jitter, or all ranks come back at once

    def wait(state: tenacity.RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome is not None else None
        asked = error.retry_after_s if isinstance(error, _TransientError) else 0.0
        return max(min(asked, 5.0), float(doubling(state)))

    def give_up(state: tenacity.RetryCallState) -> Any:
        error = state.outcome.exception() if state.outcome is not None else None
        raise UnreachableError(
            f"gave up on {url} after {state.attempt_number} attempts in {state.seconds_since_start:.0f} s: {error}; "
            "start the server again, and this trainer: both go on where they were"
        ) from error

    return {
        "retry": tenacity.retry_if_exception_type(_TransientError),
        "stop": tenacity.stop_after_delay(patience_s),
        "wait": wait,
        "retry_error_callback": give_up,
    }


def _read(answer: _Raw, call: _Call[Answer]) -> Answer:
    """Return what an answer means; raise _TransientError if it may be another in a moment."""
    if answer.status < 400:
        return call.read(answer)
    try:
        problem = orjson.loads(answer.content)["error"]
        code, message, hint = str(problem["code"]), str(problem["message"]), str(problem["hint"])
    except (ValueError, KeyError, TypeError):  # a proxy's page, not the service's
        code, message = "", _phrase(answer.status)
        hint = "look at what stands between this trainer and the server"
    if code in TRANSIENT or answer.status in (502, 503, 504):
        after = answer.headers.get("retry-after", "")
        raise _TransientError(message, float(after) if after.isdecimal() and code != "not-ready" else 0.0)
    raise _error(code, message, hint, answer.status)


def _phrase(status: int) -> str:
    return HTTPStatus(status).phrase if status in HTTPStatus._value2member_map_ else "no such status"


def _error(code: str, message: str, hint: str, status: int) -> MixerError:
    known = _KNOWN.get(code)
    return known(message) if known is not None else RefusedError(f"{status} {code}: {message}; {hint}")


def _classes() -> dict[str, type[MixerError]]:
    found = [*vars(mixer_errors).values(), *vars(service_errors).values()]
    classes = [value for value in found if isinstance(value, type) and issubclass(value, MixerError)]
    special = {"infeasible-region": ConfigError}  # its own takes a certificate that does not travel
    return {cls.code: cls for cls in classes} | special


_KNOWN = _classes()


def _model(model: type[Model]) -> Callable[[_Raw], Model]:
    return lambda answer: model.model_validate_json(bytes(answer.content))


def _json(answer: _Raw) -> dict[str, Any]:
    read: dict[str, Any] = orjson.loads(answer.content)
    return read


def _read_tokenizer(answer: _Raw) -> TextTokenizer:
    from tokenizers import Tokenizer

    from mixer.tokenizer import TextTokenizer

    told = TokenizerFile.model_validate_json(bytes(answer.content))
    return TextTokenizer(Tokenizer.from_str(told.file), told.separator)


def _read_batch(answer: _Raw) -> RowBatch:
    step, phase = int(answer.headers[STEP_HEADER]), int(answer.headers[PHASE_HEADER])
    check_digest(answer.content, answer.headers.get(DIGEST_HEADER), step=step)
    return decode(answer.content, step=step, phase=phase)


def _read_batches(answer: _Raw) -> list[RowBatch]:
    return list(split(answer.content))


def __getattr__(name: str) -> Any:
    if name == "RemoteMixtureDataset":  # needs torch
        return importlib.import_module("service.remote").RemoteMixtureDataset
    raise AttributeError(f"module 'service.client' has no attribute {name!r}")
