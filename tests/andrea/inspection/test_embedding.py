"""The token table against scipy, and against tables whose answer is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.spatial import distance

from andrea.inspection import embedding
from mixer.errors import ConfigError


def random_table(num_rows: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(num_rows, width, generator=torch.Generator().manual_seed(seed))


@settings(deadline=None, max_examples=25)
@given(num_rows=st.integers(2, 30), width=st.integers(1, 12), seed=st.integers(0, 1000))
def test_cosines_and_distances_are_scipys(num_rows: int, width: int, seed: int) -> None:
    table = random_table(num_rows, width, seed)
    rows = table.numpy()
    expected = 1 - distance.cdist(rows[:1], rows, "cosine")[0]
    assert embedding.cosines(table, table[0]).numpy() == pytest.approx(expected, abs=1e-5)
    assert embedding.distances(table, table[0]).numpy() == pytest.approx(distance.cdist(rows[:1], rows)[0], abs=1e-5)


def test_cosine_and_distance_may_order_neighbours_differently() -> None:
    table = torch.tensor([[1.0, 0.0], [9.0, 0.0], [1.0, 0.5]])
    by_cosine = embedding.nearest(table, table[0], 2, without=[0])
    by_distance = embedding.nearest(table, table[0], 2, by="distance", without=[0])
    assert [neighbour.token for neighbour in by_cosine] == [1, 2]
    assert [neighbour.token for neighbour in by_distance] == [2, 1]
    assert by_distance[1].distance == 8


def test_neighbours_come_from_the_tokens_allowed_and_are_as_many_as_there_are() -> None:
    table = random_table(6, 3)
    among = torch.tensor([True, False, True, True, False, False])
    assert {n.token for n in embedding.neighbours_of(table, 0, 10, among=among)} == {2, 3}
    with pytest.raises(ConfigError, match="token 6 is outside the vocabulary of 6"):
        embedding.neighbours_of(table, 6, 1)


def test_arithmetic_finds_the_fourth_corner_of_a_parallelogram() -> None:
    man, royal, woman = torch.eye(3)
    table = torch.stack([man, woman, man + royal, woman + royal, 0.1 * man + royal])
    answer = embedding.solve(table, plus=[2, 1], minus=[0], expected=3)
    assert answer.neighbours[0].token == 3
    assert answer.neighbours[0].distance == 0
    assert answer.expected_rank == 1
    assert answer.nearest_of_all.token == 3


def test_arithmetic_that_leads_back_to_what_was_put_in_says_so() -> None:
    table = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 5.0], [1.0, 4.0]])
    answer = embedding.solve(table, plus=[2, 1], minus=[0], expected=3)
    assert answer.nearest_of_all.token == 2
    assert answer.expected_rank == 1
    assert 2 not in [neighbour.token for neighbour in answer.neighbours]


def test_a_table_fills_the_dimensions_of_its_subspace() -> None:
    axes = torch.linalg.qr(random_table(20, 5))[0].T  # 5 orthogonal directions in R^20
    table = torch.cat([axes, -axes]) * 3 + 7  # the mean counts for nothing
    measured = embedding.dimension(table)
    assert measured.participation == pytest.approx(5)
    assert measured.entropy_rank == pytest.approx(5, rel=1e-4)
    assert measured.shares.sum().item() == pytest.approx(1)
    with pytest.raises(ConfigError, match="all 4 rows of the table are the same point"):
        embedding.dimension(torch.ones(4, 3))


@pytest.mark.parametrize(("num_rows", "width"), [(2305, 384), (600, 128)])
def test_noise_fills_as_many_dimensions_as_the_law_says(num_rows: int, width: int) -> None:
    measured = embedding.dimension(random_table(num_rows, width))
    variances = np.linalg.svd(np.cov(random_table(num_rows, width).numpy().T), compute_uv=False)
    assert measured.participation == pytest.approx(variances.sum() ** 2 / (variances**2).sum(), rel=1e-3)
    assert measured.participation == pytest.approx(measured.at_random, rel=0.01)
    assert measured.participation < measured.entropy_rank < width


def test_768_dimensions_leave_more_room_than_384() -> None:
    assert embedding.participation_at_random(2305, 384) == pytest.approx(329.2, abs=0.1)
    assert embedding.participation_at_random(8449, 768) == pytest.approx(704.0, abs=0.1)
    assert embedding.chance_of_cosine(384, 0.1) / embedding.chance_of_cosine(768, 0.1) > 8


@pytest.mark.parametrize(("width", "threshold"), [(128, 0.1), (384, 0.1), (768, 0.1), (768, 0.05)])
def test_the_chance_of_a_cosine_is_that_of_the_exact_law(width: int, threshold: float) -> None:
    half = (width - 1) / 2
    exact = 2 * stats.beta(half, half).sf((1 + threshold) / 2)  # (1 + cosine) / 2 of two random directions
    assert embedding.chance_of_cosine(width, threshold) == pytest.approx(exact, rel=0.1)


def test_random_pairs_of_noise_have_the_spread_of_their_width() -> None:
    found = embedding.random_pairs(random_table(500, 100), count=4000)
    assert found.shape == (4000,)
    assert found.std().item() == pytest.approx(1 / math.sqrt(100), rel=0.05)
    assert found.max() < 0.9  # no row is paired with itself


def test_travel_says_how_far_each_token_went_and_which_stood_still() -> None:
    before = random_table(4, 3)
    after = before.clone()
    after[1] *= 2
    after[2] *= -1
    measured = embedding.travel(before, after)
    assert measured.moved.tolist() == [False, True, True, False]
    assert measured.distances.tolist() == pytest.approx([0, before[1].norm().item(), 2 * before[2].norm().item(), 0])
    assert measured.cosines.tolist() == pytest.approx([1, 1, -1, 1], abs=1e-6)
    with pytest.raises(ConfigError, match=r"shapes \(4, 3\) and \(3, 3\)"):
        embedding.travel(before, after[1:])
