"""The compiled loops give what NumPy gives, bit for bit: a run may go on where the other was built."""

from __future__ import annotations

import functools
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixer.config.curriculum import Curriculum
from mixer.delivery import batch as batches
from mixer.delivery.batch import Planner, PreparedReader
from mixer.sampling import draws
from mixer.sampling.draws import plan_rows, systematic_counts
from mixer.sources import packing
from mixer.sources.prepared import rows as prepared
from mixer.sources.prepared.rows import Prepared
from mixer.system import kernels
from mixer.walk.walk import Walk
from tests.sources.test_prepared import T, a_folder, some_rows

pytestmark = pytest.mark.skipif(kernels.compiled is None, reason="installed without a compiler")


def both(compute: Callable[[], Any]) -> tuple[Any, Any]:
    """Return what the compiled loops give, and what NumPy gives."""
    found = compute()
    with pytest.MonkeyPatch.context() as patch:
        for module in (draws, batches, prepared, packing):
            patch.setattr(module, "compiled", None)
        return found, compute()


@st.composite
def mixtures(draw: st.DrawFn) -> tuple[Any, Any, int]:
    """Weights with ties, zeros and whole rows among them; what is owed, and the rows of a batch."""
    parts = draw(st.lists(st.integers(0, 6), min_size=1, max_size=90).filter(any))
    weights = np.array(parts) / sum(parts)
    if draw(st.booleans()):
        weights = np.random.default_rng(draw(st.integers(0, 99))).dirichlet(np.ones(len(parts)))
    owed = np.array(
        draw(st.lists(st.sampled_from([-0.5, -0.25, 0.0, 0.25, 0.5]), min_size=len(parts), max_size=len(parts)))
    )
    return weights, owed, draw(st.integers(1, 40))


@given(mixtures(), st.integers(1, 42), st.integers(0, 5))
def test_the_rows_of_a_phase_are_those_that_numpy_finds(case: tuple[Any, Any, int], length: int, seed: int) -> None:
    weights, owed, batch_rows = case
    (counts, rest), (expected, expected_rest) = both(
        lambda: systematic_counts(weights, owed, length=length, batch_rows=batch_rows)
    )
    np.testing.assert_array_equal(counts, expected)
    assert rest.tobytes() == expected_rest.tobytes()  # also the sign of a zero
    drawn = np.arange(weights.size) * 7
    found, same = both(lambda: plan_rows(counts, drawn, seed=seed, start=length))
    np.testing.assert_array_equal(found, same)
    np.testing.assert_array_equal(drawn, np.arange(weights.size) * 7)


@given(
    st.lists(st.lists(st.integers(1, 6), min_size=1, max_size=3), min_size=1, max_size=4),
    st.sampled_from(["uint8", "uint16", "uint32"]),
    st.integers(1, 2),
    st.integers(0, 9),
)
def test_the_batches_of_prepared_rows_are_those_that_numpy_gathers_over_many_epochs(
    shards: list[list[int]], dtype: str, world_size: int, seed: int
) -> None:
    names = [f"s{k}" for k in range(len(shards))]
    with tempfile.TemporaryDirectory() as folder:
        rows = {name: (some_rows(sum(sizes), dtype, seed), sizes) for name, sizes in zip(names, shards, strict=True)}
        sources = list(Prepared.open(a_folder(Path(folder), rows)).sources.values())
        curriculum = Curriculum(
            seed=seed,
            total_steps=60,
            batch_rows=4,
            sequence_length=T,
            sources=[{"name": name} for name in names],
            policy="random",
        )

        def delivered() -> list[Any]:
            planner = Planner(curriculum, Walk(curriculum).phase_at, rank=world_size - 1, world_size=world_size)
            reader = PreparedReader(curriculum, sources, planner)
            return [
                [each.tolist() for each in (*reader.read_split(step)[2:], reader.read(step).rows)] for step in range(60)
            ]

        found, expected = both(delivered)
    assert found == expected
    assert all([row[:-1] for row in rows] == inputs for inputs, *_, rows in found)
    assert all([row[1:] for row in rows] == labels for _, labels, *_, rows in found)


@given(st.integers(0, 5), st.integers(2, 40), st.sampled_from(["uint8", "uint16", "uint32", "int64"]), st.booleans())
def test_rows_are_split_into_inputs_and_labels_whatever_their_layout(
    num_rows: int, row_length: int, dtype: str, is_contiguous: bool
) -> None:
    high = np.iinfo(dtype).max
    rows = np.random.default_rng(0).integers(0, high, (num_rows, 2 * row_length), dtype=dtype, endpoint=True)
    rows = np.ascontiguousarray(rows[:, ::2]) if is_contiguous else rows[:, ::2]
    for out in {np.dtype(np.int64), rows.dtype}:
        for inputs, labels in both(functools.partial(packing.split, rows, out)):
            np.testing.assert_array_equal(inputs, rows[:, :-1])
            np.testing.assert_array_equal(labels, rows[:, 1:])
            assert inputs.dtype == labels.dtype == out
            assert not np.shares_memory(inputs, labels)


def test_streamed_rows_are_narrowed_to_the_type_that_holds_their_ids() -> None:
    rows = np.array([[1, 255, 3]], dtype=np.uint32)
    for inputs, labels in both(lambda: packing.split(rows, np.dtype(np.uint8))):
        assert (inputs.tolist(), labels.tolist(), inputs.dtype, labels.dtype) == ([[1, 255]], [[255, 3]], "u1", "u1")


@pytest.mark.parametrize("dtypes", [("u1", "u1"), ("u2", "i8"), ("i8", "u2"), ("i2", "i2"), ("i4", "i4"), ("f8", "f8")])
def test_rows_are_not_split_into_other_types(dtypes: tuple[str, str]) -> None:
    assert kernels.compiled is not None
    rows = np.zeros((2, 5), dtype=np.uint16)
    windows: Any = kernels.compiled.Windows(np.full(2, rows.ctypes.data), 5, 2)
    out = [np.zeros((2, 4), dtype=dtype) for dtype in dtypes]
    with pytest.raises(TypeError, match="is not what these loops read"):
        kernels.compiled.split(rows, *out)
    with pytest.raises(TypeError, match="is not what these loops read"):
        windows.split(0, 2, *out)


@pytest.mark.parametrize(("first", "num_rows"), [(-1, 1), (0, 4), (3, 1), (1, -1)])
def test_rows_that_do_not_exist_are_refused_before_any_memory_is_read(first: int, num_rows: int) -> None:
    assert kernels.compiled is not None
    windows = kernels.compiled.Windows(np.zeros(3, dtype=np.int64), T + 1, 2)  # places that are nowhere
    out = np.zeros((4, T), dtype=np.int64)
    with pytest.raises(IndexError, match="of 3"):
        windows.split(first, num_rows, out, out)
    with pytest.raises(IndexError, match="of 3"):
        windows.gather(first, num_rows, out[None])


def test_the_compiled_loops_can_be_switched_off() -> None:
    script = "from mixer.sampling import draws; from mixer.system import kernels; print(kernels.compiled, draws.compiled)"
    done = subprocess.run(
        [sys.executable, "-c", script], env={"MIXER_KERNELS": "off"}, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["None", "None"]


def test_a_module_compiled_from_another_source_is_named_and_not_used(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(kernels, "__file__", str(tmp_path / "kernels.py"))
    assert kernels._find() is not None  # an installation may come without the source
    (tmp_path / "_kernels.pyx").write_text("# another")
    with pytest.warns(UserWarning, match="compiled from another _kernels.pyx and is not used"):
        assert kernels._find() is None


def test_arrays_of_other_types_or_layouts_are_refused() -> None:
    assert kernels.compiled is not None
    counts = np.ones((2, 3), dtype=np.int64)
    order, drawn = np.argsort(counts, axis=1), np.zeros(3, dtype=np.int64)
    for wrong in (drawn.astype(np.float64), drawn.astype(np.int32), np.zeros(6, dtype=np.int64)[::2]):
        with pytest.raises(TypeError, match="is not what these loops read"):
            kernels.compiled.lay_rows(counts, wrong, order, order.copy(), order.copy())
