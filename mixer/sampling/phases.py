"""The law of phases: their kind and length, from (seed, phase index) alone, never from rewards.

That independence is what lets random phases be used later as a randomised experiment. Lengths stay within
[min_steps, max_steps] and still end exactly on every boundary (the warmup's end, a pivot): a length is only drawn if
what is left to the next boundary can be cut into whole phases too.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from mixer.sampling.randomness import two_uniforms
from mixer.types import Array, IntArray

Kind = Literal["random", "bandit", "fixed"]


@dataclass(frozen=True, eq=False)
class Phase:
    """A run of 7 to 42 steps with one mixture.

    Attributes:
        index: 0, 1, 2, ... over the run.
        start, length: it covers steps ``start <= s < start + length``.
        kind: "random" (a uniformly random point), "bandit" (a step towards the best vertex), or "fixed" for policies
            that never look at losses.
        regime: the planned span of the run that it belongs to.
        names: the K sources.
        weights: float64 [K], sum 1.
        drawn: rows drawn of each source before this phase, [K].
        owed: rows that the weights so far have earned each source beyond those drawn, each within (-1, 1) or so, [K].
    """

    index: int
    start: int
    length: int
    kind: Kind
    regime: str
    names: tuple[str, ...]
    weights: Array
    drawn: IntArray
    owed: Array

    @property
    def end(self) -> int:
        """The first step after this phase."""
        return self.start + self.length

    def by_source(self) -> dict[str, float]:
        """Return the weights by source name."""
        return dict(zip(self.names, self.weights.tolist(), strict=True))


@functools.lru_cache(maxsize=4)  # kind and length are asked for one after the other
def _draws(seed: int, index: int) -> tuple[float, float]:
    return two_uniforms(seed, "phase", index)


@dataclass(frozen=True)
class PhaseLaw:
    """Kind and length of each phase; ``initial_random`` phases begin the run at random."""

    seed: int
    min_steps: int = 7
    max_steps: int = 42
    random_probability: float = 0.1
    initial_random: int = 0
    random_decay: float | None = None  # phases

    def is_random(self, index: int) -> bool:
        """Return whether phase ``index`` teleports."""
        kind_draw, _ = _draws(self.seed, index)
        return index < self.initial_random or bool(kind_draw < self.probability_random(index))

    def probability_random(self, index: int) -> float:
        """Return the probability with which phase ``index`` is random: 1 for the first ones.

        With a decay tau, the j-th phase after those has ``random_probability * (1 + j / tau)^(-1/3)``: epsilon-greedy
        with epsilon ~ t^(-1/3) has regret of order T^(2/3) (Slivkins, Introduction to Multi-Armed Bandits, 2019,
        theorem 1.6).
        """
        later = index - self.initial_random
        if later < 0:
            return 1.0
        decay = 1.0 if self.random_decay is None else (1.0 + later / self.random_decay) ** (-1 / 3)
        return self.random_probability * decay

    def length(self, index: int, remaining: int | None = None) -> int:
        """Return the length of phase ``index``, uniform over the lengths that reach the boundary in whole phases.

        Args:
            index: the phase.
            remaining: steps to the next boundary; None if there is none ahead. ``fits(remaining)`` must hold.
        """
        lengths: Sequence[int] = range(self.min_steps, self.max_steps + 1)
        if remaining is not None and remaining - self.max_steps < self._all_fit_from:
            lengths = [n for n in lengths if n <= remaining and self.fits(remaining - n)]
            if not lengths:
                raise ValueError(f"no phases of {self.min_steps} to {self.max_steps} steps fill {remaining} steps")
        _, length_draw = _draws(self.seed, index)
        return lengths[int(length_draw * len(lengths))]

    @functools.cached_property
    def _all_fit_from(self) -> float:
        """The number of steps from which on every number fits: k phases reach where k + 1 phases begin."""
        spread = self.max_steps - self.min_steps
        return max(1, -(-(self.min_steps - 1) // spread)) * self.min_steps if spread else math.inf

    def fits(self, steps: int) -> bool:
        """Return whether some whole number of phases fills ``steps`` exactly."""
        return steps == 0 or (steps > 0 and -(-steps // self.max_steps) <= steps // self.min_steps)

    def nearest_fits(self, steps: int) -> tuple[int | None, int]:
        """Return the nearest numbers of steps below and above ``steps`` that whole phases fill."""
        below = next((n for n in range(steps - 1, 0, -1) if self.fits(n)), None)
        return below, next(n for n in range(max(steps, 0) + 1, steps + self.min_steps + 2) if self.fits(n))

    def boundary_problems(
        self, boundaries: Sequence[tuple[int, str]], *, since: int = 0, origin: str = "the start"
    ) -> list[str]:
        """Return a sentence for each boundary, (step, what), that no phases can end on; they are in order of step."""
        problems = []
        for step, what in boundaries:
            if not self.fits(step - since):
                below, above = self.nearest_fits(step - since)
                earlier = f"{since + below} or " if below is not None else ""
                problems.append(
                    f"{what} at step {step} is {step - since} steps after {origin}, and phases of {self.min_steps} to "
                    f"{self.max_steps} steps cannot fill that; move it to step {earlier}{since + above}"
                )
            since, origin = step, what
        return problems
