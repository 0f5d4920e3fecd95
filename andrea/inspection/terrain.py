"""The loss as a surface over the parameters: along a line, on a plane, and around a point under noise.

Directions are normalised filter by filter (Li et al., 2018): each row of a random matrix gets the length of the row of
parameters that it is added to. A model whose rows are twice as long is then shaken twice as much, so that two models
can be compared.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from andrea.model import Andrea
from mixer.errors import ConfigError

Parameters = Mapping[str, Tensor]
Loss = Callable[[Parameters], Tensor]
"""Parameters by name to the mean loss in nats a token, a scalar."""


def parameters_of(model: nn.Module) -> dict[str, Tensor]:
    """The parameters of a model by name, detached and not copied."""
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def loss_of(model: Andrea, batch: Mapping[str, Tensor]) -> Loss:
    """Return the mean loss of a batch as a function of the model's parameters, which stay as they are.

    The attention is the plain one: the fused kernels have no second derivative.
    """
    device = model.head.weight.device
    wrapped, ids, labels = _MeanLoss(model), batch["input_ids"].to(device), batch["labels"].to(device)

    def loss(parameters: Parameters) -> Tensor:
        named = {f"model.{name}": parameter for name, parameter in parameters.items()}
        with sdpa_kernel(SDPBackend.MATH):
            mean: Tensor = functional_call(wrapped, named, (ids, labels))
        return mean

    return loss


class _MeanLoss(nn.Module):
    def __init__(self, model: Andrea) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor, labels: Tensor) -> Tensor:
        return self.model.token_losses(ids, labels).mean()


def random_direction(parameters: Parameters, seed: int) -> dict[str, Tensor]:
    """Return a random direction, normalised filter by filter: every row as long as the row of parameters it moves.

    It follows from ``seed`` and the shapes alone, up to the lengths of the rows: the same seed shakes two models of one
    shape in the same direction.
    """
    generator = torch.Generator().manual_seed(seed)
    direction = {}
    for name, parameter in parameters.items():
        noise = torch.randn(parameter.shape, generator=generator).to(parameter)
        lengths = torch.linalg.vector_norm(parameter, dim=-1, keepdim=True)
        direction[name] = noise / torch.linalg.vector_norm(noise, dim=-1, keepdim=True) * lengths
    return direction


def moved(parameters: Parameters, *steps: tuple[float, Parameters]) -> dict[str, Tensor]:
    """Return the parameters plus each direction times its factor."""
    return {
        name: parameter + sum((factor * direction[name] for factor, direction in steps), torch.zeros(()))
        for name, parameter in parameters.items()
    }


@dataclass(frozen=True, eq=False)
class Line:
    """The loss on the straight line from one point (0) to another (1).

    Attributes:
        places: along the line, [n], from below 0 to above 1.
        losses: nats a token, [n].
    """

    places: Tensor
    losses: Tensor

    @property
    def barrier(self) -> float:
        """How far the loss between the two points rises above a straight line between their losses, in nats.

        0 means that one walks from one to the other without a climb (Frankle et al., 2020).
        """
        inside = (self.places >= 0) & (self.places <= 1)
        places, losses = self.places[inside], self.losses[inside]
        return float((losses - torch.lerp(losses[0], losses[-1], places)).max().clamp(min=0))


def line(loss: Loss, start: Parameters, end: Parameters, *, beyond: float = 0.25, num_inside: int = 21) -> Line:
    """Measure the loss on the line through two points, ``beyond`` past either end.

    Raises ConfigError if the two have not the same shapes.
    """
    check_same_shapes(start, end)
    spacing = 1 / (num_inside - 1)
    num_outside = math.floor(beyond / spacing + 1e-9)
    places = torch.arange(-num_outside, num_inside + num_outside) * spacing
    towards = {name: end[name] - start[name] for name in start}
    return Line(places, _losses(loss, [moved(start, (float(place), towards)) for place in places]))


@dataclass(frozen=True, eq=False)
class Plane:
    """The loss on a square of a random plane; ``[i, j]`` lies at ``offsets[i]`` of one direction, ``[j]`` of the other.

    Attributes:
        offsets: [n], symmetric about 0, as a share of the parameters' own lengths.
        losses: nats a token, [n, n]; the model itself is in the middle.
    """

    offsets: Tensor
    losses: Tensor


def plane(loss: Loss, centre: Parameters, *, radius: float = 1.0, num_points: int = 15, seed: int = 0) -> Plane:
    """Measure the loss on a random plane through a point, at ``num_points`` (odd) by ``num_points`` places."""
    if num_points < 3 or num_points % 2 == 0:
        raise ConfigError(
            f"num_points is {num_points}; it must be odd, to have the model in the middle, and at least 3"
        )
    one, other = (random_direction(centre, seed=2 * seed + i) for i in range(2))
    offsets = torch.linspace(-radius, radius, num_points)
    points = ([(float(a), one), (float(b), other)] for a in offsets for b in offsets)
    return Plane(offsets, _losses(loss, (moved(centre, *steps) for steps in points)).view(num_points, num_points))


@dataclass(frozen=True, eq=False)
class Basin:
    """How the loss rises around a point when all parameters are shaken.

    Attributes:
        scales: of the noise, as a share of each row's own length, ascending, [n].
        rises: of the loss above the point's own, nats a token, [seeds, n]; column j is the same directions as
            in another basin with the same seeds.
        loss: at the point itself.
    """

    scales: Tensor
    rises: Tensor
    loss: float

    def widths(self, rise: float = 0.1) -> Tensor:
        """The scale at which the loss has first risen by ``rise`` nats, interpolated, for each seed, [seeds].

        The largest scale stands for "beyond what was measured".
        """
        return torch.tensor([_first_crossing(self.scales, row, rise) for row in self.rises])


def basin(loss: Loss, centre: Parameters, *, scales: Sequence[float], seeds: Sequence[int]) -> Basin:
    """Shake a point by noise of every scale in one random direction for each seed."""
    ascending = sorted(scales)
    base = float(_losses(loss, [centre])[0])
    rises = []
    for seed in seeds:
        direction = random_direction(centre, seed)
        rises.append(_losses(loss, (moved(centre, (scale, direction)) for scale in ascending)) - base)
    return Basin(torch.tensor(ascending), torch.stack(rises), base)


@dataclass(frozen=True)
class Comparison:
    """Widths of two basins, seed by seed.

    Attributes:
        before, after: mean widths.
        difference: mean of after minus before.
        interval: 95 % bootstrap interval of that mean over the seeds.
        num_wider: of how many seeds ``after`` is the wider one, of ``num_seeds``.
    """

    before: float
    after: float
    difference: float
    interval: tuple[float, float]
    num_wider: int
    num_seeds: int


def compare(before: Basin, after: Basin, rise: float = 0.1) -> Comparison:
    """Compare the widths of two basins that were shaken with the same seeds.

    The seeds are what varies in the interval: it says nothing of other training runs.
    """
    first, second = before.widths(rise).double(), after.widths(rise).double()
    gains = second - first
    picks = torch.randint(len(gains), (2000, len(gains)), generator=torch.Generator().manual_seed(0))
    low, high = torch.quantile(gains[picks].mean(1), torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return Comparison(
        before=float(first.mean()), after=float(second.mean()), difference=float(gains.mean()), interval=(low, high),
        num_wider=int((gains > 0).sum()), num_seeds=len(gains),
    )  # fmt: skip


def check_same_shapes(start: Parameters, end: Parameters) -> None:
    """Raise ConfigError, naming the first difference, unless two models have the same parameters."""
    shapes = [{name: tuple(value.shape) for name, value in parameters.items()} for parameters in (start, end)]
    different = [name for name in shapes[0] | shapes[1] if shapes[0].get(name) != shapes[1].get(name)]
    if different:
        raise ConfigError(
            f"the two checkpoints are of different models: {different[0]} has shape {shapes[0].get(different[0])} "
            f"in one and {shapes[1].get(different[0])} in the other"
        )


def _first_crossing(scales: Tensor, rises: Tensor, level: float) -> float:
    above = (rises >= level).nonzero().flatten()
    if not len(above):
        return float(scales[-1])
    j = int(above[0])
    left, low = (float(scales[j - 1]), float(rises[j - 1])) if j else (0.0, 0.0)
    return left + (float(scales[j]) - left) * (level - low) / (float(rises[j]) - low)


@torch.no_grad()
def _losses(loss: Loss, points: Iterable[Parameters]) -> Tensor:
    return torch.stack([loss(point).float().cpu() for point in points])
