"""Answers requests for batches without the web framework, which would cost more than the batch itself.

``BatchEndpoint`` recognises the two requests that ``MixerClient`` makes. Every other request (another order of the
query, a condition, a value out of range) goes to the framework. Its routes (``routes.delivery``) document the same
requests and call the same functions, ``batch_of`` and ``batches_of``. A batch takes about 300 us through the framework
and 20 us without it (ADR 7).
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence

from mixer.errors import MixerError
from service.runs.engine import Engine
from service.runs.registry import RunRegistry
from service.runs.waiting import FairQueue
from service.web.middleware import NO_SNIFFING, App, Receive, Scope, Send
from service.wire.batches import SEVERAL_TYPE, Body

# the requests of MixerClient; the numbers of digits keep every value within the bounds of the routes
_PATH = re.compile(r"(?:/runs/([A-Za-z0-9][A-Za-z0-9._-]{0,99}))?/batches(?:/([0-9]{1,9}))?")
_RANK = r"rank=([0-9]{1,6})&world_size=([1-9][0-9]{0,5})&wait_s=([0-9]{1,3}(?:\.[0-9]{1,6})?)"
_ONE = re.compile(_RANK.encode())
_SEVERAL = re.compile(rf"from=([0-9]{{1,9}})&limit=([1-9][0-9]?)&every=([1-9][0-9]{{0,2}})&{_RANK}".encode())
_HEADERS = (NO_SNIFFING,)  # a browser shows no batch

MAX_EXTRA_WAIT_S = 0.01  # how long an answer with several batches waits for one that is being built
SMALL_BYTES = 64 << 10  # an answer up to this size takes no longer than waiting for its turn would
MAX_JOINED_BYTES = 4 << 20


async def batch_of(engine: Engine, step: int, rank: int, world_size: int, wait_s: float) -> Body:
    """Return a rank's rows of a step and count them; see ``Handout.body``."""
    body = engine.batches.held(step, rank, world_size) or await engine.batches.body(step, rank, world_size, wait_s)
    engine.batches.note_served(1, len(body.data), world_size)
    engine.batches.note_alone(step)
    return body


async def batches_of(engine: Engine, steps: range, rank: int, world_size: int, wait_s: float) -> list[memoryview]:
    """Return records of a rank's rows: of the first of ``steps``, and of those after it that are ready in a moment."""
    pieces: list[memoryview] = []
    num, left, deadline = 0, MAX_JOINED_BYTES, 0.0
    engine.batches.note_range(steps)
    while num < len(steps) and left > 0:
        rest = steps[num:]
        taken = engine.batches.at_hand(rest, rank, world_size, left)
        if taken is None and num and engine.builder.next <= rest[0]:
            left_s = deadline - time.monotonic()
            if left_s <= 0 or not engine.waits.is_coming(rest[0]):
                break
            await engine.waits.moment(rest[0], left_s)  # fewer, larger answers leave the builder more time
            continue
        if taken is None:
            try:
                taken = (await engine.batches.encoded(rest[0], rank, world_size, 0.0 if num else wait_s)), rest[:1]
            except MixerError:
                if num:
                    break  # the request that asks for this step first gets the error
                raise
        encoded, these = taken
        found = encoded.pieces(these)
        pieces += found
        num += len(these)
        deadline = deadline or time.monotonic() + MAX_EXTRA_WAIT_S
        left -= sum(map(len, found))
    engine.batches.note_served(num, MAX_JOINED_BYTES - left, world_size)
    return pieces


class BatchEndpoint:
    """An ASGI layer between the gate and the framework.

    Args:
        app: the framework.
        runs: those of the server.
    """

    def __init__(self, app: App, *, runs: RunRegistry) -> None:
        self._app, self._runs = app, runs
        self._queue = FairQueue()  # else a small answer waits for all large ones that were asked for before it

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send one batch or several, or hand the request on."""
        asked = _asked(scope)
        if asked is None:
            await self._app(scope, receive, send)
            return
        run, step, numbers = asked
        state = scope["state"]
        state["headers"] = _HEADERS
        state["route"] = ("" if run is None else "/runs/{run}") + ("/batches" if step is None else "/batches/{step}")
        state["identity"].check("train")
        engine = self._runs.engine(run)
        rank, world_size, wait_s = int(numbers[-3]), int(numbers[-2]), float(numbers[-1])
        if step is not None:
            body = await batch_of(engine, int(step), rank, world_size, wait_s)
            pieces, headers = [body.data], body.headers
        else:
            first, limit, every = map(int, numbers[:3])
            pieces = await batches_of(engine, range(first, first + limit * every, every), rank, world_size, wait_s)
            headers = several_headers(pieces)
        is_large = sum(map(len, pieces)) > SMALL_BYTES
        for number, piece in enumerate(pieces, 1):
            if is_large:
                await self._queue.take()
            if number == 1:
                await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": piece, "more_body": number < len(pieces)})


def several_headers(pieces: Sequence[memoryview]) -> tuple[tuple[bytes, bytes], ...]:
    """Return the headers of an answer with several batches."""
    return (
        (b"content-type", SEVERAL_TYPE.encode()),
        (b"content-length", str(sum(map(len, pieces))).encode()),
        (b"cache-control", b"no-store"),  # the next answer may hold more batches
    )


def _asked(scope: Scope) -> tuple[str | None, str | None, tuple[bytes, ...]] | None:
    """Return run, step (None: several steps) and the query's numbers of a request for batches; None for any other."""
    if scope["type"] != "http" or scope["method"] != "GET":
        return None
    path = _PATH.fullmatch(scope["path"])
    if path is None or any(name == b"if-none-match" for name, _ in scope["headers"]):
        return None
    run, step = path.groups()
    query = (_SEVERAL if step is None else _ONE).fullmatch(scope["query_string"])
    return None if query is None else (run, step, query.groups())
