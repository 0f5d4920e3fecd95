"""A recorded walk in the place of a run: weights and phases of any step, the page, and nothing that changes anything.

The journal is read once, its chain checked; what is appended later is not seen.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NoReturn

from fastapi import APIRouter, Depends, Request

from mixer.audit import curricula_of
from mixer.lookup import history
from mixer.phases import Phase
from service.app import GuardedApp
from service.auth import TokenBook
from service.chronicle import Watch
from service.dashboard import add_dashboard
from service.decisions import Decisions, UndecidedError
from service.errors import PastError, RunEndedError, UnknownRunError
from service.guard import Guard
from service.metrics import Metrics
from service.routes.common import RunName, errors, needs
from service.routes.decisions import record
from service.routes.watching import watching
from service.schemas import Run
from service.settings import Settings

PRESENT = ("batches", "batches/{step}", "feedback", "events", "status", "progress", "pivots", "fork", "metrics")
METHODS = ["POST", "PUT", "PATCH", "DELETE"]


class Past:
    """What the reading routes ask of an ``Engine``, answered from a journal.

    Args:
        path: the journal.
        name: of the run.

    Raises:
        JournalError: no journal, or damage; the message names the line.
    """

    def __init__(self, path: Path, name: str) -> None:
        self.path, self.name = path, name
        header, lines = history(path)
        self.curriculum = curricula_of(path, header)[-1]
        self.names = self.curriculum.names
        self.parent: dict[str, Any] | None = None
        if header["parent"] is not None:
            self.parent = {key: header["parent"][key] for key in ("fingerprint", "step")}
        self.watch = Watch()
        self.watch.add(header, is_new=False)
        self._decisions = Decisions(self.names, header["curriculum"])
        for line in lines:
            self.watch.add(line, is_new=False)
            if line["type"] == "phase":
                self._decisions.add({key: value for key, value in line.items() if key != "number"})
            elif line["type"] == "pivot":
                self._decisions.cut(line)

    @property
    def frontier(self) -> int:
        """The first step that the record does not cover."""
        return self._decisions.frontier

    @property
    def tokenizer(self) -> NoReturn:
        """Refused: a journal has none."""
        raise PastError(f"run {self.name} is a record, which has no tokenizer")

    async def phase(self, step: int, _wait_s: float, *, may_decide: bool) -> Phase:  # as an engine
        """Return the phase that covered a step; raise RunEndedError past the end of the record."""
        try:
            return self._decisions.at(step)
        except UndecidedError:
            raise RunEndedError(
                f"step {step} was asked for, but the record of run {self.name} ends before step {self.frontier}"
            ) from None

    def bounds_at(self, step: int) -> tuple[list[float], list[float]]:
        """Return the smallest and the largest weight that the region of a step let each source reach."""
        region = self._decisions.region_at(step)
        return region["lower"], region["upper"]

    def phases_from(self, step: int, limit: int) -> list[dict[str, Any]]:
        """Return the records of up to ``limit`` phases, that which covers ``step`` first."""
        return self._decisions.since(step, limit)

    def journal_lines(self) -> Iterator[bytes]:
        """Yield the journal as it lies on the disk."""
        with self.path.open("rb") as file:
            yield from file


def create_past_app(past: Past, settings: Settings, book: TokenBook) -> GuardedApp:
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
    app.door = Guard(app.framework, settings=settings, book=book, metrics=metrics, may_change=False)
    return app


def _runs(past: Past, named: Any) -> APIRouter:
    router = APIRouter(tags=["runs"], responses=errors())
    shown = Run(
        name=past.name,
        status="archived",
        is_default=True,
        fingerprint=past.curriculum.fingerprint,
        created_at=past.path.stat().st_mtime,
        total_steps=past.curriculum.total_steps,
        next_step=None,
        frontier=past.frontier,
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


def _refusing(past: Past, past_of: Any) -> APIRouter:
    """Return the routes of a run that goes on, which say that this one does not."""
    router = APIRouter(include_in_schema=False, dependencies=[needs("read"), Depends(past_of)])
    for path in PRESENT:
        router.add_api_route(f"/{path}", _refusal(past, path), methods=["GET"])
    return router


def _writes(past: Past) -> APIRouter:
    router = APIRouter(include_in_schema=False, dependencies=[needs("read")])
    router.add_api_route("/{path:path}", _refusal(past, "this"), methods=METHODS)
    return router


def _refusal(past: Past, what: str) -> Any:
    def refuse(request: Request) -> None:
        raise PastError(
            f"{request.method} {request.url.path}: run {past.name} is a record of {past.frontier} steps; this server "
            "answers what was decided, decides and delivers nothing, and takes nothing in"
        )

    refuse.__name__ = f"refuse_{what}"
    return refuse
