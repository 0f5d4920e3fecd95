"""Which source each row of the global batch comes from: a pure function of (seed, phase, step).

Systematic draws: one random start per run, then every batch gets the largest remainders of what its weights earn plus
what earlier batches left owing. Each batch's count is within one of ``B w_i``; the running count of every source stays
within about one row of ``sum w_i`` at every batch, also while the weights change (random draws drift like the square
root). The carry is rounded to the nearest point of the root lattice A_(K-1); a start that is uniform on the lattice's
Voronoi cell stays uniform there, so a row's marginal probability is ``w_i``.
"""

from __future__ import annotations

import numpy as np

from mixer.phases import Phase
from mixer.randomness import uniforms
from mixer.types import Array, BoolArray, IntArray


def initial_owed(seed: int, is_active: BoolArray) -> Array:
    """Return the random start, [K]: uniform on the Voronoi cell of A_(k-1) over the active sources, 0 elsewhere."""
    owed = np.zeros(is_active.size)
    point = uniforms(int(is_active.sum()), seed, "draws.start")
    point[-1:] = -point[:-1].sum()  # uniform modulo the lattice of whole rows that sum to 0
    point -= np.floor(point)
    surplus = round(float(point.sum()))
    point[np.argsort(-point, kind="stable")[:surplus]] -= 1.0
    owed[is_active] = point - point.mean()  # the mean is rounding alone
    return owed


def systematic_counts(weights: Array, owed: Array, *, length: int, batch_rows: int) -> tuple[IntArray, Array]:
    """Return the rows of each source in each batch of a phase, [length, K], and what is owed after it, [K].

    Args:
        weights: of the phase, [K].
        owed: rows owed at its start, [K].
        length: steps of the phase.
        batch_rows: B, rows of the global batch.
    """
    earned = weights * batch_rows
    whole = np.floor(earned)
    part = earned - whole
    num_extra = batch_rows - int(whole.sum())  # rows that go to the largest remainders
    candidates = np.flatnonzero(part > 0)
    counts = np.broadcast_to(whole.astype(np.int64), (length, weights.size)).copy()
    owed = owed.copy()
    for batch in counts:
        owed += part
        if num_extra:
            extra = candidates[np.argsort(-owed[candidates], kind="stable")[:num_extra]]
            batch[extra] += 1
            owed[extra] -= 1.0
    return counts, owed


def multinomial_counts(weights: Array, *, seed: int, start: int, length: int, batch_rows: int) -> IntArray:
    """Return independent draws with replacement, [length, K]: the plain alternative, which drifts like sqrt(rows)."""
    edges = np.cumsum(weights)
    edges[np.flatnonzero(weights > 0)[-1] :] = 1.0  # rounding must not reach a source of weight 0
    picks = [
        np.searchsorted(edges, uniforms(batch_rows, seed, "draws", step), side="right")
        for step in _steps(start, length)
    ]
    return np.stack([np.bincount(pick, minlength=weights.size) for pick in picks]).astype(np.int64)


def _steps(start: int, length: int) -> range:
    return range(start, start + length)


def phase_counts(phase: Phase, *, seed: int, method: str, batch_rows: int) -> tuple[IntArray, Array]:
    """Return the counts of a phase's batches, [length, K], and what is owed after it, [K]."""
    if method == "multinomial":
        counts = multinomial_counts(
            phase.weights, seed=seed, start=phase.start, length=phase.length, batch_rows=batch_rows
        )
        return counts, phase.owed + phase.weights * (batch_rows * phase.length) - counts.sum(axis=0)
    return systematic_counts(phase.weights, phase.owed, length=phase.length, batch_rows=batch_rows)


def batch_sources(counts: IntArray, *, seed: int, step: int) -> IntArray:
    """Return the source index of each row of a global batch, [B]: ``counts``, [K], in an order keyed by (seed, step).

    Rank r of W takes rows ``r::W``.
    """
    in_order = np.repeat(np.arange(counts.size), counts)
    return in_order[np.argsort(uniforms(in_order.size, seed, "draws.order", step), kind="stable")]
