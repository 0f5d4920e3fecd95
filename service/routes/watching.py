"""Routes that a page watching a run reads, beyond those of trainers: columns, state, region, journal, preview."""

from typing import Annotated, Any, Literal

import orjson
from fastapi import APIRouter, Depends, Query
from starlette.responses import Response

from service.chronicle import Watch
from service.outline import walk_on_paper
from service.overview import overview
from service.preview import preview
from service.routes.common import EngineOf, errors, needs
from service.schemas_dashboard import Entries, Overview, Preview, PreviewRequest, Series, WalkOnPaper
from service.series import series

Step = Annotated[int, Query(ge=0, lt=2**31)]


def watching(engine_of: EngineOf) -> APIRouter:
    """Return the routes of one way to name the run. No coroutines: their work would hold up batches."""
    router = APIRouter(tags=["watching"], responses=errors(), dependencies=[needs("read")])

    def watch_of(engine: Annotated[Any, Depends(engine_of)]) -> Watch:
        watch: Watch = engine.watch
        return watch

    Run = Annotated[Watch, Depends(watch_of)]  # noqa: N806  # a type

    @router.get("/series", response_model=Series, summary="The walk as columns, downsampled")
    def get_series(
        watch: Run,
        points: Annotated[int, Query(ge=1, le=5000)] = 1000,
        from_step: Step = 0,
        to_step: Annotated[int | None, Query(ge=1, lt=2**31)] = None,
        per_point: Annotated[int | None, Query(ge=1, le=2**20)] = None,
        top: Annotated[int, Query(ge=1, le=100)] = 24,
    ) -> Response:
        chronicle = watch.chronicle()
        return _json(
            series(chronicle, points=points, from_step=from_step, to_step=to_step, per_point=per_point, top=top)
        )

    @router.get("/overview", response_model=Overview, summary="Where the run stands: phase, sources, ranks, alarms")
    def get_overview(
        watch: Run,
        query: Annotated[str, Query(max_length=100)] = "",
        limit: Annotated[int, Query(ge=1, le=1000)] = 200,
    ) -> Response:
        return _json(overview(watch.chronicle(), query=query, limit=limit))

    @router.get("/region", response_model=WalkOnPaper, summary="The walk in its region, in two dimensions")
    def get_region(watch: Run) -> Response:
        return _json(walk_on_paper(watch.chronicle()))

    @router.get("/journal", response_model=Entries, summary="Decisions, pivots and alarms in words, newest first")
    def get_journal(
        watch: Run,
        query: Annotated[str, Query(max_length=200)] = "",
        kind: Annotated[Literal["", "phase", "pivot", "unique_tokens", "alarm"], Query()] = "",
        before: Annotated[int, Query(ge=0, lt=2**53, description="lines before this one; 0: the newest")] = 0,
        limit: Annotated[int, Query(ge=1, le=500)] = 50,
    ) -> Response:
        entries = watch.chronicle().entries
        words = query.casefold().split()
        found = [
            entry
            for entry in reversed(entries)
            if (not kind or entry.type == kind)
            and (not before or entry.line < before)
            and all(word in entry.text.casefold() or word == str(entry.step) for word in words)
        ]
        return _json({"num_found": len(found), "entries": [vars(entry) for entry in found[:limit]]})

    @router.post("/pivots/preview", response_model=Preview, summary="What a pivot would do; nothing is decided")
    def post_preview(watch: Run, body: PreviewRequest) -> Response:
        return _json(preview(watch.chronicle(), **body.model_dump()))

    return router


def _json(value: Any) -> Response:
    return Response(orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY), media_type="application/json")
