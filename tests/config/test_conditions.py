"""Which rows count: values and comparisons of ``where``, against Python's own, kind by kind."""

from __future__ import annotations

import datetime
import json
import math
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixer.config.conditions import UnlikeTypesError, holds
from mixer.config.curriculum import Curriculum
from mixer.config.sources import SourceConfig
from mixer.errors import ConfigError, MalformedDataError
from mixer.sources.huggingface import open_stream
from mixer.sources.opening import check_sources
from tests.sources.test_huggingface_source import documents_of, write_jsonl

numbers = st.integers(-5, 5) | st.sampled_from([-2.5, 0.0, 0.5, 1e300, 2.0**53, 2**53 + 1, Decimal("0.5")])
wanted_numbers = st.integers(-5, 5) | st.sampled_from([-2.5, 0.5, 2.0**53, 2**53 + 1])
texts = st.sampled_from(["", "a", "b", "B", "10", "9", "é"])
KINDS: dict[str, Any] = {
    "number": (numbers, wanted_numbers),
    "text": (texts, texts),
    "boolean": (st.booleans(), st.booleans()),
}
ANSWERS: dict[str, Any] = {
    "eq": lambda a, b: a == b,
    "ne": lambda a, b: a != b,
    "lt": lambda a, b: a < b,
    "le": lambda a, b: a <= b,
    "gt": lambda a, b: a > b,
    "ge": lambda a, b: a >= b,
}


@given(st.data(), st.sampled_from([*KINDS]), st.sampled_from([*ANSWERS]))
def test_values_of_one_type_compare_as_in_python(data: st.DataObject, kind: str, name: str) -> None:
    if kind == "boolean" and name not in ("eq", "ne"):
        return
    value, wanted = (data.draw(values) for values in KINDS[kind])
    assert holds(value, {name: wanted}) == ANSWERS[name](value, wanted)
    assert not holds(None, {name: wanted}) or name == "ne"
    assert holds(value, {name: wanted, "not_null": True}) == ANSWERS[name](value, wanted)


@given(st.data(), st.sampled_from([*KINDS]), st.sampled_from([*KINDS]), st.sampled_from([*ANSWERS, "in"]))
def test_unlike_types_have_no_answer_but_plain_values_merely_differ(
    data: st.DataObject, kind: str, other: str, name: str
) -> None:
    value, wanted = data.draw(KINDS[kind][0]), data.draw(KINDS[other][1])
    if kind == other:
        assert holds(value, {"in": (None, wanted)}) == holds(value, (None, wanted)) == (value == wanted)
        return
    assert not holds(value, wanted)
    assert not holds(value, (wanted, None))
    with pytest.raises(UnlikeTypesError, match=f"which has no answer to {name}"):
        holds(value, {name: (wanted,) if name == "in" else wanted})


@pytest.mark.parametrize("value", [None, 0, "", False, math.nan, [], {}])
def test_null_is_what_is_not_there_and_nothing_else(value: Any) -> None:
    assert holds(value, {"not_null": True}) == (value is not None)
    assert holds(value, {"not_null": False}) == (value is None)
    assert holds(value, {"ne": None}) == (value is not None)
    assert holds(value, {"eq": None}) == holds(value, None) == holds(value, (None,)) == (value is None)


def test_dates_compare_with_text_that_spells_one() -> None:
    day, hour = datetime.date(2024, 2, 9), datetime.datetime(2024, 2, 9, 12, tzinfo=datetime.UTC)
    assert holds(day, {"ge": "2024-02-09", "lt": "2024-10-01"})
    assert holds(hour, {"gt": "2024-02-09T11:00:00+00:00"})
    for value, wanted in [(day, "February"), (day, 20240209), (hour, "2024-02-09"), ([1], "a"), ({}, 1)]:
        with pytest.raises(UnlikeTypesError):
            holds(value, {"ge": wanted})


ROWS = [{"text": str(i), "score": score, "kind": kind} for i, (score, kind) in enumerate(
    [(1, "a"), (3, None), (2.5, "b"), (None, "a"), (4, "c"), (9007199254740992, "b")])]  # fmt: skip


@pytest.mark.parametrize(
    ("where", "kept"),
    [
        ({"score": {"ge": 3}}, "145"),
        ({"score": {"gt": 1, "le": 4}}, "124"),
        ({"score": {"lt": 2.75}}, "02"),
        ({"score": {"not_null": True}, "kind": {"ne": "b"}}, "014"),
        ({"kind": {"not_null": False}}, "1"),
        ({"kind": {"in": ["a", "c"]}}, "034"),
        ({"kind": {"ge": "b"}, "score": {"eq": 4}}, "4"),
    ],
)
@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_rows_are_kept_by_comparison(tmp_path: Path, suffix: str, where: dict[str, Any], kept: str) -> None:
    if suffix == "jsonl":
        write_jsonl(tmp_path / "a.jsonl", ROWS)
    else:
        pq.write_table(pa.Table.from_pylist(ROWS, schema=pa.schema(
            {"text": pa.string(), "score": pa.float64(), "kind": pa.string()})), tmp_path / "a.parquet")  # fmt: skip
    source = SourceConfig(name="web", data_files=str(tmp_path / f"a.{suffix}"), where=where)
    assert documents_of(open_stream(source)) == list(kept)


def test_unlike_types_in_a_file_are_an_error_with_its_row_also_for_token_ids(tmp_path: Path) -> None:
    rows = [{"text": "t", "ids": [1, 2], "score": score} for score in ("2", "high")]
    write_jsonl(tmp_path / "a.jsonl", rows)
    for fields in ({}, {"token_ids": "ids"}):
        data = {"name": "web", "data_files": str(tmp_path / "a.jsonl"), "where": {"score": {"ge": 3}}, **fields}
        with pytest.raises(
            MalformedDataError, match=r"(row|line) 1: column 'score' is str '2', which has no answer to ge 3"
        ):
            open_stream(SourceConfig(**data)).next_group()
        [problem] = check_sources(Curriculum(total_steps=1, batch_rows=1, sequence_length=1, sources=[data]))
        assert "column 'score' is str '2'" in problem


@pytest.mark.parametrize(
    ("condition", "problem"),
    [
        ({"gte": 3}, "unknown comparison 'gte'; did you mean 'gt'"),
        ({}, "it compares with nothing; comparisons: eq, ne, lt, le, gt, ge, in, not_null"),
        ({"ge": True}, "ge is True, which is in no order"),
        ({"lt": None}, "lt is None, which is in no order"),
        ({"le": float("nan")}, "le is nan, not a finite number"),
        (
            {"ge": datetime.date(2024, 2, 9)},
            r"ge is datetime.date\(2024, 2, 9\), not text.*; dates are text, in quotes",
        ),
        ([1, {"ge": 3}], r"it is {'ge': 3}, not text, a number"),
        (datetime.date(2024, 2, 9), r"it is datetime.date\(2024, 2, 9\), not text"),
        ({"ge": [1, 2]}, r"ge is \[1, 2\]; it takes one value"),
        ({"in": 3}, "in is 3; it takes a list"),
        ({"in": []}, r"in is \[\]; it takes a list"),
        ({"not_null": 1}, "not_null is 1; it is true, or false"),
    ],
)
def test_a_comparison_that_means_nothing_is_refused_before_anything_is_read(condition: Any, problem: str) -> None:
    sources = [{"name": "web", "data_files": "a.jsonl", "where": {"score": condition}}]
    with pytest.raises(ConfigError, match=rf"^sources\.0\.where\.score: {problem}[^\n]*$"):
        Curriculum(total_steps=1, batch_rows=1, sequence_length=1, sources=sources)


def test_comparisons_travel_with_the_config_and_count_in_its_fingerprint() -> None:
    def run(where: Any) -> Curriculum:
        source = {"name": "web", "data_files": "a.jsonl", "where": where}
        return Curriculum(total_steps=1, batch_rows=1, sequence_length=1, sources=[source])

    one = run({"score": {"ge": 3, "ne": None}, "flag": {"eq": True}, "kind": {"in": ["a", None]}})
    data = {key: value for key, value in json.loads(one.model_dump_json()).items() if value is not None}
    assert Curriculum(**data).sources == one.sources
    assert Curriculum(**data).fingerprint == one.fingerprint
    assert one.fingerprint != run({"score": {"ge": 4, "ne": None}, "flag": {"eq": True}}).fingerprint
