"""The whole run in one YAML file: sources, bounds, regimes, phases, policy.

Everything is frozen, unknown keys are refused with the nearest known one, and every regime's region is checked for
feasibility before anything starts. Python users may build a ``Curriculum`` directly; the same checks run.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, PrivateAttr, ValidationError, model_validator

from mixer.config.epochs import epoch_problems
from mixer.config.files import read_yaml
from mixer.config.fingerprint import fingerprint_of
from mixer.config.names import name_problems
from mixer.config.phases import PhasesConfig
from mixer.config.pivots import ScheduledPivot, schedule_problems
from mixer.config.policy import MAX_STEPS, Epochs, GuardConfig, PolicyConfig, UnimaxConfig, WaterFillingConfig
from mixer.config.policy_problems import plans_ahead, policy_problems
from mixer.config.probes import ProbesConfig, probe_problems
from mixer.config.problems import describe, is_unknown_keys_alone, shown, without_unknown_keys
from mixer.config.rules import (
    Rule,
    Weight,
    WrittenWeights,
    excluded_weights,
    long_ramps,
    plan_rules,
    policies_of,
    resolved,
    unused_weights,
)
from mixer.config.shorthands import written_out
from mixer.config.sources import RetriesConfig, SourceConfig, TokenizerConfig, check_folder
from mixer.config.token_files import token_file_problems
from mixer.errors import ConfigError, InfeasibleRegionError, TopologyError
from mixer.region.regimes import Bounds, Regime, plan_regimes
from mixer.sampling.phases import PhaseLaw

CONFIG_VERSION = 1
MAX_ROWS = 2**20  # of a batch: each may be a rank's, and the service knows ranks below that
MAX_SEQUENCE = 2**24  # tokens; a row is packed, kept and sent whole
MAX_BATCH_TOKENS = 2**30  # of the rows of a batch, which is built in memory: 4 GiB at four bytes a token
MAX_VOCAB = 2**31  # token ids are kept in 32 bits, and frameworks read those as signed
MAX_LAG = 2**16  # steps; each report looks at the phases that are planned within it
AUTO_EPOCHS = 4.0  # tokens read that often are worth nearly what new ones are: Muennighoff et al., arXiv 2305.16264
TRAINER_SECTIONS = ("andrea",)  # of the same file, which trainers read: they shape no decision and no batch


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
        """Write out what may be written shorter; refuse a file of another version of this format."""
        if not isinstance(data, Mapping):
            return data
        version = data.get("version", CONFIG_VERSION)
        if version != CONFIG_VERSION:
            raise ConfigError(
                f"version {shown(version)}: this curriculum-mixer reads config version {CONFIG_VERSION}; "
                "install the release that wrote the file, or change the file and its version"
            )
        return written_out(data)

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
        problems = [*name_problems(self)]
        is_named = not problems  # a region needs known names
        problems += schedule_problems(self)
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
        problems += token_file_problems(self)
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
        """All that is streamed or prepared: the sources but for those of token files, then the M targets."""
        return (*(source for source in self.sources if source.token_files is None), *self.targets)

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
        """Whether some source may be read only so often, or may give only so many tokens."""
        has_tokens = any(source.max_tokens is not None for source in self.sources)
        return has_tokens or any(limit is not None for limit in self.epoch_limits)

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
    def is_on_disk(self) -> bool:
        """Whether rows are prepared or in token files, so that any step can be read at any time; else they stream."""
        return self.prepared is not None or any(source.token_files is not None for source in self.sources)

    @cached_property
    def suspended_if_lost(self) -> frozenset[str]:
        """The streamed sources that the run is to go on without while they cannot be reached."""
        if self.is_on_disk:
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
        return fingerprint_of(self)

    def resolve(self, path: str) -> Path:
        """Return ``path`` as seen from the folder of the config file."""
        return self._base_dir / Path(path).expanduser()
