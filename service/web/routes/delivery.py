"""Routes for trainers: batches, losses, probes, progress and status."""

import time
from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Query, Request
from fastapi.concurrency import run_in_threadpool
from starlette.responses import Response

from service.runs.engine import Engine
from service.web.batch_endpoint import batch_of, batches_of, several_headers
from service.web.routes.common import EngineOf, errors, needs
from service.wire.batches import DIGEST_HEADER, MAX_STEPS, MEDIA_TYPE, PHASE_HEADER, SEVERAL_TYPE, STEP_HEADER, Body
from service.wire.schemas import Feedback, FeedbackTaken, Rank, Sample, SampleTaken, SourceProgress, Status, Step

RankNumber = Annotated[int, Query(ge=0, lt=2**20)]
WorldSize = Annotated[int, Query(ge=1, lt=2**20)]

_BATCH: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "an Arrow IPC stream: rows (token ids, fixed-size lists of T + 1), source_ids, row_numbers",
        "content": {MEDIA_TYPE: {"schema": {"type": "string", "format": "binary"}}},
        "headers": {
            name: {"schema": {"type": "string"}} for name in ("etag", DIGEST_HEADER, STEP_HEADER, PHASE_HEADER)
        },
    },
    304: {"description": "the batch has the ETag of If-None-Match"},
}

_BATCHES: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "bodies as of /batches/{step}, some 1 MiB in all; before each a line of ASCII with its length, "
        "step, phase and XXH3-128 in hexadecimal",
        "content": {SEVERAL_TYPE: {"schema": {"type": "string", "format": "binary"}}},
    },
}


def delivery(engine_of: EngineOf) -> APIRouter:
    """Return the routes for one way to name the run."""
    router = APIRouter(tags=["delivery"], responses=errors(410))
    Run = Annotated[Engine, Depends(engine_of)]  # noqa: N806  # a type

    @router.get(
        "/batches/{step}",
        dependencies=[needs("train")],
        summary="A rank's rows of a step; the same bytes on every retry",
        response_class=Response,
        responses={**errors(410), **_BATCH},
    )
    async def batch(
        request: Request,
        engine: Run,
        step: Annotated[Step, Path(examples=[0])],
        rank: RankNumber = 0,
        world_size: WorldSize = 1,
        wait_s: Annotated[float, Query(ge=0, le=3600, description="longest wait for a step that is not built")] = 10,
    ) -> Response:
        body = await batch_of(engine, step, rank, world_size, wait_s)
        return batch_response(body, request.headers.get("if-none-match"))

    @router.get(
        "/batches",
        dependencies=[needs("train")],
        summary="A rank's rows of a step, and of the steps after it that are at hand",
        response_class=Response,
        responses={**errors(410), **_BATCHES},
    )
    async def batches(
        engine: Run,
        first: Annotated[Step, Query(alias="from", description="waited for; those after it are not", examples=[0])],
        limit: Annotated[int, Query(ge=1, le=MAX_STEPS, description="most steps of this answer")] = 8,
        every: Annotated[int, Query(ge=1, le=999, description="from one of these steps to the next")] = 1,
        rank: RankNumber = 0,
        world_size: WorldSize = 1,
        wait_s: Annotated[float, Query(ge=0, le=3600, description="longest wait for the first step")] = 10,
    ) -> Response:
        steps = range(first, first + limit * every, every)
        pieces = await batches_of(engine, steps, rank, world_size, wait_s)
        response = Response(b"".join(pieces))
        response.raw_headers = list(several_headers(pieces))
        return response

    @router.post("/feedback", dependencies=[needs("train")], summary="Losses of one rank in one step")
    async def feedback(engine: Run, body: Feedback) -> FeedbackTaken:
        losses = body.losses(engine.walk.names)
        is_new = await run_in_threadpool(engine.report, body.step, losses, body.world_size)
        return FeedbackTaken(is_new=is_new, differs=None if is_new else engine.said.differs(body.step, losses))

    @router.get(
        "/probes/{step}",
        dependencies=[needs("train")],
        summary="A rank's held-out rows of a step that offers a probe, to measure losses on",
        response_class=Response,
        responses={**errors(404), **_BATCH},
    )
    async def probe(
        request: Request,
        engine: Run,
        step: Annotated[Step, Path(examples=[0])],
        rank: RankNumber = 0,
        world_size: WorldSize = 1,
        wait_s: Annotated[float, Query(ge=0, le=3600, description="longest wait for a step that is not decided")] = 10,
    ) -> Response:
        body = await engine.probe(step, rank, world_size, wait_s)
        return batch_response(body, request.headers.get("if-none-match"))

    @router.post("/feedback/probes", dependencies=[needs("train")], summary="Held-out losses of one rank in one probe")
    async def probe_feedback(engine: Run, body: Feedback) -> FeedbackTaken:
        losses = body.losses(engine.curriculum.probed_names)
        return FeedbackTaken(is_new=await run_in_threadpool(engine.probes.report, body.step, losses, body.world_size))

    @router.post("/samples", dependencies=[needs("train")], summary="A text that the model wrote; it decides nothing")
    async def sample(engine: Run, body: Sample) -> SampleTaken:
        await run_in_threadpool(engine.take_sample, body)
        return SampleTaken(step=body.step)

    @router.get("/progress", dependencies=[needs("read")], summary="What each source has given before a step")
    async def progress(engine: Run, step: Annotated[Step, Query(examples=[0])]) -> dict[str, SourceProgress]:
        found = await run_in_threadpool(engine.progress, step)
        return {name: SourceProgress(**asdict(source)) for name, source in found.items()}

    @router.get("/status", dependencies=[needs("read")], summary="How the run is doing just now")
    async def status(engine: Run) -> Status:
        return run_status(engine)

    return router


def batch_response(body: Body, if_none_match: str | None) -> Response:
    """Return the answer with a batch, or 304 if the client has it already."""
    if if_none_match is not None and body.etag in if_none_match:
        return Response(status_code=304, headers={"etag": body.etag})
    response = Response(bytes(body.data))
    response.raw_headers = list(body.headers)
    return response


def run_status(engine: Engine) -> Status:
    """Return how a run is doing just now."""
    asked, reported, now = dict(engine.counters.last_asked), engine.patience.last_reports(), time.monotonic()
    absent = engine.patience.absent
    ranks = [
        Rank(
            rank=rank,
            asked_step=asked[rank][0] if rank in asked else None,
            asked_ago_s=max(0.0, now - asked[rank][1]) if rank in asked else None,
            reported_step=reported.get(rank),
            is_absent=rank in absent,
        )
        for rank in sorted({*asked, *reported})
    ]
    counters = engine.counters
    return Status(
        run=engine.name,
        is_ready=engine.builder.is_ready,
        is_paused=engine.builder.is_paused,
        problem=None if engine.builder.problem is None else str(engine.builder.problem),
        end=engine.builder.run_end,
        next_step=engine.builder.next,
        frontier=engine.walk.frontier,
        queue_depth=engine.builder.queue_depth,
        bytes_held=engine.batches.num_bytes,
        batches_built=counters.batches_built,
        batches_served=counters.batches_served,
        tokens_served=counters.tokens_served,
        reports=counters.reports,
        ranks=ranks,
    )
