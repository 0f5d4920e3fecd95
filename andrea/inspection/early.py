"""Two short trainings that show the terrain: the first steps with and without LR warmup, and a row learned by heart."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from andrea.inspection.curvature import sharpness
from andrea.inspection.terrain import Basin, Line, basin, line, loss_of, parameters_of
from andrea.model import Andrea
from andrea.train import Trainer, TrainingConfig, learning_rate
from mixer.errors import ConfigError

Batch = Mapping[str, Tensor]


@dataclass(frozen=True)
class Moment:
    """The terrain under a model at one step of its training.

    Attributes:
        step: steps taken.
        learning_rate: of the step that follows.
        loss: nats a token, on text that is not trained on.
        sharpness: the largest eigenvalue of the Hessian of that loss.
    """

    step: int
    learning_rate: float
    loss: float
    sharpness: float


def early_sharpness(
    model: Andrea,
    batches: Sequence[Batch],
    held_out: Batch,
    training: TrainingConfig,
    *,
    at: Collection[int],
    tolerance: float = 0.02,
) -> list[Moment]:
    """Train a model for some steps, and measure how sharply its loss curves on the way.

    Args:
        model: is trained; hand over a fresh one.
        batches: a step is taken on each in turn, round and round.
        held_out: what the loss is measured on.
        training: the settings of the trainer; its cosine spans ten times the steps, so that it hardly falls here.
        at: the steps to measure at; the last is where training ends.
        tolerance: of a sharpness, as a share of it.
    """
    if not at:
        raise ConfigError("at names no step to measure at; 0 is the untrained model")
    last, loss = max(at), loss_of(model, held_out)
    trainer = Trainer(model, training, total_steps=max(10 * last, 1))
    moments = []
    for step in range(last + 1):
        if step in at:
            parameters = parameters_of(model)
            with torch.no_grad():
                value = float(loss(parameters))
            rate = learning_rate(step, trainer.total_steps, training)
            moments.append(Moment(step, rate, value, sharpness(loss, parameters, tolerance=tolerance).value))
        if step < last:
            trainer.step({**batches[step % len(batches)], "step": step})
    return moments


@dataclass(frozen=True, eq=False)
class Cliff:
    """A row learned by heart: how the loss of the row and that of other text parted.

    Attributes:
        row_losses, other_losses: before each step and after the last, nats a token, [steps + 1].
        row_line, other_line: on the straight line from the checkpoint (0) to the model that knows the row (1).
        row_basin, other_basin: both losses around that model, shaken with the same seeds.
        row_sharpness, other_sharpness: of both losses, (at the checkpoint, at that model).
    """

    row_losses: Tensor
    other_losses: Tensor
    row_line: Line
    other_line: Line
    row_basin: Basin
    other_basin: Basin
    row_sharpness: tuple[float, float]
    other_sharpness: tuple[float, float]


def cliff(
    model: Andrea,
    row: Batch,
    other: Batch,
    training: TrainingConfig,
    *,
    num_steps: int = 40,
    scales: Sequence[float] = (0.02, 0.05, 0.1, 0.2, 0.4),
    seeds: Sequence[int] = range(4),
    tolerance: float = 0.02,
) -> Cliff:
    """Train a copy of a model on one row alone, and measure the gully that it falls into.

    Args:
        model: stays as it is.
        row: what is learned by heart, [1, T].
        other: text that is not trained on.
        training: the settings of the trainer.
        num_steps: to take on the row.
        scales: of the noise, as in ``basin``.
        seeds: of the noise's directions.
        tolerance: of a sharpness, as a share of it.
    """
    learned = Andrea(model.config)
    learned.load_state_dict(model.state_dict())
    row_loss, other_loss = loss_of(learned, row), loss_of(learned, other)
    start = {name: parameter.clone() for name, parameter in parameters_of(learned).items()}
    trainer = Trainer(learned, training, total_steps=10 * num_steps)
    losses = []
    for step in range(num_steps + 1):
        with torch.no_grad():
            end = parameters_of(learned)
            losses.append(torch.stack([row_loss(end), other_loss(end)]))
        if step < num_steps:
            trainer.step({**row, "step": step})
    curves = torch.stack(losses).float().cpu()
    row_line, other_line = (line(loss, start, end) for loss in (row_loss, other_loss))
    row_basin, other_basin = (basin(loss, end, scales=scales, seeds=seeds) for loss in (row_loss, other_loss))
    sharp = [
        [sharpness(loss, point, tolerance=tolerance).value for point in (start, end)] for loss in (row_loss, other_loss)
    ]
    return Cliff(
        row_losses=curves[:, 0], other_losses=curves[:, 1], row_line=row_line, other_line=other_line,
        row_basin=row_basin, other_basin=other_basin,
        row_sharpness=(sharp[0][0], sharp[0][1]), other_sharpness=(sharp[1][0], sharp[1][1]),
    )  # fmt: skip
