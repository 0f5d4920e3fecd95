"""The whole run in one YAML file: sources, bounds, regimes, phases, policy.

Everything is frozen, unknown keys are refused with the nearest known one, and every regime's region is checked for
feasibility before anything starts. Python users may build a ``Curriculum`` directly; the same checks run.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, PrivateAttr, ValidationError, model_validator
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from mixer.config.conditions import Condition
from mixer.config.epochs import epoch_problems
from mixer.config.policy import (
    MAX_COUNT,
    MAX_STEPS,
    MAX_WAIT_S,
    Epochs,
    Frozen,
    GuardConfig,
    PolicyConfig,
    UnimaxConfig,
    WaterFillingConfig,
)
from mixer.config.policy_problems import place_of_goal, places_of_rule, plans_ahead, policy_problems, unknown_names
from mixer.config.probes import OF_GAP, ProbesConfig, drawn_target_problems, probe_problems
from mixer.config.problems import describe, is_unknown_keys_alone, shown, without_unknown_keys
from mixer.config.rules import (
    Rule,
    RuleFields,
    Weight,
    WrittenWeights,
    excluded_weights,
    long_ramps,
    plan_rules,
    policies_of,
    resolved,
    unused_weights,
)
from mixer.errors import ConfigError, InfeasibleRegionError, TopologyError
from mixer.region.regimes import FIREHOSE, WARMUP, Bounds, Regime, plan_regimes
from mixer.sampling.phases import PhaseLaw

CONFIG_VERSION = 1
MAX_ROWS = 2**20  # of a batch: each may be a rank's, and the service knows ranks below that
MAX_SEQUENCE = 2**24  # tokens; a row is packed, kept and sent whole
MAX_BATCH_TOKENS = 2**30  # of the rows of a batch, which is built in memory: 4 GiB at four bytes a token
MAX_VOCAB = 2**31  # token ids are kept in 32 bits, and frameworks read those as signed
MAX_LAG = 2**16  # steps; each report looks at the phases that are planned within it
AUTO_EPOCHS = 4.0  # tokens read that often are worth nearly what new ones are: Muennighoff et al., arXiv 2305.16264
MAX_PHASE_STEPS = 2**20  # a decision near a boundary looks at every length that its phase may have

ANDREA_PHASES = {  # as published, but for the random phases at the start, which depend on the sources
    "min_steps": 7,
    "max_steps": 42,
    "random_probability": 0.1,
    "random_decay": None,
    "after_random": "stay",
}
NEWER = (  # fields with defaults that runs of earlier releases behave by
    ("phases", "random_decay", None),
    ("phases", "after_random", "stay"),
    ("policy", "eta_decay", "none"),
    ("policy", "eta_decay_over", "run"),
    ("tokenizer", "kind", "bpe"),
    *(("guard", key, GuardConfig.model_fields[key].default) for key in OF_GAP),
)

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)]
TRAINER_SECTIONS = ("andrea",)  # of the same file, which trainers read: they shape no decision and no batch
RENDERINGS = ("text", "messages", "template", "token_ids", "rows")  # a source has one at most


_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")  # a Path has one slash of two left; C:/ is a drive


def check_folder(folder: str) -> str:
    """Return a folder's path; raise ValueError for a URL, which would become a folder of that name."""
    if _URL.match(folder):
        raise ValueError(
            f"{folder!r} is a URL, but rows are prepared into a folder of this machine; "
            "name one, and copy it to where it is wanted"
        )
    return folder


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Return the fields of a file, unchecked; raise ConfigError, naming the line, if it is not a mapping of names."""
    path = Path(path)
    try:
        data = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such file; `mixer check` takes the path of a YAML curriculum") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    except MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ConfigError(f"{path}{line}: not valid YAML: {error.problem}") from error
    except YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from error
    except ValueError as error:  # a number of thousands of digits
        raise ConfigError(f"{path}: a value cannot be read: {error}") from error
    if not isinstance(data, Mapping):
        raise ConfigError(f"{path}: a curriculum is a mapping of fields, not {type(data).__name__}")
    not_names = [key for key in data if not isinstance(key, str)]
    if not_names:
        raise ConfigError(f"{path}: {not_names[0]!r} is not the name of a field")
    return dict(data)


class SourceConfig(Frozen):
    """One named stream of text: where it is, which rows and columns count, what happens when it runs dry."""

    name: Name
    role: Literal["source", "target"] = Field(
        "source", description="target: never drawn, its held-out loss is only measured, by probes"
    )
    path: str | None = Field(None, description="data set id on the Hugging Face hub, or a `datasets` builder name")
    config_name: str | None = Field(None, description="configuration of the data set (the hub calls it a subset)")
    split: str = "train"
    revision: str | None = None
    data_files: str | tuple[str, ...] | None = Field(None, description="files or globs, relative to the config file")
    local: str | None = Field(None, description="a collection of text gathered from this machine")
    text: str | None = Field(None, description="column with plain text (default: text)")
    messages: str | None = Field(None, description="column with a list of chat messages")
    template: str | None = Field(None, description="text built from columns, as in '> define {word}'")
    token_ids: str | None = Field(None, description="column with documents that are lists of token ids already")
    rows: str | None = Field(
        None, description="column with lists of exactly sequence_length + 1 token ids, as they are"
    )
    where: dict[str, Condition] = Field(
        {}, description="keep rows whose columns equal these values, or compare with them: {ge: 3}, {not_null: true}"
    )
    on_exhausted: Literal["repeat", "stop", "error"] = "repeat"
    on_failure: Literal["stop", "suspend"] = Field("stop", description="when it stays unavailable after all retries")
    on_bad_record: Literal["stop", "skip"] = Field("stop", description="when a record cannot be read")
    max_bad_records: int = Field(
        100, ge=0, le=MAX_COUNT, description="records that may be skipped in an epoch, of each reader"
    )
    tokens: int | None = Field(None, gt=0, le=MAX_COUNT, description="number of distinct tokens, where known")
    max_epochs: Epochs | Literal["inherit"] | None = Field(
        "inherit", description="as often as it may be read; `null`: no limit; by default that of the run"
    )

    @model_validator(mode="after")
    def _one_origin_and_one_rendering(self) -> Self:
        if self.local is not None and (self.path is not None or self.data_files is not None):
            raise ValueError(f"source {self.name}: give either local or path/data_files, not both")
        given = [key for key in RENDERINGS if getattr(self, key) is not None]
        if len(given) > 1:
            raise ValueError(
                f"source {self.name}: give one of {', '.join(RENDERINGS[:-1])} and {RENDERINGS[-1]}, "
                f"not {' and '.join(given)}"
            )
        return self

    @property
    def token_column(self) -> str | None:
        """The column of token ids of a source that is tokenised already; None if it is text."""
        return self.rows if self.token_ids is None else self.token_ids


class RetriesConfig(Frozen):
    """What to do when a network or server fails while a source is read."""

    attempts: int = Field(8, ge=1, le=1000, description="calls altogether before the source counts as unavailable")
    wait_s: float = Field(
        1.0, gt=0, le=MAX_WAIT_S, description="seconds before the second call; doubles each time, plus jitter"
    )
    max_wait_s: float = Field(
        300.0, gt=0, le=MAX_WAIT_S, description="longest wait; a server that asks for more is given up"
    )
    timeout_s: float = Field(20.0, gt=0, le=MAX_WAIT_S, description="longest silence of a server within one call")


class TokenizerConfig(Frozen):
    """A `tokenizers` JSON file, or the size of a vocabulary to train on the run's own sources."""

    file: str | None = None
    train_vocab_size: int | None = Field(None, ge=260, le=1_000_000)
    kind: Literal["bpe", "harris"] = Field(
        "bpe", description="what is trained: merges of pairs (byte-level BPE), or Harris's segments, as ANDREA's are"
    )
    separator: str = Field("<|endoftext|>", description="token written after each document")

    @model_validator(mode="after")
    def _file_or_training(self) -> Self:
        if (self.file is None) == (self.train_vocab_size is None):
            raise ValueError("tokenizer: give exactly one of file and train_vocab_size")
        if self.file is not None and self.kind != "bpe":
            raise ValueError(
                f"tokenizer: kind {self.kind} says what to train, but {self.file} is trained already; "
                "remove one of the two"
            )
        return self


class PhasesConfig(Frozen):
    """The law of phase kinds and lengths; it never looks at losses."""

    min_steps: int = Field(7, ge=1, le=MAX_PHASE_STEPS)
    max_steps: int = Field(42, ge=1, le=MAX_PHASE_STEPS)
    random_probability: float = Field(0.1, ge=0, le=1)
    initial_random: int | None = Field(
        None, ge=0, le=MAX_STEPS, description="random phases to begin with; default: min(sources, 16)"
    )
    random_decay: float | None = Field(
        None, gt=0, le=MAX_STEPS, description="phases tau: the chance falls as (1 + j / tau)^(-1/3); `null`: it stays"
    )
    after_random: Literal["stay", "return"] = Field(
        "stay", description="where the walk goes on from: the random point, or where it was before (an excursion)"
    )

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min_steps > self.max_steps:
            raise ValueError(f"phases: min_steps {self.min_steps} is above max_steps {self.max_steps}")
        if self.random_decay is not None and self.random_probability == 0:
            raise ValueError("phases: random_decay has no effect, as random_probability is 0; remove one of the two")
        if self.after_random == "return" and self.random_probability == 0 and self.initial_random == 0:
            raise ValueError("phases: after_random: return has no effect, as no phase is random; remove it")
        return self


class _PivotFields(RuleFields):
    name: Name
    floors: dict[str, Weight] | None = None
    caps: dict[str, Weight] | None = None
    exclude: tuple[str, ...] | None = None

    @classmethod
    def to(cls, bounds: Bounds, **fields: Any) -> Self:
        """Return the pivot after which these bounds are in force."""
        return cls(floors=dict(bounds.floors), caps=dict(bounds.caps), exclude=bounds.exclude, **fields)

    def apply(self, bounds: Bounds) -> Bounds:
        """Return the bounds in force after this pivot."""
        return bounds.replaced(floors=self.floors, caps=self.caps, exclude=self.exclude)

    def as_asked(self) -> dict[str, Any]:
        """Return the fields that were given, a policy without settings by its name, as a request has them."""
        policy = self.policy
        is_bare = policy is not None and policy.model_fields_set <= {"name"}
        return self.model_dump(exclude_none=True) | ({"policy": policy.name} if policy is not None and is_bare else {})

    @property
    def hands_over_alone(self) -> bool:
        """Whether it says who decides and leaves the bounds as they are."""
        return self.has_rule and self.floors is None and self.caps is None and self.exclude is None


class Pivot(_PivotFields):
    """A redrawing of the region: each table given replaces the one in force, each left out stays.

    So does who decides: ``weights``, along a ramp if ``ramp_steps`` is given, or a ``policy``.
    """

    def __init__(self, **data: Any) -> None:
        try:
            super().__init__(**data)
        except ValidationError as error:
            name = data.get("name")
            raise ConfigError([f"pivot {name}: {problem}" for problem in describe(error, type(self))]) from error


class ScheduledPivot(_PivotFields):
    """A pivot that the file plans for a step."""

    at_step: int = Field(gt=0, le=MAX_STEPS)

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Self:
        """Return the pivot that a journal's line says."""
        return cls(**{key: record[key] for key in cls.model_fields if key in record})


class Curriculum(WrittenWeights):
    """The whole run. ``Curriculum.from_yaml(path)`` reads and checks a file; all problems are reported at once."""

    version: int = CONFIG_VERSION
    seed: int = Field(0, ge=0, lt=2**63)
    total_steps: int = Field(gt=0, le=MAX_STEPS)
    batch_rows: int = Field(gt=0, le=MAX_ROWS, description="rows of the global batch, over all ranks")
    sequence_length: int = Field(gt=0, le=MAX_SEQUENCE, description="T: tokens the model reads; rows hold T + 1")
    tokenizer: TokenizerConfig | None = None
    vocab_size: int | None = Field(
        None, gt=0, le=MAX_VOCAB, description="the model's vocabulary; the tokenizer must fit in it"
    )
    sources: tuple[SourceConfig, ...] = Field(min_length=1)
    prepared: Annotated[str, AfterValidator(check_folder)] | None = Field(
        None, description="folder that `mixer prepare` made, relative to the config file"
    )
    holdout: float = Field(0.0, ge=0, le=0.5, description="share of each source's documents that is never trained on")
    probes: ProbesConfig | None = Field(None, description="offer held-out rows to measure losses on")
    targets: tuple[SourceConfig, ...] = Field(
        (), description="the sources with `role: target`, which may stand among `sources`"
    )
    floors: dict[str, Weight] = Field({}, description="smallest weight by source")
    caps: dict[str, Weight] = Field({}, description="largest weight by source")
    exclude: tuple[str, ...] = ()
    max_epochs: Epochs | Literal["auto"] | None = Field(
        "auto",
        description="as often as each source with a known number of tokens may be read; `null`: no limit; `auto`: "
        "under policy water_filling 4, more where the run cannot be filled otherwise, and no limit under another",
    )
    curriculum_warmup_steps: int = Field(0, ge=0, le=MAX_STEPS)
    curriculum_warmup_sources: tuple[str, ...] = ()
    pivots: tuple[ScheduledPivot, ...] = ()
    phases: PhasesConfig = PhasesConfig()
    policy: PolicyConfig = WaterFillingConfig()
    guard: GuardConfig | None = Field(GuardConfig(), description="alarms for sources learned by heart; `off`: none")
    feedback_lag: int = Field(
        0, ge=0, le=MAX_LAG, description="a phase from step s is decided on losses of steps < s - lag"
    )
    draws: Literal["systematic", "multinomial"] = "systematic"
    retries: RetriesConfig = RetriesConfig()
    _base_dir: Path = PrivateAttr(default=Path())  # where the file lies: relative paths start here

    def __init__(self, **data: Any) -> None:
        try:
            super().__init__(**data)
        except ValidationError as error:
            problems = describe(error, type(self))
            if is_unknown_keys_alone(error):  # then the rest of the file can be judged too
                try:
                    type(self)(**without_unknown_keys(data, error))
                except ConfigError as more:
                    problems += more.problems
            raise ConfigError(problems) from error

    @classmethod
    def from_yaml(cls, path: str | Path) -> Self:
        """Read and check a file; raise ConfigError with every problem found.

        Sections of trainers, ``andrea:``, are left to them.
        """
        data = read_yaml(path)
        own = {key: value for key, value in data.items() if key not in TRAINER_SECTIONS}
        return cls.from_data(own, base_dir=Path(path).resolve().parent)

    @classmethod
    def from_data(cls, data: Mapping[str, Any], *, base_dir: str | Path) -> Self:
        """Check the fields of a file that lies, or might lie, in ``base_dir``: relative paths start there."""
        curriculum = cls(**data)
        curriculum._base_dir = Path(base_dir)
        return curriculum

    @property
    def base_dir(self) -> Path:
        """Where relative paths start: the folder of the config file."""
        return self._base_dir

    @model_validator(mode="before")
    @classmethod
    def _shorthands(cls, data: Any) -> Any:
        """Write out ``phases: andrea`` and ``policy: ucb``, which means ``policy: {name: ucb}``.

        So do ``tokenizer: FILE``, ``guard: alarm`` and ``guard: off``. The name of the run's own policy in a pivot
        means that policy with its settings.
        """
        if isinstance(data, Mapping):
            data = dict(data)
            version = data.get("version", CONFIG_VERSION)
            if version != CONFIG_VERSION:
                raise ConfigError(
                    f"version {shown(version)}: this curriculum-mixer reads config version {CONFIG_VERSION}; "
                    "install the release that wrote the file, or change the file and its version"
                )
            if data.get("phases") == "andrea":  # as published: whatever the defaults are
                num_sources = len(data["sources"]) if isinstance(data.get("sources"), Sequence) else 16
                data["phases"] = {**ANDREA_PHASES, "initial_random": min(num_sources, 16)}
            if data.get("guard") in ("off", False):  # YAML 1.1 reads `off` as false, 1.2 as a word
                data["guard"] = None
            for key, field in (("policy", "name"), ("tokenizer", "file"), ("guard", "action")):
                if isinstance(data.get(key), str):
                    data[key] = {field: data[key]}
            if isinstance(data.get("pivots"), Sequence) and isinstance(data.get("policy"), Mapping):
                data["pivots"] = [_with_own_policy(pivot, data["policy"]) for pivot in data["pivots"]]
        return data

    @model_validator(mode="after")
    def _targets_apart(self) -> Self:
        """Leave the sources that are drawn in ``sources``, K of them; those with ``role: target`` are ``targets``."""
        drawn = tuple(source for source in self.sources if source.role == "source")
        moved = tuple(source for source in self.sources if source.role == "target")
        wrong = [source.name for source in self.targets if source.role == "source"]
        if wrong:
            raise ConfigError([f"targets: {name} needs `role: target`, or a place among `sources`" for name in wrong])
        if not drawn:
            raise ConfigError(["sources: each has `role: target`, so that nothing can be drawn; give one without"])
        self.__dict__.update(sources=drawn, targets=(*self.targets, *moved))  # frozen from here on
        return self

    @model_validator(mode="after")
    def _policies_resolved(self) -> Self:
        self.__dict__["pivots"] = tuple(resolved(pivot, self.policy) for pivot in self.pivots)
        return self

    @model_validator(mode="after")
    def _whole(self) -> Self:
        problems = [*self._name_problems()]
        is_named = not problems  # a region needs known names
        problems += self._schedule_problems()
        is_planned = not problems
        if is_named:
            try:
                _ = self.regimes
                if is_planned:
                    problems += excluded_weights(self.regimes, self.rules)
                    problems += [what for _, what in long_ramps(self.regimes, self.rules, total_steps=self.total_steps)]
                    problems += unused_weights(self, self.rules)
            except InfeasibleRegionError as error:
                if not problems:
                    raise
                problems.append(str(error))
            except ConfigError as error:
                problems += error.problems
        problems += policy_problems(self, self.policy)
        for pivot in self.pivots:
            if pivot.policy is not None:
                problems += [f"pivot {pivot.name}: {problem}" for problem in policy_problems(self, pivot.policy)]
        problems += probe_problems(self)
        if not problems:
            problems += epoch_problems(self)
        num_tokens = self.batch_rows * (self.sequence_length + 1)
        if num_tokens > MAX_BATCH_TOKENS:
            problems.append(
                f"batch_rows {self.batch_rows} of sequence_length {self.sequence_length} are {num_tokens:,} tokens a "
                f"batch; at most {MAX_BATCH_TOKENS:,} are built in memory"
            )
        if problems:
            raise ConfigError(problems)
        return self

    def _name_problems(self) -> Iterable[str]:
        declared = Counter(self.probed_names)
        for name in sorted(name for name, times in declared.items() if times > 1):
            yield f"source {name} is declared {declared[name]} times; give each source its own name"
        places: list[tuple[str, Iterable[str]]] = [
            ("floors", self.floors),
            ("caps", self.caps),
            ("exclude", self.exclude),
            ("curriculum_warmup_sources", self.curriculum_warmup_sources),
        ]
        for pivot in self.pivots:
            tables = (("floors", pivot.floors), ("caps", pivot.caps), ("exclude", pivot.exclude))
            places += [(f"pivot {pivot.name}: {key}", table) for key, table in tables if table is not None]
            places += places_of_rule(pivot, f"pivot {pivot.name}: ")
        places += places_of_rule(self, "")
        yield from drawn_target_problems(self, places)
        goals = [place_of_goal(pivot, f"pivot {pivot.name}: ") for pivot in self.pivots]
        yield from unknown_names(self, [*places, *goals, place_of_goal(self, "")])
        warmup = self.curriculum_warmup_sources
        for name in sorted(name for name, times in Counter(warmup).items() if times > 1):
            yield f"curriculum_warmup_sources: {name} is listed twice"
        if self.curriculum_warmup_steps and not warmup:
            yield "curriculum_warmup_steps is set, but curriculum_warmup_sources is empty; name the warmup's sources"

    def _schedule_problems(self) -> list[str]:
        problems = []
        starts = [(self.curriculum_warmup_steps, "the warmup's end")] if self.curriculum_warmup_steps else []
        starts += [(pivot.at_step, f"pivot {pivot.name}") for pivot in self.pivots]
        for earlier, later in itertools.pairwise(self.pivots):
            if later.at_step <= earlier.at_step:
                problems.append(
                    f"pivots must be in order: {later.name} at step {later.at_step} is listed after "
                    f"{earlier.name} at step {earlier.at_step}"
                )
        names = [pivot.name for pivot in self.pivots]
        problems += [f"two pivots are named {name}" for name in sorted({n for n in names if names.count(n) > 1})]
        problems += [
            f"a pivot is named {name}, as every run's own regime is; give it another name"
            for name in (WARMUP, FIREHOSE)
            if name in names
        ]
        if not problems:
            problems += self.phase_law.boundary_problems(sorted(starts))
        return problems

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The sources' names in declared order, K of them."""
        return tuple(source.name for source in self.sources)

    @cached_property
    def probed_names(self) -> tuple[str, ...]:
        """The names of what probes measure: the K sources, then the M targets, each in declared order."""
        return (*self.names, *(target.name for target in self.targets))

    @property
    def read_sources(self) -> tuple[SourceConfig, ...]:
        """All that is read: the K sources, then the M targets."""
        return (*self.sources, *self.targets)

    @cached_property
    def epoch_limits(self) -> tuple[float | None, ...]:
        """As often as each source may be read, [K]; None without a limit. ``limits_under`` says where it holds."""
        named = policies_of(self)
        if all(isinstance(policy, UnimaxConfig) for policy in named):
            return (None,) * len(self.sources)
        common = self.max_epochs
        if common == "auto":
            common = AUTO_EPOCHS if any(isinstance(policy, WaterFillingConfig) for policy in named) else None
        own = [source.max_epochs for source in self.sources]
        return tuple(common if limit == "inherit" else limit for limit in own)

    def limits_under(self, policy: PolicyConfig | None) -> tuple[float | None, ...]:
        """Return ``epoch_limits`` as they hold where this policy, or weights written by hand (None), decide, [K].

        UniMax has its own, and these are off; those of ``max_epochs: auto`` are water_filling's.
        """
        if isinstance(policy, UnimaxConfig):
            return (None,) * len(self.sources)
        if self.max_epochs != "auto" or isinstance(policy, WaterFillingConfig):
            return self.epoch_limits
        limits = zip(self.sources, self.epoch_limits, strict=True)
        return tuple(None if source.max_epochs == "inherit" else limit for source, limit in limits)

    @property
    def has_epoch_limits(self) -> bool:
        """Whether some source may be read only so often."""
        return any(limit is not None for limit in self.epoch_limits)

    @property
    def batch_tokens(self) -> int:
        """Tokens of one global batch that carry a loss: batch_rows * sequence_length."""
        return self.batch_rows * self.sequence_length

    def rows_of_rank(self, world_size: int) -> int:
        """Return how many rows of each batch a rank gets; raises TopologyError if ranks cannot share them evenly."""
        if self.batch_rows % world_size:
            raise TopologyError(
                f"batch_rows is {self.batch_rows}, which {world_size} ranks cannot share evenly; use a number of ranks "
                f"that divides it or, in a new run, a batch_rows that is a multiple of {world_size}"
            )
        return self.batch_rows // world_size

    @property
    def bounds(self) -> Bounds:
        """The bounds written at the top level of the file."""
        return Bounds(names=self.names, floors=self.floors, caps=self.caps, exclude=self.exclude)

    @property
    def warmup(self) -> tuple[int, tuple[str, ...]]:
        """(steps, sources) of the warmup sub-simplex; (0, ()) if there is none."""
        return (
            (self.curriculum_warmup_steps, self.curriculum_warmup_sources) if self.curriculum_warmup_steps else (0, ())
        )

    @cached_property
    def phase_law(self) -> PhaseLaw:
        """The law of phase kinds and lengths."""
        phases = self.phases
        initial = min(len(self.sources), 16) if phases.initial_random is None else phases.initial_random
        return PhaseLaw(
            seed=self.seed,
            min_steps=phases.min_steps,
            max_steps=phases.max_steps,
            random_probability=phases.random_probability,
            initial_random=initial,
            random_decay=phases.random_decay,
        )

    @cached_property
    def regimes(self) -> tuple[Regime, ...]:
        """The planned regimes in order of their first step; raises InfeasibleRegionError naming the regime."""
        changes = [(pivot.at_step, pivot.name, pivot.apply) for pivot in self.pivots]
        return plan_regimes(self.bounds, warmup=self.warmup, changes=changes)

    @cached_property
    def rules(self) -> tuple[Rule, ...]:
        """Who decides in each of the planned regimes."""
        return plan_rules(self, self.pivots, self.regimes)

    @cached_property
    def suspended_if_lost(self) -> frozenset[str]:
        """The streamed sources that the run is to go on without while they cannot be reached."""
        if self.prepared is not None:
            return frozenset()
        return frozenset(source.name for source in self.sources if source.on_failure == "suspend")

    @cached_property
    def is_planned(self) -> bool:
        """Whether decisions look at ``total_steps``, which then cannot change while the run goes on."""
        return self.has_epoch_limits or any(plans_ahead(policy) for policy in policies_of(self))

    @cached_property
    def fingerprint(self) -> str:
        """Digest of all that shapes the run, hex [32].

        ``total_steps`` is left out (unless the policy, ``max_epochs`` or ``eta_decay`` plans with it), so that a run
        may be made longer; so are places (the folder that the file lies in and ``prepared``) and what is done about
        faults of a network and bad records. Fields that are newer than the first release count only where they are set,
        so that older runs keep their fingerprint.
        """
        left_out = {"prepared", "retries"} | (set() if self.is_planned else {"total_steps"})
        data = self.model_dump(mode="json", exclude=left_out)
        if not self.holdout:
            del data["holdout"]
        if self.guard in (None, GuardConfig()):
            del data["guard"]
        for key in ("probes", "targets"):
            if not data[key]:
                del data[key]
        if not self.has_epoch_limits:
            del data["max_epochs"]
        for part, key, default in NEWER:
            if (data.get(part) or {}).get(key) == default:
                data[part].pop(key, None)
        for source in (*data["sources"], *data.get("targets", ())):
            if not self.has_epoch_limits or source["max_epochs"] == "inherit":
                del source["max_epochs"]
            for key in ("role", "on_failure", "on_bad_record", "max_bad_records"):
                del source[key]
            for key in ("token_ids", "rows"):
                if source[key] is None:
                    del source[key]
        text = json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

    def resolve(self, path: str) -> Path:
        """Return ``path`` as seen from the folder of the config file."""
        return self._base_dir / Path(path).expanduser()


def _with_own_policy(pivot: Any, own: Mapping[str, Any]) -> Any:
    is_own = isinstance(pivot, Mapping) and isinstance(pivot.get("policy"), str) and pivot["policy"] == own.get("name")
    return {**pivot, "policy": dict(own)} if is_own else pivot


def shipped_config(name: str) -> Path:
    """Return the path of a config file that comes with the package, such as ``demo.yaml``."""
    package = Path(__file__).parents[1]
    folders = (package / "configs", package.parent / "configs")  # a wheel, a checkout
    for folder in folders:
        if (folder / name).is_file():
            return folder / name
    shipped = sorted(path.name for folder in folders for path in folder.glob("*.yaml"))
    raise ConfigError(f"no shipped config is named {name}; there are {', '.join(shipped)}")
