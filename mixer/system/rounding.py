"""Rounding to significant bits: a walk learns from rounded numbers, and journals hold what it learned."""

from __future__ import annotations

import numpy as np

from mixer.types import Array


def rounded(values: Array, bits: int) -> Array:
    """Return values with so many significant bits."""
    dropped = 53 - bits
    whole = np.ascontiguousarray(values).view(np.int64)
    return ((whole + (1 << (dropped - 1))) & -(1 << dropped)).view(np.float64)
