"""The region's geometry: certificates, tightening, projection, vertices, volume, and bad input."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import optimize

from mixer.errors import ConfigError, InfeasibleRegionError, UnknownSourceError, WeightsError
from mixer.region import uniform as tilting
from mixer.region.region import Region, tighten
from mixer.types import Array
from tests.support.oracles import exact_projection, exact_volume
from tests.support.strategies import Problem, points, problems, random_problem, scores, source_names

EPS = float(np.finfo(np.float64).eps)
SIZES = (1, 2, 3, 16, 100, 1000, 10_000)


def exercise() -> Region:
    """The lesson's exercise: at least half H, at most a quarter D."""
    return Region(["H", "D", "other"], floors={"H": 0.5}, caps={"D": 0.25})


def assert_is_mixture(region: Region, weights: Array) -> None:
    """Every bound kept to the last bit, and the sum within 4 K eps."""
    assert (weights >= region.lower).all()
    assert (weights <= region.upper).all()
    assert abs(math.fsum(weights) - 1.0) <= 4 * weights.size * EPS


@given(problems(), st.lists(points(12), min_size=1, max_size=3))
def test_points_are_brought_within_the_bounds_as_numpy_does_it(p: Problem, outside: list[Array]) -> None:
    region, these = p.region, np.array(outside)[:, : len(p.names)]
    assert region._clipped(these).tobytes() == np.clip(these, region.lower, region.upper).tobytes()


# Certificates: which sum, which sources, by how much.


def test_floors_above_one_name_the_sources_and_the_excess() -> None:
    with pytest.raises(
        InfeasibleRegionError, match=r"^floors sum to 1\.2, .* web=0\.7, code=0\.5; lower them by 0\.2 in total$"
    ) as caught:
        Region(["web", "books", "code"], floors={"web": 0.7, "code": 0.5})
    assert caught.value.sources == ("web", "code")
    assert caught.value.excess == pytest.approx(0.2)
    assert caught.value.total == pytest.approx(1.2)


def test_caps_below_one_name_the_sources_and_the_shortfall() -> None:
    with pytest.raises(
        InfeasibleRegionError, match=r"^caps sum to 0\.75, .* web=0\.5, code=0\.25; raise them by 0\.25 in total$"
    ) as caught:
        Region(["web", "books", "code"], caps={"web": 0.5, "code": 0.25}, exclude=["books"])
    assert caught.value.sources == ("web", "code")
    assert caught.value.excess == pytest.approx(0.25)
    assert caught.value.total == pytest.approx(0.75)


def test_a_floor_above_its_cap_names_that_source_and_has_no_total() -> None:
    with pytest.raises(
        InfeasibleRegionError, match=r"floor of code is 0\.5, above its cap 0\.2; .* by 0\.3$"
    ) as caught:
        Region(["web", "code"], floors={"code": 0.5}, caps={"code": 0.2})
    assert caught.value.sources == ("code",)
    assert caught.value.excess == pytest.approx(0.3)
    assert caught.value.total is None


def test_every_source_whose_floor_is_above_its_cap_is_in_the_certificate() -> None:
    with pytest.raises(InfeasibleRegionError, match="floor of web") as caught:
        Region(["web", "code"], floors={"code": 0.5, "web": 0.4}, caps={"code": 0.2, "web": 0.1})
    assert caught.value.sources == ("web", "code")


def test_an_excluded_source_with_a_floor_is_refused_by_name() -> None:
    with pytest.raises(InfeasibleRegionError, match=r"code is excluded but has a floor of 0\.25; remove") as caught:
        Region(["web", "code"], floors={"code": 0.25}, exclude=["code"])
    assert caught.value.sources == ("code",)
    assert caught.value.excess == 0.25


def test_excluding_everything_says_that_every_source_is_at_0() -> None:
    with pytest.raises(InfeasibleRegionError, match="caps sum to 0, .* every source is at 0") as caught:
        Region(["web", "code"], exclude=["web", "code"])
    assert caught.value.sources == ("web", "code")
    assert caught.value.excess == 1.0


def test_a_long_certificate_lists_20_sources_and_counts_the_rest() -> None:
    names = source_names(50)
    with pytest.raises(InfeasibleRegionError, match="source-19=0.1 and 30 more; lower them by 4 in total") as caught:
        Region(names, floors=dict.fromkeys(names, 0.1))
    assert caught.value.sources == names


@given(problems(min_sources=2), st.floats(0.01, 0.5))
def test_raising_one_floor_past_its_reach_is_always_refused(p: Problem, more: float) -> None:
    i = int(p.region.upper.argmin())
    assume(p.region.upper[i] < 1.0 - 1e-9)
    floor = p.region.upper[i] + more
    with pytest.raises(InfeasibleRegionError) as caught:
        Region(p.names, floors=p.floors | {p.names[i]: min(floor, 1.0)}, caps=p.caps, exclude=p.exclude)
    assert p.names[i] in caught.value.sources


# Bounds that cannot be read.

BAD_BOUNDS: dict[str, tuple[dict[str, Any], type[ConfigError], str]] = {
    "NaN floor": (
        {"floors": {"web": math.nan}},
        ConfigError,
        r"^floor of web is nan; a floor is a number from 0 to 1$",
    ),
    "NaN cap": ({"caps": {"web": math.nan}}, ConfigError, "^cap of web is nan; a cap is a number from 0 to 1$"),
    "negative floor": ({"floors": {"web": -0.1}}, ConfigError, r"floor of web is -0\.1"),
    "negative cap": ({"caps": {"web": -0.1}}, ConfigError, r"cap of web is -0\.1"),
    "floor above 1": ({"floors": {"code": 1.5}}, ConfigError, r"floor of code is 1\.5"),
    "cap above 1": ({"caps": {"code": 25}}, ConfigError, "cap of code is 25"),
    "infinite cap": ({"caps": {"code": math.inf}}, ConfigError, "cap of code is inf"),
    "text": ({"floors": {"web": "0.5"}}, ConfigError, r"floor of web is '0\.5'"),
    "nothing": ({"caps": {"web": None}}, ConfigError, "cap of web is None"),
    "unknown floor": ({"floors": {"wbe": 0.1}}, UnknownSourceError, "floors: unknown source 'wbe'; did you mean 'web'"),
    "unknown cap": ({"caps": {"cod": 0.1}}, UnknownSourceError, "caps: unknown source 'cod'; did you mean 'code'"),
    "unknown exclusion": ({"exclude": ["boks"]}, UnknownSourceError, "exclude: unknown source 'boks'.*'books'"),
    "unknown active": ({"active": ["wen"]}, UnknownSourceError, "active: unknown source 'wen'; did you mean 'web'"),
    "nothing alike": (
        {"caps": {"zzz": 1}},
        UnknownSourceError,
        "unknown source 'zzz'; the sources are web, books, code",
    ),
    "no active source": ({"active": []}, InfeasibleRegionError, "caps sum to 0"),
}


@pytest.mark.parametrize("case", BAD_BOUNDS)
def test_bad_bounds_are_refused_with_their_cause_and_value(case: str) -> None:
    arguments, error, message = BAD_BOUNDS[case]
    with pytest.raises(error, match=message) as caught:
        Region(["web", "books", "code"], **arguments)
    assert type(caught.value) is error


def test_duplicate_sources_are_named_once_each() -> None:
    with pytest.raises(ConfigError, match=r"^sources are declared more than once: web, code$"):
        Region(["web", "code", "web", "books", "code", "web"])


def test_a_region_needs_a_source() -> None:
    with pytest.raises(ConfigError, match="at least one source"):
        Region([])


def test_the_bounds_cannot_be_changed_from_outside() -> None:
    region = exercise()
    for bounds in (region.floors, region.caps, region.lower, region.upper):
        with pytest.raises(ValueError, match="read-only"):
            bounds[0] = 0.0


# Tightening.


@given(problems())
def test_every_tightened_bound_is_attained(p: Problem) -> None:
    region = p.region
    for i, direction in enumerate(np.eye(len(p.names))):
        assert region.best_vertex(direction)[i] == pytest.approx(region.upper[i], abs=1e-11)
        assert region.best_vertex(-direction)[i] == pytest.approx(region.lower[i], abs=1e-11)


@given(problems())
def test_tightened_bounds_are_what_the_other_bounds_leave(p: Problem) -> None:
    region = p.region
    floors, caps = ([Fraction(x) for x in bounds.tolist()] for bounds in (region.floors, region.caps))
    for i in range(len(p.names)):
        most = min(caps[i], 1 - (sum(floors) - floors[i]))
        least = max(floors[i], 1 - (sum(caps) - caps[i]))
        assert region.upper[i] == pytest.approx(float(most), abs=1e-11)
        assert region.lower[i] == pytest.approx(float(least), abs=1e-11)


@given(problems())
def test_tightening_twice_changes_nothing(p: Problem) -> None:
    region = p.region
    lower, upper = tighten(region.lower, region.upper)
    np.testing.assert_allclose(lower, region.lower, rtol=0, atol=1e-11)
    np.testing.assert_allclose(upper, region.upper, rtol=0, atol=1e-11)


def test_a_floor_caps_the_others_and_caps_raise_a_floor() -> None:
    region = Region(["a", "b", "c"], floors={"a": 0.7}, caps={"b": 0.2, "c": 0.05})
    np.testing.assert_allclose(region.lower, [0.75, 0, 0])
    np.testing.assert_allclose(region.upper, [1, 0.2, 0.05])


# Membership.


@given(problems())
def test_the_point_a_region_was_built_around_is_in_it(p: Problem) -> None:
    assert p.region.contains(p.feasible)
    np.testing.assert_array_equal(p.region.check(p.feasible), p.feasible)


@given(problems(min_sources=2), st.sampled_from([1e-8, 1e-3, 1.0]))
def test_weights_outside_a_bound_or_off_the_plane_are_not_contained(p: Problem, by: float) -> None:
    region = p.region
    top, bottom = int(region.caps.argmin()), int(region.floors.argmax())
    over = region.best_vertex(np.eye(len(p.names))[top])
    over[top] = region.caps[top] + by
    under = region.best_vertex(np.zeros(len(p.names)))
    under[bottom] = region.floors[bottom] - by
    for weights in (over, under, p.feasible * (1 + by), p.feasible * np.nan):
        assert not region.contains(weights)
        with pytest.raises(WeightsError):
            region.check(weights)


BAD_WEIGHTS: dict[str, tuple[Any, str]] = {
    "below a floor": ([0.4, 0.2, 0.4], r"weight of H is 0\.4, below its floor 0\.5; project"),
    "above a cap": ([0.5, 0.3, 0.2], r"weight of D is 0\.3, above its cap 0\.25; project"),
    "negative": ([1.1, 0.0, -0.1], r"weight of H is 1\.1, above its cap 1;"),
    "off the plane": ([0.5, 0.2, 0.2], r"weights sum to 0\.9, not 1"),
    "NaN": ([0.5, math.nan, 0.25], "weight of D is nan"),
    "infinite": ([math.inf, 0.0, 0.0], "weight of H is inf"),
    "too few": ([0.5, 0.5], r"weights have shape \(2,\), but there are 3 sources"),
    "two axes": ([[0.5, 0.25, 0.25]], r"weights have shape \(1, 3\)"),
}


@pytest.mark.parametrize("case", BAD_WEIGHTS)
def test_bad_weights_are_refused_with_their_cause_and_value(case: str) -> None:
    weights, message = BAD_WEIGHTS[case]
    with pytest.raises(WeightsError, match=message):
        exercise().check(weights)


def test_check_allows_rounding_and_no_more() -> None:
    region = exercise()
    assert region.contains([0.5 - 1e-10, 0.25, 0.25 + 1e-10])
    assert not region.contains([0.5 - 1e-10, 0.25, 0.25 + 1e-10], atol=1e-12)


# Projection.


@given(st.data(), problems())
def test_projection_is_the_exact_one_for_points_of_any_size(data: st.DataObject, p: Problem) -> None:
    point = data.draw(points(len(p.names)))
    weights = p.region.project(point)
    assert_is_mixture(p.region, weights)
    np.testing.assert_allclose(weights, exact_projection(point, p.region.lower, p.region.upper), rtol=0, atol=1e-12)


@given(st.data(), problems())
def test_no_mixture_is_nearer_than_the_projection(data: st.DataObject, p: Problem) -> None:
    point = data.draw(points(len(p.names)).filter(lambda v: bool((abs(v) < 1e3).all())))
    weights = p.region.project(point)
    assert (point - weights) @ (p.feasible - weights) <= 1e-9  # the optimality condition of a projection
    assert (point - weights) @ (p.region.best_vertex(point - weights) - weights) <= 1e-9  # hence for every mixture


@given(problems())
def test_a_mixture_projects_on_itself(p: Problem) -> None:
    np.testing.assert_allclose(p.region.project(p.feasible), p.feasible, rtol=0, atol=1e-12)


@given(st.data(), problems())
def test_projecting_twice_is_projecting_once(data: st.DataObject, p: Problem) -> None:
    once = p.region.project(data.draw(points(len(p.names))))
    np.testing.assert_allclose(p.region.project(once), once, rtol=0, atol=1e-12)


@given(st.data(), problems())
def test_projections_are_no_further_apart_than_their_points(data: st.DataObject, p: Problem) -> None:
    first, second = (data.draw(points(len(p.names))) for _ in range(2))
    apart = math.hypot(*(first / 2 - second / 2)) * 2  # halves: the difference of 1e300 and -1e300 is finite
    assert np.linalg.norm(p.region.project(first) - p.region.project(second)) <= apart * (1 + 1e-12) + 1e-12


@given(st.data(), problems(), st.randoms(use_true_random=False))
def test_permuting_the_sources_permutes_the_projection(data: st.DataObject, p: Problem, random: Any) -> None:
    point = data.draw(points(len(p.names)))
    order = list(range(len(p.names)))
    random.shuffle(order)
    expected = p.region.project(point)[order]
    np.testing.assert_allclose(p.permuted(order).project(point[order]), expected, rtol=0, atol=1e-11)


@pytest.mark.parametrize("seed", range(12))
def test_a_general_solver_finds_the_same_projection(seed: int) -> None:
    rng = np.random.default_rng([1, seed])
    region = random_problem(int(rng.integers(2, 9)), rng).region
    point = rng.normal(size=len(region.names))
    solved = optimize.minimize(
        lambda w: float((w - point) @ (w - point)),
        region.project(np.zeros(point.size)),
        jac=lambda w: 2 * (w - point),
        method="SLSQP",
        bounds=list(zip(region.lower, region.upper, strict=True)),
        constraints={"type": "eq", "fun": lambda w: w.sum() - 1, "jac": np.ones_like},
        options={"ftol": 1e-14, "maxiter": 500},
    )
    np.testing.assert_allclose(region.project(point), solved.x, rtol=0, atol=1e-6)


@pytest.mark.parametrize("num_sources", SIZES)
def test_bisection_finds_the_same_projection_for_any_number_of_sources(num_sources: int) -> None:
    rng = np.random.default_rng([2, num_sources])
    region = random_problem(num_sources, rng).region
    point = rng.normal(size=num_sources) / num_sources
    low, high = float((point - region.upper).min()), float((point - region.lower).max())
    for _ in range(200):
        middle = (low + high) / 2
        enough = math.fsum(np.clip(point - middle, region.lower, region.upper)) >= 1
        low, high = (middle, high) if enough else (low, middle)
    weights = region.project(point)
    assert_is_mixture(region, weights)
    np.testing.assert_allclose(weights, np.clip(point - low, region.lower, region.upper), rtol=0, atol=1e-13)


def test_huge_values_keep_the_differences_that_matter() -> None:
    region = Region(["a", "b", "c"])
    np.testing.assert_array_equal(region.project([1e20, 1e20, 0.0]), [0.5, 0.5, 0.0])
    np.testing.assert_array_equal(region.project([1.7e308, -1.7e308, 0.0]), [1, 0, 0])
    capped = Region(["a", "b", "c"], caps={"a": 0.5})
    np.testing.assert_allclose(capped.project([1e20, 0.1, 0.0]), [0.5, 0.3, 0.2])


def test_projecting_equal_values_fills_all_to_the_same_level() -> None:
    region = Region(["a", "b", "c", "d"], floors={"a": 0.4}, caps={"b": 0.1})
    np.testing.assert_allclose(region.project(np.zeros(4)), [0.4, 0.1, 0.25, 0.25])


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_point_that_is_not_finite_cannot_be_projected(value: float) -> None:
    with pytest.raises(WeightsError, match=f"not finite: {value}"):
        exercise().project([0.1, value, 0.2])


# The best vertex.


@given(st.data(), problems())
def test_no_vertex_scores_better_than_the_best_one(data: st.DataObject, p: Problem) -> None:
    region, values = p.region, data.draw(scores(len(p.names)))
    best = region.best_vertex(values)
    assert_is_mixture(region, best)
    finite = np.where(np.isposinf(values), 1e6, values)  # +inf stands for a score above all others
    corners = region.vertices()
    assert (corners @ finite <= region.best_vertex(finite) @ finite + 1e-9 * np.abs(finite).max()).all()
    assert np.abs(corners - best).max(axis=1).min() <= 1e-10
    np.testing.assert_array_equal(region.best_vertex(finite), best)


@pytest.mark.parametrize("seed", range(40))
def test_a_linear_program_finds_the_same_optimum(seed: int) -> None:
    rng = np.random.default_rng([3, seed])
    region = random_problem(int(rng.integers(1, 40)), rng).region
    values = rng.normal(size=len(region.names))
    solved = optimize.linprog(
        -values,
        A_eq=np.ones((1, values.size)),
        b_eq=[1.0],
        bounds=list(zip(region.floors, region.caps, strict=True)),
        options={"primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10},
    )
    assert solved.status == 0
    assert values @ region.best_vertex(values) == pytest.approx(-solved.fun, abs=1e-8)


@given(st.data(), problems())
def test_at_most_one_weight_of_a_best_vertex_is_between_its_bounds(data: st.DataObject, p: Problem) -> None:
    best = p.region.best_vertex(data.draw(scores(len(p.names))))
    assert ((best > p.region.lower) & (best < p.region.upper)).sum() <= 1


@given(st.data(), problems(), st.randoms(use_true_random=False))
def test_permuting_the_sources_permutes_the_best_vertex(data: st.DataObject, p: Problem, random: Any) -> None:
    num_sources = len(p.names)
    values = np.array(data.draw(st.lists(st.floats(-5, 5), min_size=num_sources, max_size=num_sources, unique=True)))
    order = list(range(num_sources))
    random.shuffle(order)
    expected = p.region.best_vertex(values)[order]
    np.testing.assert_allclose(p.permuted(order).best_vertex(values[order]), expected, rtol=0, atol=1e-11)


def test_equal_scores_go_to_the_source_declared_first() -> None:
    region = Region(["a", "b", "c", "d"], caps={"b": 0.3})
    np.testing.assert_allclose(region.best_vertex([0, 1, 1, 1]), [0, 0.3, 0.7, 0])


def test_ties_come_before_the_declared_order_and_after_the_scores() -> None:
    region = Region(["a", "b", "c", "d"], caps={"c": 0.3})
    np.testing.assert_allclose(region.best_vertex([1, 1, 1, 2], ties=[2, 1, 0, 5]), [0, 0, 0, 1])
    np.testing.assert_allclose(region.best_vertex([1, 1, 1, 0], ties=[2, 1, 0, 5]), [0, 0.7, 0.3, 0])
    np.testing.assert_allclose(region.best_vertex([1, 1, 1, 0], ties=[1, 1, 1, 1]), [1, 0, 0, 0])


def test_sources_never_tried_come_first() -> None:
    region = Region(["a", "b", "c", "d"], caps={"c": 0.6, "d": 0.3})
    np.testing.assert_allclose(region.best_vertex([1e9, 0, np.inf, np.inf]), [0.1, 0, 0.6, 0.3])


@pytest.mark.parametrize("num_sources", SIZES)
def test_best_vertices_of_any_number_of_sources_are_mixtures(num_sources: int) -> None:
    rng = np.random.default_rng([4, num_sources])
    region = random_problem(num_sources, rng).region
    assert_is_mixture(region, region.best_vertex(rng.normal(size=num_sources)))


def test_a_score_that_is_nan_is_refused_by_name() -> None:
    with pytest.raises(WeightsError, match="score of D is nan"):
        exercise().best_vertex([1, math.nan, 2])


CALLS: Mapping[str, Callable[[Region], object]] = {
    "point": lambda region: region.project([0.5, 0.5]),
    "scores": lambda region: region.best_vertex([[1, 2, 3]]),
    "ties": lambda region: region.best_vertex([1, 2, 3], ties=[0]),
    "weights": lambda region: region.step([1.0], [1, 0, 0], 0.5),
}


@pytest.mark.parametrize("what", CALLS)
def test_vectors_of_another_shape_are_refused_by_name(what: str) -> None:
    with pytest.raises(WeightsError, match=rf"^{what} have shape \([\d, ]+\), but there are 3 sources$"):
        CALLS[what](exercise())


# Steps.


@given(st.data(), problems(), st.floats(0, 1))
def test_a_step_stays_in_the_region(data: st.DataObject, p: Problem, eta: float) -> None:
    vertex = p.region.best_vertex(data.draw(scores(len(p.names))))
    weights = p.region.step(p.feasible, vertex, eta)
    assert_is_mixture(p.region, weights)
    np.testing.assert_allclose(weights, (1 - eta) * p.feasible + eta * vertex, rtol=0, atol=1e-11)


@given(problems())
def test_repeated_steps_pile_up_no_rounding(p: Problem) -> None:
    region = p.region
    weights = p.feasible
    for i in range(50):
        weights = region.step(weights, region.best_vertex(np.roll(p.feasible, i)), 0.3)
    assert_is_mixture(region, weights)


@pytest.mark.parametrize("eta", [-0.01, 1.01, math.nan])
def test_a_step_past_its_ends_is_refused(eta: float) -> None:
    with pytest.raises(WeightsError, match=f"eta is {eta}; a step goes from 0"):
        exercise().step([0.5, 0.25, 0.25], [1, 0, 0], eta)


def test_a_step_from_or_to_the_outside_is_refused_not_repaired() -> None:
    inside, outside = [0.5, 0.25, 0.25], [0.0, 0.0, 1.0]
    for weights, towards in ((inside, outside), (outside, inside)):
        with pytest.raises(WeightsError, match="weight of H is 0, below its floor"):
            exercise().step(weights, towards, 0.5)


# Vertices.


def test_the_exercise_has_four_corners() -> None:
    expected = [[1, 0, 0], [0.75, 0.25, 0], [0.5, 0.25, 0.25], [0.5, 0, 0.5]]
    np.testing.assert_allclose(exercise().vertices(), np.array(expected, dtype=np.float64))


@given(problems(max_sources=8))
def test_vertices_are_distinct_mixtures_with_one_weight_between_bounds_at_most(p: Problem) -> None:
    region, corners = p.region, p.region.vertices()
    for corner in corners:
        assert_is_mixture(region, corner)
        assert ((corner > region.lower + 1e-11) & (corner < region.upper - 1e-11)).sum() <= 1
    assert len(np.unique(corners, axis=0)) == len(corners)
    assert [tuple(corner) for corner in np.round(corners, 11)] == sorted(
        map(tuple, np.round(corners, 11)), reverse=True
    )


@given(problems(max_sources=8))
def test_every_mixture_lies_within_its_corners(p: Problem) -> None:
    corners = p.region.vertices()
    np.testing.assert_allclose(corners.min(axis=0), p.region.lower, rtol=0, atol=1e-10)
    np.testing.assert_allclose(corners.max(axis=0), p.region.upper, rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("caps", "num_vertices"),
    [({}, 12), (dict.fromkeys(source_names(12), 1 / 6), 924), (dict.fromkeys(source_names(12), 2 / 11), 12 * 462)],
)
def test_twelve_free_sources_can_still_be_listed(caps: dict[str, float], num_vertices: int) -> None:
    assert Region(source_names(12), caps=caps).vertices().shape == (num_vertices, 12)


def test_vertices_count_only_free_sources() -> None:
    names = source_names(10_000)
    region = Region(names).restrict(names[:3])
    corners = region.vertices()
    np.testing.assert_array_equal(corners[:, :3], np.eye(3))
    assert not corners[:, 3:].any()


def test_vertices_of_too_many_free_sources_are_refused() -> None:
    with pytest.raises(WeightsError, match=r"vertices of 13 free sources .* at most 12 .* use best_vertex"):
        Region(source_names(13)).vertices()


# Sub-simplices.


def test_restricting_16_sources_to_7_leaves_6_of_15_dimensions() -> None:
    names = source_names(16)
    region = Region(names, floors={names[0]: 0.1, names[12]: 0.5}, caps={names[1]: 0.25})
    assert region.dimension == 15
    warmup = region.restrict(names[:7])
    assert warmup.dimension == 6
    assert warmup.names == names
    assert not warmup.upper[7:].any()


def test_floors_of_the_others_sleep_and_those_of_the_named_stay() -> None:
    region = Region(["a", "b", "c"], floors={"a": 0.3, "c": 0.5}, caps={"b": 0.4}).restrict(["a", "b"])
    np.testing.assert_allclose(region.lower, [0.6, 0, 0])
    np.testing.assert_allclose(region.upper, [1, 0.4, 0])


def test_restricting_keeps_exclusions_and_earlier_restrictions() -> None:
    region = Region(["a", "b", "c", "d"], exclude=["a"]).restrict(["a", "b", "c"])
    np.testing.assert_array_equal(region.upper, [0, 1, 1, 0])
    np.testing.assert_array_equal(region.restrict(["c", "d"]).upper, [0, 0, 1, 0])


def test_an_excluded_source_may_have_a_floor_that_sleeps() -> None:
    region = Region(["a", "b"], floors={"b": 0.5}, exclude=["b"], active=["a"])
    np.testing.assert_array_equal(region.project([0, 1]), [1, 0])


def test_restricting_to_sources_whose_caps_are_too_small_is_refused() -> None:
    with pytest.raises(InfeasibleRegionError, match=r"caps sum to 0\.5, .* a=0\.5; raise them by 0\.5"):
        Region(["a", "b"], caps={"a": 0.5}).restrict(["a"])


def test_restricting_to_an_unknown_source_suggests_a_known_one() -> None:
    with pytest.raises(UnknownSourceError, match="restrict: unknown source 'h'"):
        exercise().restrict(["h"])


# Volume.


@pytest.mark.parametrize("num_sources", [2, 3, 5, 12, 13, 16, 40, 200, 2000])
def test_the_whole_simplex_has_volume_one_over_factorial(num_sources: int) -> None:
    assert Region(source_names(num_sources)).log_volume() == pytest.approx(-math.lgamma(num_sources), rel=1e-9)


def test_the_exercise_has_volume_three_32nds() -> None:
    assert exercise().log_volume() == pytest.approx(math.log(3 / 32), abs=1e-12)


@given(problems(max_sources=7))
def test_volume_is_inclusion_and_exclusion_over_the_declared_bounds(p: Problem) -> None:
    region = p.region
    is_free = region.upper > region.lower
    if is_free.sum() < 2:
        assert region.log_volume() == 0.0
        return
    lower, upper = ([Fraction(x) for x in bounds[is_free].tolist()] for bounds in (region.lower, region.upper))
    left = 1 - sum(Fraction(x) for x in region.lower.tolist())
    volume = exact_volume([b - a for a, b in zip(lower, upper, strict=True)], Fraction(left))
    assert region.log_volume() == pytest.approx(math.log(volume), abs=1e-6)


@pytest.mark.parametrize("seed", range(10))
def test_fourier_and_exact_volumes_agree_for_12_sources(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng([5, seed])
    caps = np.minimum(rng.dirichlet(np.ones(12)) + 10 ** rng.uniform(-3, 0, 12), 1)
    bounds = dict(zip(source_names(12), caps.tolist(), strict=True))
    exact = Region(source_names(12), caps=bounds).log_volume()
    monkeypatch.setattr(tilting, "EXACT_VOLUME_SOURCES", 0)
    assert Region(source_names(12), caps=bounds).log_volume() == pytest.approx(exact, abs=1e-7)


@pytest.mark.parametrize("caps", [{}, {"a": 0.3}, {"a": 0.3, "b": 0.4, "c": 0.5}])
def test_volume_is_the_share_of_the_simplex_that_random_points_hit(caps: dict[str, float]) -> None:
    region = Region(["a", "b", "c", "d", "e"], floors={"d": 0.1}, caps=caps)
    hits = np.random.default_rng(6).dirichlet(np.ones(5), size=100_000)
    share = ((hits >= region.lower) & (hits <= region.upper)).all(axis=1).mean()
    error = math.sqrt(share * (1 - share) / len(hits))
    assert math.exp(region.log_volume()) * math.factorial(4) == pytest.approx(share, abs=4 * error)


def test_a_wide_region_of_pinned_sources_has_the_volume_of_its_free_ones() -> None:
    region = Region(["a", "b", "c", "d"], floors={"a": 0.25}, caps={"a": 0.25}, exclude=["d"])
    assert region.log_volume() == pytest.approx(math.log(0.75))


# Degenerate regions.

DEGENERATE: Mapping[str, tuple[Region, list[float]]] = {
    "one source": (Region(["only"]), [1]),
    "one source with bounds": (Region(["only"], floors={"only": 0.5}, caps={"only": 1}), [1]),
    "one source left": (Region(["a", "b", "c"], exclude=["a", "c"]), [0, 1, 0]),
    "floors sum to 1": (Region(["a", "b", "c"], floors={"a": 0.7, "b": 0.2, "c": 0.1}), [0.7, 0.2, 0.1]),
    "ten tenths": (Region(source_names(10), floors=dict.fromkeys(source_names(10), 0.1)), [0.1] * 10),
    "caps sum to 1": (Region(["a", "b", "c"], caps={"a": 0.3, "b": 0.3, "c": 0.4}), [0.3, 0.3, 0.4]),
    "all pinned": (Region(["a", "b"], floors={"a": 0.3, "b": 0.7}, caps={"a": 0.3, "b": 0.7}), [0.3, 0.7]),
    "a floor of 1": (Region(["a", "b", "c"], floors={"b": 1}), [0, 1, 0]),
}


@pytest.mark.parametrize("case", DEGENERATE)
def test_a_region_that_is_one_point_gives_that_point_to_everything(case: str) -> None:
    region, point = DEGENERATE[case]
    num_sources = len(point)
    assert region.dimension == 0
    assert region.log_volume() == 0.0
    assert region.vertices().shape == (1, num_sources)
    for weights in (
        region.project(np.arange(num_sources) * 1e6),
        region.best_vertex(np.arange(num_sources)),
        region.step(point, point, 0.5),
        region.vertices()[0],
        region.sample(np.random.default_rng(0)),
        *region.sample(np.random.default_rng(0), size=3),
    ):
        np.testing.assert_allclose(weights, point, rtol=0, atol=1e-12)
        assert_is_mixture(region, weights)


def test_pinned_sources_stay_and_the_others_share_the_rest() -> None:
    region = Region(["a", "b", "c", "d"], floors={"b": 0.4}, caps={"b": 0.4}, exclude=["d"])
    assert region.dimension == 1
    np.testing.assert_allclose(region.vertices(), [[0.6, 0.4, 0, 0], [0, 0.4, 0.6, 0]])
    np.testing.assert_allclose(region.project([0.1, 0, 0.1, 9]), [0.3, 0.4, 0.3, 0])


def test_decimals_that_miss_one_by_rounding_are_feasible_and_no_more_than_rounding() -> None:
    names = source_names(3)
    floors = dict(zip(names, (0.1, 0.2, 0.7 + 1e-13), strict=True))
    assert Region(names, floors=floors).dimension == 0
    with pytest.raises(InfeasibleRegionError, match="floors sum to 1"):
        Region(names, floors=floors | {names[2]: 0.7 + 1e-11})


def test_the_thinnest_region_that_is_not_a_point_still_works() -> None:
    names = source_names(3)
    region = Region(names, floors=dict(zip(names, (0.1, 0.2, 0.7 - 1e-11), strict=True)))
    assert region.dimension == 2
    for weights in (region.project([0, 0, 5]), region.best_vertex([1, 2, 3]), region.sample(np.random.default_rng(0))):
        assert_is_mixture(region, weights)


def test_a_region_says_its_size() -> None:
    assert repr(exercise()) == "Region(3 sources, 2 free dimensions)"


@given(problems(min_sources=2), st.floats(-1, 1), st.booleans())
def test_bounds_that_nearly_leave_a_point_give_mixtures_whose_sum_is_1(
    p: Problem, missing: float, is_floors: bool
) -> None:
    bounds = p.feasible.copy()
    bounds[bounds.argmax()] += missing * 0.98e-12  # decimals miss 1 by as much before they count as infeasible
    table = dict(zip(p.names, np.clip(bounds, 0.0, 1.0).tolist(), strict=True))
    region = Region(p.names, floors=table) if is_floors else Region(p.names, caps=table)
    assert region.dimension == 0
    assert_is_mixture(region, region.lower)
    assert_is_mixture(region, region.project(np.zeros(len(p.names))))


def test_caps_that_fall_short_by_a_rounding_leave_a_point_whose_sum_is_1() -> None:
    region = Region(["a", "b", "c"], caps={"a": 0.3, "b": 0.3, "c": 0.4 - 9e-13})
    assert math.fsum(region.lower) == math.fsum(region.upper) == 1.0
    np.testing.assert_allclose(region.lower, [0.3, 0.3, 0.4], atol=1e-12)


@given(st.integers(2, 40), st.booleans(), st.floats(0.05, 0.95))
def test_a_step_from_weights_that_nearly_sum_to_1_does_so_however_narrow_the_bounds(
    num: int, is_high: bool, off: float
) -> None:
    names, room = source_names(num), 5e-10 * off
    floors, caps = dict.fromkeys(names, (1.0 - room) / num), dict.fromkeys(names, (1.0 + room) / num)
    region = Region(names, floors=floors, caps=caps)
    corner = region.upper if is_high else region.lower  # its sum is off by ``room``, no source has more than a share
    assert region.contains(corner)
    assert_is_mixture(region, region.step(corner, corner, 0.5))
