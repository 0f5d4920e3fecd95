"""A small stand-in for the service: the routes that the page reads, over simulated walks, without data or a store."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import orjson
import uvicorn
from fastapi import APIRouter, FastAPI, Header, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse

from mixer.config import Curriculum, Pivot
from mixer.draws import phase_counts
from mixer.errors import MixerError
from mixer.journal import Journal
from mixer.rewards import SourceLosses
from mixer.simulation import SyntheticLearner
from mixer.walk import Walk
from service.auth import LOCAL
from service.chronicle import Watch
from service.dashboard import add_dashboard
from service.guard import CONTENT_SECURITY_POLICY
from service.routes.watching import watching

ADMIN = "admin-secret"


class SimulatedRun:
    """A walk that learns from a synthetic learner, and the watch that follows its journal."""

    def __init__(self, curriculum: Curriculum, journal: Path | None = None, num_ranks: int = 1) -> None:
        self.curriculum, self.num_ranks, self.step = curriculum, num_ranks, 0
        self.lines: list[dict[str, Any]] = []
        self.watch = Watch()
        self.pivots: list[str] = []
        self.path = journal
        self._journal = None if journal is None else Journal.create(journal)
        self.walk = Walk(curriculum, journal=self)  # type: ignore[arg-type]  # it asks for append and position alone
        self.learner = SyntheticLearner(
            len(curriculum.names), seed=curriculum.seed, sequence_length=curriculum.sequence_length
        )
        self.counts = np.zeros((0, 0), dtype=np.int64)
        self.lock = threading.Lock()

    @property
    def position(self) -> Any:
        """Where the journal ends."""
        return type("Position", (), {"line": len(self.lines)})()

    def append(self, record: dict[str, Any]) -> None:
        """Take a line of the walk; feedback is not kept here, there is too much of it."""
        plain = orjson.loads(orjson.dumps(record, option=orjson.OPT_SERIALIZE_NUMPY))
        if plain["type"] != "feedback":
            self.lines.append(plain)
        self.watch.add(plain)
        if self._journal is not None:
            self._journal.append(record)

    def hasten(self, to_step: int) -> None:
        """Decide phases up to a step, with one report for each: a long walk in a few seconds."""
        with self.lock:
            while self.step < to_step:
                phase = self.walk.phase_at(self.step)
                counts, _ = phase_counts(
                    phase, seed=self.curriculum.seed, method="systematic", batch_rows=self.curriculum.batch_rows
                )
                self.walk.report(self.step, self.learner.learn(self.step, counts.sum(axis=0)))
                self.step = phase.start + phase.length

    def advance(self, num_steps: int, lags: tuple[int, ...] = ()) -> None:
        """Take so many steps; each rank reports every one, ``lags`` steps late."""
        with self.lock:
            for _ in range(num_steps):
                phase = self.walk.phase_at(self.step)
                if phase.start == self.step or not self.counts.size:
                    self.counts, _ = phase_counts(
                        phase, seed=self.curriculum.seed, method="systematic", batch_rows=self.curriculum.batch_rows
                    )
                losses = self.learner.learn(self.step, self.counts[self.step - phase.start])
                for rank in range(self.num_ranks):
                    lag = lags[rank] if rank < len(lags) else 0
                    if self.step >= lag:
                        self.walk.report(self.step - lag, share(losses, rank) if lag == 0 else nothing(losses, rank))
                self.step += 1

    def alarm(self, source: str, message: str) -> None:
        """Write an alarm, as the guard of losses does."""
        self.append({"type": "alarm", "step": self.step, "source": source, "kind": "cliff", "message": message})


def share(losses: SourceLosses, rank: int) -> SourceLosses:
    """All of it for rank 0, an empty report for the others: the page adds up sums, whoever sent them."""
    return losses if rank == 0 else nothing(losses, rank)


def nothing(losses: SourceLosses, rank: int) -> SourceLosses:
    """A report without rows."""
    zeros = np.zeros(losses.rows.size)
    return SourceLosses(rows=zeros, tokens=zeros, loss_sums=zeros, square_sums=zeros, rank=rank)  # type: ignore[arg-type]


def make_app(runs: dict[str, SimulatedRun], default: str) -> FastAPI:
    """Return the app; the short paths mean the run ``default``, and a pivot needs the token ``ADMIN``."""
    app = FastAPI()

    def get_run(request: Request) -> SimulatedRun:
        return runs[request.path_params.get("run", default)]

    routes = APIRouter()

    @routes.get("/config")
    def get_config(request: Request) -> Any:
        return {"curriculum": get_run(request).curriculum.model_dump(mode="json")}

    @routes.get("/phases")
    def get_phases(request: Request, limit: int = 100) -> Any:
        run, first = get_run(request), int(request.query_params.get("from", 0))
        found = [line for line in run.lines if line["type"] == "phase" and line["start"] + line["length"] > first]
        return {"run": default, "names": run.curriculum.names, "phases": found[:limit], "next_step": run.walk.frontier}

    @routes.get("/walk")
    def get_walk(request: Request) -> Response:
        return Response(b"".join(orjson.dumps(line) + b"\n" for line in get_run(request).lines))

    @routes.post("/pivots")
    async def post_pivot(request: Request, authorization: Annotated[str, Header()] = "") -> Any:
        if authorization != f"Bearer {ADMIN}":
            return problem(403, "forbidden", "a pivot needs the scope admin", "use an admin's token")
        body = await request.json()
        at = body.pop("at", "next")
        run = get_run(request)
        with run.lock:
            step = run.walk.pivot(Pivot(**body), at_step=None if at == "next" else at)
        run.pivots.append(body["name"])
        return {"name": body["name"], "at_step": step}

    @routes.get("/events")
    async def get_events(request: Request) -> StreamingResponse:
        run = get_run(request)

        async def listen() -> AsyncIterator[bytes]:
            yield b"retry: 2000\n\n"
            seen = len(run.lines)
            while not app.state.is_closing:
                for line in run.lines[seen:]:
                    seen += 1
                    yield b"id: %d\nevent: %s\ndata: %s\n\n" % (seen, line["type"].encode(), orjson.dumps(line))
                await asyncio.sleep(0.05)

        return StreamingResponse(listen(), media_type="text/event-stream")

    @routes.get("/status")
    def get_status(request: Request) -> Any:
        run = get_run(request)
        ranks = [
            {"rank": rank, "asked_step": run.step + 2, "asked_ago_s": 0.5, "reported_step": None, "is_absent": False}
            for rank in range(run.num_ranks)
        ]
        return {"is_ready": True, "is_paused": False, "problem": None, "queue_depth": 3, "ranks": ranks}

    @app.get("/runs")
    def get_runs() -> Any:
        return [{"name": name, "is_default": name == default} for name in runs]

    async def refused(_: Request, error: Exception) -> JSONResponse:
        return problem(422, getattr(error, "code", "mixer"), str(error), "")

    app.add_exception_handler(MixerError, refused)
    app.state.is_closing = False
    routes.include_router(watching(get_run))  # type: ignore[arg-type]  # of an engine they ask for its watch alone

    @app.middleware("http")
    async def guard(request: Request, call_next: Any) -> Any:
        request.state.identity = LOCAL
        response = await call_next(request)
        response.headers["content-security-policy"] = CONTENT_SECURITY_POLICY
        return response

    add_dashboard(app)
    app.include_router(routes)
    app.include_router(routes, prefix="/runs/{run}")
    return app


def problem(status: int, code: str, message: str, hint: str) -> JSONResponse:
    """The one shape of errors."""
    return JSONResponse({"error": {"code": code, "message": message, "hint": hint}}, status)


@contextlib.contextmanager
def served(app: FastAPI, port: int = 0) -> Iterator[str]:
    """Serve ``app`` on loopback while the block runs; give its address."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(("127.0.0.1", port))
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=1))
    app.state.is_closing = False
    thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]}, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{sock.getsockname()[1]}"
    finally:
        app.state.is_closing = True
        server.should_exit = True
        thread.join(10)
        sock.close()
