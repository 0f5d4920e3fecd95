"""A batch on its way out of a DataLoader worker: pickled as bytes, token ids in the smallest type that holds them.

torch moves each tensor to shared memory and passes a file descriptor through a socket of its own, which takes about
0.5 ms a tensor. A batch of token ids is small: through the loader's pipe it costs a tenth of that. What arrives is a
plain dict of the same tensors, whatever was done to them in the worker.
"""

from __future__ import annotations

from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

_INTEGERS = frozenset({torch.int64, torch.uint8, torch.uint16, torch.uint32})


class PickledBatch(dict[str, Any]):
    """A batch, or a row, as a dict that pickles small; copies of it do too, so that collating keeps it one."""

    def __copy__(self) -> Self:
        return type(self)(self)

    def __reduce__(self) -> tuple[Any, ...]:
        plain = {key: value for key, value in self.items() if _is_plain(value)}
        dtypes = {key: value.numpy().dtype.str for key, value in plain.items()}
        arrays = {key: _narrowed(value.numpy()) for key, value in plain.items()}
        others = {key: value for key, value in self.items() if key not in arrays}
        rows = _rows_of(arrays.get("input_ids"), arrays.get("labels"))
        if rows is not None:
            del arrays["input_ids"], arrays["labels"]
        return _unpacked, (list(self), others, arrays, dtypes, rows)


def _unpacked(
    keys: list[str],
    others: dict[str, Any],
    arrays: dict[str, npt.NDArray[Any]],
    dtypes: dict[str, str],
    rows: npt.NDArray[Any] | None,
) -> dict[str, Any]:
    """Return what was pickled as a plain dict.

    Args:
        keys: in order.
        others: what is sent as it is.
        arrays: for the other keys, the numbers of tensors of integers.
        dtypes: of those tensors.
        rows: of which ``input_ids`` are all but the last and ``labels`` all but the first column, if they are.
    """
    if rows is not None:
        arrays = {**arrays, "input_ids": rows[..., :-1], "labels": rows[..., 1:]}
    tensors = {key: torch.from_numpy(array.astype(dtypes[key])) for key, array in arrays.items()}
    return {key: tensors[key] if key in tensors else others[key] for key in keys}


def _is_plain(value: Any) -> bool:
    return type(value) is Tensor and value.dtype in _INTEGERS and value.device.type == "cpu"


def _narrowed(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return the same numbers in the smallest unsigned type, or as they are if one is negative or huge."""
    if values.dtype != np.int64:  # small already
        return values
    greatest = int(values.view(np.uint64).max(initial=0))  # a negative number is a huge unsigned one
    return values.astype(np.min_scalar_type(greatest))  # uint64 wraps to the same bits


def _rows_of(inputs: npt.NDArray[Any] | None, labels: npt.NDArray[Any] | None) -> npt.NDArray[Any] | None:
    if inputs is None or labels is None or inputs.shape != labels.shape or inputs.ndim == 0 or inputs.size == 0:
        return None
    if not np.array_equal(inputs[..., 1:], labels[..., :-1]):
        return None
    return np.concatenate([inputs, labels[..., -1:]], axis=-1)
