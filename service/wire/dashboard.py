"""The schemas of the dashboard's routes (``web.routes.watching``): answers, for the OpenAPI document, and requests."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from mixer.config.rules import Weight

Column = list[float | None]
Point = Annotated[list[float], Field(min_length=2, max_length=2)]
Written = Annotated[
    float | None,
    Field(description="when that was written, in seconds since 1970; null if the journal has no times"),
]
SourceName = Annotated[str, Field(max_length=100)]


class _Answer(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Series(_Answer):
    """A walk as columns: ``weights`` to ``width`` have one row per source shown, then one for all others."""

    names: list[str] = Field(description="sources shown by name, in declared order")
    num_others: int = Field(description="sources added up in the last row of each column; 0: there is no such row")
    per_point: int = Field(description="phases that a point stands for, a power of two")
    num_phases: int
    end: int = Field(description="the first step that no phase covers")
    steps: list[int] = Field(description="the first step of each point")
    until: int = Field(description="the step after the last point")
    num_random: list[int] = Field(description="random phases in each point")
    weights: list[Column]
    proportions: list[Column]
    losses: list[Column] = Field(description="nats per token; null where nothing was reported")
    loss: Column = Field(description="of all sources together, nats per token")
    index: list[Column]
    width: list[Column]


class SourceNow(_Answer):
    """The current state of one source."""

    name: str
    weight: float
    mean_weight: float = Field(description="averaged over steps: what the proportion should be")
    proportion: float = Field(description="share of all rows drawn")
    rows: float
    tokens: float = Field(description="tokens that a loss was reported for")
    lower: float
    upper: float
    loss: float | None
    index: float | None
    width: float | None
    unique_tokens: int | None


class PhaseNow(_Answer):
    """The newest phase."""

    index: int
    start: int
    length: int
    kind: str
    regime: str
    at: Written


class RegimeNow(_Answer):
    """A planned span of the run and its bounds as written."""

    name: str
    start: int
    at: float | None = Field(description="when its first phase was decided, in seconds since 1970")
    floors: dict[str, float]
    caps: dict[str, float]
    exclude: list[str]


class RankNow(_Answer):
    """One rank: its newest report, and how many steps it is behind the furthest."""

    rank: int
    step: int
    reports: int
    lag: int


class AlarmNow(_Answer):
    """One alarm of the journal."""

    step: int
    source: str
    kind: str = Field(description="what found it")
    message: str
    at: Written
    is_lasting: bool = Field(description="the newest decision that looked at the source holds it in alarm")


class Overview(_Answer):
    """The current state of a run."""

    end: int
    total_steps: int
    batch_tokens: int
    batch_rows: int
    seed: int
    policy: str
    fingerprint: str
    num_lines: int
    num_entries: int = Field(description="lines that /journal lists: all but reports")
    steps_per_s: float | None = Field(description="reported over the last minute; null: not known yet")
    quiet_s: float | None = Field(description="seconds since a new step was reported; null: a record")
    stall_s: float | None = Field(description="so many of them are a stall, judged by how long steps took")
    began_at: float | None = Field(description="when the run was made, in seconds since 1970")
    num_sources: int
    phase: PhaseNow | None
    regimes: list[RegimeNow]
    sources: list[SourceNow]
    ranks: list[RankNow]
    alarms: list[AlarmNow] = Field(description="newest first")
    num_alarms: int


class RegimeOnPaper(_Answer):
    """The outline of one regime's region."""

    name: str
    start: int
    outline: list[Point]


class WalkOnPaper(_Answer):
    """The walk in its region, in the unit circle."""

    names: list[str]
    corners: list[Point]
    is_exact: bool = Field(description="up to three sources; with more, several mixtures share a point")
    regimes: list[RegimeOnPaper]
    steps: list[int]
    kinds: list[str]
    points: list[Point]


class EntryNow(_Answer):
    """One line of the journal, in words."""

    line: int
    type: str
    step: int
    at: Written
    text: str


class Entries(_Answer):
    """Lines of the journal, newest first; ``num_found`` counts those that were not listed too."""

    num_found: int
    entries: list[EntryNow]


class PreviewRequest(_Answer):
    """Bounds to try. Each table given replaces the one in force, each left out stays."""

    floors: dict[SourceName, Weight] | None = Field(None, max_length=10_000)
    caps: dict[SourceName, Weight] | None = Field(None, max_length=10_000)
    exclude: list[SourceName] | None = Field(None, max_length=10_000)
    at_step: int | None = Field(None, ge=1, lt=2**53)


class Preview(_Answer):
    """What the pivot would do; ``problem`` to ``sources`` if it is not feasible, the rest if it is."""

    is_feasible: bool
    at_step: int
    problem: str | None = None
    code: str | None = None
    excess: float | None = None
    sources: list[str] = []
    names: list[str] = []
    lower: list[float] = []
    upper: list[float] = []
    before: list[float] = []
    landed: list[float] = []
    distance: float | None = None
    dimension: int | None = None
    log_volume: float | None = None
    dimension_in_force: int | None = None
    log_volume_in_force: float | None = None
    outline: list[Point] = []
    before_point: list[float] = []
    landed_point: list[float] = []
