"""A recorded walk in the place of a run: weights and phases of any step, the page, and nothing that changes things."""

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

PRESENT = (
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
__all__ = ["RecordedRun", "create_past_app"]

METHODS = ["POST", "PUT", "PATCH", "DELETE"]


def create_past_app(past: RecordedRun, settings: Settings, book: TokenBook) -> GuardedApp:
    """Return a server that answers from ``past`` and refuses everything else with PastError."""

    async def the_only(_request: Request) -> Any:
        return past

    async def named(_request: Request, run: RunName) -> Any:
        if run != past.name:
            raise UnknownRunError(f"there is no run {run!r}; there is {past.name}")
        return past

    app = GuardedApp("The record of a run: what was decided, at every step.")
    app.state.settings, app.state.drain = settings, lambda: None
    for prefix, past_of in (("", the_only), ("/runs/{run}", named)):
        for router in (record(past_of), watching(past_of), _refusing(past, past_of)):
            app.include_router(router, prefix=prefix)
    app.include_router(_runs(past, named))
    add_dashboard(app)
    app.include_router(_writes(past))
    metrics = Metrics(list)
    app.door = Gate(app.framework, settings=settings, book=book, metrics=metrics, may_change=False)
    return app


def _runs(past: RecordedRun, named: Any) -> APIRouter:
    router = APIRouter(tags=["runs"], responses=errors())
    shown = Run(
        name=past.name,
        status="archived",
        is_default=True,
        fingerprint=past.curriculum.fingerprint,
        created_at=past.path.stat().st_mtime,
        total_steps=past.curriculum.total_steps,
        next_step=None,
        frontier=past.decisions.frontier,
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

    @router.get("/readyz", summary="Everything that is there can be had")
    async def readyz() -> dict[str, Literal["ready"]]:
        return {"status": "ready"}

    return router


def _refusing(past: RecordedRun, past_of: Any) -> APIRouter:
    """Return the routes of a run that goes on, which say that this one does not."""
    router = APIRouter(include_in_schema=False, dependencies=[needs("read"), Depends(past_of)])
    for path in PRESENT:
        router.add_api_route(f"/{path}", _refusal(past, path), methods=["GET"])
    return router


def _writes(past: RecordedRun) -> APIRouter:
    router = APIRouter(include_in_schema=False, dependencies=[needs("read")])
    router.add_api_route("/{path:path}", _refusal(past, "this"), methods=METHODS)
    return router


def _refusal(past: RecordedRun, what: str) -> Any:
    def refuse(request: Request) -> None:
        raise PastError(
            f"{request.method} {request.url.path}: run {past.name} is a record of {past.decisions.frontier} steps; "
            "this server answers what was decided, decides and delivers nothing, and takes nothing in"
        )

    refuse.__name__ = f"refuse_{what}"
    return refuse
