"""The reference training loop: AdamW, warmup times cosine, clipping, exact resume, and losses handed back to the mixer.

Any trainer can feed the mixer; this one shows how little that takes (``train`` is the whole of it) and gives the same
parameters, bit for bit, whether or not it was stopped on the way. ``run`` builds all of it from one file; as a module
(``torchrun -m andrea.train CONFIG``) this is the command ``andrea train``.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, Protocol, Self, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import AdamW

from andrea.checkpoint import check_tensors, check_version, check_vocabulary
from andrea.model import Andrea
from mixer.errors import ConfigError, InvalidLossError, StateMismatchError

_STATE_VERSION = 2
_FUSED = ("cpu", "cuda", "mps", "xpu")  # devices for which torch has AdamW as one kernel

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
    clip_norm: float | None = 1.0
    """Largest norm of the gradients as one vector; None clips nothing, as in ANDREA-120M's first, failed run."""
    first_step: int = 0
    """Steps that the schedule counts before this run's first, for a run that goes on with another's weights."""
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
            ("clip_norm", self.clip_norm, self.clip_norm is None or self.clip_norm > 0, "positive"),
            ("first_step", self.first_step, self.first_step >= 0, "at least 0"),
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
    rate stays at ``r * peak_lr``. With ``first_step`` both ``step`` and ``total_steps`` are so many more.
    """
    step, total_steps = step + config.first_step, total_steps + config.first_step
    warmup = min(1.0, (step + 1) / max(1, config.warmup_steps))
    cosine = (1 + math.cos(math.pi * min(1.0, step / total_steps))) / 2
    return config.peak_lr * (warmup * (config.min_lr_ratio + (1 - config.min_lr_ratio) * cosine))


class _TokenLosses(nn.Module):
    """The model as it is differentiated: rows in, the loss of each token out."""

    def __init__(self, model: Andrea) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, labels: Tensor) -> Tensor:
        return self.model.token_losses(input_ids, labels)


class Trainer:
    """A model and what moves its parameters: AdamW, the learning-rate schedule, clipping.

    ``total_steps`` fixes the cosine, so it is part of the state: a run that is to be longer is another run.

    Args:
        model: on the device where it is to be trained.
        config: how its parameters follow the gradient.
        total_steps: of the run.
        num_parts: forward and backward passes that each batch is divided into, whose gradients add up (gradient
            accumulation): the same step with less memory.
        is_compiled: make one program of forward and loss with ``torch.compile``.
        is_shared: average the gradients of the ranks of ``torch.distributed``, each of which has its rows.
    """

    def __init__(
        self,
        model: Andrea,
        config: TrainingConfig,
        total_steps: int,
        *,
        num_parts: int = 1,
        is_compiled: bool = False,
        is_shared: bool = False,
    ) -> None:
        problems = [
            f"{name} is {value}; it must be at least 1"
            for name, value in (("total_steps", total_steps), ("num_parts", num_parts))
            if value < 1
        ]
        if problems:
            raise ConfigError(problems)
        self.model = model
        self.config = config
        self.total_steps = total_steps
        self.num_steps = 0
        """Steps taken so far, which is also the number of the next one."""
        self.gradient_norm = 0.0
        """The norm of all gradients at the last step, before clipping."""
        self.token_losses = torch.empty(0)
        """The losses of the last step, [B, T] nats, on the CPU."""
        self._num_parts = num_parts
        self._device = next(model.parameters()).device
        self._losses: Any = _TokenLosses(model)
        if is_shared:
            self._losses = DistributedDataParallel(self._losses)
        self._no_sync = self._losses.no_sync if is_shared else nullcontext
        if is_compiled:
            self._losses = torch.compile(self._losses)
        self._optimizer = AdamW(
            _parameter_groups(model, config.weight_decay),
            lr=config.peak_lr,
            betas=config.betas,
            eps=config.eps,
            fused=self._device.type in _FUSED,
        )

    @property
    def learning_rate(self) -> float:
        """The rate of the next step."""
        return learning_rate(self.num_steps, self.total_steps, self.config)

    def step(self, batch: Mapping[str, Any]) -> Tensor:
        """Take one optimizer step on the mean loss of a batch.

        The host waits for a GPU once, after the backward pass; the optimizer's work goes on while it reports.

        Returns:
            The losses before the step, float32 [B, T] nats, detached, on the CPU.

        Raises:
            ConfigError: the batch has fewer rows than parts, or rows that cannot be divided evenly.
            InvalidLossError: the loss or its gradient is not finite. The parameters are then as they were.
        """
        self._optimizer.zero_grad(set_to_none=True)
        token_losses = self._backward(batch).to("cpu", non_blocking=True)
        limit = math.inf if self.config.clip_norm is None else self.config.clip_norm
        self.gradient_norm = float(nn.utils.clip_grad_norm_(self.model.parameters(), limit))
        if not math.isfinite(self.gradient_norm):
            raise InvalidLossError(
                f"step {self.num_steps} has a mean loss of {token_losses.mean().item()} and a gradient norm of "
                f"{self.gradient_norm}; the step was not taken. Go back to a checkpoint and lower peak_lr "
                f"({self.config.peak_lr}) or lengthen the warmup ({self.config.warmup_steps} steps)"
            )
        for group in self._optimizer.param_groups:
            group["lr"] = self.learning_rate
        self._optimizer.step()
        self.num_steps += 1
        self.token_losses = token_losses
        return token_losses

    def _backward(self, batch: Mapping[str, Any]) -> Tensor:
        """Leave the gradient of a batch's mean loss in the parameters; return the losses, detached, on the device."""
        input_ids, labels = self._moved(batch)
        if len(input_ids) % self._num_parts:
            raise ConfigError(
                f"a batch of {len(input_ids)} rows cannot be divided into {self._num_parts} parts (accumulate); "
                "use a number that divides the rows of a rank"
            )
        found = []
        parts = zip(input_ids.chunk(self._num_parts), labels.chunk(self._num_parts), strict=True)
        for i, (part_ids, part_labels) in enumerate(parts, start=1):
            context: AbstractContextManager[Any] = nullcontext() if i == self._num_parts else self._no_sync()
            with context:  # ranks add their gradients up once, with the last part
                token_losses = self._forward(self._losses, part_ids, part_labels)
                mean_loss = token_losses.mean()
                (mean_loss / self._num_parts if self._num_parts > 1 else mean_loss).backward()  # type: ignore[no-untyped-call]
            found.append(token_losses.detach())
        return found[0] if len(found) == 1 else torch.cat(found)

    def losses(self, batch: Mapping[str, Any]) -> Tensor:
        """Return the losses of a batch without learning from it, float32 [B, T] nats, on the CPU."""
        with torch.no_grad():
            input_ids, labels = self._moved(batch)
            return self._forward(self.model.token_losses, input_ids, labels).cpu()

    def _moved(self, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        input_ids, labels = (batch[name].to(self._device, non_blocking=True) for name in ("input_ids", "labels"))
        return input_ids, labels

    def _forward(self, losses: Callable[[Tensor, Tensor], Tensor], input_ids: Tensor, labels: Tensor) -> Tensor:
        with torch.autocast(self._device.type, dtype=torch.bfloat16, enabled=self.config.precision == "bfloat16"):
            return losses(input_ids, labels)

    def state_dict(self) -> dict[str, Any]:
        """All that shapes the next step: ``model`` and ``optimizer`` are tensors by name, the rest is plain data.

        A copy, which later steps leave alone.
        """
        return {
            "num_steps": self.num_steps,
            "num_threads": torch.get_num_threads(),  # on a CPU sums are added up in an order that hangs on it
            **self.settings(),
            "model": {name: tensor.detach().clone() for name, tensor in self.model.state_dict().items()},
            "optimizer": {
                f"{name}.{key}": value.detach().clone()
                for name, parameter in self.model.named_parameters()
                for key, value in self._optimizer.state[parameter].items()
            },
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state; the steps that follow are those of the run it was taken from, bit for bit.

        Raises StateMismatchError, naming both sides, if the state is of another version, model, schedule or length.
        """
        check_version("trainer state", state.get("version"), _STATE_VERSION)
        saved, mine = (
            {**s["model_config"], **s["config"], "total_steps": s["total_steps"]} for s in (state, self.settings())
        )
        differences = [
            f"{name} is {saved.get(name)} in the state and {mine.get(name)} here"
            for name in sorted(saved.keys() | mine.keys())
            if saved.get(name) != mine.get(name)
        ]
        if differences:
            raise StateMismatchError(
                f"the state is of another training run: {'; '.join(differences)}; "
                f"build model and trainer as that run did, or start a new run"
            )
        self.model.load_state_dict(state["model"])
        self._load_moments(state["optimizer"])
        self.num_steps = state["num_steps"]

    def begin_with(self, state: Mapping[str, Any]) -> None:
        """Take over weights and moments of another run's state, and nothing else: this run begins at its step 0.

        Raises StateMismatchError if the state is of another version or its model of another shape.
        """
        check_version("trainer state", state.get("version"), _STATE_VERSION)
        check_tensors("the checkpoint to start from", self.model.config, state["model"])
        self.model.load_state_dict(state["model"])
        self._load_moments(state["optimizer"])

    def settings(self) -> dict[str, Any]:
        """The part of the state that no step changes, as plain data."""
        return {
            "version": _STATE_VERSION,
            "total_steps": self.total_steps,
            "model_config": asdict(self.model.config),
            "config": {**asdict(self.config), "betas": list(self.config.betas)},
        }

    def _load_moments(self, moments: Mapping[str, Tensor]) -> None:
        """Take over copies of what the optimizer keeps of each parameter, by name."""
        names = {id(parameter): name for name, parameter in self.model.named_parameters()}
        of_optimizer = self._optimizer.state_dict()
        order = [names[id(parameter)] for group in self._optimizer.param_groups for parameter in group["params"]]
        kept: dict[str, dict[str, Tensor]] = {}
        for full_name, tensor in moments.items():
            name, _, key = full_name.rpartition(".")
            kept.setdefault(name, {})[key] = tensor.clone()
        of_optimizer["state"] = {i: kept[name] for i, name in enumerate(order) if name in kept}
        self._optimizer.load_state_dict(of_optimizer)


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
    on_probe: Callable[[Batch, Tensor], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> TrainingReport:
    """Train on every batch of a dataset and report each batch's losses back to it.

    Args:
        dataset: where it stands, the trainer must stand: restore both from the same checkpoint.
        trainer: takes the steps.
        vocab_size: of the tokenizer that the dataset's ids come from.
        on_step: called after each step with its number, its mean loss in nats a token, and its batch.
        on_probe: called with each probe that was answered, and its losses, [B, T] nats.
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
        _answer_probe(dataset, trainer, on_probe)
        token_losses = trainer.step(batch)
        trained_s = time.perf_counter()
        dataset.report(batch, token_losses)
        reporting_s += time.perf_counter() - trained_s
        num_steps, last_loss = num_steps + 1, float(token_losses.mean())
        if on_step is not None:
            on_step(batch["step"], last_loss, batch)
    return TrainingReport(num_steps, time.perf_counter() - started_s, waiting_s, last_loss, reporting_s)


def _answer_probe(dataset: Any, trainer: Trainer, on_probe: Callable[[Any, Tensor], None] | None) -> None:
    """Measure the held-out losses that are due; data sets of other kinds offer none."""
    probe = dataset.probe_batch() if hasattr(dataset, "probe_batch") else None
    if probe is not None:
        losses = trainer.losses(probe)
        dataset.report_probe(probe, losses)
        if on_probe is not None:
            on_probe(probe, losses)


def _check_same_step(dataset_step: int, trainer_step: int) -> None:
    if dataset_step != trainer_step:
        raise StateMismatchError(
            f"the dataset hands out step {dataset_step}, but the trainer has taken {trainer_step} steps; "
            f"restore both from the same checkpoint, or start both anew"
        )


if __name__ == "__main__":
    from andrea.cli import train_command

    train_command()
