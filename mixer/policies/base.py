"""What every policy is: settings only, with named arrays for what it has learned, and a choice that says why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from mixer.region import Region
from mixer.rewards import SourceLosses, State
from mixer.types import Array

PIVOT_MEMORY = 0.25  # what a pivot leaves of the weight of each surviving source's statistics


@dataclass(frozen=True, eq=False)
class Choice:
    """Weights for a phase and why: the vertex stepped to and the parts of each source's index, all [K]."""

    weights: Array
    vertex: Array | None = None
    parts: dict[str, Array] = field(default_factory=dict)


class Policy(Protocol):
    """Chooses the weights of phases that are not random."""

    kind: Literal["bandit", "fixed"]  # what its phases are called
    teleports: Literal["by chance", "always", "never"]  # whether the phase law's random phases happen
    is_by_step: bool  # whether ``absorb`` looks at the steps one by one; else it may be given their sum

    def initial(self, num_sources: int) -> State:
        """Return an empty memory."""

    def absorb(self, state: State, steps: Sequence[SourceLosses], *, since: int, until: int) -> State:
        """Return the memory after learning from ``steps``, in order.

        Args:
            state: memory before.
            steps: one SourceLosses per step, summed over ranks; may be empty.
            since: first step of the phase decided last.
            until: first step of the phase to decide now.
        """

    def after_pivot(self, state: State) -> State:
        """Return the memory after a pivot: surviving statistics keep a quarter of their weight."""

    def choose(self, state: State, region: Region, weights: Array, unique_tokens: Array) -> Choice:
        """Return the next weights.

        Args:
            state: memory.
            region: what may be reached now.
            weights: where the walk stands, [K].
            unique_tokens: distinct tokens of each source, 0 where unknown, [K].
        """


def scaled(state: State, names: Sequence[str], factor: float) -> State:
    """Return a copy of ``state`` with the named arrays multiplied by ``factor``."""
    return {name: values * factor if name in names else values for name, values in state.items()}
