"""Routes that make and change runs, and those for live events, health and metrics."""

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Header, Request
from fastapi.concurrency import run_in_threadpool
from starlette.responses import Response, StreamingResponse

from mixer.errors import MixerError
from service.errors import NotReadyError, StallError
from service.runs.engine import Engine
from service.runs.registry import RunRegistry
from service.web.middleware import Gate, origin_of
from service.web.routes.common import EngineOf, RunName, errors, identity_of, needs, runs_of
from service.wire.schemas import ForkRequest, Run, RunRequest


def live(engine_of: EngineOf) -> APIRouter:
    """Return the routes of live events, for one way to name the run."""
    router = APIRouter(tags=["live"], responses=errors())

    @router.get(
        "/events",
        dependencies=[needs("read")],
        summary="Server-sent events: phase, pivot, alarm, sample",
        response_class=StreamingResponse,
        responses={200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}}},
    )
    async def events(
        request: Request,
        engine: Annotated[Engine, Depends(engine_of)],
        last_event_id: Annotated[str | None, Header(max_length=20)] = None,
    ) -> StreamingResponse:
        after = int(last_event_id) if last_event_id is not None and last_event_id.isdecimal() else None
        gate: Gate = request.app.gate
        stream = request.app.state.events.listen(
            engine.name, after=after, is_welcome=lambda: gate.is_welcome(request.scope)
        )
        headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
        return StreamingResponse(stream, media_type="text/event-stream", headers=headers)

    return router


def runs_router() -> APIRouter:
    """Return the routes that make and change runs."""
    router = APIRouter(tags=["runs"], responses=errors())

    @router.get("/runs", dependencies=[needs("read")], summary="Every run")
    def every(request: Request) -> list[Run]:
        runs = runs_of(request)
        return [_shown(runs, name) for name in runs.names()]

    @router.post("/runs", dependencies=[needs("admin")], summary="Make a run", status_code=201)
    async def create(request: Request, body: RunRequest) -> Run:
        runs = runs_of(request)
        await run_in_threadpool(runs.create, body.name, body.curriculum)
        await _note(request, body.name, "create", {})
        return _shown(runs, body.name)

    @router.get("/runs/{run}", dependencies=[needs("read")], summary="One run")
    def one(request: Request, run: RunName) -> Run:
        return _shown(runs_of(request), run)

    @router.post("/runs/{run}/fork", dependencies=[needs("admin")], summary="Go on otherwise", status_code=201)
    async def fork(request: Request, run: RunName, body: ForkRequest) -> Run:
        runs = runs_of(request)
        await run_in_threadpool(runs.fork, run, body.name, body.at_step, body.curriculum)
        await _note(request, body.name, "fork", {"parent": run, "at_step": body.at_step})
        return _shown(runs, body.name)

    for action, status in (("pause", "paused"), ("resume", "active"), ("archive", "archived")):
        _add_action(router, action, status)
    return router


def _add_action(router: APIRouter, action: str, status: str) -> None:
    @router.post(
        f"/runs/{{run}}/{action}", dependencies=[needs("admin")], summary=f"{action.title()} a run", name=action
    )
    async def act(request: Request, run: RunName) -> Run:
        runs = runs_of(request)
        await run_in_threadpool(runs.set_status, run, status)
        await _note(request, run, action, {})
        return _shown(runs, run)


def health_router() -> APIRouter:
    """Return the routes of health checks and metrics."""
    router = APIRouter(tags=["health"])

    @router.get("/healthz", summary="The process answers")
    async def healthz() -> dict[str, Literal["ok"]]:
        return {"status": "ok"}

    @router.get("/readyz", summary="The database can be written, and a run goes on", responses=errors())
    def readyz(request: Request) -> dict[str, Literal["ready"]]:
        request.app.state.store.ping()
        engines = runs_of(request).engines()
        problems = [problem for problem in map(_problem_of, engines) if problem is not None]
        if engines and len(problems) == len(engines):  # the server is ready while one run goes on
            raise problems[0]
        return {"status": "ready"}

    @router.get("/runs/{run}/readyz", dependencies=[needs("read")], summary="A run goes on", responses=errors())
    def run_readyz(request: Request, run: RunName) -> dict[str, Literal["ready"]]:
        request.app.state.store.ping()
        problem = _problem_of(runs_of(request).engine(run))
        if problem is not None:
            raise problem
        return {"status": "ready"}

    @router.get(
        "/metrics",
        dependencies=[needs("read")],
        summary="For Prometheus",
        response_class=Response,
        responses={**errors(), 200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
    )
    def metrics(request: Request) -> Response:
        return Response(request.app.state.metrics.text(), media_type="text/plain; version=0.0.4")

    return router


class _StartingError(NotReadyError):
    """A run has not built a batch yet; health probes expect 503."""

    code = NotReadyError.code
    status = 503


def _problem_of(engine: Engine) -> MixerError | None:
    """Return why batches of a run cannot be handed out; None if they can, or an admin has paused it."""
    problem = engine.builder.problem or engine.served.problem
    if problem is not None:
        return StallError(f"run {engine.name} cannot go on: {problem}")  # health probes expect 503
    if not engine.builder.is_ready and not engine.builder.is_paused:
        return _StartingError(f"run {engine.name} has not built its first batch yet", retry_after_s=1)
    return None


def _shown(runs: RunRegistry, name: str) -> Run:
    record = runs.record(name)
    try:
        engine: Engine | None = runs.engine(name)
    except MixerError:  # it is archived
        engine = None
    return Run(
        name=name,
        status=record.status,
        is_default=name == runs.default,
        fingerprint=record.fingerprint,
        created_at=record.created_at,
        total_steps=engine.curriculum.total_steps if engine else record.curriculum["total_steps"],
        next_step=engine.builder.next if engine else None,
        frontier=engine.walk.frontier if engine else None,
    )


async def _note(request: Request, run: str, action: str, detail: dict[str, Any]) -> None:
    await run_in_threadpool(
        request.app.state.store.note,
        run=run,
        who=identity_of(request).name,
        origin=origin_of(request.scope),
        action=action,
        detail=detail,
    )
