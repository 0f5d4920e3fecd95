"""Is the sampler exactly uniform? Marginals, the joint distribution, volumes, and samplers that must fail the tests.

All seeds are fixed, so a passing test always passes. A p-value below ``ALPHA`` divided by the number of tests counts as
a failure: where nothing is wrong, a new seed fails one run in 10,000.
"""

from __future__ import annotations

import math
import random
import warnings

import numpy as np
import pytest
from scipy import stats

from mixer.errors import WeightsError
from mixer.region.region import Region
from mixer.region.uniform import BoxSlice
from mixer.types import Array
from tests.support.oracles import exact_marginal_cdf, rosenblatt
from tests.support.strategies import random_problem, source_names

ALPHA = 1e-4
NUM_DRAWS = 20_000
EPS = float(np.finfo(np.float64).eps)


def bounded(floors: list[float], caps: list[float]) -> Region:
    names = source_names(len(caps))
    return Region(names, floors=dict(zip(names, floors, strict=True)), caps=dict(zip(names, caps, strict=True)))


def capped(*caps: float) -> Region:
    return bounded([0.0] * len(caps), list(caps))


REGIONS = {
    "triangle": capped(1, 1, 1),
    "whole simplex": capped(1, 1, 1, 1),
    "the exercise": bounded([0.5, 0, 0], [1, 1, 0.25]),
    "3 caps": capped(0.9, 0.5, 0.2),
    "3 tight caps": capped(0.5, 0.45, 0.2),
    "5 falling caps": capped(0.7, 0.4, 0.3, 0.1, 0.05),
    "5 binding caps": capped(0.3, 0.3, 0.25, 0.2, 0.1),
    "a floor of 0.7": bounded([0.7, 0, 0, 0, 0], [1, 0.25, 0.1, 0.05, 0.02]),
    "nearly full": capped(0.21, 0.21, 0.2, 0.2, 0.2),
    "6 decades": capped(1, 0.5, 0.01, 1e-4, 1e-6),
    "pinned and excluded": bounded([0, 0.2, 0, 0.05, 0], [0.5, 0.2, 0, 0.6, 0.3]),
    "10 sources": bounded([0.3] + [0.0] * 9, [0.8, 0.3, 0.2, 0.2, 0.1, 0.1, 0.05, 0.05, 0.02, 0.02]),
    "10 equal binding caps": capped(*[0.12] * 10),
}


def marginals_p(draws: Array, region: Region) -> float:
    """Smallest p-value over the free sources of Kolmogorov and Smirnov's test against the exact marginal, Bonferroni."""
    free = np.flatnonzero(region.upper > region.lower)
    found = [stats.kstest(draws[:, i], exact_marginal_cdf(region.floors, region.caps, int(i))).pvalue for i in free]
    return min(1.0, min(found) * len(found))


def slices_p(draws: Array, region: Region, num_slices: int = 25) -> float:
    """Smallest p-value over the free sources of the slices test (Griffin and Davis, RTAS 2025), Bonferroni.

    Planes across one axis cut the region into slices of equal volume, out to its thinnest corners; a uniform sampler
    hits each equally often.
    """
    free = np.flatnonzero(region.upper > region.lower)
    found = []
    for i in free:
        shares = exact_marginal_cdf(region.floors, region.caps, int(i))(draws[:, i])
        counts = np.bincount(np.minimum((shares * num_slices).astype(int), num_slices - 1), minlength=num_slices)
        found.append(stats.chisquare(counts).pvalue)
    return min(1.0, min(found) * len(found))


def joint_p(draws: Array, region: Region, cuts: int = 4) -> float:
    """P-value of the counts in ``cuts^(k-1)`` cells of equal volume: slices across the first axis, then the second..."""
    free = region.upper > region.lower
    left = 1.0 - region.lower[~free].sum()  # of a smaller simplex, blown up to size 1
    shares = rosenblatt(draws[:, free] / left, region.lower[free] / left, region.upper[free] / left)
    cells = np.minimum((shares * cuts).astype(int), cuts - 1) @ cuts ** np.arange(shares.shape[1])
    return float(stats.chisquare(np.bincount(cells, minlength=cuts ** shares.shape[1])).pvalue)


# Feasibility and bookkeeping.


@pytest.mark.parametrize("num_sources", [1, 2, 3, 7, 16, 100, 1000, 10_000])
@pytest.mark.parametrize("seed", range(3))
def test_draws_keep_every_bound_and_the_sum(num_sources: int, seed: int) -> None:
    rng = np.random.default_rng([num_sources, seed])
    region = random_problem(num_sources, rng).region
    draws = region.sample(rng, size=5)
    assert draws.shape == (5, num_sources)
    assert (draws >= region.lower).all()
    assert (draws <= region.upper).all()
    assert max(abs(math.fsum(draw) - 1.0) for draw in draws) <= 4 * num_sources * EPS


@pytest.mark.parametrize("case", REGIONS)
def test_many_draws_keep_every_bound_and_the_sum(case: str) -> None:
    region = REGIONS[case]
    draws = region.sample(np.random.default_rng(0), size=NUM_DRAWS)
    assert (draws >= region.lower).all()
    assert (draws <= region.upper).all()
    assert np.abs(draws.sum(axis=1) - 1.0).max() <= 4 * len(region.names) * EPS


@pytest.mark.parametrize("num_sources", [1000, 10_000])
def test_the_whole_simplex_and_equal_caps_of_many_sources_can_be_drawn(num_sources: int) -> None:
    names = source_names(num_sources)
    rng = np.random.default_rng(1)
    for region in (Region(names), Region(names, caps=dict.fromkeys(names, 2 / num_sources))):
        draw = region.sample(rng)
        assert region.contains(draw)
        spread = draw.std() * num_sources  # 1 on the simplex, as of exponentials; less under caps
        assert spread == pytest.approx(1.0 if region.caps[0] == 1 else 1 / math.sqrt(3), rel=0.1)


def test_the_same_seed_draws_the_same_mixtures_and_another_seed_others() -> None:
    region = REGIONS["10 sources"]
    first, again, other = (region.sample(np.random.default_rng(seed), size=50) for seed in (7, 7, 8))
    np.testing.assert_array_equal(first, again)
    assert not np.isclose(first, other).all(axis=1).any()


def test_draws_depend_on_the_generator_alone() -> None:
    region = REGIONS["5 falling caps"]
    rng = np.random.default_rng(7)
    expected = [region.sample(rng) for _ in range(20)]
    rng = np.random.default_rng(7)
    for draw in expected:
        region.sample(np.random.default_rng(9), size=3)  # another purpose, another generator
        np.testing.assert_array_equal(region.sample(rng), draw)


def test_a_single_draw_is_the_first_of_a_batch_of_one() -> None:
    region = REGIONS["the exercise"]
    single, batch = region.sample(np.random.default_rng(3)), region.sample(np.random.default_rng(3), size=1)
    assert single.shape == (3,)
    np.testing.assert_array_equal(batch, [single])


def test_draws_can_be_changed_without_changing_the_region() -> None:
    region = bounded([0.3, 0.7], [0.3, 0.7])
    region.sample(np.random.default_rng(0))[:] = 0
    np.testing.assert_array_equal(region.lower, [0.3, 0.7])


def test_no_draws_at_all_is_an_empty_batch_and_fewer_are_refused() -> None:
    assert REGIONS["the exercise"].sample(np.random.default_rng(0), size=0).shape == (0, 3)
    with pytest.raises(WeightsError, match="size is -1"):
        REGIONS["the exercise"].sample(np.random.default_rng(0), size=-1)


# Uniformity.


@pytest.mark.parametrize("case", REGIONS)
def test_every_marginal_is_the_exact_one(case: str) -> None:
    draws = REGIONS[case].sample(np.random.default_rng([10, len(case)]), size=NUM_DRAWS)
    assert marginals_p(draws, REGIONS[case]) > ALPHA


@pytest.mark.parametrize("case", REGIONS)
def test_slices_of_equal_volume_are_hit_equally_often(case: str) -> None:
    draws = REGIONS[case].sample(np.random.default_rng([11, len(case)]), size=NUM_DRAWS)
    assert slices_p(draws, REGIONS[case]) > ALPHA


@pytest.mark.parametrize("case", [case for case in REGIONS if not case.startswith("10")])
def test_cells_of_equal_volume_are_hit_equally_often(case: str) -> None:
    draws = REGIONS[case].sample(np.random.default_rng([12, len(case)]), size=NUM_DRAWS)
    assert joint_p(draws, REGIONS[case]) > ALPHA


@pytest.mark.parametrize("case", ["whole simplex", "the exercise", "3 caps", "5 falling caps", "5 binding caps"])
def test_single_draws_are_as_uniform_as_a_batch(case: str) -> None:
    region, rng = REGIONS[case], np.random.default_rng([13, len(case)])
    draws = np.stack([region.sample(rng) for _ in range(4000)])
    assert marginals_p(draws, region) > ALPHA
    assert joint_p(draws, region, cuts=3) > ALPHA


@pytest.mark.parametrize("case", ["3 caps", "3 tight caps", "the exercise", "5 falling caps", "pinned and excluded"])
def test_differences_and_largest_weights_match_plain_rejection(case: str) -> None:
    """Two samples, ours and Dirichlet draws kept if they fit; what marginals cannot see, sums of two weights can."""
    region, rng = REGIONS[case], np.random.default_rng([14, len(case)])
    free = np.flatnonzero(region.upper > region.lower)
    left = 1.0 - np.delete(region.lower, free).sum()
    tried = left * rng.dirichlet(np.ones(free.size), size=400_000)
    kept = tried[((tried >= region.lower[free]) & (tried <= region.upper[free])).all(axis=1)][:NUM_DRAWS]
    assert len(kept) > 1e-3 * len(tried)
    ours = region.sample(rng, size=NUM_DRAWS)[:, free]
    pairs = [(i, j) for i in range(free.size) for j in range(i)]
    found = [stats.ks_2samp(ours[:, i] - ours[:, j], kept[:, i] - kept[:, j]).pvalue for i, j in pairs]
    found.append(
        stats.ks_2samp((ours / region.upper[free]).max(axis=1), (kept / region.upper[free]).max(axis=1)).pvalue
    )
    assert min(found) * len(found) > ALPHA


@pytest.mark.parametrize("case", ["5 falling caps", "a floor of 0.7", "10 sources"])
def test_permuting_the_sources_permutes_the_distribution(case: str) -> None:
    region, rng = REGIONS[case], np.random.default_rng([15, len(case)])
    order = rng.permutation(len(region.names))
    permuted = bounded(region.floors[order].tolist(), region.caps[order].tolist())
    ours, theirs = region.sample(rng, size=NUM_DRAWS)[:, order], permuted.sample(rng, size=NUM_DRAWS)
    found = [stats.ks_2samp(ours[:, i], theirs[:, i]).pvalue for i in range(order.size)]
    assert min(found) * len(found) > ALPHA


# The tilt: acceptance and volume.


def accepted(slice_: BoxSlice, rng: np.random.Generator, num_proposals: int) -> int:
    _, last = slice_._propose(rng, num_proposals)
    return int(slice_._accepts(rng, last).sum())


@pytest.mark.parametrize("case", [case for case in REGIONS if case != "whole simplex"])
def test_the_acceptance_rate_gives_the_volume(case: str) -> None:
    """rate times e^(lam s) times the product of the proposals' masses is the volume, whatever lam is."""
    region, num_proposals = REGIONS[case], 40_000
    slice_ = region._slice
    rate = accepted(slice_, np.random.default_rng([16, len(case)]), num_proposals) / num_proposals
    volume_per_rate = math.exp(slice_.lam * slice_.s) * np.delete(slice_._mass, slice_.last).prod()
    error = math.sqrt(max(rate * (1 - rate), 1 / num_proposals) / num_proposals)
    assert math.exp(region.log_volume()) / volume_per_rate == pytest.approx(rate, abs=4 * error)


@pytest.mark.parametrize("seed", range(60))
def test_acceptance_is_never_far_below_one_over_the_root_of_the_sources(seed: int) -> None:
    rng = np.random.default_rng([17, seed])
    region = random_problem(int(2 ** rng.uniform(1.5, 8.5)), rng).region
    if region.dimension == 0:
        return
    slice_ = region._slice
    rate = accepted(slice_, rng, 4000) / 4000
    assert rate >= 0.15 / math.sqrt(slice_.c.size)
    assert rate == pytest.approx(slice_.acceptance, rel=0.6)  # the estimate that sizes the batches


def test_the_tilt_centres_the_proposals_on_the_sum() -> None:
    for seed in range(50):
        rng = np.random.default_rng([18, seed])
        slice_ = random_problem(int(rng.integers(4, 60)), rng).region._slice
        z = slice_.lam * slice_.c
        means = slice_.c / 2 if slice_.lam == 0 else 1 / slice_.lam - slice_.c / np.expm1(np.minimum(z, 700))
        assert means.sum() == pytest.approx(slice_.s, rel=1e-6)


# Samplers that look right and are not: the tests above must catch each of them.

UNFAIR = REGIONS["5 falling caps"]


def test_the_tests_of_uniformity_pass_plain_rejection() -> None:
    """The referees judged by a sampler that is uniform beyond doubt."""
    tried = np.random.default_rng(19).dirichlet(np.ones(5), size=4_000_000)
    kept = tried[(tried <= UNFAIR.upper).all(axis=1)]
    for referee in (marginals_p, slices_p, joint_p):
        assert referee(kept, UNFAIR) > ALPHA


def test_clipping_and_renormalising_fails() -> None:
    draws = np.clip(np.random.default_rng(20).dirichlet(np.ones(5), size=NUM_DRAWS), UNFAIR.floors, UNFAIR.caps)
    draws /= draws.sum(axis=1, keepdims=True)
    for referee in (marginals_p, slices_p, joint_p):
        assert referee(draws, UNFAIR) < 1e-12


def test_projecting_a_dirichlet_draw_fails() -> None:
    tried = np.random.default_rng(21).dirichlet(np.ones(5), size=2000)
    draws = np.stack([UNFAIR.project(point) for point in tried])
    for referee in (marginals_p, slices_p, joint_p):
        assert referee(draws, UNFAIR) < 1e-12


def test_mixing_vertices_at_random_fails() -> None:
    corners = UNFAIR.vertices()
    draws = np.random.default_rng(22).dirichlet(np.ones(len(corners)), size=NUM_DRAWS) @ corners
    for referee in (marginals_p, slices_p, joint_p):
        assert referee(draws, UNFAIR) < 1e-12


def test_right_marginals_with_a_wrong_joint_fail_the_joint_test_alone() -> None:
    """Half of the triangle, chosen so that swapping any two weights leaves it: each marginal sees both halves alike."""
    draws = REGIONS["triangle"].sample(np.random.default_rng(23), size=2 * NUM_DRAWS)
    a, b, c = draws.T
    half = draws[(a - b) * (b - c) * (c - a) > 0]
    assert marginals_p(half, REGIONS["triangle"]) > ALPHA
    assert joint_p(half, REGIONS["triangle"]) < 1e-12


def test_dirichlet_rescale_fails() -> None:
    """DRS (RTSS 2020) was published as uniform; its authors withdrew the claim in 2025."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # which says just that
        from drs import drs  # type: ignore[import-untyped]
    state = random.getstate()
    random.seed(24)  # the only generator it knows
    try:
        draws = np.array([drs(5, 1.0, UNFAIR.caps.tolist()) for _ in range(NUM_DRAWS)])
    finally:
        random.setstate(state)
    assert marginals_p(draws, UNFAIR) < 1e-12
    assert slices_p(draws, UNFAIR) < 1e-12
