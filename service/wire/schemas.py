"""The JSON schemas of the API, shared by the routes and the client; ``dashboard`` has those of the page."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat

from mixer.errors import FeedbackError
from mixer.losses import SourceLosses

Step = Annotated[int, Field(ge=0, lt=2**31)]
Count = Annotated[int, Field(ge=0, lt=2**53)]
Sum = Annotated[FiniteFloat, Field(ge=0)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)]
Weight = Annotated[FiniteFloat, Field(ge=0, le=1)]
RunStatus = Literal["active", "paused", "archived"]


class _Wire(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class SourceReport(_Wire):
    """The losses of one rank's rows of one source in one step."""

    rows: Count
    tokens: Count
    loss_sum: Sum = Field(description="sum of the losses of those tokens, nats")
    square_sum: Sum = Field(0.0, description="sum over rows of the squared mean loss of a row")


class Feedback(_Wire):
    """Losses of one rank's rows of one step, by source; sources without rows are left out."""

    step: Step
    rank: Annotated[int, Field(ge=0, lt=2**20)] = 0
    world_size: Annotated[int, Field(ge=1, lt=2**20)] | None = Field(
        None, description="of how many ranks, as the batch was asked for; what other ranks of that step say must agree"
    )
    sources: Annotated[dict[str, SourceReport], Field(max_length=100_000)]

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        json_schema_extra={
            "examples": [
                {
                    "step": 12,
                    "rank": 0,
                    "sources": {"docstrings": {"rows": 3, "tokens": 384, "loss_sum": 1613.2, "square_sum": 53.1}},
                }
            ]
        },
    )

    @classmethod
    def of(cls, step: int, losses: SourceLosses, names: tuple[str, ...], world_size: int | None = None) -> Feedback:
        """Return the report of one rank in one step."""
        sources = {
            names[i]: SourceReport(
                rows=int(losses.rows[i]),
                tokens=int(losses.tokens[i]),
                loss_sum=float(losses.loss_sums[i]),
                square_sum=float(losses.square_sums[i]),
            )
            for i in np.flatnonzero(losses.rows).tolist()
        }
        return cls(step=step, rank=losses.rank, world_size=world_size, sources=sources)

    def losses(self, names: tuple[str, ...]) -> SourceLosses:
        """Return the losses as a walk takes them; raise FeedbackError for a source that the run does not have."""
        index = {name: i for i, name in enumerate(names)}
        columns = np.zeros((4, len(names)))
        for name, source in self.sources.items():
            if name not in index:
                raise FeedbackError(f"losses of unknown source {name!r}; the sources are {', '.join(names)}")
            columns[:, index[name]] = (source.rows, source.tokens, source.loss_sum, source.square_sum)
        rows, tokens, loss_sums, square_sums = columns
        return SourceLosses(
            rows=rows.astype(np.int64),
            tokens=tokens.astype(np.int64),
            loss_sums=loss_sums,
            square_sums=square_sums,
            rank=self.rank,
        )


class FeedbackTaken(_Wire):
    """The answer to a report: it is durable; ``is_new`` is false if one of that rank had come before, which counts."""

    is_new: bool
    differs: bool | None = Field(
        None, description="whether the report that had come before says otherwise; null if that is not known any more"
    )


Points = Annotated[FiniteFloat, Field(ge=0, le=100)]


class Sample(_Wire):
    """A text that the model wrote after so many steps, and how coherent the trainer found it."""

    step: Step
    prompt: str = Field("", max_length=4096)
    text: str = Field(max_length=32_768, description="what follows the prompt")
    score: Points | None = Field(None, description="0 to 100; null if the trainer could not tell yet")
    bigrams: Points | None = Field(None, description="points of the score, at most 35; so are the next three")
    trigrams: Points | None = None
    words: Points | None = None
    characters: Points | None = None
    compression: Annotated[FiniteFloat, Field(ge=0)] = Field(0.0, description="how many times smaller zlib makes it")
    low_in_row: Count = Field(0, description="samples in a row that the trainer's gate counts as incoherent")


class Samples(_Wire):
    """The newest samples of a run, the newest first."""

    run: str
    samples: list[Sample]


class SampleTaken(_Wire):
    """The answer to a sample: it is durable."""

    step: int


class Weights(_Wire):
    """The mixture of the phase that covers a step, and its bounds."""

    run: str
    step: int
    phase: int
    start: int
    length: int
    kind: Literal["random", "bandit", "fixed"]
    regime: str
    weights: dict[str, float]
    lower: dict[str, float] = Field(description="the smallest weight that the region lets each source reach")
    upper: dict[str, float] = Field(description="the largest")


class TokenizerFile(_Wire):
    """The tokenizer of the run."""

    run: str
    separator: str = Field(description="the token between documents")
    vocab_size: int
    fingerprint: str
    file: str = Field(description="a `tokenizers` file, or what else `TextTokenizer.to_json` gives")


class Phases(_Wire):
    """Phases as the journal has them (docs/journal.md); arrays have one number per name, in this order."""

    run: str
    names: tuple[str, ...]
    phases: list[dict[str, Any]]
    next_step: int = Field(description="the first step after the last of these; ask from there on for more")


class PivotRequest(_Wire):
    """A redrawing of the region: each table given replaces the one in force, each left out stays.

    So does who decides: `weights`, along a ramp if `ramp_steps` is given, or a `policy`.
    """

    name: Name
    floors: dict[str, Weight] | None = None
    caps: dict[str, Weight] | None = None
    exclude: tuple[str, ...] | None = None
    weights: dict[str, Weight] | None = Field(None, description="weights that hold from then on; sum 1")
    ramp_steps: int | None = Field(
        None, ge=1, lt=2**31, description="steps of the way to `weights`, along a straight line"
    )
    policy: str | dict[str, Any] | None = Field(
        None, description="name, or settings with a name, of the policy that decides from then on"
    )
    at: Literal["next", "now"] | Step = Field(
        "next",
        description="next: the end of the newest phase; now: the first step that no rank was given, which cuts that "
        "phase; or a step not decided yet",
    )

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        json_schema_extra={"examples": [{"name": "polish", "floors": {"docstrings": 0.3}, "at": "next"}]},
    )


class PivotTaken(_Wire):
    """The answer to a pivot: its first step."""

    name: str
    at_step: int


class RunRequest(_Wire):
    """A new run: a curriculum as in the YAML file. Its sources must be those of the server's own config file."""

    name: Name
    curriculum: dict[str, Any]


class ForkRequest(_Wire):
    """A run that shares this run's history up to a step and goes on otherwise; sources and rows stay as they are."""

    name: Name
    at_step: Step | None = Field(
        None, description="its first own step, where a phase of this run begins; default: the first not decided yet"
    )
    curriculum: dict[str, Any] = Field(
        default_factory=dict, description="fields that differ from this run's, as in the YAML file; null takes one out"
    )

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        json_schema_extra={"examples": [{"name": "odm", "curriculum": {"policy": {"name": "odm"}}}]},
    )


class Run(_Wire):
    """One run of the server."""

    name: str
    status: RunStatus
    is_default: bool
    fingerprint: str
    created_at: float
    total_steps: int
    next_step: int | None = Field(description="the next step to be built; null while archived")
    frontier: int | None = Field(description="the first step that no phase covers yet")


class Rank(_Wire):
    """A rank that has asked for batches or reported."""

    rank: int
    asked_step: int | None
    asked_ago_s: float | None
    reported_step: int | None
    is_absent: bool = Field(description="silent for so long that decisions do not wait for it")


class SourceProgress(_Wire):
    """How far a source was read; documents and epoch of streams are as of the newest batch built."""

    rows: int
    tokens: int
    documents: int
    epoch: int
    unique_tokens: int | None
    bad_records: int = Field(0, description="skipped, as on_bad_record says")


class Status(_Wire):
    """How a run is doing just now."""

    run: str
    is_ready: bool
    is_paused: bool
    problem: str | None
    end: int
    next_step: int
    frontier: int
    queue_depth: int
    bytes_held: int
    batches_built: int
    batches_served: int
    tokens_served: int
    reports: int
    ranks: list[Rank]


class Problem(_Wire):
    """What was wrong, and what to do."""

    code: str
    message: str
    hint: str


class ErrorBody(_Wire):
    """The one shape of every error."""

    error: Problem
