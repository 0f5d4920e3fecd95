"""The server of a recorded run: weights and phases of any step and the page; every change is refused."""

from __future__ import annotations

from typing import Any, Literal

from fastapi import APIRouter, Depends, Request

from service.app import GuardedApp
from service.dashboard import add_dashboard
from service.errors import PastError, UnknownRunError
from service.runs.archive import RecordedRun
from service.settings import Settings
from service.web.auth import TokenBook
from service.web.metrics import Metrics
from service.web.middleware import Gate
from service.web.routes.common import RunName, errors, needs
from service.web.routes.decisions import record
from service.web.routes.watching import watching
from service.wire.schemas import Run

LIVE_PATHS = (  # of a run that goes on
    "batches",
    "batches/{step}",
    "feedback",
    "probes/{step}",
    "feedback/probes",
    "events",
    "status",
    "progress",
    "pivots",
    "fork",
    "metrics",
)
__all__ = ["RecordedRun", "create_replay_app"]

METHODS = ["POST", "PUT", "PATCH", "DELETE"]


def create_replay_app(recorded: RecordedRun, settings: Settings, book: TokenBook) -> GuardedApp:
    """Return a server that answers from ``recorded`` and refuses everything else with PastError."""

    async def the_only(_request: Request) -> Any:
        return recorded

    async def named(_request: Request, run: RunName) -> Any:
        if run != recorded.name:
            raise UnknownRunError(f"there is no run {run!r}; there is {recorded.name}")
        return recorded

    app = GuardedApp("The record of a run: what was decided, at every step.")
    app.state.settings, app.state.drain = settings, lambda: None
    for prefix, run_of in (("", the_only), ("/runs/{run}", named)):
        for router in (record(run_of), watching(run_of), _refusing(recorded, run_of)):
            app.include_router(router, prefix=prefix)
    app.include_router(_runs(recorded, named))
    add_dashboard(app)
    app.include_router(_writes(recorded))
    app.gate = Gate(app.framework, settings=settings, book=book, metrics=Metrics(list), may_change=False)
    return app


def _runs(recorded: RecordedRun, named: Any) -> APIRouter:
    router = APIRouter(tags=["runs"], responses=errors())
    shown = Run(
        name=recorded.name,
        status="archived",
        is_default=True,
        fingerprint=recorded.curriculum.fingerprint,
        created_at=recorded.path.stat().st_mtime,
        total_steps=recorded.curriculum.total_steps,
        next_step=None,
        frontier=recorded.decisions.frontier,
    )

    @router.get("/runs", dependencies=[needs("read")], summary="The one run")
    def every() -> list[Run]:
        return [shown]

    @router.get("/runs/{run}", dependencies=[needs("read"), Depends(named)], summary="The one run")
    def one() -> Run:
        return shown

    @router.get("/healthz", summary="The process answers")
    async def healthz() -> dict[str, Literal["ok"]]:
        return {"status": "ok"}

    @router.get("/readyz", summary="The record can be read")
    async def readyz() -> dict[str, Literal["ready"]]:
        return {"status": "ready"}

    return router


def _refusing(recorded: RecordedRun, run_of: Any) -> APIRouter:
    """Return the GET routes that only a run that goes on can answer; each refuses."""
    router = APIRouter(include_in_schema=False, dependencies=[needs("read"), Depends(run_of)])
    for path in LIVE_PATHS:
        router.add_api_route(f"/{path}", _refusal(recorded, path), methods=["GET"])
    return router


def _writes(recorded: RecordedRun) -> APIRouter:
    """Return a route that refuses every change."""
    router = APIRouter(include_in_schema=False, dependencies=[needs("read")])
    router.add_api_route("/{path:path}", _refusal(recorded, "this"), methods=METHODS)
    return router


def _refusal(recorded: RecordedRun, what: str) -> Any:
    def refuse(request: Request) -> None:
        raise PastError(
            f"{request.method} {request.url.path}: run {recorded.name} is a record of {recorded.decisions.frontier} "
            "steps; this server answers what was decided, decides and delivers nothing, and takes nothing in"
        )

    refuse.__name__ = f"refuse_{what}"
    return refuse
