"""Routes for weights, phases, the journal, pivots and the config of a run."""

import logging
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request
from fastapi.concurrency import run_in_threadpool
from starlette.responses import StreamingResponse

from mixer.config.pivots import Pivot
from mixer.errors import MixerError
from service.errors import StoreError
from service.runs.engine import Engine
from service.runs.registry import check_code_known
from service.storage.store import Store
from service.web.middleware import origin_of
from service.web.routes.common import EngineOf, errors, identity_of, needs
from service.wire.schemas import Phases, PivotRequest, PivotTaken, Step, TokenizerFile, Weights

log = logging.getLogger(__name__)

SHOWN_SETTINGS = {
    "ahead_steps",
    "memory_bytes",
    "retain_steps",
    "feedback_wait_s",
    "max_wait_s",
    "max_body_bytes",
    "requests_per_minute",
}


def pivoting(engine_of: EngineOf) -> APIRouter:
    """Return the routes that redraw the region, for one way to name the run."""
    router = APIRouter(tags=["decisions"], responses=errors(410))
    _add_pivots(router, engine_of)
    return router


def record(engine_of: EngineOf) -> APIRouter:
    """Return the routes that only read, which archived runs have too."""
    router = APIRouter(tags=["decisions"], responses=errors(410))
    _add_weights(router, engine_of)
    _add_record(router, engine_of)
    return router


def _add_weights(router: APIRouter, engine_of: EngineOf) -> None:
    @router.get("/weights", dependencies=[needs("read")], summary="Weights of the phase that covers a step")
    async def weights(
        request: Request,
        engine: Annotated[Engine, Depends(engine_of)],
        step: Annotated[Step | None, Query(description="default: the newest phase", examples=[120])] = None,
        wait_s: Annotated[float, Query(ge=0, le=3600, description="longest wait for a decision that is due")] = 10,
    ) -> Weights:
        may_decide = step is not None and identity_of(request).scope != "read"
        asked = max(engine.decisions.frontier - 1, 0) if step is None else step
        phase = await engine.phase(asked, wait_s, may_decide=may_decide)
        lower, upper = engine.decisions.bounds_at(phase.start)
        return Weights(
            run=engine.name,
            step=asked,
            phase=phase.index,
            start=phase.start,
            length=phase.length,
            kind=phase.kind,
            regime=phase.regime,
            weights=phase.by_source(),
            lower=dict(zip(phase.names, lower, strict=True)),
            upper=dict(zip(phase.names, upper, strict=True)),
        )


def _add_record(router: APIRouter, engine_of: EngineOf) -> None:
    Run = Annotated[Engine, Depends(engine_of)]  # noqa: N806  # a type

    @router.get("/tokenizer", dependencies=[needs("read")], summary="What turned text into token ids")
    async def tokenizer(engine: Run) -> TokenizerFile:
        found = await run_in_threadpool(lambda: engine.tokenizer)  # it may have to be loaded
        return TokenizerFile(
            run=engine.name,
            separator=found.separator,
            vocab_size=found.vocab_size,
            fingerprint=found.fingerprint,
            file=found.to_json(),
        )

    @router.get("/phases", dependencies=[needs("read")], summary="Decisions, in order")
    async def phases(
        engine: Run,
        from_step: Annotated[Step, Query(alias="from", description="the phase that covers this step comes first")] = 0,
        limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    ) -> Phases:
        records = engine.decisions.since(from_step, limit)
        end = records[-1]["start"] + records[-1]["length"] if records else from_step
        return Phases(run=engine.name, names=engine.curriculum.names, phases=records, next_step=end)

    @router.get(
        "/walk",
        dependencies=[needs("read")],
        summary="The whole journal, as JSON lines",
        response_class=StreamingResponse,
        responses={200: {"content": {"application/x-ndjson": {"schema": {"type": "string"}}}}},
    )
    async def walk(engine: Run) -> StreamingResponse:
        return StreamingResponse(engine.journal_lines(), media_type="application/x-ndjson")

    @router.get("/config", dependencies=[needs("read")], summary="The run's curriculum, and what the server allows")
    async def config(request: Request, engine: Run) -> dict[str, Any]:
        return {
            "run": engine.name,
            "names": list(engine.curriculum.names),
            "fingerprint": engine.curriculum.fingerprint,
            "parent": engine.parent,
            "curriculum": engine.curriculum.model_dump(mode="json"),
            "limits": request.app.state.settings.model_dump(mode="json", include=SHOWN_SETTINGS),
        }


def _add_pivots(router: APIRouter, engine_of: EngineOf) -> None:
    Run = Annotated[Engine, Depends(engine_of)]  # noqa: N806  # a type

    @router.post("/pivots", dependencies=[needs("admin")], summary="Redraw the region", status_code=201)
    def pivot(request: Request, engine: Run, body: PivotRequest) -> PivotTaken:
        asked = Pivot(**body.model_dump(exclude={"at"}))
        if asked.policy is not None and not request.app.state.settings.allow_new_sources:
            check_code_known([asked.policy], engine.curriculum)
        detail = body.model_dump(mode="json")
        store: Store = request.app.state.store
        who, origin = identity_of(request).name, origin_of(request.scope)
        note = store.note(run=engine.name, who=who, origin=origin, action="pivot", detail=detail | {"at_step": None})
        try:
            step = engine.pivot(asked, body.at)
        except MixerError:
            store.take_back(note)
            raise
        try:
            store.complete(note, detail | {"at_step": step})
        except StoreError as error:  # the pivot is in the journal all the same
            log.warning("run %s: the audit does not say at which step %s is: %s", engine.name, body.name, error)
        return PivotTaken(name=body.name, at_step=step)

    @router.get("/pivots", dependencies=[needs("admin")], summary="Pivots: who asked for them, when, from where")
    def pivots(request: Request, engine: Run) -> list[dict[str, Any]]:
        audit: list[dict[str, Any]] = request.app.state.store.audit(engine.name)
        return audit
