"""Which source each row of the global batch comes from: a pure function of (seed, phase, step).

Systematic draws: one random start per run, then every batch gives its extra rows to the largest remainders of what its
weights earn plus what earlier batches left owing. Each batch's count is within one of ``B w_i``; the running count of
every source stays within 2 rows of ``sum w_i`` at every batch (worst seen: 1.6), also while the weights change (random
draws drift like the square root). The price of that carry: over seeds, a row's marginal probability is exactly ``w_i``
while the weights stay as they are, but the first batch after a change may be off by a quarter of a row, the second by
a tenth, and by the fifth that is gone; its sum over the run is never more than the carry, about a row per source. No
scheme can have all of it: while weights change at will, running counts within a row, sources of weight 0 never drawn
and exact marginals in every batch exclude each other.
"""

from __future__ import annotations

import functools

import numpy as np

from mixer.sampling.phases import Phase
from mixer.sampling.randomness import uniforms
from mixer.system.kernels import compiled
from mixer.types import Array, IntArray

ROUNDING = 1e-10  # rows: 0.29 * 100 is 28.999999999999996 in binary, and means 29
FEW = 64  # numbers that one sort orders faster than a partition and two searches, 2 us against 12
SETTLING_BATCHES = 64  # bias of the first batch: 0.07 rows without them, below 0.005 after 16


def initial_owed(seed: int, weights: Array, batch_rows: int) -> Array:
    """Return the random start, [K]: what would be owed if ``weights``, [K], had been in force for long.

    A point uniform modulo the lattice of whole rows that sum to 0 stays uniform under every batch; the settling
    batches bring it to where the draws keep it. Sources that earn whole rows, which the draws leave alone, start among
    themselves; sources of weight 0 owe nothing, so that appending one moves no draw.
    """
    _, part = _whole_and_part(weights, batch_rows)
    is_whole = np.abs(part) <= ROUNDING
    point = uniforms(weights.size, seed, "draws.start")
    owed = np.zeros(weights.size)
    for members in (np.flatnonzero(~is_whole), np.flatnonzero(is_whole & (weights > 0))):
        owed[members] = _lattice_point(point[members])
    return systematic_counts(weights, owed, length=SETTLING_BATCHES, batch_rows=batch_rows)[1]


def _lattice_point(point: Array) -> Array:
    """Return the point's first coordinates, and a last one that makes the sum 0, each brought within (-1, 1)."""
    point[-1:] = -point[:-1].sum()
    point -= np.floor(point)
    point[_smallest(-point, round(float(point.sum())))] -= 1.0
    return point - point.mean() if point.size else point  # the mean is rounding alone


def systematic_counts(weights: Array, owed: Array, *, length: int, batch_rows: int) -> tuple[IntArray, Array]:
    """Return the rows of each source in each batch of a phase, [length, K], and what is owed after it, [K].

    Args:
        weights: of the phase, [K].
        owed: rows owed at its start, [K].
        length: steps of the phase.
        batch_rows: B, rows of the global batch.
    """
    whole, part = _whole_and_part(weights, batch_rows)
    num_extra = batch_rows - int(whole.sum())  # rows that go to the largest remainders
    (candidates,) = (part > ROUNDING).nonzero()
    gains, unpaid = part[candidates], -owed[candidates]  # what is owed, negated: one sort puts the most first
    counts = whole[None].repeat(length, axis=0)
    _give_extra_rows(counts, candidates, gains, unpaid, num_extra)
    owed = owed + part * length  # of those that are no candidates: rounding alone
    owed[candidates] = 0.0 - unpaid  # no negative zeros
    return counts, owed


def _give_extra_rows(counts: IntArray, candidates: IntArray, gains: Array, unpaid: Array, num_extra: int) -> None:
    """Add the extra rows of each batch to ``counts``, [length, K], and take them off ``unpaid``, [n]."""
    if compiled is not None:
        compiled.pay_the_most_owed(gains, unpaid, min(num_extra, gains.size), candidates, counts)
        return
    extra = np.zeros((len(counts), gains.size))
    for row in extra:
        unpaid -= gains
        row[_smallest(unpaid, num_extra)] = 1.0
        unpaid += row
    counts[:, candidates] += extra.astype(np.int64)


def _whole_and_part(weights: Array, batch_rows: int) -> tuple[IntArray, Array]:
    """Return the whole rows that weights earn in a batch and the rest of a row, [K]; their sum is exact."""
    earned = weights * batch_rows
    whole = np.floor(earned + ROUNDING)
    return whole.astype(np.int64), earned - whole


def _smallest(values: Array, num: int) -> IntArray:
    """Return the places of the ``num`` smallest values, ties to the first; O(K), where sorting would be K log K."""
    if values.size <= FEW:
        return values.argsort(kind="stable")[:num]
    if num == 0:
        return np.zeros(0, dtype=np.int64)
    greatest = np.partition(values, num - 1)[num - 1]
    below = np.flatnonzero(values < greatest)
    return np.concatenate([below, np.flatnonzero(values == greatest)[: num - below.size]])


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


@functools.lru_cache(maxsize=8)  # the walk and the delivery ask for the same; phases are told apart by identity
def phase_counts(phase: Phase, *, seed: int, method: str, batch_rows: int) -> tuple[IntArray, Array]:
    """Return the counts of a phase's batches, [length, K], and what is owed after it, [K]; both read-only."""
    counts, owed = _phase_counts(phase, seed=seed, method=method, batch_rows=batch_rows)
    counts.flags.writeable = owed.flags.writeable = False
    return counts, owed


def _phase_counts(phase: Phase, *, seed: int, method: str, batch_rows: int) -> tuple[IntArray, Array]:
    if method == "multinomial":
        counts = multinomial_counts(
            phase.weights, seed=seed, start=phase.start, length=phase.length, batch_rows=batch_rows
        )
        return counts, phase.owed + phase.weights * (batch_rows * phase.length) - counts.sum(axis=0)
    return systematic_counts(phase.weights, phase.owed, length=phase.length, batch_rows=batch_rows)


def plan_rows(counts: IntArray, drawn: IntArray, *, seed: int, start: int) -> tuple[IntArray, IntArray]:
    """Return which row of which source stands where in each batch of a phase.

    The rows of a batch, ``counts`` of each source, stand in an order keyed by (seed, the phase's first step); rank r of
    W takes rows ``r::W``. Rows of a source are numbered from 0 over the whole run, so that where a run stands in a
    source follows from its phase and its step.

    Args:
        counts: rows of each source in each batch, [L, K], every batch of B rows.
        drawn: rows of each source drawn before the phase, [K].
        seed: of the curriculum.
        start: first step of the phase.

    Returns:
        Source of each row and its number in that source, int64 [L, B] both.
    """
    length, num_sources = counts.shape
    num_rows = int(counts[0].sum())
    places_drawn = uniforms(length * num_rows, seed, "draws.order", start).reshape(length, num_rows)
    order = places_drawn.argsort(axis=1, kind="stable")
    if compiled is not None:
        source_ids, numbers = np.empty_like(order), np.empty_like(order)
        compiled.lay_rows(np.ascontiguousarray(counts), drawn.copy(), order, source_ids, numbers)
        return source_ids, numbers
    drawn_runs = np.flatnonzero(counts)  # in each batch the rows of one source, then of the next
    runs = counts.ravel()[drawn_runs]
    firsts = (drawn + counts.cumsum(axis=0) - counts).ravel()[drawn_runs]
    source_ids = (drawn_runs % num_sources).repeat(runs)
    numbers = (firsts - runs.cumsum() + runs).repeat(runs) + np.arange(length * num_rows)
    order += np.arange(length)[:, None] * num_rows
    return source_ids.take(order), numbers.take(order)
