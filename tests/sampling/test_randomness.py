"""Streams of random numbers: the same for the same question, whoever asked before, however it is asked."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mixer.sampling.randomness import generator, passing_generator, two_uniforms, uniforms

seeds, places = st.integers(0, 2**64), st.lists(st.integers(0, 10**9), max_size=3)
purposes = st.text(max_size=20)


@given(seeds, purposes, places, st.integers(0, 9))
def test_uniforms_are_the_raw_numbers_of_the_stream_as_a_generator_has_it(
    seed: int, purpose: str, indices: list[int], num: int
) -> None:
    raw = generator(seed, purpose, *indices).bit_generator.random_raw(num)  # type: ignore[attr-defined]
    assert uniforms(num, seed, purpose, *indices).tolist() == [(int(number) >> 11) * 2.0**-53 for number in raw]


@given(seeds, purposes, places)
def test_two_uniforms_are_the_first_two(seed: int, purpose: str, indices: list[int]) -> None:
    assert list(two_uniforms(seed, purpose, *indices)) == uniforms(2, seed, purpose, *indices).tolist()


@given(seeds, purposes, places, st.integers(1, 5))
def test_a_passing_generator_draws_as_one_of_its_own_whatever_was_drawn_before(
    seed: int, purpose: str, indices: list[int], num: int
) -> None:
    before = passing_generator(seed, "before")
    before.integers(0, 100, size=num, dtype=np.uint32)  # leaves half a number behind
    before.random(num)
    passing, own = passing_generator(seed, purpose, *indices), generator(seed, purpose, *indices)
    assert (
        passing.integers(0, 2**32, size=num, dtype=np.uint32).tolist()
        == own.integers(0, 2**32, size=num, dtype=np.uint32).tolist()
    )
    assert passing.random(num).tolist() == own.random(num).tolist()
    assert passing.standard_normal(num).tolist() == own.standard_normal(num).tolist()


def test_the_numbers_of_a_stream_are_those_of_every_release() -> None:
    assert uniforms(3, 7, "phase", 11).tolist() == [0.3240392452551243, 0.08135431768246282, 0.014494565972519746]


@given(seeds, purposes, places)
def test_a_thread_that_asks_for_the_first_time_gets_the_same_numbers(
    seed: int, purpose: str, indices: list[int]
) -> None:
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(uniforms, 9, seed, purpose, *indices).result().tolist() == (
            uniforms(9, seed, purpose, *indices).tolist()
        )
    with ThreadPoolExecutor(1) as pool:
        drawn = pool.submit(lambda: passing_generator(seed, purpose, *indices).standard_normal(9)).result()
    assert drawn.tolist() == generator(seed, purpose, *indices).standard_normal(9).tolist()
