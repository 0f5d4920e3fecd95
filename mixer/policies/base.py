"""What every policy is: settings only, with named arrays for what it has learned, and a choice that says why."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np

from mixer.losses import SourceLosses
from mixer.region.region import Region
from mixer.types import Array, BoolArray, State

PIVOT_MEMORY = 0.25  # what a pivot leaves of the weight of each surviving source's statistics


@dataclass(frozen=True, eq=False)
class Choice:
    """Weights for a phase and why: the vertex stepped to and the parts of each source's index, all [K]."""

    weights: Array
    vertex: Array | None = None
    parts: dict[str, Array] = field(default_factory=dict)


class Policy(Protocol):
    """Chooses the weights of phases that are not random. A policy inherits from it and sets what differs from here.

    Attributes:
        kind: what its phases are called, "fixed" if no choice ever rests on a loss.
        teleports: whether the phase law's random phases happen.
        is_by_step: ``absorb`` looks at the steps one by one; else it may be given their sum.
    """

    kind: Literal["bandit", "fixed"] = "bandit"
    teleports: Literal["by chance", "always", "never"] = "by chance"
    is_by_step: bool = False

    @property
    def looks_at_losses(self) -> bool:
        """Whether its choices rest on reported losses; without, any phase may be decided at any time."""
        return self.kind != "fixed"

    @property
    def in_sums(self) -> bool:
        """Whether a decision uses reports that it could be given as one sum, whole or not at all."""
        return not self.is_by_step

    @abstractmethod
    def initial(self, num_sources: int) -> State:
        """Return an empty memory."""

    @abstractmethod
    def absorb(self, state: State, steps: Sequence[SourceLosses], *, since: int, until: int) -> State:
        """Return the memory after learning from ``steps``, in order.

        Args:
            state: memory before.
            steps: one SourceLosses per step, summed over ranks; may be empty.
            since: first step of the phase decided last.
            until: first step of the phase to decide now.
        """

    def absorb_probe(self, state: State, losses: SourceLosses, *, step: int) -> State:
        """Return the memory after learning the held-out losses of one probe; as it was, unless a policy uses them.

        A decision calls it for each probe of steps below ``start - lag`` that was answered, in order of steps, and
        then ``absorb``. What some ranks answer after that, the next decision passes on by itself.

        Args:
            state: memory before.
            losses: of the held-out rows, [K + M], summed over ranks: the K sources in declared order, then the M
                targets (``role: target``) in theirs. A source without held-out rows has 0 rows.
            step: the first step of the phase whose mixture is trained on next: the model has learned from the steps
                before it alone.
        """
        return state

    @abstractmethod
    def after_pivot(self, state: State) -> State:
        """Return the memory after a pivot: surviving statistics keep a quarter of their weight."""

    @abstractmethod
    def choose(
        self, state: State, region: Region, weights: Array, unique_tokens: Array, alarmed: BoolArray | None = None
    ) -> Choice:
        """Return the next weights.

        Args:
            state: memory.
            region: what may be reached now.
            weights: where the walk stands, [K].
            unique_tokens: distinct tokens of each source, 0 where unknown, [K].
            alarmed: sources that the guard holds for being learned by heart, [K]; their index counts as 0.
        """


def silenced(parts: dict[str, Array], alarmed: BoolArray | None) -> dict[str, Array]:
    """Return the parts of an index with that of sources in alarm at 0, and which they are; the same if none is."""
    if alarmed is None or not alarmed.any():
        return parts
    return {**parts, "index": np.where(alarmed, 0.0, parts["index"]), "alarm": alarmed.astype(np.float64)}


def silenced_point(point: Array, alarmed: BoolArray | None) -> Array:
    """Return the mixture without the sources in alarm, the others in proportion; as it was if nothing else is left."""
    if alarmed is None or not alarmed.any():
        return point
    left = np.where(alarmed, 0.0, point)
    total = float(left.sum())
    return left / total if total > 0 else point


def best_vertex(region: Region, parts: dict[str, Array]) -> Array:
    """Return the vertex that is best for the index; equal ones go to the fewest tokens, sources in alarm last."""
    ties = np.where(parts["alarm"] > 0, np.inf, parts["tokens"]) if "alarm" in parts else parts["tokens"]
    return region.best_vertex(parts["index"], ties=ties)


def scaled(state: State, names: Sequence[str], factor: float) -> State:
    """Return a copy of ``state`` with the named arrays multiplied by ``factor``."""
    return {name: values * factor if name in names else values for name, values in state.items()}
