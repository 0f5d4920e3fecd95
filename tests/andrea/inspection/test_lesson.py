"""The lesson's worked numbers, by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from andrea.inspection import lesson


def test_parakeet_and_monkey_are_near_and_fourier_is_far_from_both() -> None:
    found = {pair.names: pair for pair in lesson.pairs()}
    near = found["parakeet", "monkey"]
    assert near.distance == pytest.approx(0.3)  # sqrt(0.2^2 + 0.2^2 + 0.1^2)
    assert near.cosine == pytest.approx(1.35 / math.sqrt(1.25 * 1.54))
    assert found["parakeet", "Fourier"].distance == pytest.approx(math.sqrt(3.5))
    assert found["parakeet", "Fourier"].cosine == 0
    assert found["monkey", "Fourier"].distance == pytest.approx(math.sqrt(3.49))
    assert found["monkey", "Fourier"].cosine == pytest.approx(0.15 / (1.5 * math.sqrt(1.54)))


def test_the_query_looks_at_the_first_two_keys_alike_and_less_at_the_third() -> None:
    worked = lesson.worked_attention()
    assert worked.scores.tolist() == [1, 1, 0]
    assert worked.projections.tolist() == pytest.approx([1 / math.sqrt(2), 1 / math.sqrt(2), 0])
    scaled, unscaled = 2 * math.exp(0.5) + 1, 2 * math.e + 1
    assert worked.weights.tolist() == pytest.approx([math.exp(0.5) / scaled] * 2 + [1 / scaled])
    assert worked.unscaled.tolist() == pytest.approx([math.e / unscaled] * 2 + [1 / unscaled])
    assert worked.weights.tolist() == pytest.approx([0.3837, 0.3837, 0.2327], abs=1e-4)
    assert worked.entropies[1] < worked.entropies[0] < math.log(3)


def test_the_region_of_three_sources_is_a_four_sided_figure() -> None:
    found = {tuple(np.round(corner, 12).tolist()) for corner in lesson.corners()}
    assert found == {(1.0, 0.0, 0.0), (0.5, 0.5, 0.0), (0.5, 0.25, 0.25), (0.75, 0.0, 0.25)}
    assert lesson.region().dimension == 2
