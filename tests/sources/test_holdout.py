"""The held-out split: a function of the document's bytes alone, of the size asked for."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixer.sources.holdout import is_held_out, text_bytes, token_bytes

FRACTIONS = st.floats(0, 1)


@given(st.binary(), FRACTIONS, FRACTIONS)
def test_a_larger_fraction_holds_out_a_superset(document: bytes, one: float, other: float) -> None:
    assert is_held_out(document, min(one, other)) <= is_held_out(document, max(one, other))


@given(st.binary())
def test_nothing_and_everything_are_held_out_at_the_ends(document: bytes) -> None:
    assert not is_held_out(document, 0)
    assert is_held_out(document, 1)


@pytest.mark.parametrize("fraction", [0.01, 0.1, 0.5])
def test_the_share_held_out_is_the_fraction(fraction: float) -> None:
    share = np.mean([is_held_out(text_bytes(f"document {i}"), fraction) for i in range(40_000)])
    assert abs(share - fraction) < 4 * (fraction * (1 - fraction) / 40_000) ** 0.5


def test_the_split_stays_what_it_was() -> None:
    """Another hash would train on what earlier runs were evaluated on."""
    assert [i for i in range(300) if is_held_out(text_bytes(f"document {i}"), 0.01)] == [15, 288]


@given(st.lists(st.integers(0, 2**16 - 1)))
def test_tokens_hash_alike_whatever_type_they_are_read_as(ids: list[int]) -> None:
    as_read = {token_bytes(np.array(ids, dtype=dtype)) for dtype in ("uint16", "int32", "uint32", "int64", ">u4")}
    assert len(as_read) == 1


def test_every_string_has_bytes() -> None:
    assert text_bytes("\ud800 é") != text_bytes("? é")
