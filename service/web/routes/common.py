"""Dependencies that routes share: which run a request means, who sends it, and how its errors are documented."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated, Any

from fastapi import Depends, Path, Request
from fastapi.concurrency import run_in_threadpool

from service.runs.archive import RecordedRun
from service.runs.engine import Engine
from service.runs.registry import RunRegistry
from service.web.auth import Identity, Scope
from service.wire.schemas import ErrorBody

EngineOf = Callable[..., Awaitable[Engine | RecordedRun]]  # a coroutine: FastAPI runs plain functions in a thread
RunName = Annotated[str, Path(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100, examples=["demo"])]


def runs_of(request: Request) -> RunRegistry:
    """Return the server's runs."""
    runs: RunRegistry = request.app.state.runs
    return runs


async def default_engine(request: Request) -> Engine:
    """Return the engine of the default run."""
    return runs_of(request).engine()


async def named_engine(request: Request, run: RunName) -> Engine:
    """Return the engine of the run in the path."""
    return runs_of(request).engine(run)


async def default_readable(request: Request) -> Engine | RecordedRun:
    """Return the default run for reading; its recorded journal if it is archived."""
    name = runs_of(request).default
    return await default_engine(request) if name is None else await named_readable(request, name)


async def named_readable(request: Request, run: RunName) -> Engine | RecordedRun:
    """Return the run in the path for reading; its recorded journal if it is archived."""
    if runs_of(request).record(run).status == "archived":
        recorded: RecordedRun = await run_in_threadpool(request.app.state.archive.past, run)
        return recorded
    return await named_engine(request, run)


def identity_of(request: Request) -> Identity:
    """Return who sends the request, as the middleware found."""
    identity: Identity = request.state.identity
    return identity


def needs(scope: Scope) -> Any:
    """Return a dependency that requires at least this scope."""

    async def check(request: Request) -> None:
        identity_of(request).check(scope)

    return Depends(check)


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the documentation of a route's errors: those that every route has, and ``statuses``."""
    means = {
        400: "no request that HTTP allows",
        401: "no token, or an unknown one",
        403: "the token's scope does not reach so far",
        404: "no such run",
        408: "the body did not come in time",
        409: "not now; the same request may do later",
        410: "not any more",
        413: "too large",
        422: "a request that cannot be",
        429: "too many requests",
        503: "the database or the journal cannot be written; nothing was changed",
    }
    listed = {400, 401, 403, 404, 409, 413, 422, 429, 503, *statuses}
    shape = {"application/json": {"schema": {"$ref": f"#/components/schemas/{ErrorBody.__name__}"}}}
    # a model for each would take most of the time that the server needs to set up its routes
    by_status: dict[int | str, dict[str, Any]] = {
        status: {"content": shape, "description": means[status]} for status in sorted(listed)
    }
    by_status[429] = {"model": ErrorBody, "description": means[429]}  # one model adds the schema to the document
    return by_status
