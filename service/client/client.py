"""``MixerClient``: one method for each request of the service's API, with retries.

Needs no web framework (``pip install 'curriculum-mixer[client]'``). Faults that may pass, a server that restarts for
example, are retried for ``patience_s``; then one error says what did not answer. ``calls`` builds the requests and
reads the answers, ``transport`` fetches batches, and ``dataset`` is the PyTorch data set over all of it.
"""

from __future__ import annotations

import logging
import os
import ssl
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import urlsplit

import tenacity
import urllib3

from mixer.config.pivots import Pivot
from mixer.delivery.batch import RowBatch
from mixer.errors import ConfigError
from mixer.losses import SourceLosses
from service.client.calls import Answer, Call, Calls, Raw, TransientError, read
from service.client.transport import Direct
from service.errors import UnreachableError
from service.wire.schemas import Feedback, ForkRequest, Phases, PivotRequest, PivotTaken, Run, Sample, Status, Weights

if TYPE_CHECKING:
    from mixer.sources.tokenizer import TextTokenizer

log = logging.getLogger(__name__)

PATIENCE_S = 120.0
ABSENT_S = 5.0  # for a server that never answered and refuses connections: its address is wrong, or it is not there
WAIT_S = 5.0  # of one request for what is not there yet: so long a trainer that stops may have to wait for its threads
CONNECT_S, READ_S = 5.0, 60.0
CONNECTIONS = 16  # kept for threads that share a client


class MixerClient:
    """Asks a service; safe to share between threads, and usable after a fork.

    Args:
        url: of the server, ``http://host:8642``.
        token: if the server has tokens; default: the variable MIXER_TOKEN.
        run: name of the run; the server's default one if None.
        patience_s: how long what may come right by itself is tried again; by default 120 s, and 5 s for a server that
            never answered and refuses connections.
        verify: an ``ssl.SSLContext`` for certificates of your own.

    Raises (every method):
        UnreachableError: the server did not answer for ``patience_s``.
        MixerError: what the server refused, or went on refusing for ``patience_s`` where that may pass, with the class
            of the error's code where there is one.
    """

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        run: str | None = None,
        patience_s: float | None = None,
        verify: ssl.SSLContext | None = None,
    ) -> None:
        self.url = checked_url(url)
        self._path = urlsplit(self.url).path  # of a proxy
        self._calls = Calls(run)
        self._patience, self._has_warned = Patience(patience_s), False
        self._headers, self._verify = _authorization(token), verify
        self._pid, self._http, self._direct = os.getpid(), self._opened(), self._opened_direct()

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

    def _opened_direct(self) -> Direct:
        return Direct(self.url, self._headers, self._verify, connect_s=CONNECT_S, read_s=READ_S)

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

    def batches(
        self,
        steps: range,
        rank: int = 0,
        world_size: int = 1,
        *,
        is_given_up: Callable[[], bool] = lambda: False,
    ) -> list[RowBatch]:
        """Return a rank's rows of the first of ``steps``, waited for, and of those after it that are at hand.

        Once ``is_given_up`` nothing is tried again.
        """
        return self._send(self._calls.batches(steps, rank, world_size, WAIT_S), is_given_up, is_large=True)

    def feedback(self, report: Feedback) -> bool:
        """Tell what a rank saw in a step; it is durable when this returns. False if that rank had reported it before.

        The report that came first counts. That it says something else is told once, in the log: a trainer that goes on
        from a checkpoint need not lose exactly as much again.
        """
        taken = self._send(self._calls.feedback(report))
        if taken.differs and not self._has_warned:
            self._has_warned = True
            log.warning(
                "step %d was reported for rank %d before, with other losses, and those count: if this trainer did not "
                "go back to a checkpoint, somebody else reports for its rank",
                report.step,
                report.rank,
            )
        return taken.is_new

    def report(self, step: int, losses: SourceLosses, names: tuple[str, ...], world_size: int | None = None) -> bool:
        """Tell what a rank, one of ``world_size``, saw in a step, as a walk takes it."""
        return self.feedback(Feedback.of(step, losses, names, world_size))

    def probe(self, step: int, rank: int = 0, world_size: int = 1) -> RowBatch:
        """Return a rank's held-out rows of the probe of a step, their digest checked.

        Raises:
            ProbeNotOfferedError: the step offers none.
        """
        return self._send(self._calls.probe(step, rank, world_size, WAIT_S))

    def report_probe(
        self, step: int, losses: SourceLosses, names: tuple[str, ...], world_size: int | None = None
    ) -> bool:
        """Tell what a rank, one of ``world_size``, measured on a probe; ``names`` are of sources and targets."""
        return self._send(self._calls.probe_feedback(Feedback.of(step, losses, names, world_size))).is_new

    def post_sample(self, sample: Sample) -> None:
        """Show a text that the model wrote on the service's page; of one step the newest one counts."""
        self._send(self._calls.sample(sample))

    def samples(self, limit: int = 20) -> list[Sample]:
        """Return the newest samples, the newest first."""
        return self._send(self._calls.samples(limit)).samples

    def pivot(self, pivot: Pivot, at: Any = "next") -> PivotTaken:
        """Redraw the region: at ``"next"``, the end of the newest phase, ``"now"``, which cuts it, or a later step."""
        return self._send(self._calls.pivot(PivotRequest(**pivot.as_asked(), at=at)))

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
        self._direct.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_http": None, "_direct": None, "_pid": 0}

    def _send(
        self, call: Call[Answer], is_given_up: Callable[[], bool] = lambda: False, *, is_large: bool = False
    ) -> Answer:
        """Send a request until it is answered; a large answer is received where it is used."""
        if self._pid != os.getpid():  # a connection must not be shared with the process that forked this one
            self._pid, self._http, self._direct = os.getpid(), self._opened(), self._opened_direct()
        try:
            answer = self._sent(call, is_large=is_large)
        except TransientError as error:
            known: list[TransientError] = [error]  # making ready to try again takes 300 us: done if there is need
        else:
            self._patience.note_answer()
            return answer

        def again() -> Answer:
            if known:
                raise known.pop()
            return self._sent(call, is_large=is_large)

        answer = tenacity.Retrying(**_retrying(self.url, self._patience, is_given_up))(again)
        self._patience.note_answer()
        return answer

    def _sent(self, call: Call[Answer], *, is_large: bool) -> Answer:
        if is_large:
            return read(self._direct.get(call.target), call)
        try:
            answer = self._http.connection_from_url(self.url).urlopen(  # as request() does, which looks for much else
                call.method,
                self._path + call.target,
                body=call.content,
                headers=self._headers | call.headers,
                retries=False,  # tenacity's
                redirect=False,
                assert_same_host=False,
            )
        except urllib3.exceptions.HTTPError as error:
            raise TransientError(str(error) or type(error).__name__) from error
        return read(Raw(answer.status, answer.headers, answer.data), call)


def checked_url(url: str) -> str:
    """Return the URL of a server without a slash at its end.

    Raises:
        ConfigError: it has no scheme, another than http or https, no host, a wrong port, or a query.
    """
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError as error:
        raise ConfigError(f"url {url!r}: {error}; give it as in http://host:8642") from error
    if parts.scheme not in ("http", "https") or "://" not in url:
        reason = "it begins with neither http:// nor https://"
    elif not parts.hostname or any(character.isspace() for character in url):
        reason = "it has no host" if not parts.hostname else "it has a space in it"
    elif parts.query or parts.fragment:
        reason = "it has a query or a fragment"
    else:
        return url.rstrip("/")
    raise ConfigError(f"url {url!r}: {reason}; give it as in http://host:8642")


def _authorization(token: str | None) -> dict[str, str]:
    token = token if token is not None else os.environ.get("MIXER_TOKEN")
    return {"authorization": f"Bearer {token}"} if token else {}


class Patience:
    """How long a server is tried again; a number that was given counts whatever happens."""

    def __init__(self, given_s: float | None) -> None:
        self._given_s = given_s
        self._was_heard = False

    def is_over(self, state: tenacity.RetryCallState) -> bool:
        """Whether to give up after the newest attempt."""
        error: BaseException | None = state.outcome.exception() if state.outcome is not None else None
        is_refused = False
        self._was_heard = self._was_heard or (isinstance(error, TransientError) and error.error is not None)
        while error is not None:
            is_refused = is_refused or isinstance(error, ConnectionRefusedError)
            error = error.__cause__ or error.__context__
        absent_s = ABSENT_S if is_refused and not self._was_heard else PATIENCE_S
        return (state.seconds_since_start or 0.0) >= (absent_s if self._given_s is None else self._given_s)

    def note_answer(self) -> None:
        """Note that the server is there."""
        self._was_heard = True


def _retrying(url: str, patience: Patience, is_given_up: Callable[[], bool] = lambda: False) -> dict[str, Any]:
    doubling = tenacity.wait_random_exponential(multiplier=0.05, max=2.0)  # jitter, or all ranks come back at once

    def wait(state: tenacity.RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome is not None else None
        asked = error.retry_after_s if isinstance(error, TransientError) else 0.0
        return max(min(asked, 5.0), float(doubling(state)))

    def give_up(state: tenacity.RetryCallState) -> Any:
        error = state.outcome.exception() if state.outcome is not None else None
        if isinstance(error, TransientError) and error.error is not None:  # it answered, and said what is wrong
            raise error.error from error
        raise UnreachableError(
            f"gave up on {url} after {state.attempt_number} attempts in {state.seconds_since_start:.0f} s: {error}; "
            "start the server again, and this trainer: both go on where they were"
        ) from error

    return {
        "retry": tenacity.retry_if_exception_type(TransientError),
        "stop": lambda state: is_given_up() or patience.is_over(state),
        "wait": wait,
        "retry_error_callback": give_up,
    }
