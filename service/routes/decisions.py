"""Weights, phases, the journal, pivots and the config of a run."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request
from fastapi.concurrency import run_in_threadpool
from starlette.responses import StreamingResponse

from mixer.config import Pivot
from service.engine import Engine
from service.guard import origin_of
from service.routes.common import EngineOf, errors, identity_of, needs
from service.schemas import Phases, PivotRequest, PivotTaken, Step, Weights


def decisions(engine_of: EngineOf) -> APIRouter:
    """Return the routes of one way to name the run."""
    router = APIRouter(tags=["decisions"], responses=errors(410))
    Run = Annotated[Engine, Depends(engine_of)]  # noqa: N806  # a type

    @router.get("/weights", dependencies=[needs("read")], summary="Weights of the phase that covers a step")
    async def weights(
        request: Request,
        engine: Run,
        step: Annotated[Step | None, Query(description="default: the newest phase", examples=[120])] = None,
        wait_s: Annotated[float, Query(ge=0, le=3600, description="longest wait for a decision that is due")] = 10,
    ) -> Weights:
        if step is None:
            step = max(engine.walk.frontier - 1, 0)
        may_decide = identity_of(request).scope != "read"
        phase = await engine.phase(step, wait_s, may_decide=may_decide)
        region = engine.walk.regime_at(phase.start).region
        return Weights(
            run=engine.name,
            step=step,
            phase=phase.index,
            start=phase.start,
            length=phase.length,
            kind=phase.kind,
            regime=phase.regime,
            weights=phase.by_source(),
            lower=dict(zip(phase.names, region.lower.tolist(), strict=True)),
            upper=dict(zip(phase.names, region.upper.tolist(), strict=True)),
        )

    @router.get("/phases", dependencies=[needs("read")], summary="Decisions, in order")
    async def phases(
        engine: Run,
        from_step: Annotated[Step, Query(alias="from", description="the phase that covers this step comes first")] = 0,
        limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    ) -> Phases:
        records = engine.phases_from(from_step, limit)
        end = records[-1]["start"] + records[-1]["length"] if records else from_step
        return Phases(run=engine.name, names=engine.walk.names, phases=records, next_step=end)

    @router.get(
        "/walk",
        dependencies=[needs("read")],
        summary="The whole journal, as JSON lines",
        response_class=StreamingResponse,
        responses={200: {"content": {"application/x-ndjson": {"schema": {"type": "string"}}}}},
    )
    async def walk(engine: Run) -> StreamingResponse:
        return StreamingResponse(engine.journal_lines(), media_type="application/x-ndjson")

    @router.post("/pivots", dependencies=[needs("admin")], summary="Redraw the region", status_code=201)
    async def pivot(request: Request, engine: Run, body: PivotRequest) -> PivotTaken:
        asked = Pivot(**body.model_dump(exclude={"at"}))
        at_step = None if body.at == "next" else body.at
        step = await run_in_threadpool(engine.pivot, asked, at_step)
        await run_in_threadpool(
            request.app.state.store.note,
            run=engine.name,
            who=identity_of(request).name,
            origin=origin_of(request.scope),
            action="pivot",
            detail={**body.model_dump(mode="json"), "at_step": step},
        )
        return PivotTaken(name=body.name, at_step=step)

    @router.get("/pivots", dependencies=[needs("admin")], summary="Pivots: who asked for them, when, from where")
    def pivots(request: Request, engine: Run) -> list[dict[str, Any]]:
        audit: list[dict[str, Any]] = request.app.state.store.audit(engine.name)
        return audit

    @router.get("/config", dependencies=[needs("read")], summary="The run's curriculum, and what the server allows")
    async def config(request: Request, engine: Run) -> dict[str, Any]:
        shown = {"ahead_steps", "memory_bytes", "retain_steps", "feedback_wait_s", "max_wait_s", "max_body_bytes"}
        return {
            "run": engine.name,
            "names": list(engine.walk.names),
            "fingerprint": engine.curriculum.fingerprint,
            "curriculum": engine.curriculum.model_dump(mode="json"),
            "limits": request.app.state.settings.model_dump(mode="json", include=shown | {"requests_per_minute"}),
        }

    return router
