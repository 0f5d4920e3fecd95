"""A keyed pseudo-random order of any number of rows, without a table: position -> row number, one at a time.

Memory and start-up cost nothing whatever the number of rows: an epoch of 10^12 rows can be entered anywhere. It is a
Feistel network on the pairs (x mod a, x div a) with a b >= n, walked until it lands below n (Black and Rogaway, Ciphers
with Arbitrary Finite Domains, CT-RSA 2002). The round function is a multiplicative hash: it scatters, it does not hide.
"""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt

from mixer.types import IntArray

ROUNDS = 6  # each position of an order is then equally likely; of a handful of rows not every order occurs
ROUND_KEYS = np.array([(0x9E3779B97F4A7C15 * (r + 1)) % 2**64 for r in range(ROUNDS)], dtype=np.uint64)
_MIX_1, _MIX_2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)  # of splitmix64 (Steele et al. 2014)
_HALF = np.uint64(32)

KeyArray = npt.NDArray[np.uint64]


def order_key(seed: int, name: str, epoch: int) -> int:
    """Return the key of one epoch of one source, 64 bits; adding a source changes no other's order."""
    text = f"{seed}\x00{epoch}\x00{name}"
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8, person=b"mixer.rows").digest(), "little")


def sides(sizes: IntArray) -> tuple[KeyArray, KeyArray]:
    """Return the sides of the rectangles, uint64 [n] both, that hold ``sizes`` rows, int64 [n]: about square."""
    size = sizes.astype(np.uint64)
    a = np.ceil(np.sqrt(size.astype(np.float64))).astype(np.uint64)
    return a, (size + a - np.uint64(1)) // a


def permuted(positions: IntArray, sizes: IntArray, keys: KeyArray, rectangles: tuple[KeyArray, KeyArray]) -> IntArray:
    """Return where each position stands in its own order of ``sizes`` rows: a bijection of 0 .. size - 1 per key.

    Args:
        positions: int64 [n], each from 0 to below its size.
        sizes: number of rows of each one's source, at least 1 and below 2^52, [n].
        keys: the order of each, [n]; see ``order_key``.
        rectangles: ``sides(sizes)``, which a caller computes once for each source.
    """
    a, b = rectangles
    found = _feistel(positions.astype(np.uint64), a, b, keys)
    outside = (found >= sizes.view(np.uint64)).nonzero()[0]
    while outside.size:
        found[outside] = _feistel(found[outside], a[outside], b[outside], keys[outside])
        outside = outside[found[outside] >= sizes[outside].view(np.uint64)]
    return found.view(np.int64)


def _feistel(x: KeyArray, a: KeyArray, b: KeyArray, key: KeyArray) -> KeyArray:
    """One pass over the rectangle a x b: each round adds a hash of one half to the other."""
    right, left = np.divmod(x, a)
    for r, round_key in enumerate(key + ROUND_KEYS[:, None]):
        mixed = right ^ round_key
        mixed *= _MIX_1
        mixed ^= mixed >> _HALF
        mixed *= _MIX_2
        mixed >>= _HALF
        mixed += left
        mixed %= b if r % 2 else a
        left, right = right, mixed
    return left + right * a  # halves as they were, as the number of rounds is even
