"""The walk without data: a synthetic learner stands in for the model, so that bounds and policies can be tried.

Each source's loss is a power law of the tokens seen of it plus noise that shrinks with the rows averaged. It shows how
a walk moves under its bounds, never how well a real model would learn.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from mixer.config.curriculum import Curriculum
from mixer.journal.file import Journal
from mixer.losses import SourceLosses
from mixer.sampling.draws import phase_counts
from mixer.sampling.phases import Phase
from mixer.sampling.randomness import generator
from mixer.types import Array, IntArray
from mixer.walk.walk import Walk


class SyntheticLearner:
    """Losses ``floor + scale (1 + N / n_0)^-alpha`` per source, with the spread of rows of a real text source.

    The constants of each source come from (seed, position); floors are 1 to 3 nats, scales 3 to 6, exponents 0.15 to
    0.45 and spreads of rows 0.2 to 0.9.
    """

    def __init__(self, num_sources: int, *, seed: int, sequence_length: int) -> None:
        constants = generator(seed, "simulation.sources").random((4, num_sources))
        self._floor, self._scale = 1.0 + 2.0 * constants[0], 3.0 + 3.0 * constants[1]
        self._alpha, self._spread = 0.15 + 0.3 * constants[2], 0.2 + 0.7 * constants[3]
        self._seed = seed
        self._sequence_length = sequence_length
        self.tokens = np.zeros(num_sources)

    def expected(self) -> Array:
        """Return the mean loss of each source now, nats per token, [K]."""
        return np.asarray(self._floor + self._scale * (1.0 + self.tokens / 20_000) ** -self._alpha)

    def learn(self, step: int, rows: IntArray) -> SourceLosses:
        """Return the losses before the step, then learn from ``rows`` of each source, [K]."""
        noise = generator(self._seed, "simulation.noise", step).standard_normal(rows.size)
        losses = np.maximum(0.01, self.expected() + self._spread * noise / np.sqrt(np.maximum(rows, 1)))
        tokens = rows * self._sequence_length
        self.tokens += tokens
        spread = np.minimum(self._spread, losses)  # no row's loss is negative
        squares = rows * losses**2 + np.maximum(rows - 1, 0) * spread**2
        return SourceLosses(rows=rows, tokens=tokens, loss_sums=losses * tokens, square_sums=squares)


def simulate(curriculum: Curriculum, num_steps: int, *, journal: Journal | None = None) -> Iterator[tuple[int, Phase]]:
    """Drive a walk for ``num_steps`` steps; yield (step, its phase) after each was learned from."""
    walk = Walk(curriculum, journal=journal)
    learner = SyntheticLearner(len(curriculum.names), seed=curriculum.seed, sequence_length=curriculum.sequence_length)
    counts = np.zeros((0, 0), dtype=np.int64)
    for step in range(num_steps):
        phase = walk.phase_at(step)
        if phase.start == step:
            counts, _ = phase_counts(
                phase, seed=curriculum.seed, method=curriculum.draws, batch_rows=curriculum.batch_rows
            )
        walk.report(step, learner.learn(step, counts[step - phase.start]))
        yield step, phase
