"""What each line of a journal holds, as models: the JSON Schema is made from them, and readers check against them.

``python -m mixer.journal.schema`` prints the schema, kept in ``docs/journal.schema.json``; descriptions are those of
``docs/journal.md``. Whoever writes a line builds a dict: checking what we wrote ourselves would cost more than
writing it.
"""

from __future__ import annotations

import sys
from typing import Annotated, Any, Literal

import orjson
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from mixer.errors import JournalError
from mixer.journal.scan import Line

Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
Count = Annotated[int, Field(ge=0)]
Counts = list[Count]
Numbers = list[float]
Texts = dict[str, str]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class _Numbered(_Model):
    at: float | None = Field(
        None,
        ge=0,
        description="when it was written, in seconds since 1970 (UTC); of lines that a service wrote, but reports",
    )
    number: int = Field(ge=1, description="its number, counted from 1")


class Parent(_Model):
    """What a fork shares with the run that it left."""

    fingerprint: Digest = Field(description="the parent's")
    curriculum: dict[str, Any] = Field(description="the parent's whole config")
    digest: Digest = Field(description="`chain` of the parent's last line that is shared")
    line: int = Field(ge=1, description="number of that line in the parent's journal")
    step: int = Field(ge=1, description="the first step that the fork decided on its own")
    shared: Count = Field(description="lines copied from the parent; the `fork` line follows them")
    parent: Parent | None = Field(description="the parent's own parent, in this form; `null` if it is no fork")


class Header(_Numbered):
    """The first line; one per journal."""

    type: Literal["header"]
    version: int = Field(ge=1, description="version of this format, 2")
    fingerprint: Digest = Field(
        description="digest of all settings that shape the run; a walk refuses a journal with another one"
    )
    curriculum: dict[str, Any] = Field(
        description="the whole config file, defaults filled in: the seed, the law of phases, targets and the rest"
    )
    sources: Texts = Field(
        description="which data was read when the journal was begun: by source, `files` and a digest of their names "
        "and sizes, `commit` and that of the hub, or `rows` and a digest of the prepared rows; sources of which "
        "nothing is known, such as data sets passed in, are left out"
    )
    parent: Parent | None = Field(description="for a fork, where it comes from, in the table below; else `null`")
    libraries: dict[str, str | None] = Field(
        description="versions of the packages that decide and read, `null` if not installed"
    )
    python: str = Field(description="version of Python")
    machine: str = Field(description="kind of processor")


class Parts(_Model):
    """What an index was made of; which of them there are depends on the policy."""

    slope: Numbers | None = Field(None, description="learnability: fitted fall of the loss, nats per e-fold of the source's tokens")  # fmt: skip  # noqa: E501
    mean: Numbers | None = Field(
        None, description="other rewards: mean reward; water_filling: the slope drawn towards that of all sources"
    )
    width: Numbers | None = Field(None, description="the optimism added to it")
    repetition: Numbers | None = Field(None, description="learnability: what repetition leaves of a token's worth, 1 for a source not yet read through")  # fmt: skip  # noqa: E501
    gain: Numbers | None = Field(None, description="water_filling: what reading a source promises: its slope against the mean slope, faded, times target and repetition")  # fmt: skip  # noqa: E501
    tokens: Numbers | None = Field(None, description="tokens of the source learned from so far")
    index: list[float | None] | None = Field(None, description="the score that the vertex is best for")
    alarm: Numbers | None = Field(None, description="1 for a source that the guard holds in alarm, whose index counts as 0; left out if there is none")  # fmt: skip  # noqa: E501


class RegionPart(_Model):
    """A region, one number per source each."""

    regime: str = Field(description="its name: `warmup`, `firehose`, or the pivot that drew it")
    floors: Numbers = Field(description="as declared, floors of sources outside a warmup asleep")
    caps: Numbers = Field(description="as declared, 0 for excluded sources")
    lower: Numbers = Field(description="the smallest weight that is really reached")
    upper: Numbers = Field(description="the largest weight that is really reached")


class RulePart(_Model):
    """Who decided a phase that the run's own policy did not decide."""

    policy: dict[str, Any] | None = Field(
        None, description="settings of the policy that a pivot named; left out where weights are written by hand"
    )
    weights: Numbers | None = Field(
        None, description="the weights written by hand, one number per source; left out where a policy decided"
    )
    ramp_end: int | None = Field(
        None, description="the step at which the ramp to them arrives; left out after it, and without one"
    )


class EpochsPart(_Model):
    """The caps by epochs of one phase, one number per source each, and what they were raised by."""

    caps: list[float | None] = Field(
        description="the largest weight that the tokens left of the source allow; `null` without a limit"
    )
    lower: Numbers = Field(description="the smallest weight that is really reached under them")
    upper: Numbers = Field(description="the largest weight that is really reached under them")
    cap_factor: float = Field(
        ge=1, description="what the caps were multiplied by, so that weights within them can sum to 1; 1 if they could"
    )
    epoch_factor: float = Field(
        ge=1,
        description="what the limits were multiplied by, as too few tokens were left; 1 if enough were",
    )


class _Losses(_Model):
    sources: Counts = Field(
        description="positions of the sources with rows, from 0; the next four have one number for each"
    )
    rows: Counts = Field(description="rows seen")
    tokens: Counts = Field(description="tokens that carried a loss")
    loss_sums: Numbers = Field(description="sum of their losses, nats")
    square_sums: Numbers = Field(
        description="sum over rows of the squared mean loss of a row; 0 if the trainer does not say"
    )


class Learned(_Losses):
    """The feedback that a decision used, summed over steps and ranks."""

    reports: int = Field(ge=1, description="number of `feedback` lines")
    first_step: Count = Field(description="the oldest step among them")
    last_step: Count = Field(description="the newest step among them")
    delay: int = Field(description="how many steps before `start` that newest step was")


class PhaseLine(_Numbered):
    """One decision."""

    type: Literal["phase"]
    index: Count = Field(description="0, 1, 2, ...")
    start: Count = Field(description="its first step")
    length: int = Field(
        ge=1,
        description="its steps; uniform over the lengths from `min_steps` to `max_steps` that leave a rest up to "
        "`boundary` which whole phases fill",
    )
    boundary: int | None = Field(
        description="the step at which the next regime begins and some phase must end; `null` if there is none ahead"
    )
    kind: Literal["random", "bandit", "fixed"] = Field(
        description="`random` (a uniformly random point of the region), `bandit` (a step towards the best vertex) or "
        "`fixed`"
    )
    probability_random: float = Field(
        description="probability with which this phase was to be random, whatever it became; 1 for the first ones; "
        "always 0 or 1 for policies whose phases never, or all, are"
    )
    regime: str = Field(description="the planned span of the run that it lies in")
    weights: Numbers = Field(description="the mixture in force, summing to 1")
    before: Numbers = Field(
        description="the mixture of the phase before, or, with `after_random: return`, of the one before the "
        "random phases; uniform before the first"
    )
    landed: Numbers | None = Field(
        description="in the first phase of a regime or after a fork, the point of the new region nearest to `before`; "
        "else `null`: the step begins at `before`; also where caps by epochs moved it"
    )
    distance: float | None = Field(
        description="in the first phase of a regime or after a fork, the Euclidean distance from `before` to `landed`; "
        "else `null`"
    )
    vertex: Numbers | None = Field(description="the corner of the region stepped to; `null` unless a bandit decided")
    parts: Parts = Field(
        description="what the index of each source was made of, in the table below; empty unless a bandit decided"
    )
    region: RegionPart | None = Field(
        description="in the first phase of a regime or after a fork, its region, in the table below; else `null`: the "
        "one before holds"
    )
    epochs: EpochsPart | None = Field(
        None,
        description="the caps by epochs that it was decided under, in the table below; left out without `max_epochs`, "
        "and while no source with a limit has a known number of tokens",
    )
    eta: float | None = Field(
        None, description="how far the step went towards its aim; of a bandit's step with `eta_decay`, else left out"
    )
    rule: RulePart | None = Field(
        None,
        description="who decided, in the table below; left out where the run's own policy did",
    )
    log_volume: float = Field(
        description="natural logarithm of the region's volume in its free coordinates: a random phase has density "
        "`exp(-log_volume)`"
    )
    drawn: Counts = Field(description="rows drawn of each source in the phases before")
    owed: Numbers = Field(description="rows of each source earned by weights and not drawn yet at the phase's start")
    counts: Counts = Field(description="rows of each source that its batches draw")
    feedback: Learned | None = Field(
        description="what was learned from between the decision before and this one, in the table below; `null` if "
        "nothing had come"
    )
    probes: Learned | None = Field(
        None,
        description="the held-out losses learned from, in the same form, of `probe` lines; left out if there are none. "
        "Positions from the number of sources on are those of the targets",
    )


class ProbeLine(_Losses, _Numbered):
    """What one rank measured on the held-out rows of a probe."""

    type: Literal["probe"]
    step: Count = Field(description="the first step of a phase; the model had been trained on those before it")
    rank: Count = Field(description="who reports")


class FeedbackLine(_Losses, _Numbered):
    """What one rank saw in one step."""

    type: Literal["feedback"]
    step: Count = Field(description="the step")
    rank: Count = Field(description="who reports")


class PivotLine(_Numbered):
    """A pivot asked for while the run went on."""

    type: Literal["pivot"]
    name: str = Field(description="the regime that begins")
    at_step: int = Field(ge=1, description="its first step; below `decided_before` it cuts the newest phase")
    decided_before: Count = Field(description="the first step that no phase covered when it was asked for")
    floors: dict[str, float] | None = Field(
        description="new table of smallest weights by name, or `null`: the one in force stays"
    )
    caps: dict[str, float] | None = Field(description="new table of largest weights by name, or `null`")
    exclude: list[str] | None = Field(description="new list of sources pinned at 0, or `null`")
    weights: dict[str, float] | None = Field(
        None, description="weights by name that hold from then on, written by hand; left out if none were given"
    )
    ramp_steps: int | None = Field(None, description="length of the ramp to them, steps; left out without a ramp")
    policy: dict[str, Any] | None = Field(
        None, description="settings of the policy that decides from then on; left out if none was named"
    )


class AlarmLine(_Numbered):
    """A source that may be learned by heart."""

    type: Literal["alarm"]
    step: Count = Field(description="of the report that fell off a cliff; otherwise the newest step learned from")
    decided_before: Count = Field(description="the first step of the phase that was decided next")
    source: str = Field(description="its name")
    detector: Literal["cliff", "drift", "gap"] = Field(
        description="`cliff`: a report far below what was expected, and not the first; `drift`: many below it; `gap`: "
        "the training loss falls and the held-out loss does not"
    )
    loss: float = Field(description="mean loss of that report, or of the newest observation, nats per token")
    expected: float = Field(
        description="what the line through the source's earlier losses promised; of a gap, its held-out loss less the "
        "usual gap"
    )
    z: float = Field(description="how many spreads of its residuals the loss lies above that; below 0: under it")
    epochs: float | None = Field(description="how often its tokens were seen; `null` if their number is not known")
    held_out: float | None = Field(None, description="of a gap, mean loss of its held-out rows; else left out")
    pivot: str | None = Field(
        description="the regime that begins without the source, whose `pivot` line follows; `null` if none does"
    )
    why_not: str | None = Field(description="why it could not be suspended; `null` if it was, or was not to be")


class UniqueTokensLine(_Numbered):
    """A source was read through."""

    type: Literal["unique_tokens"]
    source: str = Field(description="its name")
    tokens: int = Field(ge=1, description="distinct tokens of it")
    decided_before: Count = Field(description="the first step that no phase covered when this became known")


class SkippedLine(_Numbered):
    """A source left a record out, as `on_bad_record: skip` asks for."""

    type: Literal["skipped"]
    source: str = Field(description="its name")
    record: str = Field(description="the file and line, or row, of the record, and why it cannot be read")
    decided_before: Count = Field(description="the first step that no phase covered when this became known")


class ResumeLine(_Numbered):
    """The run was restored from a snapshot that is older than the journal."""

    type: Literal["resume"]
    line: int = Field(ge=1, description="number of the line gone on from, counted from 1")
    digest: Digest = Field(description="its `chain`")


class ForkLine(_Numbered):
    """From here on another curriculum decides."""

    type: Literal["fork"]
    step: int = Field(ge=1, description="the first step that the new curriculum decides")
    fingerprint: Digest = Field(description="of the new curriculum")
    state: dict[str, Any] = Field(
        description="where the walk stands: the newest phase, feedback still waiting, and what the new policy learned "
        "from the shared reports"
    )


MODELS: dict[str, type[_Numbered]] = {
    "header": Header,
    "phase": PhaseLine,
    "feedback": FeedbackLine,
    "probe": ProbeLine,
    "pivot": PivotLine,
    "alarm": AlarmLine,
    "unique_tokens": UniqueTokensLine,
    "skipped": SkippedLine,
    "resume": ResumeLine,
    "fork": ForkLine,
}


_ARRAYS = ("rows", "tokens", "loss_sums", "square_sums")


def check_record(line: Line, record: dict[str, Any], *, num_sources: int | None = None) -> dict[str, Any]:
    """Return ``record`` if it is what a line of its type must be.

    Args:
        line: where it stands, for the message.
        record: its fields.
        num_sources: if given, how many numbers each array of a phase has.

    Raises:
        JournalError: naming the line, the field and the value.
    """
    kind = record.get("type")
    model = MODELS.get(kind) if isinstance(kind, str) else None
    if model is None:
        raise JournalError(
            f"{line.path}: line {line.number} has type {kind!r}; known are {', '.join(MODELS)}: "
            "read the journal with the release that wrote it"
        )
    try:
        model.model_validate(record)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise JournalError(
            f"{line.path}: line {line.number}, {place}: {first['msg']}, got {first['input']!r:.80}; "
            "the line was not written by this release"
        ) from error
    if kind in ("feedback", "probe"):
        sources = record["sources"]
        is_whole = all(len(record[name]) == len(sources) for name in _ARRAYS)
        if not is_whole or sorted(set(sources)) != sources:
            lengths = {name: len(record[name]) for name in ("sources", *_ARRAYS)}
            raise JournalError(
                f"{line.path}: line {line.number}: the arrays have lengths {lengths} for sources {record['sources']}; "
                "they have one number for each source, in order: the line was not written by this release"
            )
    if kind == "phase" and num_sources is not None:
        for name in ("weights", "before", "drawn", "owed", "counts"):
            if len(record[name]) != num_sources:
                raise JournalError(
                    f"{line.path}: line {line.number}, {name}: {len(record[name])} numbers for {num_sources} sources; "
                    "the line was not written for this curriculum"
                )
    return record


def journal_schema() -> dict[str, Any]:
    """Return the JSON Schema of a line: one of ten forms, told apart by ``type``, each closed by its digest."""
    union = TypeAdapter(
        Annotated[
            Header
            | PhaseLine
            | FeedbackLine
            | ProbeLine
            | PivotLine
            | AlarmLine
            | UniqueTokensLine
            | SkippedLine
            | ResumeLine
            | ForkLine,
            Field(discriminator="type"),
        ]
    )
    schema = union.json_schema()
    chain = {
        "type": "string",
        "pattern": "^[0-9a-f]{32}$",
        "description": "BLAKE2b (16 bytes) of the line before's `chain` (32 zeros before the first line) followed by "
        "this line without its `chain`",
    }
    for model in MODELS.values():
        form = schema["$defs"][model.__name__]
        form["properties"]["chain"] = chain
        form["required"].append("chain")
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A line of a journal of curriculum-mixer, version 2",
        **schema,
    }


if __name__ == "__main__":
    sys.stdout.write(orjson.dumps(journal_schema(), option=orjson.OPT_INDENT_2).decode() + "\n")
