"""The section ``andrea:`` of a curriculum's file: the model, the optimiser, and what a run does on the way.

It shapes no decision of the walk and no batch, so that it is no part of the curriculum's fingerprint.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, model_validator

from andrea.model import ModelConfig
from andrea.train import TrainingConfig
from mixer.config.curriculum import Curriculum
from mixer.config.files import read_yaml
from mixer.config.policy import Frozen
from mixer.config.problems import describe, suggestion
from mixer.errors import ConfigError

SECTION = "andrea"
SIZES = {  # by name; tiny has the context of the run, the others their published one
    "120m": ModelConfig.andrea_120m(),
    "12m": ModelConfig.andrea_12m(),
    "tiny": ModelConfig.tiny(vocab_size=2048, context=1),
}
MAX_STEPS = 2**31 - 1


class ModelSettings(Frozen):
    """The shape of the model: one of the published sizes, or width, heads and layers."""

    size: Literal["120m", "12m", "tiny"] | None = None
    width: int | None = Field(None, ge=1, le=2**16)
    num_heads: int | None = Field(None, ge=1, le=2**16)
    num_layers: int | None = Field(None, ge=1, le=2**12)
    context: int | None = Field(None, ge=1, le=2**24, description="longest row; default: 1024, or sequence_length")

    @model_validator(mode="after")
    def _size_or_shape(self) -> ModelSettings:
        shape = (self.width, self.num_heads, self.num_layers)
        if self.size is None and None in shape:
            raise ValueError("give a size (120m, 12m or tiny), or all of width, num_heads and num_layers")
        if self.size is not None and shape != (None, None, None):
            raise ValueError(f"size {self.size} has its own width, num_heads and num_layers; give one or the other")
        return self

    def config(self, vocab_size: int, sequence_length: int) -> ModelConfig:
        """Return the whole shape for a run; raise ConfigError if its rows do not fit the context."""
        context = self.context
        if self.size is not None:
            known = SIZES[self.size]
            width, num_heads, num_layers = known.width, known.num_heads, known.num_layers
            context = context or (sequence_length if self.size == "tiny" else known.context)
        else:
            assert self.width is not None
            assert self.num_heads is not None
            assert self.num_layers is not None
            width, num_heads, num_layers = self.width, self.num_heads, self.num_layers
        context = context or sequence_length
        if sequence_length > context:
            raise ConfigError(
                f"andrea.model: rows of sequence_length {sequence_length} do not fit a context of {context}; lower "
                "sequence_length, or raise context"
            )
        return ModelConfig(vocab_size, width, num_heads, num_layers, context)


class GateSettings(Frozen):
    """When samples are so incoherent that training stops; threshold and patience are ANDREA-120M's."""

    threshold: float = Field(30.0, ge=0, le=100, description="samples that score less are low")
    patience: int = Field(5, ge=1, le=MAX_STEPS, description="low samples in a row that halt the run")
    halt: bool = Field(True, description="stop the run; false counts alone")
    grace_steps: int | None = Field(
        None,
        ge=0,
        le=MAX_STEPS,
        description="steps before which low samples count only once one was not low; default: half of the run",
    )


class AndreaSettings(Frozen):
    """Everything of a training run that the curriculum does not say."""

    model: ModelSettings = ModelSettings(size="tiny")
    optimizer: TrainingConfig = TrainingConfig()
    accumulate: int = Field(1, ge=1, le=2**20, description="parts that the rows of a rank are divided into")
    compile: bool = Field(False, description="make one program of forward and loss with torch.compile")
    start_from: str | None = Field(
        None, description="a checkpoint whose weights and moments the run begins with, relative to the config file"
    )
    checkpoint_every: int = Field(100, ge=1, le=MAX_STEPS, description="steps; SIGUSR1 asks for one more")
    keep_checkpoints: int = Field(5, ge=1, le=2**20, description="the newest; those of pivots stay, too")
    evaluate_every: int = Field(
        500, ge=0, le=MAX_STEPS, description="steps between held-out losses, where the run holds text out; 0: none"
    )
    evaluate_rows: int = Field(8, ge=1, le=2**16, description="held-out rows of each source, always the same")
    sample_every: int = Field(
        100, ge=0, le=MAX_STEPS, description="steps between samples, where the run has a tokenizer; 0: none"
    )
    sample_tokens: int = Field(420, ge=1, le=4096, description="of each sample")
    sample_prompt: str = Field("", max_length=4096, description="the beginning of the document that is continued")
    sample_temperature: float = Field(0.8, ge=0, lt=math.inf, description="0 takes the likeliest token each time")
    gate: GateSettings = GateSettings()
    log_every: int = Field(10, ge=1, le=MAX_STEPS, description="steps between the numbers that loggers get")
    loggers: tuple[Literal["tensorboard", "wandb"], ...] = ()
    wandb_project: str = "andrea"


@dataclass(frozen=True)
class TrainingFile:
    """What a file says: the run, if it has one of its own, and how to train on it."""

    path: Path
    settings: AndreaSettings
    curriculum: Curriculum | None
    """None for a file of the section alone, for a trainer of a service."""
    has_lr_warmup: bool
    """Whether the file says how long the rate warms up."""
    asks_for_samples: bool = False
    """Whether the file says how often samples are drawn."""

    def optimizer(self, total_steps: int) -> TrainingConfig:
        """Return how parameters follow the gradient in a run of so many steps.

        Where the file does not say how long the rate warms up, it is a tenth of the run, and 2,000 steps at most.
        """
        return self.settings.optimizer if self.has_lr_warmup else self.settings.optimizer.scaled_to(total_steps)

    @property
    def start_from(self) -> Path | None:
        """Where the checkpoint to begin with lies."""
        chosen = self.settings.start_from
        return None if chosen is None else self.path.resolve().parent / chosen


def read_training_file(path: Path) -> TrainingFile:
    """Read and check a file; raise ConfigError with every problem of both parts."""
    data = read_yaml(path)
    is_alone = data.keys() == {SECTION}
    section = data.pop(SECTION, {})
    problems: list[str] = []
    settings = curriculum = None
    try:
        settings = _read_section(section)
    except ConfigError as error:
        problems += error.problems
    if not is_alone:
        try:
            curriculum = Curriculum.from_yaml(path)
        except ConfigError as error:
            problems += error.problems
    if settings is None or problems:
        raise ConfigError([f"{path}: {problem}" for problem in problems])
    if curriculum is not None:
        _ = settings.model.config(curriculum.vocab_size or 1, curriculum.sequence_length)  # the shape, before anything
        if "evaluate_every" in section and settings.evaluate_every and not curriculum.holdout:
            raise ConfigError(
                f"{path}: {SECTION}.evaluate_every: the curriculum holds nothing out to evaluate on; set holdout, "
                "as in `holdout: 0.01`"
            )
    has_lr_warmup = "warmup_steps" in (section.get("optimizer") or {})
    return TrainingFile(path, settings, curriculum, has_lr_warmup, bool(section.get("sample_every")))


def model_of_file(path: Path) -> ModelConfig:
    """Return the shape of the model that a file trains; raise ConfigError if it does not say the vocabulary."""
    file = read_training_file(path)
    if file.curriculum is None or file.curriculum.vocab_size is None:
        raise ConfigError(f"{path}: the shape of a model needs vocab_size and sequence_length; add them")
    return file.settings.model.config(file.curriculum.vocab_size, file.curriculum.sequence_length)


def _read_section(section: object) -> AndreaSettings:
    """Check the section; raise ConfigError with every problem."""
    if not isinstance(section, Mapping):
        raise ConfigError(f"{SECTION}: a mapping of settings, not {type(section).__name__}")
    data: dict[str, Any] = dict(section)
    if isinstance(data.get("model"), str):  # as in `model: 120m`
        data["model"] = {"size": data["model"]}
    problems = []
    if isinstance(data.get("optimizer"), Mapping):
        data["optimizer"] = dict(data["optimizer"])
        known = [field.name for field in fields(TrainingConfig)]
        for name in [name for name in data["optimizer"] if name not in known]:
            hint = suggestion(name, known) or f"; known keys: {', '.join(known)}"
            problems.append(f"{SECTION}.optimizer.{name}: unknown key{hint}")
            del data["optimizer"][name]
    try:
        settings = AndreaSettings(**data)
    except ValidationError as error:
        problems += [f"{SECTION}.{problem}" for problem in describe(error, AndreaSettings)]
    except ConfigError as error:  # of values of the optimizer
        problems += [f"{SECTION}.optimizer: {problem}" for problem in error.problems]
    if problems:
        raise ConfigError(problems)
    return settings


def check_one_origin(file: TrainingFile, url: str | None) -> None:
    """Raise ConfigError unless batches have exactly one origin: the sources of the file, or a service."""
    if url is None and file.curriculum is None:
        raise ConfigError(
            f"{file.path}: has no sources; add a curriculum to read text here, or give --url URL to train on the "
            "batches of a service"
        )
    if url is not None and file.curriculum is not None:
        names: Sequence[str] = file.curriculum.names
        listed = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
        raise ConfigError(
            f"{file.path}: names sources of its own ({listed}), but with --url {url} every batch comes from the "
            f"service, which has its own; leave out --url, or give a file with the section `{SECTION}:` alone"
        )
