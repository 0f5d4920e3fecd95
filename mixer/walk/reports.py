"""Reports that decisions learn from together, and many of them as one short text for saved states.

Of what a report says only its loss sums are noise, some 25 bits for each source that was drawn; all else is nearly
known from the rest: how many tokens a row has, the squares of a source with one row, which report of one was lowest.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mixer.errors import StateMismatchError
from mixer.losses import SQUARE_GRID, SUM_GRID, SourceLosses, add_losses
from mixer.system.packed import as_bytes, as_text, squeezed, unsqueezed
from mixer.types import Array, BoolArray, IntArray

MOST_PACKED = 2.0**52  # steps of a grid, in all: beyond, sums are kept as they are
AS_THEY_ARE = "="  # begins such a text; no other does
NOISY_BYTES = 3  # of a sum of losses on the grid: those that no compression makes smaller
_SIZES = struct.Struct("<IBIB")  # how many numbers and how many bytes of each, of the plain and of the noisy ones


@dataclass(frozen=True, eq=False)
class Arrived:
    """Reports that one decision learns from together: their steps, from the first to the last, and their losses.

    ``lows``, for a guard, is the report with the lowest mean loss of each source, which a sum would hide: its loss sum,
    tokens, rows and step, [4, K]; zeros for a source without rows. ``is_learned`` says that the policy has learned from
    them already, ahead of the decision. ``due`` belongs to the decision that they are kept for, which learns from all
    there is of steps below it.
    """

    first_step: int
    last_step: int
    reports: int
    losses: SourceLosses
    lows: Array | None = None
    is_learned: bool = False
    due: int = 0

    def joined(self, other: Arrived) -> Arrived:
        """Return both as one; losses lie on a grid, so the sum is exact in any order."""
        return Arrived(
            min(self.first_step, other.first_step),
            max(self.last_step, other.last_step),
            self.reports + other.reports,
            add_losses([self.losses, other.losses]),
            None if self.lows is None or other.lows is None else lowest(self.lows, other.lows),
            self.is_learned,
            max(self.due, other.due),
        )


def lows_of(step: int, losses: SourceLosses) -> Array:
    """Return the ``lows`` of one report, [4, K]."""
    steps = np.where(losses.rows > 0, step, 0)
    return np.stack([losses.loss_sums, losses.tokens, losses.rows, steps]).astype(np.float64)


def lowest(one: Array, other: Array) -> Array:
    """Return of each source the lower of two ``lows``; equal ones by step, rows, tokens, so that order is nothing."""
    ranks = [
        np.divide(lows[0], lows[1], out=np.full(lows.shape[1], np.inf), where=lows[1] > 0) for lows in (one, other)
    ]
    is_lower, is_equal = ranks[1] < ranks[0], (ranks[1] == ranks[0]) & (other[1] > 0)
    if is_equal.any():
        for row in (3, 2, 1):
            is_lower |= is_equal & (other[row] < one[row])
            is_equal &= other[row] == one[row]
    return np.where(is_lower, other, one)


def reports_to_state(reports: Sequence[Arrived]) -> str:
    """Return reports as short text, exactly; "" for none."""
    if not reports:
        return ""
    if _most(reports) > MOST_PACKED:
        return AS_THEY_ARE + _as_they_are(reports)
    text = _Writer()
    head = _heads(reports)
    rows, tokens = (np.array([getattr(r.losses, name) for r in reports]) for name in ("rows", "tokens"))
    losses = _multiples([r.losses.loss_sums for r in reports], SUM_GRID)
    squares = _multiples([r.losses.square_sums for r in reports], SQUARE_GRID)
    row_tokens = int(tokens.sum()) // max(int(rows.sum()), 1)
    has_squares = np.any(squares, axis=1).astype(np.int64)
    text.put(np.array([len(reports), row_tokens]))
    text.put(_differences(head))
    text.put(rows)
    text.put(tokens - rows * row_tokens)
    means = _means(tokens, losses)
    text.put(means)
    text.put_noise(np.asarray(losses - tokens * means), rows > 0)
    text.put(has_squares)
    text.put_noise(squares - _likely_squares(rows, tokens, losses) * has_squares[:, None])
    noted = np.flatnonzero(head[:, 3])
    if noted.size:
        lows = np.array([reports[i].lows for i in noted.tolist()])
        is_single = head[noted, 2] == 1
        low_rows = lows[:, 2].astype(np.int64)
        likely = _likely_lows(low_rows, is_single, head[noted, 0], row_tokens, tokens[noted], losses[noted])
        text.put(low_rows - rows[noted] * is_single[:, None])
        text.put_noise(_multiples(lows[:, 0], SUM_GRID) - likely[0])
        text.put(lows[:, 1].astype(np.int64) - likely[1])
        text.put(lows[:, 3].astype(np.int64) - likely[2])
    return text.text()


def state_to_reports(text: str, num_sources: int) -> list[Arrived]:
    """Return what ``reports_to_state`` was given; raise StateMismatchError for text that is not of its making."""
    if not text:
        return []
    try:
        if text.startswith(AS_THEY_ARE):
            return _read_as_they_are(text.removeprefix(AS_THEY_ARE), num_sources)
        return _read(_Reader(text), num_sources)
    except (AttributeError, IndexError, TypeError, ValueError, struct.error, zlib.error) as error:
        raise StateMismatchError(
            f"the saved state holds {str(text)[:40]!r}, which are no packed reports: it was changed"
        ) from error


def _read(text: _Reader, num_sources: int) -> list[Arrived]:
    num_reports, row_tokens = text.take((2,)).tolist()
    shape = (num_reports, num_sources)
    head = _sums(text.take((num_reports, 6)))
    rows = text.take(shape)
    tokens = text.take(shape) + rows * row_tokens
    losses = tokens * text.take((num_sources,)) + text.take_noise(shape, rows > 0)
    has_squares = text.take((num_reports,))
    squares = text.take_noise(shape) + _likely_squares(rows, tokens, losses) * has_squares[:, None]
    if (losses < 0).any() or (squares < 0).any():  # of a release that did not see that a sum was too large
        raise ValueError("a sum of losses below 0")
    noted = np.flatnonzero(head[:, 3])
    lows: dict[int, Array] = {}
    if noted.size:
        shape, is_single = (noted.size, num_sources), head[noted, 2] == 1
        low_rows = text.take(shape) + rows[noted] * is_single[:, None]
        likely = _likely_lows(low_rows, is_single, head[noted, 0], row_tokens, tokens[noted], losses[noted])
        low_losses = (text.take_noise(shape) + likely[0]) * SUM_GRID
        low_tokens, steps = text.take(shape) + likely[1], text.take(shape) + likely[2]
        stacked = np.stack([low_losses, low_tokens, low_rows, steps], axis=1)
        lows = dict(zip(noted.tolist(), stacked, strict=True))
    return [
        Arrived(
            int(head[i, 0]),
            int(head[i, 1]),
            int(head[i, 2]),
            SourceLosses(
                rows=rows[i], tokens=tokens[i], loss_sums=losses[i] * SUM_GRID, square_sums=squares[i] * SQUARE_GRID
            ),
            lows.get(i),
            bool(head[i, 4]),
            int(head[i, 5]),
        )
        for i in range(num_reports)
    ]


def _heads(reports: Sequence[Arrived]) -> IntArray:
    """Return all of reports but their losses and lows, [n, 6]."""
    columns = [
        (r.first_step, r.last_step, r.reports, r.lows is not None, r.is_learned, max(r.due, r.last_step + 1))
        for r in reports
    ]
    return np.array(columns, dtype=np.int64)


def _most(reports: Sequence[Arrived]) -> float:
    """Return the largest of the sums over all reports, in steps of its grid: what follows is worked out with those."""
    losses = np.sum([r.losses.loss_sums for r in reports], axis=0) / SUM_GRID
    squares = np.sum([r.losses.square_sums for r in reports], axis=0) / SQUARE_GRID
    tokens = np.sum([r.losses.tokens.astype(np.float64) for r in reports], axis=0)
    return float(max(losses.max(initial=0.0), squares.max(initial=0.0), tokens.max(initial=0.0)))


_COUNTS, _SUMS = ("rows", "tokens"), ("loss_sums", "square_sums")


def _as_they_are(reports: Sequence[Arrived]) -> str:
    """Return reports of which some number is too large for whole steps of a grid: eight bytes for each."""
    heads = _heads(reports)
    counts = [[getattr(r.losses, name) for name in _COUNTS] for r in reports]
    sums = [[getattr(r.losses, name) for name in _SUMS] for r in reports]
    lows = [r.lows for r in reports if r.lows is not None]
    data = b"".join(np.array(part, dtype="<i8").tobytes() for part in (heads, counts))
    data += b"".join(np.array(part, dtype="<f8").tobytes() for part in (sums, lows))
    return as_text(squeezed(struct.pack("<I", len(reports)) + data))


def _read_as_they_are(text: str, num_sources: int) -> list[Arrived]:
    data = memoryview(unsqueezed(as_bytes(text)))
    (num,), at = struct.unpack_from("<I", data), 4

    def take(kind: str, *shape: int) -> Any:
        nonlocal at
        begin, at = at, at + 8 * math.prod(shape)
        return np.frombuffer(data[begin:at], dtype=kind).reshape(shape).astype(kind[1:])

    heads = take("<i8", num, 6)
    counts, sums = take("<i8", num, 2, num_sources), take("<f8", num, 2, num_sources)
    lows = iter(take("<f8", int(heads[:, 3].sum()), 4, num_sources))
    return [
        Arrived(
            int(heads[i, 0]),
            int(heads[i, 1]),
            int(heads[i, 2]),
            SourceLosses(rows=counts[i, 0], tokens=counts[i, 1], loss_sums=sums[i, 0], square_sums=sums[i, 1]),
            next(lows) if heads[i, 3] else None,
            bool(heads[i, 4]),
            int(heads[i, 5]),
        )
        for i in range(num)
    ]


def _multiples(values: Sequence[Array] | Array, grid: float) -> IntArray:
    return np.asarray(np.rint(np.array(values) / grid), dtype=np.int64)


def _differences(head: IntArray) -> IntArray:
    """Return first steps as what they are above the one before, last steps and dues as what they are above others."""
    first, last = head[:, 0], head[:, 1]
    return np.column_stack([np.diff(first, prepend=0), last - first, head[:, 2:5], head[:, 5] - last - 1])


def _sums(differences: IntArray) -> IntArray:
    first = differences[:, 0].cumsum()
    last = differences[:, 1] + first
    return np.column_stack([first, last, differences[:, 2:5], differences[:, 5] + last + 1])


def _means(tokens: IntArray, losses: IntArray) -> IntArray:
    """Return the mean loss of a token of each source, [K], in steps of the grid."""
    return np.asarray(losses.sum(axis=0) // np.maximum(tokens.sum(axis=0), 1))


def _likely_squares(rows: IntArray, tokens: IntArray, losses: IntArray) -> IntArray:
    """Return the square sums if all rows of a source had the same loss, which is so for one row, [n, K]."""
    means = np.divide(losses * SUM_GRID, tokens, out=np.zeros(losses.shape), where=tokens > 0)
    return np.asarray(np.minimum(np.rint(means**2 / SQUARE_GRID) * rows, 2.0**62), dtype=np.int64)


def _likely_lows(
    low_rows: IntArray, is_single: IntArray, first: IntArray, row_tokens: int, tokens: IntArray, losses: IntArray
) -> tuple[IntArray, IntArray, IntArray]:
    """Return loss sums, tokens and steps of lows as they are if a report is but one, [n, K] each."""
    single = is_single[:, None]
    steps = (low_rows > 0) * first[:, None]
    return np.where(single, losses, 0), np.where(single, tokens, low_rows * row_tokens), steps


class _Writer:
    """Whole numbers as bytes: those that are small or much alike and, apart from them, those that are noise."""

    def __init__(self) -> None:
        self._plain: list[IntArray] = []
        self._noise: list[IntArray] = []

    def put(self, values: IntArray) -> None:
        """Add numbers that are small, or much alike."""
        self._plain.append(values.ravel())

    def put_noise(self, values: IntArray, is_there: BoolArray | None = None) -> None:
        """Add numbers that are noise, where there are any: by default all that are not 0."""
        if is_there is None:
            is_there = values != 0
            self.put(np.packbits(is_there).astype(np.int64))
        self._noise.append(values[is_there])

    def text(self) -> str:
        """Return all of it."""
        plain, noise = (_signless(np.concatenate(parts)) for parts in (self._plain, self._noise))
        low, high = _planes(noise), _planes(plain)
        planes = squeezed(low[NOISY_BYTES:].tobytes() + high.tobytes())
        sizes = _SIZES.pack(plain.size, len(high), noise.size, len(low))
        return as_text(sizes + low[:NOISY_BYTES].tobytes() + planes)


class _Reader:
    """Takes the numbers of a ``_Writer`` in the order in which they were put."""

    def __init__(self, text: str) -> None:
        data = as_bytes(text)
        num_plain, num_high, num_noise, num_low = _SIZES.unpack_from(data)
        at = _SIZES.size + NOISY_BYTES * num_noise
        low = data[_SIZES.size : at]
        planes = unsqueezed(data[at:])
        at = (num_low - NOISY_BYTES) * num_noise
        self._noise = _numbers(low + planes[:at], num_low, num_noise)
        self._plain = _numbers(planes[at:], num_high, num_plain)
        self._plain_at = self._noise_at = 0

    def take(self, shape: tuple[int, ...]) -> IntArray:
        """Return the next numbers."""
        at, self._plain_at = self._plain_at, self._plain_at + math.prod(shape)
        return self._plain[at : self._plain_at].reshape(shape)

    def take_noise(self, shape: tuple[int, ...], is_there: BoolArray | None = None) -> IntArray:
        """Return the next numbers that are noise."""
        if is_there is None:
            size = math.prod(shape)
            bits = self.take((-(-size // 8),)).astype(np.uint8)
            is_there = np.unpackbits(bits, count=size).astype(bool).reshape(shape)
        at, self._noise_at = self._noise_at, self._noise_at + int(np.count_nonzero(is_there))
        values = np.zeros(shape, dtype=np.int64)
        values[is_there] = self._noise[at : self._noise_at]
        return values


def _signless(values: IntArray) -> npt.NDArray[np.uint64]:
    """Return numbers with the sign as the lowest bit, so that the high bytes of small ones are 0."""
    return ((values << 1) ^ (values >> 63)).view(np.uint64)


def _planes(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint8]:
    """Return the lowest bytes of all numbers, then the next, and so on to the highest that is not 0, [planes, n]."""
    num_planes = max(NOISY_BYTES, -(-int(values.max(initial=0)).bit_length() // 8))
    return np.frombuffer(values.astype("<u8", copy=False).tobytes(), dtype=np.uint8).reshape(-1, 8).T[:num_planes]


def _numbers(planes: bytes, num_planes: int, size: int) -> IntArray:
    whole = np.zeros((8, size), dtype=np.uint8)
    whole[:num_planes] = np.frombuffer(planes, dtype=np.uint8).reshape(num_planes, size)
    signless = np.frombuffer(whole.T.tobytes(), dtype="<u8").astype(np.uint64)
    return np.asarray((signless >> np.uint64(1)).view(np.int64) ^ -(signless & np.uint64(1)).view(np.int64))
