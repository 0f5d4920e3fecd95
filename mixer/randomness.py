"""One generator per purpose: (seed, purpose, indices) -> an independent, counter-based stream.

Nothing here has state: whoever asks for the same (seed, purpose, indices) gets the same numbers, in any order, on any
rank. The stream is Philox 4x64 (Salmon et al., SC 2011), whose raw output numpy guarantees for ever; ``uniforms`` uses
only that, so phases and draws do not change when numpy changes how it samples a distribution.
"""

from __future__ import annotations

import hashlib

import numpy as np

from mixer.types import Array


def _philox(seed: int, purpose: str, indices: tuple[int, ...]) -> np.random.Philox:
    text = f"{purpose}\x00{seed}\x00{','.join(map(str, indices))}"
    key = hashlib.blake2b(text.encode(), digest_size=16, person=b"mixer.random").digest()
    return np.random.Philox(key=int.from_bytes(key, "little"))


def generator(seed: int, purpose: str, *indices: int) -> np.random.Generator:
    """Return numpy's Generator on the stream of (seed, purpose, indices)."""
    return np.random.Generator(_philox(seed, purpose, indices))


def uniforms(num: int, seed: int, purpose: str, *indices: int) -> Array:
    """Return ``num`` numbers uniform on [0, 1), float64 [num], multiples of 2^-53, stable across numpy versions."""
    raw = _philox(seed, purpose, indices).random_raw(num)
    return (np.asarray(raw, dtype=np.uint64) >> np.uint64(11)).astype(np.float64) * 2.0**-53
