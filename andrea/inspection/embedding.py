"""The token table as a cloud of points: distances, neighbours, arithmetic, the dimensions it fills, how far it moved.

Every function takes the table as it is, float [V, width], of any model. Cosine compares directions, Euclidean distance
places; a table whose rows differ in length orders neighbours differently by the two.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from mixer.errors import ConfigError


@dataclass(frozen=True)
class Neighbour:
    """A token near a point."""

    token: int
    cosine: float
    distance: float


@dataclass(frozen=True)
class Answer:
    """Where vector arithmetic led.

    Attributes:
        neighbours: the nearest tokens by cosine, those that were put in left out.
        nearest_of_all: the nearest token when none is left out; often one that was put in (Linzen, 2016).
        expected_rank: the place of the expected token among those not put in, from 1; None if none was expected.
    """

    neighbours: list[Neighbour]
    nearest_of_all: Neighbour
    expected_rank: int | None


@dataclass(frozen=True)
class Dimension:
    """How many of its ``width`` dimensions a table fills.

    Attributes:
        width: the dimensions that there are.
        participation: ``(sum l)^2 / sum l^2`` of the variances ``l`` along the principal axes.
        entropy_rank: the exponential of the entropy of ``l / sum l``, after Roy & Vetterli (2007).
        at_random: the participation ratio that rows of independent noise would have.
        shares: the share of the variance along each principal axis, largest first, [width].
    """

    width: int
    participation: float
    entropy_rank: float
    at_random: float
    shares: Tensor


@dataclass(frozen=True, eq=False)
class Travel:
    """How far each token moved between two tables.

    Attributes:
        distances: Euclidean, [V].
        cosines: of the place before and the place after, [V].
        moved: whether the token moved at all, bool [V]; a row moves only when its token is read.
    """

    distances: Tensor
    cosines: Tensor
    moved: Tensor


def cosines(table: Tensor, vector: Tensor) -> Tensor:
    """Cosine of the angle between each row and a vector, [V]; 0 for a row of zeros."""
    return nn.functional.cosine_similarity(table, vector[None], dim=1)


def distances(table: Tensor, vector: Tensor) -> Tensor:
    """Euclidean distance of each row from a vector, [V]."""
    found: Tensor = torch.linalg.vector_norm(table - vector[None], dim=1)
    return found


def nearest(
    table: Tensor,
    vector: Tensor,
    count: int,
    *,
    by: Literal["cosine", "distance"] = "cosine",
    without: Collection[int] = (),
    among: Tensor | None = None,
) -> list[Neighbour]:
    """Return up to ``count`` tokens nearest to a point, the nearest first.

    Args:
        table: [V, width].
        vector: the point, [width].
        count: how many.
        by: which of the two orders them.
        without: tokens to leave out.
        among: which tokens may be answered, bool [V]; all by default.
    """
    by_cosine, by_distance = cosines(table, vector), distances(table, vector)
    farness = -by_cosine if by == "cosine" else by_distance
    allowed = torch.ones(len(table), dtype=torch.bool) if among is None else among.clone()
    allowed[list(without)] = False
    order = farness.masked_fill(~allowed, math.inf).argsort(stable=True)[: min(count, int(allowed.sum()))]
    return [Neighbour(int(i), float(by_cosine[i]), float(by_distance[i])) for i in order]


def neighbours_of(table: Tensor, token: int, count: int, *, among: Tensor | None = None) -> list[Neighbour]:
    """Return the tokens nearest to a token by cosine, itself left out; raise ConfigError if there is no such token."""
    _check_tokens(table, [token])
    return nearest(table, table[token], count, without=[token], among=among)


def solve(
    table: Tensor,
    *,
    plus: Collection[int],
    minus: Collection[int],
    count: int = 5,
    expected: int | None = None,
    among: Tensor | None = None,
) -> Answer:
    """Add and subtract tokens and look where that leads, by cosine: king - man + woman is ``plus=[king, woman]``.

    Raises ConfigError if a token is not of the table.
    """
    given = [*plus, *minus]
    _check_tokens(table, given if expected is None else [*given, expected])
    point = table[list(plus)].sum(0) - table[list(minus)].sum(0)
    everything = nearest(table, point, len(table), without=given, among=among)
    ranks = {neighbour.token: rank for rank, neighbour in enumerate(everything, start=1)}
    return Answer(
        neighbours=everything[:count],
        nearest_of_all=nearest(table, point, 1)[0],
        expected_rank=None if expected is None else ranks.get(expected),
    )


def dimension(table: Tensor) -> Dimension:
    """Measure how many dimensions a table fills, from its covariance.

    For V rows of independent noise the participation ratio is ``width / (1 + width / V)``: the second moment of the
    Marchenko-Pastur law. Raises ConfigError if all rows are the same.
    """
    num_rows, width = table.shape
    centred = table.double() - table.double().mean(0)
    variances = torch.linalg.eigvalsh(centred.T @ centred / num_rows).flip(0).clamp(min=0)
    if float(variances.sum()) == 0:
        raise ConfigError(f"all {num_rows} rows of the table are the same point, which fills no dimension")
    shares = variances / variances.sum()
    return Dimension(
        width=width,
        participation=float(1 / shares.square().sum()),
        entropy_rank=float(torch.special.entr(shares).sum().exp()),
        at_random=participation_at_random(num_rows, width),
        shares=shares,
    )


def participation_at_random(num_rows: int, width: int) -> float:
    """The participation ratio of the covariance of ``num_rows`` points of independent noise: less than the width."""
    return width / (1 + width / num_rows)


def chance_of_cosine(width: int, threshold: float) -> float:
    """How often two random directions have a cosine beyond ``threshold`` on either side.

    The cosine of two random directions is nearly normal with a standard deviation of ``1 / sqrt(width)``: within a
    tenth of the true chance for a width of 100 or more and thresholds up to three deviations.
    """
    return math.erfc(threshold * math.sqrt(width / 2))


def random_pairs(table: Tensor, count: int = 2000, seed: int = 0, *, among: Tensor | None = None) -> Tensor:
    """Cosines of ``count`` random pairs of distinct rows, [count]: what "near" has to be compared with."""
    rows = table if among is None else table[among]
    generator = torch.Generator().manual_seed(seed)
    first = torch.randint(len(rows), (count,), generator=generator)
    step = torch.randint(1, max(len(rows), 2), (count,), generator=generator)
    return nn.functional.cosine_similarity(rows[first], rows[(first + step) % len(rows)], dim=1)


def travel(before: Tensor, after: Tensor) -> Travel:
    """Measure how far each token moved; raise ConfigError if the tables have different shapes."""
    if before.shape != after.shape:
        raise ConfigError(
            f"the token tables have shapes {tuple(before.shape)} and {tuple(after.shape)}; "
            f"only checkpoints of one model and one tokenizer can be compared"
        )
    return Travel(
        distances=torch.linalg.vector_norm(after - before, dim=1),
        cosines=nn.functional.cosine_similarity(before, after, dim=1),
        moved=(before != after).any(dim=1),
    )


def _check_tokens(table: Tensor, tokens: Collection[int]) -> None:
    foreign = [token for token in tokens if not 0 <= token < len(table)]
    if foreign:
        raise ConfigError(f"token {foreign[0]} is outside the vocabulary of {len(table)}")
