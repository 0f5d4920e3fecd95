"""What can go wrong between a trainer and the service, and how every error looks on the wire.

The body of every answer above 399 is ``{"error": {"code", "message", "hint"}}``: the code is that of the exception,
the message says what was wrong with this request, and the hint what to do about errors of its kind.
"""

from __future__ import annotations

from typing import Any, ClassVar

from mixer.errors import JournalError, MixerError, SourceUnavailableError


class ServiceError(MixerError):
    """Base of the errors that only the service and its client raise."""

    code = "service"
    status: ClassVar[int] = 500
    hint: ClassVar[str] = "look into the server's log for the request id of this answer"

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class RequestError(ServiceError):
    """A request that cannot be understood: a field that is missing, of another type, or out of range."""

    code = "request"
    status = 422
    hint = "compare the request with /openapi.json, or let service.client make it"


class UnauthorizedError(ServiceError):
    """No token, or one that is unknown or revoked."""

    code = "unauthorized"
    status = 401
    hint = "send the header `Authorization: Bearer TOKEN`; `mixer token create --scope train` makes one"


class ForbiddenError(ServiceError):
    """A token whose scope does not reach so far, or a request that the server's settings do not allow."""

    code = "forbidden"
    status = 403
    hint = "use a token of the scope that the message names, or ask who runs the server"


class ForeignPageError(ServiceError):
    """A request that any web page could send to a server without tokens."""

    code = "foreign-page"
    status = 403
    hint = "send `content-type: application/json` to localhost or 127.0.0.1, or make tokens: `mixer token create`"


class UnknownRunError(ServiceError):
    """A run that does not exist."""

    code = "unknown-run"
    status = 404
    hint = "GET /runs lists the runs"


class RunStateError(ServiceError):
    """A run that is paused or archived, or a name that is taken."""

    code = "run-state"
    status = 409
    hint = "GET /runs tells the state of every run; an admin can resume one that is paused"


class NotReadyError(ServiceError):
    """A step that is not built, or not decided, yet; the same request will do later."""

    code = "not-ready"
    status = 409
    hint = "ask again, with a longer wait_s; steps are built a little ahead of the newest one asked for"


class PastError(ServiceError):
    """A server of `mixer replay --serve` asked to decide, deliver or take something in."""

    code = "past"
    status = 409
    hint = "fork the walk with `mixer fork` and serve that, or read its batches with MixtureDataset(walk=Replay(PATH))"


class StepGoneError(ServiceError):
    """A step that has left the retention window."""

    code = "step-gone"
    status = 410
    hint = "go on from a newer checkpoint, raise --retain-steps, or prepare the sources, which keep more steps"


class RunEndedError(ServiceError):
    """A step after the run's last one."""

    code = "run-ended"
    status = 410
    hint = "the run is over; start another, or raise total_steps and start the server again"


class BodyTooLargeError(ServiceError):
    """A request body or header above the limit."""

    code = "too-large"
    status = 413
    hint = "send one report per request; the limits are in /config"


class SlowClientError(ServiceError):
    """A body that did not come in time."""

    code = "slow-client"
    status = 408
    hint = "send the body in one go"


class RateLimitError(ServiceError):
    """More requests in a minute than this token may send."""

    code = "rate-limit"
    status = 429
    hint = "wait for as long as the header Retry-After says"


class StoreError(ServiceError):
    """The database cannot be reached or written; nothing was acknowledged."""

    code = "store"
    status = 503
    hint = "send the same request again; nothing was changed"


class StallError(ServiceError):
    """A run that cannot go on: its journal cannot be written or a source cannot be reached.

    Where waiting does not help (a bad record, a missing file), the answer has the code, status and hint of ``cause``.

    Args:
        message: which run, and why.
        cause: what keeps it from going on, if that is known.
    """

    code = "stalled"
    status = 503
    hint = "mend what the message says; the server goes on by itself"

    def __init__(self, message: str, *, cause: MixerError | None = None) -> None:
        self.lasts = cause is not None and lasts(cause)
        super().__init__(message, retry_after_s=None if self.lasts else 1)
        self.cause = cause


class BindError(ServiceError):
    """A server without tokens asked to listen beyond this machine, or half of a TLS pair."""

    code = "bind"
    hint = "run `mixer token create --scope admin` first, or stay on 127.0.0.1"


class UnreachableError(ServiceError):
    """The client gave up on a server that did not answer, or kept answering that it cannot."""

    code = "unreachable"
    hint = "start the server again: the run goes on where it was"


class RefusedError(ServiceError):
    """The server refused a request, with a code that this client does not know."""

    code = "refused"
    status = 400
    hint = "the message has the server's own code and hint"


class BatchDigestError(ServiceError):
    """A batch that does not have the digest that its header claims."""

    code = "batch-digest"
    hint = "something between server and trainer changes bodies: look at the proxy"


_STATUS = {
    "config": 422,
    "unknown-source": 422,
    "infeasible-region": 422,
    "weights": 422,
    "feedback": 422,
    "repeated-rows": 409,
    "invalid-loss": 422,
    "probe-not-offered": 404,
    "future-feedback": 409,
    "step": 410,
    "pivot": 409,
    "state-mismatch": 409,
    "topology": 422,
    "tokenizer": 404,
    "journal": 503,
    "source": 409,
    "missing-data": 409,
    "malformed-data": 409,
    "empty-source": 409,
    "source-exhausted": 409,
    "missing-dependency": 409,
    "prepared-mismatch": 409,
}

_HINTS = {
    "config": "mend what the message names; /config has the run's sources and bounds",
    "unknown-source": "GET /config lists the sources by name",
    "infeasible-region": "lower the floors or raise the caps by the excess that the message names",
    "weights": "weights sum to 1 and keep every bound",
    "feedback": "check the names, the counts, the step and the rank of the report; nothing was learned from it",
    "repeated-rows": "go on: what was reported first counts; if no trainer was restarted, look who else reports",
    "probe-not-offered": "ask for a probe at the first step of a phase, and report it with its own step",
    "invalid-loss": "stop and look at the model, or report nats; nothing was learned from this step",
    "future-feedback": "ask for the batch or the weights of a step before reporting its losses",
    "step": "GET /walk has every decision since the beginning",
    "pivot": "take the step or the name that the message offers; at: now cuts the phase in force",
    "topology": "use a world size that divides the run's batch_rows",
    "tokenizer": "name the run's tokenizer in its curriculum, or read its token ids as they are",
    "journal": "do what the message says; nothing was acknowledged, so send the same request again",
    "source": "mend what the message names where the server runs, and start it again",
    "missing-data": "put what the message names where the server looks for it, and start it again",
    "malformed-data": "mend the record at the place that the message names and start the server again, or set "
    "on_bad_record: skip",
    "empty-source": "check the source's files, column and where",
    "source-exhausted": "set the source's on_exhausted to repeat or stop, or lower its weight",
    "missing-dependency": "install what the message names where the server runs",
    "prepared-mismatch": "run mixer prepare again, or undo the change",
}


def lasts(problem: MixerError) -> bool:
    """Return whether a problem of a run lasts until somebody mends it: a bad record does, a lost connection may not."""
    return not isinstance(problem, JournalError | SourceUnavailableError | ServiceError)


def _meant(error: MixerError) -> MixerError:
    """Return the error whose code an answer has."""
    return error.cause if isinstance(error, StallError) and error.lasts and error.cause is not None else error


def status_of(error: MixerError) -> int:
    """Return the HTTP status that goes with an error."""
    error = _meant(error)
    return error.status if isinstance(error, ServiceError) else _STATUS.get(error.code, 500)


def hint_of(error: MixerError) -> str:
    """Return what to do about errors of this kind."""
    error = _meant(error)
    return error.hint if isinstance(error, ServiceError) else _HINTS.get(error.code, ServiceError.hint)


def error_body(code: str, message: str, hint: str) -> dict[str, Any]:
    """Return the one shape of an error."""
    return {"error": {"code": code, "message": message, "hint": hint}}


def error_to_body(error: MixerError) -> dict[str, Any]:
    """Return the body of an error's answer."""
    return error_body(_meant(error).code, str(error), hint_of(error))
