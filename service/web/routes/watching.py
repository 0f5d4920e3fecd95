"""The routes of the dashboard: columns of the walk, state of the run, region, journal, preview of a pivot."""

import gzip
from typing import Annotated, Any, Literal

import orjson
from fastapi import APIRouter, Depends, Query, Request
from starlette.responses import Response

from service.dashboard.columns import Watch
from service.dashboard.overview import overview
from service.dashboard.preview import preview
from service.dashboard.projection import walk_on_paper
from service.dashboard.series import series
from service.web.routes.common import EngineOf, errors, needs
from service.wire.dashboard import Entries, Overview, Preview, PreviewRequest, Series, WalkOnPaper
from service.wire.schemas import Samples

Step = Annotated[int, Query(ge=0, lt=2**31)]
GZIP_BYTES = 16 * 1024  # from here on an answer is compressed: 370 kB of columns become 140 kB in 3 ms
GZIP_LEVEL = 1  # level 6 would save another 20 kB and take 18 ms


def watching(engine_of: EngineOf) -> APIRouter:
    """Return the routes for one way to name the run; plain functions, which run in threads and do not delay batches."""
    router = APIRouter(tags=["watching"], responses=errors(), dependencies=[needs("read")])

    def watch_of(engine: Annotated[Any, Depends(engine_of)]) -> Watch:
        watch: Watch = engine.watch
        return watch

    Run = Annotated[Watch, Depends(watch_of)]  # noqa: N806  # a type

    @router.get("/series", response_model=Series, summary="The walk as columns, downsampled")
    def get_series(
        request: Request,
        watch: Run,
        points: Annotated[int, Query(ge=1, le=5000)] = 1000,
        from_step: Step = 0,
        to_step: Annotated[int | None, Query(ge=1, lt=2**31)] = None,
        per_point: Annotated[int | None, Query(ge=1, le=2**20)] = None,
        top: Annotated[int, Query(ge=1, le=100)] = 24,
    ) -> Response:
        found = series(
            watch.chronicle(), points=points, from_step=from_step, to_step=to_step, per_point=per_point, top=top
        )
        return _json(request, found)

    @router.get("/overview", response_model=Overview, summary="Where the run stands: phase, sources, ranks, alarms")
    def get_overview(
        request: Request,
        watch: Run,
        query: Annotated[str, Query(max_length=100)] = "",
        limit: Annotated[int, Query(ge=1, le=1000)] = 200,
    ) -> Response:
        found = overview(
            watch.chronicle(),
            steps_per_s=watch.steps_per_s(),
            silence=watch.silence(),
            query=query,
            limit=limit,
        )
        return _json(request, found)

    @router.get("/region", response_model=WalkOnPaper, summary="The walk in its region, in two dimensions")
    def get_region(request: Request, watch: Run) -> Response:
        return _json(request, walk_on_paper(watch.chronicle()))

    @router.get("/journal", response_model=Entries, summary="Decisions, pivots and alarms in words, newest first")
    def get_journal(
        request: Request,
        watch: Run,
        query: Annotated[str, Query(max_length=200)] = "",
        kind: Annotated[Literal["", "phase", "pivot", "unique_tokens", "skipped", "alarm", "fork"], Query()] = "",
        before: Annotated[int, Query(ge=0, lt=2**53, description="lines before this one; 0: the newest")] = 0,
        limit: Annotated[int, Query(ge=1, le=500)] = 50,
    ) -> Response:
        entries, words = watch.chronicle().entries, query.casefold().split()
        found = [entry for entry in reversed(entries) if entry.is_asked_for(words, kind=kind, before=before)]
        return _json(request, {"num_found": len(found), "entries": [entry.shown() for entry in found[:limit]]})

    @router.get("/samples", summary="Texts that the model wrote, the newest first")
    def get_samples(
        engine: Annotated[Any, Depends(engine_of)], limit: Annotated[int, Query(ge=1, le=100)] = 20
    ) -> Samples:
        return Samples(run=engine.name, samples=engine.samples.newest(limit))

    @router.post("/pivots/preview", response_model=Preview, summary="What a pivot would do; nothing is decided")
    def post_preview(request: Request, watch: Run, body: PreviewRequest) -> Response:
        return _json(request, preview(watch.chronicle(), **body.model_dump()))

    return router


def _json(request: Request, value: Any) -> Response:
    body = orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)
    headers = {"cache-control": "no-store"}
    if len(body) >= GZIP_BYTES and "gzip" in request.headers.get("accept-encoding", ""):
        body = gzip.compress(body, GZIP_LEVEL)
        headers["content-encoding"] = "gzip"
    return Response(body, media_type="application/json", headers=headers)
