"""The requests that clients make, and what their answers mean; ``client`` sends them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Generic, TypeVar
from urllib.parse import urlencode

import orjson
from pydantic import BaseModel, TypeAdapter

from mixer import errors as mixer_errors
from mixer.delivery.batch import RowBatch
from mixer.errors import ConfigError, MixerError
from service import errors as service_errors
from service.errors import RefusedError
from service.wire.batches import DIGEST_HEADER, MAX_STEPS, PHASE_HEADER, STEP_HEADER, check_digest, decode, split
from service.wire.schemas import (
    Feedback,
    FeedbackTaken,
    ForkRequest,
    Phases,
    PivotRequest,
    PivotTaken,
    Run,
    Sample,
    Samples,
    SampleTaken,
    Status,
    TokenizerFile,
    Weights,
)

if TYPE_CHECKING:
    from mixer.sources.tokenizer import TextTokenizer

TRANSIENT = ("not-ready", "rate-limit", "store", "stalled", "journal", "slow-client")

Answer = TypeVar("Answer")
Model = TypeVar("Model", bound=BaseModel)


class TransientError(Exception):
    """An answer, or none, that may be another in a moment; ``error`` is what the answer meant, if it had a code."""

    def __init__(self, why: str, retry_after_s: float = 0.0, *, error: MixerError | None = None) -> None:
        super().__init__(why)
        self.retry_after_s = retry_after_s
        self.error = error


@dataclass(frozen=True)
class Raw:
    """An answer as it came, whichever library it came through; names of headers are found in any case."""

    status: int
    headers: Mapping[str, str]
    content: bytes | memoryview


@dataclass(frozen=True)
class Call(Generic[Answer]):
    """One request, and what to make of its answer."""

    method: str
    path: str
    read: Callable[[Raw], Answer]
    params: Mapping[str, Any] = field(default_factory=dict)
    body: BaseModel | None = None

    @property
    def target(self) -> str:
        """Path and query."""
        params = {key: value for key, value in self.params.items() if value is not None}
        if not params:
            return self.path
        if all(isinstance(value, int | float) for value in params.values()):  # urlencode would take 20 us to say so
            return self.path + "?" + "&".join([f"{key}={value}" for key, value in params.items()])
        return f"{self.path}?{urlencode(params)}"

    @property
    def content(self) -> str | None:
        """What is sent."""
        return None if self.body is None else self.body.model_dump_json(exclude_none=True)

    @property
    def headers(self) -> dict[str, str]:
        """What goes with what is sent."""
        return {} if self.body is None else {"content-type": "application/json"}


class Calls:
    """Every request of the API; the clients send them."""

    def __init__(self, run: str | None) -> None:
        self._prefix = "" if run is None else f"/runs/{run}"

    def weights(self, step: int | None, wait_s: float) -> Call[Weights]:
        """The mixture of a step."""
        params = {"step": step, "wait_s": wait_s}
        return Call("GET", f"{self._prefix}/weights", _model(Weights), params)

    def phases(self, from_step: int, limit: int) -> Call[Phases]:
        """Decisions from a step on."""
        return Call("GET", f"{self._prefix}/phases", _model(Phases), {"from": from_step, "limit": limit})

    def batch(self, step: int, rank: int, world_size: int, wait_s: float) -> Call[RowBatch]:
        """A rank's rows of a step."""
        params = {"rank": rank, "world_size": world_size, "wait_s": wait_s}
        return Call("GET", f"{self._prefix}/batches/{step}", _read_batch, params)

    def batches(self, steps: range, rank: int, world_size: int, wait_s: float) -> Call[list[RowBatch]]:
        """A rank's rows of several steps."""
        limit = min(len(steps), MAX_STEPS)
        params: dict[str, Any] = {"from": steps[0], "limit": limit, "every": steps.step}
        params |= {"rank": rank, "world_size": world_size, "wait_s": wait_s}
        return Call("GET", f"{self._prefix}/batches", _read_batches, params)

    def feedback(self, report: Feedback) -> Call[FeedbackTaken]:
        """A report of losses."""
        return Call("POST", f"{self._prefix}/feedback", _model(FeedbackTaken), body=report)

    def probe(self, step: int, rank: int, world_size: int, wait_s: float) -> Call[RowBatch]:
        """A rank's held-out rows of a probe."""
        params = {"rank": rank, "world_size": world_size, "wait_s": wait_s}
        return Call("GET", f"{self._prefix}/probes/{step}", _read_batch, params)

    def probe_feedback(self, report: Feedback) -> Call[FeedbackTaken]:
        """Held-out losses."""
        return Call("POST", f"{self._prefix}/feedback/probes", _model(FeedbackTaken), body=report)

    def sample(self, sample: Sample) -> Call[SampleTaken]:
        """A text that the model wrote."""
        return Call("POST", f"{self._prefix}/samples", _model(SampleTaken), body=sample)

    def samples(self, limit: int) -> Call[Samples]:
        """The newest of them."""
        return Call("GET", f"{self._prefix}/samples", _model(Samples), {"limit": limit})

    def pivot(self, pivot: PivotRequest) -> Call[PivotTaken]:
        """A new region."""
        return Call("POST", f"{self._prefix}/pivots", _model(PivotTaken), body=pivot)

    def status(self) -> Call[Status]:
        """How the run is doing."""
        return Call("GET", f"{self._prefix}/status", _model(Status))

    def config(self) -> Call[dict[str, Any]]:
        """The curriculum and the limits."""
        return Call("GET", f"{self._prefix}/config", _json)

    def tokenizer(self) -> Call[TextTokenizer]:
        """What turned text into token ids."""
        return Call("GET", f"{self._prefix}/tokenizer", _read_tokenizer)

    def progress(self, step: int) -> Call[dict[str, Any]]:
        """What each source has given."""
        return Call("GET", f"{self._prefix}/progress", _json, {"step": step})

    def fork(self, run: str, request: ForkRequest) -> Call[Run]:
        """A run that shares history."""
        return Call("POST", f"/runs/{run}/fork", _model(Run), body=request)

    def runs(self) -> Call[list[Run]]:
        """Every run."""
        return Call("GET", "/runs", lambda answer: TypeAdapter(list[Run]).validate_json(bytes(answer.content)))


def read(answer: Raw, call: Call[Answer]) -> Answer:
    """Return what an answer means; raise TransientError if it may be another in a moment."""
    if answer.status < 400:
        return call.read(answer)
    try:
        problem = orjson.loads(answer.content)["error"]
        code, message, hint = str(problem["code"]), str(problem["message"]), str(problem["hint"])
    except (ValueError, KeyError, TypeError):  # a proxy's page, not the service's
        code, message = "", _phrase(answer.status)
        hint = "look at what stands between this trainer and the server"
    after = answer.headers.get("retry-after", "")  # a run that is paused has one, one that is archived has none
    if code in TRANSIENT or after or answer.status in (502, 503, 504):
        waits = float(after) if after.isdecimal() and code != "not-ready" else 0.0
        raise TransientError(message, waits, error=_error(code, message, hint, answer.status) if code else None)
    raise _error(code, message, hint, answer.status)


def _phrase(status: int) -> str:
    return HTTPStatus(status).phrase if status in HTTPStatus._value2member_map_ else "no such status"


def _error(code: str, message: str, hint: str, status: int) -> MixerError:
    if code == mixer_errors.PreparedMismatchError.code:
        return mixer_errors.PreparedMismatchError(message.split("\n"))
    known = _KNOWN.get(code)
    return known(message) if known is not None else RefusedError(f"{status} {code}: {message}; {hint}")


def _classes() -> dict[str, type[MixerError]]:
    found = [*vars(mixer_errors).values(), *vars(service_errors).values()]
    classes = [value for value in found if isinstance(value, type) and issubclass(value, MixerError)]
    special = {"infeasible-region": ConfigError}  # its own takes a certificate that does not travel
    return {cls.code: cls for cls in classes} | special


_KNOWN = _classes()


def _model(model: type[Model]) -> Callable[[Raw], Model]:
    return lambda answer: model.model_validate_json(bytes(answer.content))


def _json(answer: Raw) -> dict[str, Any]:
    read: dict[str, Any] = orjson.loads(answer.content)
    return read


def _read_tokenizer(answer: Raw) -> TextTokenizer:
    from mixer.sources.tokenizer import tokenizer_of

    told = TokenizerFile.model_validate_json(bytes(answer.content))
    return tokenizer_of(told.file, told.separator)


def _read_batch(answer: Raw) -> RowBatch:
    step, phase = int(answer.headers[STEP_HEADER]), int(answer.headers[PHASE_HEADER])
    check_digest(answer.content, answer.headers.get(DIGEST_HEADER), step=step)
    return decode(answer.content, step=step, phase=phase)


def _read_batches(answer: Raw) -> list[RowBatch]:
    return list(split(answer.content))
