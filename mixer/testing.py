"""Checks that your own source or loader can run in your own tests; each failure says which step broke which promise.

    def test_my_loader_resumes() -> None:
        assert_resumes_from_every_step(lambda: MyLoader("data/"), num_steps=20)

They stop, save, restore into a fresh object and compare bit for bit. Neither torch nor pytest is needed.
"""

from __future__ import annotations

import copy
import itertools
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import numpy as np

from mixer.sources.base import RowSource
from mixer.types import TokenArray

Rows = Sequence[Any] | TokenArray
Batch = Any  # a mapping or sequence of arrays, tensors and plain values, or one array or tensor


class StatefulLoader(Protocol):
    """Anything that gives batches and can say where it is."""

    def __iter__(self) -> Any:
        """Iterate from the place it was restored to, else from the beginning."""

    def state_dict(self) -> dict[str, Any]:
        """Return the place after the last batch."""

    def load_state_dict(self, state: Any) -> Any:
        """Go to such a place."""


Loader = TypeVar("Loader", bound=StatefulLoader)


def assert_resumes_from_every_step(make_loader: Callable[[], Loader], num_steps: int) -> None:
    """Check that a loader stopped after any step and restored gives the rest of its batches, bit for bit.

    The state goes through JSON where it is plain data, as a checkpoint would take it. Costs ``num_steps**2 / 2``
    batches.

    Args:
        make_loader: returns a new loader at its beginning; it is called ``num_steps + 3`` times.
        num_steps: batches to compare; the loader must have at least as many.
    """
    reference = list(itertools.islice(make_loader(), num_steps))
    _require(len(reference) == num_steps, f"the loader ended after {len(reference)} of {num_steps} steps")
    again = list(itertools.islice(make_loader(), num_steps))
    _compare(reference, again, 0, "a second loader, made alike, differs from the first at")

    states, frozen = _states_of_one_pass(make_loader(), reference)
    for step, (state, was) in enumerate(zip(states, frozen, strict=True)):
        _require(_same(state, was), f"the state saved after step {step} changed when the loader went on: copy it")
    for step, state in enumerate(frozen):
        loader = make_loader()
        loader.load_state_dict(_checkpointed(state))
        rest = list(itertools.islice(loader, num_steps - step))
        _compare(reference[step:], rest, step, f"restored after {step} steps, the loader differs at")


def assert_source_is_exact(make_source: Callable[[], RowSource], num_rows: int) -> None:
    """Check that a source gives the same rows however they are asked for, and resumes after every one of them.

    Args:
        make_source: returns a new source at its beginning.
        num_rows: rows to compare; the source must have at least as many.
    """
    first = make_source()
    reference = first.take(num_rows)
    _check_rows(reference, num_rows)
    _require(first.progress.rows == num_rows, f"progress counts {first.progress.rows} rows after {num_rows} were taken")
    for sizes in ([1], [2, 1], [1, 0, 3, 5, 2]):
        rows = _taken_in(make_source(), sizes, num_rows)
        _compare(reference, rows, 0, f"taken {sizes} rows at a time, the source differs at", "row")

    source = make_source()
    states = []
    for row in range(num_rows):
        states.append((source.state_dict(), copy.deepcopy(source.state_dict()), source.progress))
        _compare(
            reference[row : row + 1], source.take(1), row, "with its state saved at each row, it differs at", "row"
        )
    for row, (state, was, progress) in enumerate(states):
        _require(_same(state, was), f"the state saved after row {row} changed when the source went on: copy it")
        restored = make_source()
        restored.load_state_dict(_checkpointed(was))
        _require(
            restored.progress == progress,
            f"restored after {row} rows, progress is {restored.progress}, but it was {progress}",
        )
        rest = restored.take(num_rows - row)
        _compare(reference[row:], rest, row, f"restored after {row} rows, the source differs at", "row")


def _states_of_one_pass(loader: StatefulLoader, reference: Sequence[Batch]) -> tuple[list[Any], list[Any]]:
    """Return the states before each step, and copies made at once of what they were."""
    states = [loader.state_dict()]
    frozen = [copy.deepcopy(states[0])]
    batches = iter(loader)
    for step, expected in enumerate(reference[:-1]):
        batch = next(batches)
        _require(_same(batch, expected), f"with its state saved at each step, the loader differs at step {step}")
        states.append(loader.state_dict())
        frozen.append(copy.deepcopy(states[-1]))
    return states, frozen


def _taken_in(source: RowSource, sizes: Iterable[int], num_rows: int) -> Any:
    taken: list[Any] = []
    left = num_rows
    for size in itertools.cycle(sizes):
        rows = source.take(min(size, left))
        _check_rows(rows, min(size, left))
        taken.append(rows)
        left -= len(rows)
        if not left:
            return np.concatenate(taken)
    raise AssertionError("no sizes")


def _check_rows(rows: Any, num_rows: int) -> None:
    _require(
        isinstance(rows, np.ndarray) and rows.ndim == 2 and rows.dtype == np.uint32 and len(rows) == num_rows,
        f"take({num_rows}) gave {getattr(rows, 'dtype', type(rows).__name__)} {list(np.shape(rows))}, "
        f"not uint32 [{num_rows}, T + 1]",
    )


def _compare(expected: Rows, found: Rows, start: int, message: str, unit: str = "step") -> None:
    for offset, (one, other) in enumerate(zip(expected, found, strict=False)):
        if not _same(one, other):
            raise AssertionError(f"{message} {unit} {start + offset}: {_difference(one, other)}")
    _require(
        len(expected) == len(found),
        f"{message} {unit} {start + min(len(expected), len(found))}: {len(found)} of {len(expected)} were given",
    )


def _difference(one: Any, other: Any) -> str:
    """Return the first place where two batches differ, in words."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        if set(one) != set(other):
            return f"keys {sorted(map(str, other))}, not {sorted(map(str, one))}"
        key = next(key for key in one if not _same(one[key], other[key]))
        return f"{key}: {_difference(one[key], other[key])}"
    one, other = _plain(one), _plain(other)
    if isinstance(one, np.ndarray) and isinstance(other, np.ndarray):
        if (one.dtype, one.shape) != (other.dtype, other.shape):
            return f"{other.dtype} {list(other.shape)}, not {one.dtype} {list(one.shape)}"
        return f"{other.ravel()[:6].tolist()}…, not {one.ravel()[:6].tolist()}…"
    return f"{str(other)[:60]}, not {str(one)[:60]}"


def _same(one: Any, other: Any) -> bool:
    one, other = _plain(one), _plain(other)
    if isinstance(one, np.ndarray) or isinstance(other, np.ndarray):
        return (
            isinstance(one, np.ndarray)
            and isinstance(other, np.ndarray)
            and (one.dtype, one.shape) == (other.dtype, other.shape)
            and one.tobytes() == other.tobytes()
        )
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(_same, one, other))
    return type(one) is type(other) and bool(one == other)


def _plain(value: Any) -> Any:
    """Return a tensor as an array with the same bits; anything else as it is."""
    if not hasattr(value, "detach"):
        return value
    tensor = value.detach().cpu()
    try:
        return np.asarray(tensor)
    except TypeError:  # bfloat16, which numpy lacks; float32 holds each of its values
        return np.asarray(tensor.float())


def _checkpointed(state: Any) -> Any:
    """Return the state as it comes out of a checkpoint: through JSON if it is plain data, else copied."""
    try:
        return json.loads(json.dumps(state))
    except TypeError:
        return copy.deepcopy(state)


def _require(holds: object, message: str) -> None:
    if not holds:
        raise AssertionError(message)  # not an assert statement: `python -O` removes those
