"""Names for the array types that cross module borders."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]
TokenArray = npt.NDArray[np.uint32]  # token ids of a document or a row, before the trainer's int64
AnyTokens = npt.NDArray[np.integer[Any]]  # token ids as they are trained on: int64, or the type that they are stored in
RowArray = npt.NDArray[np.unsignedinteger[Any]]  # token ids in the smallest dtype that holds the vocabulary


State = dict[str, Array]  # what a reward or policy remembers: named arrays, so that it can be journalled as it is
