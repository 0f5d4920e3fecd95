"""A synthetic learner whose truth is known: worlds of power-law sources, and the best walk through each of them.

It finds out why a policy does well or badly; it says nothing about how large an effect is on a real model.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from mixer.losses import SourceLosses
from mixer.region.region import Region
from mixer.types import Array, IntArray

REPETITION = 15.4  # R* of Muennighoff et al. 2023
MEMORISED = 4.0  # epochs in which the training loss of repeated text falls by a factor e
JITTER = 0.02  # nats: what one optimizer step moves the losses of all sources by
BATCH_ROWS, ROW_TOKENS = 64, 64
NOISE, GULLY = 0, 1  # positions of the planted sources, where there are any


@dataclass(frozen=True, eq=False)
class World:
    """What is true of K sources; losses are ``eps + beta (1 + E / first)^-alpha`` nats, E the effective tokens.

    Attributes:
        eps, beta, alpha, first: of each source's curve, [K].
        unique: distinct tokens of each source, inf if it never ends, [K].
        spread: standard deviation of the mean loss of a row, nats, [K].
        wanted: weight of each source's held-out loss in the goal, 0 for planted ones, sum 1, [K].
        transfer: what a token of source i (row) counts for source j (column), [K, K]; None: only for itself.
        rates: what a token of a source is worth in each of S equal spans of the run, [S, K].
    """

    eps: Array
    beta: Array
    alpha: Array
    first: Array
    unique: Array
    spread: Array
    wanted: Array
    transfer: Array | None
    rates: Array

    def heldout(self, credit: Array) -> Array:
        """Return the held-out losses after ``credit``, the tokens of each source times what they were worth, [K]."""
        distinct, _ = self._distinct(credit)
        effective = distinct if self.transfer is None else distinct @ self.transfer
        return np.asarray(self.eps + self.beta * (1 + effective / self.first) ** -self.alpha)

    def goal(self, credit: Array) -> float:
        """Return the mean held-out loss over what is wanted, nats."""
        return float(self.wanted @ self.heldout(credit))

    def training(self, tokens: Array, credit: Array) -> Array:
        """Return the training losses: those of repeated text fall because it is learned by heart, nats, [K]."""
        repeated = np.maximum(tokens / self.unique - 1.0, 0.0)
        return np.asarray(self.heldout(credit) * np.exp(-repeated / MEMORISED))

    def gain(self, credit: Array) -> Array:
        """Return how fast the goal falls with the credit of each source, nats per token, [K]."""
        distinct, rate = self._distinct(credit)
        effective = distinct if self.transfer is None else distinct @ self.transfer
        steepness = self.wanted * self.alpha * self.beta / self.first
        falls = steepness * (1 + effective / self.first) ** (-self.alpha - 1)
        return rate * (falls if self.transfer is None else self.transfer @ falls)

    def _distinct(self, credit: Array) -> tuple[Array, Array]:
        """Return what repeated tokens are worth in distinct ones, and its slope, [K] (Muennighoff et al. 2023)."""
        is_repeated = credit > self.unique
        unique = np.where(is_repeated, self.unique, 1.0)
        fading = np.exp(-np.where(is_repeated, credit / unique - 1.0, 0.0) / REPETITION)
        return np.where(is_repeated, unique * (1 + REPETITION * (1 - fading)), credit), fading


def make_world(kind: str, num_sources: int, *, steps: int, seed: int) -> World:
    """Return a world drawn from ``seed``.

    Args:
        kind: ``stationary``, ``transfer``, ``drifting``, ``rotting`` or ``abrupt``.
        num_sources: K; from 8 on, the first is noise and the second a gully of few documents.
        steps: of the run, which sizes of sources are measured by.
        seed: of all that is drawn.
    """
    rng = np.random.default_rng([seed, num_sources])
    budget = float(steps * BATCH_ROWS * ROW_TOKENS)
    share = budget / num_sources
    world = World(
        eps=rng.uniform(1.0, 3.0, num_sources),
        beta=rng.uniform(2.0, 5.0, num_sources),
        alpha=rng.uniform(0.15, 0.6, num_sources),
        first=share * 10 ** rng.uniform(-2.5, -0.5, num_sources),
        unique=np.full(num_sources, np.inf),
        spread=rng.uniform(0.3, 0.9, num_sources),
        wanted=np.ones(num_sources),
        transfer=None,
        rates=np.ones((1, num_sources)),
    )
    if kind == "transfer":
        groups = rng.integers(0, max(num_sources // 4, 1), num_sources)
        shared = (groups[:, None] == groups) * rng.uniform(0.0, 0.6, (num_sources, 1))
        np.fill_diagonal(shared, 1.0)
        world = replace(world, transfer=shared)
    elif kind == "drifting":
        middle = (np.arange(8)[:, None] + 0.5) / 8
        world = replace(world, rates=1 + 0.9 * np.sin(2 * np.pi * (middle + rng.uniform(size=num_sources))))
    elif kind == "abrupt":
        world = replace(world, rates=rng.choice([0.1, 1.9], (2, num_sources)))
    elif kind == "rotting":
        world = replace(world, unique=share * 10 ** rng.uniform(-1.3, 1.0, num_sources))
    elif kind != "stationary":
        raise ValueError(f"unknown kind of world {kind!r}")
    if num_sources >= 8:
        world = _planted(world, share)
    return replace(world, wanted=world.wanted / world.wanted.sum())


def _planted(world: World, share: float) -> World:
    """Return the world with noise first and a gully of few documents second, neither of them wanted."""
    alpha, eps, beta, unique, wanted = (
        a.copy() for a in (world.alpha, world.eps, world.beta, world.unique, world.wanted)
    )
    alpha[NOISE], eps[NOISE], beta[NOISE] = 0.0, 5.5, 1.0
    unique[GULLY] = share / 20
    wanted[[NOISE, GULLY]] = 0.0
    transfer = None
    if world.transfer is not None:
        transfer = world.transfer.copy()
        for planted in (NOISE, GULLY):
            transfer[planted, :] = transfer[:, planted] = 0.0
            transfer[planted, planted] = 1.0
    return replace(world, alpha=alpha, eps=eps, beta=beta, unique=unique, wanted=wanted, transfer=transfer)


class Learner:
    """Trains on what it is given in a world, and reports losses with noise."""

    def __init__(self, world: World, *, steps: int, seed: int) -> None:
        self._world, self._steps = world, steps
        self._rng = np.random.default_rng([seed, 1])
        self.tokens = np.zeros(world.eps.size)
        self.credit = np.zeros(world.eps.size)

    def train(self, step: int, rows: IntArray) -> SourceLosses:
        """Return the losses of a batch before its update, then learn from it."""
        world = self._world
        losses = world.training(self.tokens, self.credit)
        noise = self._rng.standard_normal(rows.size) * world.spread / np.sqrt(np.maximum(rows, 1))
        means = np.maximum(losses + noise + JITTER * self._rng.standard_normal(), 0.0)
        tokens = rows * ROW_TOKENS
        span = min(step * len(world.rates) // self._steps, len(world.rates) - 1)
        self.tokens = self.tokens + tokens
        self.credit = self.credit + tokens * world.rates[span]
        return SourceLosses(rows=rows, tokens=tokens, loss_sums=means * tokens, square_sums=means**2 * rows)

    def probe(self, num_rows: int) -> SourceLosses:
        """Return the losses of so many held-out rows of each source: the same rows every time, so without noise."""
        means = self._world.heldout(self.credit)
        rows = np.full(means.size, num_rows, dtype=np.int64)
        tokens = rows * ROW_TOKENS
        return SourceLosses(rows=rows, tokens=tokens, loss_sums=means * tokens, square_sums=means**2 * rows)

    def goal(self) -> float:
        """Return the mean held-out loss over what is wanted, nats."""
        return self._world.goal(self.credit)


@dataclass(frozen=True, eq=False)
class Best:
    """The best walk found: weights of each span [S, K], its final loss, and how far that is off at most, nats."""

    walk: Array
    loss: float
    gap: float


def best_walk(world: World, region: Region, *, steps: int) -> Best:
    """Return the best walk that stays in a region.

    Without transfer and in one span the loss is a sum of convex functions of one weight each: bisection on the price of
    a token solves it. Else the program is convex, and accelerated projected gradient solves it (Beck and Teboulle 2009,
    with restarts). ``gap`` is that of Frank and Wolfe: no walk in the region ends below ``loss - gap``.
    """
    span = steps * BATCH_ROWS * ROW_TOKENS / len(world.rates)
    if world.transfer is None and len(world.rates) == 1:
        walk = region.project(_priced(world, region, span))[None]
    else:
        walk = _descended(world, region, span)
    slope = -span * world.rates * world.gain(span * (walk * world.rates).sum(axis=0))
    gap = sum(float(g @ (w - region.best_vertex(-g))) for g, w in zip(slope, walk, strict=True))
    return Best(walk, world.goal(span * (walk * world.rates).sum(axis=0)), gap)


def _priced(world: World, region: Region, span: float) -> Array:
    """Return the weights at which one more token of each free source gains the same, [K]."""

    def weights_at(price: float) -> Array:
        low, high = region.lower.copy(), region.upper.copy()
        for _ in range(60):
            middle = (low + high) / 2
            is_worth_it = world.gain(middle * span) > price
            low, high = np.where(is_worth_it, middle, low), np.where(is_worth_it, high, middle)
        return (low + high) / 2

    dearest = float(world.gain(np.zeros(world.eps.size)).max())
    low, high = dearest * 1e-15, dearest
    for _ in range(100):
        price = math.sqrt(low * high)
        low, high = (price, high) if weights_at(price).sum() > 1 else (low, price)
    return weights_at(high)


def _descended(world: World, region: Region, span: float, *, rounds: int = 600) -> Array:
    """Return the walk that accelerated projected gradient reaches from the uniform one, [S, K]."""

    def loss(walk: Array) -> float:
        return world.goal(span * (walk * world.rates).sum(axis=0))

    walk = np.tile(region.project(np.full(world.eps.size, 1.0 / world.eps.size)), (len(world.rates), 1))
    ahead, momentum, length = walk, 1.0, 1.0
    for _ in range(rounds):
        slope = -span * world.rates * world.gain(span * (ahead * world.rates).sum(axis=0))
        here = loss(ahead)
        while True:
            moved = np.stack([region.project(w) for w in ahead - length * slope])
            change = moved - ahead
            bound = here + float((slope * change).sum()) + float((change**2).sum()) / (2 * length)
            if loss(moved) <= bound + 1e-15 or length < 1e-12:
                break
            length /= 2
        if loss(moved) > loss(walk):  # momentum led astray: begin again from the best so far
            if momentum == 1.0:
                break
            ahead, momentum = walk, 1.0
            continue
        following = (1 + math.sqrt(1 + 4 * momentum**2)) / 2
        ahead = moved + (momentum - 1) / following * (moved - walk)
        ahead = np.maximum(ahead, 0.0)
        walk, momentum, length = moved, following, length * 1.1
    return walk
