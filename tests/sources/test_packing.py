"""The packer loses nothing, whatever the documents and however they arrive."""

from __future__ import annotations

import json
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixer.sources.packing import Packer, joined
from mixer.types import TokenArray

SEPARATOR = 9
lists_of_documents = st.lists(st.lists(st.integers(0, 2**32 - 1), max_size=12), max_size=12)


def as_arrays(documents: list[list[int]]) -> list[TokenArray]:
    return [np.array(document, dtype=np.uint32) for document in documents]


@given(lists_of_documents, st.integers(1, 9))
def test_rows_and_remainder_are_the_documents_with_a_separator_after_each(
    documents: list[list[int]], sequence_length: int
) -> None:
    packer = Packer(sequence_length, SEPARATOR)
    rows = packer.push(as_arrays(documents))
    assert rows.shape[1] == sequence_length + 1
    assert rows.dtype == packer.remainder.dtype == np.uint32
    assert len(packer.remainder) < sequence_length + 1
    expected = [token for document in documents for token in [*document, SEPARATOR]]
    assert joined(as_arrays(documents), SEPARATOR).tolist() == expected
    assert [*rows.ravel().tolist(), *packer.remainder.tolist()] == expected


@given(lists_of_documents, st.integers(1, 9), st.data())
def test_splitting_a_push_changes_no_row(documents: list[list[int]], sequence_length: int, data: st.DataObject) -> None:
    whole = Packer(sequence_length, SEPARATOR)
    expected = whole.push(as_arrays(documents))
    cut = data.draw(st.integers(0, len(documents)))
    first = Packer(sequence_length, SEPARATOR)
    rows = [first.push(as_arrays(documents[:cut]))]
    second = Packer(sequence_length, SEPARATOR)  # and going on elsewhere changes none either
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    rows.append(second.push(as_arrays(documents[cut:])))
    np.testing.assert_array_equal(np.concatenate(rows), expected)
    np.testing.assert_array_equal(second.remainder, whole.remainder)


def test_a_push_of_nothing_gives_no_rows() -> None:
    packer = Packer(3, SEPARATOR)
    assert packer.push([]).shape == (0, 4)


def test_the_remainder_is_a_copy() -> None:
    packer = Packer(3, SEPARATOR)
    packer.push(as_arrays([[1, 2]]))
    packer.remainder[0] = 7
    assert packer.remainder.tolist() == [1, 2, SEPARATOR]


def test_negative_ids_are_refused_and_not_wrapped_around() -> None:
    with pytest.raises(TypeError, match="casting|cast"):
        Packer(3, SEPARATOR).push([np.array([-1])])  # type: ignore[list-item]


def test_what_waits_keeps_nothing_else_of_a_push_in_memory() -> None:
    packer, document = Packer(1023, SEPARATOR), np.zeros(10**6, dtype=np.uint32)
    tracemalloc.start()
    try:
        assert len(packer.push([document])) == 976
        assert packer.num_waiting < 1024
        assert tracemalloc.get_traced_memory()[0] < 100_000  # of the 4 MB that were pushed
    finally:
        tracemalloc.stop()
