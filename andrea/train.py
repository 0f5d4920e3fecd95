"""The reference training loop: AdamW, warmup times cosine, clipping, exact resume, and losses handed back to the mixer.

Any trainer can feed the mixer; this one shows how little that takes (``train`` is the whole of it) and gives the same
parameters, bit for bit, whether or not it was stopped on the way.
"""

from __future__ import annotations

import copy
import math
import os
import pickle
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, Literal, Protocol, Self, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from andrea.model import Andrea, ModelConfig
from mixer.errors import ConfigError, InvalidLossError, StateMismatchError, TokenizerError

_STATE_VERSION = 1
_CHECKPOINT_VERSION = 1
_CHECKPOINT_FORMAT = "curriculum-mixer checkpoint"

Batch = TypeVar("Batch", bound=Mapping[str, Any])


class TrainingDataset(Protocol[Batch]):
    """What ``train`` needs of a dataset; MixtureDataset has it, in-process or remote."""

    def __iter__(self) -> Iterator[Batch]:
        """Batches of ``input_ids`` int64 [B, T], ``labels`` int64 [B, T] and an int ``step``."""
        ...

    def report(self, batch: Batch, token_losses: Tensor, /) -> object:
        """Take the losses of a batch, [B, T] nats."""
        ...


@dataclass(frozen=True)
class TrainingConfig:
    """How the parameters follow the gradient. The defaults are ANDREA-120M's where those were published.

    Raises ConfigError, listing every problem, if a value is out of range.
    """

    peak_lr: float = 3e-4
    warmup_steps: int = 2000
    """Steps of linear warmup; 0 is none. The default is for long runs, ``scaled_to`` shortens it for short ones."""
    min_lr_ratio: float = 0.1
    """Where the cosine ends, as a share of ``peak_lr``. Not published; a tenth is the custom."""
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    """Added to the root of the second moment; the published formula has it inside the root, torch outside."""
    weight_decay: float = 0.1
    """A step takes ``lr * weight_decay`` of each decayed parameter. Not published; a tenth is the custom."""
    clip_norm: float = 1.0
    """Largest norm of the gradients as one vector; ``inf`` clips nothing, as in ANDREA-120M's first, failed run."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """What matrices are multiplied in. Parameters, moments and losses are float32 either way."""

    def __post_init__(self) -> None:
        rules = [
            ("peak_lr", self.peak_lr, 0 < self.peak_lr < math.inf, "positive and finite"),
            ("warmup_steps", self.warmup_steps, self.warmup_steps >= 0, "at least 0"),
            ("min_lr_ratio", self.min_lr_ratio, 0 <= self.min_lr_ratio <= 1, "between 0 and 1"),
            ("betas", self.betas, all(0 <= beta < 1 for beta in self.betas), "at least 0 and below 1, both"),
            ("eps", self.eps, 0 < self.eps < math.inf, "positive and finite"),
            ("weight_decay", self.weight_decay, 0 <= self.weight_decay < math.inf, "at least 0 and finite"),
            ("clip_norm", self.clip_norm, self.clip_norm > 0, "positive"),
            ("precision", self.precision, self.precision in ("float32", "bfloat16"), "float32 or bfloat16"),
        ]
        problems = [f"{name} is {value}; it must be {rule}" for name, value, holds, rule in rules if not holds]
        if problems:
            raise ConfigError(problems)

    def scaled_to(self, total_steps: int) -> Self:
        """The same with a warmup of at most a tenth of the run: 2,000 steps of 20,000 or more, 30 steps of 300."""
        return replace(self, warmup_steps=min(self.warmup_steps, total_steps // 10))


def learning_rate(step: int, total_steps: int, config: TrainingConfig) -> float:
    """The learning rate of a step, counted from 0: linear warmup times a cosine over the run.

    ``peak_lr * min(1, (step + 1) / warmup_steps) * (r + (1 - r) (1 + cos(pi step / total_steps)) / 2)``, where ``r`` is
    ``min_lr_ratio``. The warmup multiplies the cosine, as published, and does not delay it. From ``total_steps`` on the
    rate stays at ``r * peak_lr``.
    """
    return config.peak_lr * _learning_rate_factor(step, total_steps, config)


def _learning_rate_factor(step: int, total_steps: int, config: TrainingConfig) -> float:
    warmup = min(1.0, (step + 1) / max(1, config.warmup_steps))
    cosine = (1 + math.cos(math.pi * min(1.0, step / total_steps))) / 2
    return warmup * (config.min_lr_ratio + (1 - config.min_lr_ratio) * cosine)


def check_vocabulary(config: ModelConfig, vocab_size: int) -> None:
    """Raise TokenizerError if a tokenizer of ``vocab_size`` tokens makes ids that the model has no row for.

    A smaller tokenizer is fine: the rows left over are never looked up.
    """
    if vocab_size > config.vocab_size:
        raise TokenizerError(
            f"the tokenizer has {vocab_size} tokens, but the model's vocabulary is {config.vocab_size}; "
            f"build the model with vocab_size={vocab_size}, or use the tokenizer that it was built for"
        )


class Trainer:
    """A model and what moves its parameters: AdamW, the learning-rate schedule, clipping.

    ``total_steps`` fixes the cosine, so it is part of the state: a run that is to be longer is another run.
    """

    def __init__(self, model: Andrea, config: TrainingConfig, total_steps: int) -> None:
        if total_steps < 1:
            raise ConfigError(f"total_steps is {total_steps}; it must be at least 1")
        self.model = model
        self.config = config
        self.total_steps = total_steps
        self.gradient_norm = 0.0
        """The norm of all gradients at the last step, before clipping."""
        self._device = next(model.parameters()).device
        self._optimizer = AdamW(
            _parameter_groups(model, config.weight_decay), lr=config.peak_lr, betas=config.betas, eps=config.eps
        )
        self._schedule = LambdaLR(self._optimizer, lambda step: _learning_rate_factor(step, total_steps, config))

    @property
    def num_steps(self) -> int:
        """Steps taken so far, which is also the number of the next one."""
        return self._schedule.last_epoch

    def step(self, batch: Mapping[str, Any]) -> Tensor:
        """Take one optimizer step on the mean loss of a batch.

        Returns:
            The losses before the step, float32 [B, T] nats, detached, on the model's device.

        Raises:
            InvalidLossError: the loss or its gradient is not finite. The parameters are then as they were.
        """
        token_losses = self._token_losses(batch)
        self._optimizer.zero_grad(set_to_none=True)
        mean_loss = token_losses.mean()
        mean_loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        self.gradient_norm = float(nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip_norm))
        if not math.isfinite(self.gradient_norm):
            raise InvalidLossError(
                f"step {self.num_steps} has a mean loss of {mean_loss.item()} and a gradient norm of "
                f"{self.gradient_norm}; the step was not taken. Go back to a checkpoint and lower peak_lr "
                f"({self.config.peak_lr}) or lengthen the warmup ({self.config.warmup_steps} steps)"
            )
        self._optimizer.step()
        self._schedule.step()
        return token_losses.detach()

    def losses(self, batch: Mapping[str, Any]) -> Tensor:
        """Return the losses of a batch without learning from it, float32 [B, T] nats, on the model's device."""
        with torch.no_grad():
            return self._token_losses(batch)

    def _token_losses(self, batch: Mapping[str, Any]) -> Tensor:
        input_ids, labels = (batch[name].to(self._device, non_blocking=True) for name in ("input_ids", "labels"))
        with torch.autocast(self._device.type, dtype=torch.bfloat16, enabled=self.config.precision == "bfloat16"):
            return self.model.token_losses(input_ids, labels)

    def state_dict(self) -> dict[str, Any]:
        """All that shapes the next step, as plain data and tensors; a copy, which later steps leave alone."""
        return copy.deepcopy(
            {
                "version": _STATE_VERSION,
                "fingerprint": self._fingerprint(),
                "model": dict(self.model.state_dict()),
                "optimizer": self._optimizer.state_dict(),
                "schedule": self._schedule.state_dict(),
            }
        )

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state; the steps that follow are those of the run it was taken from, bit for bit.

        Raises StateMismatchError, naming both sides, if the state is of another version, model, schedule or length.
        """
        _check_version("trainer state", state.get("version"), _STATE_VERSION)
        saved, own = state["fingerprint"], self._fingerprint()
        differences = [
            f"{name} is {saved.get(name)} in the state and {own.get(name)} here"
            for name in sorted(saved.keys() | own.keys())
            if saved.get(name) != own.get(name)
        ]
        if differences:
            raise StateMismatchError(
                f"the state is of another training run: {'; '.join(differences)}; "
                f"build model and trainer as that run did, or start a new run"
            )
        self.model.load_state_dict(state["model"])
        self._optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))  # it would keep the caller's tensors
        self._schedule.load_state_dict(dict(state["schedule"]))

    def _fingerprint(self) -> dict[str, Any]:
        return {**asdict(self.model.config), **asdict(self.config), "total_steps": self.total_steps}


def _parameter_groups(model: Andrea, weight_decay: float) -> list[dict[str, Any]]:
    """Decay the matrices, not the tables.

    A matrix is pulled by every token, so decay balances a gradient. A row of a table is pulled only when its token
    occurs: decay would wear a rare token's row away in the meantime. Vectors, of which this model has none, would not
    be decayed either.
    """
    tables = {id(table.weight) for table in (model.token_table, model.position_table)}
    matrices = [p for p in model.parameters() if p.ndim >= 2 and id(p) not in tables]
    others = [p for p in model.parameters() if p.ndim < 2 or id(p) in tables]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]


@dataclass(frozen=True)
class TrainingReport:
    """What one call of ``train`` did."""

    num_steps: int
    total_s: float
    waiting_s: float
    """Seconds spent in the dataset's iterator; the rest is training, reporting and ``on_step``."""
    last_loss: float | None
    """Mean loss of the last step in nats a token; None if there was no step."""
    reporting_s: float = 0.0
    """Seconds spent in the dataset's ``report``, which is durable when it returns."""

    @property
    def waiting_share(self) -> float:
        """The share of the time spent waiting for data, 0 to 1."""
        return self.waiting_s / self.total_s if self.total_s else 0.0

    @property
    def reporting_share(self) -> float:
        """The share of the time spent reporting losses, 0 to 1."""
        return self.reporting_s / self.total_s if self.total_s else 0.0


def train(
    dataset: TrainingDataset[Batch],
    trainer: Trainer,
    *,
    vocab_size: int,
    on_step: Callable[[int, float, Batch], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> TrainingReport:
    """Train on every batch of a dataset and report each batch's losses back to it.

    Args:
        dataset: where it stands, the trainer must stand: restore both from the same checkpoint.
        trainer: takes the steps.
        vocab_size: of the tokenizer that the dataset's ids come from.
        on_step: called after each step with its number, its mean loss in nats a token, and its batch.
        should_stop: asked before each batch is asked for, so that every batch taken was trained on and reported.

    Raises:
        TokenizerError: the tokenizer has more tokens than the model.
        StateMismatchError: dataset and trainer stand at different steps.
        InvalidLossError: a loss or gradient is not finite.
    """
    check_vocabulary(trainer.model.config, vocab_size)
    started_s = time.perf_counter()
    waiting_s, reporting_s, num_steps, last_loss = 0.0, 0.0, 0, None
    batches = iter(dataset)
    while should_stop is None or not should_stop():
        asked_s = time.perf_counter()
        batch = next(batches, None)
        waiting_s += time.perf_counter() - asked_s
        if batch is None:
            break
        _check_same_step(batch["step"], trainer.num_steps)
        _answer_probe(dataset, trainer)
        token_losses = trainer.step(batch)
        trained_s = time.perf_counter()
        dataset.report(batch, token_losses)
        reporting_s += time.perf_counter() - trained_s
        num_steps, last_loss = num_steps + 1, float(token_losses.mean())
        if on_step is not None:
            on_step(batch["step"], last_loss, batch)
    return TrainingReport(num_steps, time.perf_counter() - started_s, waiting_s, last_loss, reporting_s)


def _answer_probe(dataset: Any, trainer: Trainer) -> None:
    """Measure the held-out losses that are due; data sets of other kinds offer none."""
    probe = dataset.probe_batch() if hasattr(dataset, "probe_batch") else None
    if probe is not None:
        dataset.report_probe(probe, trainer.losses(probe))


def _check_same_step(dataset_step: int, trainer_step: int) -> None:
    if dataset_step != trainer_step:
        raise StateMismatchError(
            f"the dataset hands out step {dataset_step}, but the trainer has taken {trainer_step} steps; "
            f"restore both from the same checkpoint, or start both anew"
        )


@dataclass(frozen=True)
class Checkpoint:
    """The two halves of a run at the same step."""

    trainer_state: dict[str, Any]
    dataset_state: dict[str, Any]


def save_checkpoint(path: Path, *, trainer_state: Mapping[str, Any], dataset_state: Mapping[str, Any]) -> None:
    """Write both states into one file, which is at every moment either the old checkpoint or the new one.

    Raises:
        TypeError: a state holds something that loading without running code could not give back.
        OSError: the file cannot be written, for want of space or permission; an older checkpoint is untouched.
    """
    contents = {
        "format": _CHECKPOINT_FORMAT,
        "version": _CHECKPOINT_VERSION,
        "trainer": dict(trainer_state),
        "dataset": dict(dataset_state),
    }
    _check_plain("checkpoint", contents)
    partial = path.with_name(path.name + ".partial")  # beside it: a rename is atomic only within one file system
    try:
        with partial.open("wb") as file:
            torch.save(contents, file)
            file.flush()
            os.fsync(file.fileno())  # or the rename may reach the disk before the data does
        partial.replace(path)
    except (OSError, RuntimeError) as error:  # torch turns a full disk into a RuntimeError about positions in the file
        partial.unlink(missing_ok=True)
        raise OSError(
            f"checkpoint {path} could not be written ({_root_cause(error)}); "
            f"make room or choose another place; an older checkpoint there is untouched"
        ) from error


def _root_cause(error: BaseException) -> BaseException:
    return _root_cause(error.__context__) if error.__context__ is not None else error


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint without running any code that the file might hold.

    Raises:
        FileNotFoundError: there is none.
        StateMismatchError: the file is damaged, is no checkpoint of this project, or is of another version.
    """
    with path.open("rb") as file:
        _check_archive(path, file)
    try:
        contents = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError) as error:
        raise _unreadable(path, "it holds something other than numbers and text") from error
    if not isinstance(contents, dict) or contents.get("format") != _CHECKPOINT_FORMAT:
        raise _unreadable(path, "another program wrote it")
    _check_version(f"checkpoint {path}", contents.get("version"), _CHECKPOINT_VERSION)
    return Checkpoint(trainer_state=contents["trainer"], dataset_state=contents["dataset"])


def _check_archive(path: Path, file: BinaryIO) -> None:
    """Raise StateMismatchError unless the file is whole: torch compares no checksums, so a flipped bit would pass."""
    try:
        with zipfile.ZipFile(file) as archive:
            damaged = archive.testzip()
    # a damaged header raises zipfile's own error, or that of the offset, name, cipher or codec that it now gives
    except (zipfile.BadZipFile, EOFError, OSError, RuntimeError, UnicodeDecodeError, zlib.error) as error:
        raise _unreadable(path, f"it is cut short, damaged or no checkpoint: {error}") from error
    if damaged is not None:
        raise _unreadable(path, f"its part {damaged} is damaged")


def _unreadable(path: Path, cause: str) -> StateMismatchError:
    return StateMismatchError(
        f"{path} cannot be used as a checkpoint: {cause}; go back to an older checkpoint, or remove it to start anew"
    )


def _check_version(what: str, found: object, expected: int) -> None:
    if found != expected:
        raise StateMismatchError(
            f"{what} has version {found}, but this release reads version {expected}; "
            f"use the release that wrote it, or start a new run"
        )


def _check_plain(where: str, value: object) -> None:
    """Raise TypeError, saying where, unless ``value`` is plain data and tensors all the way down."""
    # by exact type: numpy's float64 is a float to isinstance, but cannot be loaded back without running code
    if type(value) in (dict, list, tuple):
        items = value.items() if isinstance(value, dict) else enumerate(value)  # type: ignore[arg-type]
        for key, item in items:
            _check_plain(f"{where}.{key}", item)
    elif type(value) not in (Tensor, str, bytes, int, float, bool, type(None)):
        raise TypeError(f"{where} is a {type(value).__module__}.{type(value).__name__}; make it plain data or a tensor")
