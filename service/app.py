"""``create_app(settings, store)`` builds the server as an ASGI application, without globals.

A request passes ``web.middleware.Gate``, then ``web.batch_endpoint`` for batches, then FastAPI and ``web.routes``.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.routing import Match

from mixer.config.curriculum import Curriculum
from mixer.errors import MixerError
from service.dashboard import add_dashboard
from service.errors import RequestError, ServiceError, StoreError, error_body, error_to_body, hint_of, status_of
from service.runs.archive import Archive
from service.runs.events import Events
from service.runs.registry import RunRegistry
from service.settings import Settings
from service.storage.store import Store
from service.web.auth import token_book
from service.web.batch_endpoint import BatchEndpoint
from service.web.links import add_links
from service.web.metrics import Metrics
from service.web.middleware import Gate, Receive, Scope, Send, error_headers
from service.web.routes.common import default_engine, default_readable, named_engine, named_readable
from service.web.routes.decisions import pivoting, record
from service.web.routes.delivery import delivery
from service.web.routes.operations import health_router, live, runs_router
from service.web.routes.watching import watching

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE")
_HTTP = {
    404: ("unknown-route", "/openapi.json lists the routes"),
    405: ("method", "/openapi.json lists the methods of each route; the header Allow those of this one"),
}


def create_app(
    settings: Settings, store: Store, *, curriculum: Curriculum | None = None, name: str | None = None, **rows: Any
) -> FastAPI:
    """Return the server as an ASGI application; runs start and stop with its lifespan.

    Args:
        settings: the settings of the server.
        store: its database.
        curriculum: the default run, which is created or continued; if None, the oldest run of the database.
        name: the name of that run.
        rows: its streams and tokenizer, as ``MixtureDataset`` takes them.
    """
    events = Events()
    runs = RunRegistry(settings, store, events)
    book = token_book(settings, store)
    metrics = Metrics(runs.engines)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        with suppress(StoreError):  # it is logged; nobody is let in until the tokens can be read
            await run_in_threadpool(book.read)
        await run_in_threadpool(runs.open_all, curriculum, name, **rows)
        try:
            yield
        finally:
            events.close()
            await run_in_threadpool(runs.close)

    app = GuardedApp("Weights and batches for trainers, decided while they train.", lifespan=lifespan)
    app.state.settings, app.state.store, app.state.runs, app.state.book = settings, store, runs, book
    app.state.events, app.state.metrics = events, metrics
    app.state.archive = Archive(store, settings.folder)

    def drain() -> None:
        events.close()
        for engine in runs.engines():
            engine.drain()

    app.state.drain = drain
    for prefix, engine_of, readable in (
        ("", default_engine, default_readable),
        ("/runs/{run}", named_engine, named_readable),
    ):
        for router in (record(readable), pivoting(engine_of), delivery(engine_of), live(engine_of), watching(readable)):
            app.include_router(router, prefix=prefix)
    app.include_router(runs_router())
    app.include_router(health_router())
    add_dashboard(app)
    batches = BatchEndpoint(app.framework, runs=runs)
    app.gate = Gate(batches, settings=settings, book=book, metrics=metrics)
    return app


class GuardedApp(FastAPI):
    """FastAPI inside our middleware: the layers that FastAPI itself puts around middleware cost every batch 15 us.

    Every error has the same shape. Who builds the application sets ``gate``, and ``state.drain``, which ends all waits
    when the server shuts down.
    """

    gate: Gate

    def __init__(self, summary: str, **options: Any) -> None:
        super().__init__(
            title="curriculum-mixer",
            version=version("curriculum-mixer"),
            summary=summary,
            docs_url=None,  # its page loads scripts from elsewhere
            redoc_url=None,
            **options,
        )
        self.add_exception_handler(MixerError, _mixer_error)
        self.add_exception_handler(RequestValidationError, _invalid_request)
        self.add_exception_handler(HTTPException, _http_error)
        self.add_exception_handler(Exception, _unexpected)

    def openapi(self) -> dict[str, Any]:
        """Return the OpenAPI document."""
        if self.openapi_schema is None:
            add_links(super().openapi())
        return super().openapi()

    async def framework(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer as FastAPI does."""
        await super().__call__(scope, receive, send)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, if the middleware lets the request through."""
        await self.gate(scope, receive, send)


async def _mixer_error(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, MixerError)
    return JSONResponse(error_to_body(error), status_of(error), headers=error_headers(error))


async def _invalid_request(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    problems = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()[:10])
    return JSONResponse(error_body(RequestError.code, problems, RequestError.hint), RequestError.status)


async def _http_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    if error.status_code == 405:  # the route that raised it names its own methods alone
        error.headers = {"allow": ", ".join(_methods(request))}
    if isinstance(error.__cause__, MixerError):  # raised by our receive channel, and wrapped by FastAPI
        return await _mixer_error(request, error.__cause__)
    if error.status_code == 400:  # malformed JSON gets the same answer as JSON of the wrong shape
        return JSONResponse(error_body(RequestError.code, str(error.detail), RequestError.hint), RequestError.status)
    code, hint = _HTTP.get(error.status_code, ("request", RequestError.hint))
    return JSONResponse(error_body(code, str(error.detail), hint), error.status_code, headers=error.headers)


def _methods(request: Request) -> list[str]:
    """Return every method that a route at this path has."""

    def is_there(method: str) -> bool:
        scope = {**request.scope, "method": method}
        return any(route.matches(scope)[0] is Match.FULL for route in request.app.router.routes)

    return [method for method in METHODS if is_there(method)]


async def _unexpected(request: Request, error: Exception) -> JSONResponse:
    problem = ServiceError(f"unexpected {type(error).__name__} in request {request.state.request_id}")
    return JSONResponse(error_body(problem.code, str(problem), hint_of(problem)), 500)
