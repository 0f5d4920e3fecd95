"""Steps composed together: the rows of each source in order, whatever is cut, restored or at hand in between."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixer.config.curriculum import Curriculum
from mixer.config.pivots import Pivot
from mixer.delivery.batch import Planner, RowBatch
from mixer.delivery.streamed import StreamedReader
from mixer.sources import tokens
from mixer.sources.opening import open_sources
from mixer.sources.tokenizer import TextTokenizer
from mixer.sources.tokenizer_training import train
from mixer.walk.walk import Walk

SEPARATOR = "<|endoftext|>"
TOKENIZER = TextTokenizer(train(["some text"], 290, SEPARATOR), SEPARATOR)
NAMES = ("a", "b", "c")
B, T = 5, 3
FILE_ROWS = (70, 41, 97)  # of each source: read through several times, at different steps
BOUNDS: tuple[dict[str, Any], ...] = (
    {"exclude": ("a",), "floors": {}},
    {"exclude": (), "floors": {"a": 0.7}},
    {"exclude": ("b",), "floors": {"c": 0.5}},
    {"exclude": (), "floors": {}},
)
live_pivots = st.lists(st.tuples(st.integers(1, 30), st.sampled_from(BOUNDS)), max_size=5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Files whose rows say which they are: source, number, 0, 0; and groups of 16 rows."""
    folder = tmp_path_factory.mktemp("rows")
    for i, (name, num_rows) in enumerate(zip(NAMES, FILE_ROWS, strict=True)):
        rows = [[i, number, 0, 0] for number in range(num_rows)]
        table = pa.table({"ids": pa.array(rows, type=pa.list_(pa.int32()))})
        pq.write_table(table, folder / f"{name}.parquet", row_group_size=23)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokens, "BATCH_ROWS", 4)
        yield folder


def reader_of(folder: Path, *, composes: bool = True) -> tuple[Walk, StreamedReader]:
    """Return a walk and its reader; one that does not compose reads every step by itself."""
    run = Curriculum(
        total_steps=10_000,
        batch_rows=B,
        sequence_length=T,
        sources=[{"name": name, "data_files": str(folder / f"{name}.parquet"), "rows": "ids"} for name in NAMES],
        policy="static",
    )
    walk = Walk(run)
    reader = StreamedReader(open_sources(run, TOKENIZER), Planner(run, walk.phase_at))
    if not composes:
        reader._compose = lambda phase, step: None  # type: ignore[method-assign]
    return walk, reader


def cut(walk: Walk, step: int, bounds: dict[str, Any]) -> None:
    walk.phase_at(step)
    walk.pivot(Pivot(name=f"live-{step}", **bounds), step, cut=True)


def same(one: RowBatch, other: RowBatch) -> bool:
    is_same = [np.array_equal(getattr(one, key), getattr(other, key)) for key in ("rows", "source_ids", "row_numbers")]
    return one[:2] == other[:2] and all(is_same)


def check(batch: RowBatch, taken: np.ndarray[Any, Any]) -> None:
    """Whether the rows are those that the plan names, and the next of each source."""
    sizes = np.array(FILE_ROWS)
    assert batch.rows[:, 0].tolist() == batch.source_ids.tolist()
    assert batch.rows[:, 1].tolist() == (batch.row_numbers % sizes[batch.source_ids]).tolist()
    for i in range(len(NAMES)):
        numbers = batch.row_numbers[batch.source_ids == i]
        assert sorted(numbers.tolist()) == list(range(taken[i], taken[i] + len(numbers)))
    taken += np.bincount(batch.source_ids, minlength=len(NAMES))


@given(live_pivots, st.integers(0, 30), st.integers(0, 200))
@settings(max_examples=25, deadline=None)
def test_live_pivots_at_any_steps_lose_and_repeat_no_row_and_a_restored_reader_goes_on_alike(
    folder: Path, pivots: list[tuple[int, dict[str, Any]]], num_last: int, saved_at: int
) -> None:
    walk, reader = reader_of(folder)
    plain_walk, plain = reader_of(folder, composes=False)
    restored = None
    taken = np.zeros(len(NAMES), dtype=np.int64)
    cuts = dict(zip(itertools.accumulate(num_steps for num_steps, _ in pivots), pivots, strict=True))
    for step in range(sum(num_steps for num_steps, _ in pivots) + num_last):
        if step in cuts:
            cut(walk, step, cuts[step][1])
            cut(plain_walk, step, cuts[step][1])
        if step == saved_at:
            state = json.loads(json.dumps(reader.state_dict()))
            assert state == json.loads(json.dumps(plain.state_dict()))
            _, restored = reader_of(folder)
            restored._planner.phase_at = walk.phase_at
            restored.load_state_dict(state)
        batch = reader.read(step)
        check(batch, taken)
        assert same(batch, plain.read(step))
        assert restored is None or same(batch, restored.read(step))
    assert reader.state_dict() == plain.state_dict()
    assert reader.progress(0) == plain.progress(0)


def test_a_pivot_within_composed_steps_voids_those_that_were_not_given(folder: Path) -> None:
    walk, reader = reader_of(folder)
    taken = np.zeros(len(NAMES), dtype=np.int64)
    for step in range(3):
        check(reader.read(step), taken)
    composed = reader._composed
    assert composed is not None
    assert 3 in composed.steps
    cut(walk, 3, {"exclude": ("b",)})
    for step in range(3, 20):
        batch = reader.read(step)
        check(batch, taken)
        assert 1 not in batch.source_ids
    assert reader.progress(0)["b"].rows == taken[1]
