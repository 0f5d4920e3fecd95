"""Regimes: which bounds hold at each step of a run with a warmup and pivots, and what is said of bounds that cannot."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mixer.errors import InfeasibleRegionError
from mixer.region.regimes import FIREHOSE, WARMUP, Bounds, plan_regimes, regime_at
from mixer.region.region import Region

NAMES = ("a", "b", "c", "d")
PLAIN = Bounds(NAMES, {"a": 0.1, "b": 0.2}, {"a": 0.9, "c": 0.4}, ("d",))
STEPS = 40
CHANGES: dict[str, Callable[[Bounds], Bounds]] = {
    "floors": lambda bounds: bounds.replaced(floors={"a": 0.05, "b": 0.3}),
    "caps": lambda bounds: bounds.replaced(caps={"a": 0.5}),
    "exclude": lambda bounds: bounds.replaced(exclude=["c"]),
    "nothing": lambda bounds: bounds.replaced(),
    "all": lambda bounds: bounds.replaced(floors={}, caps={}, exclude=[]),
}


def as_written(bounds: Bounds) -> tuple[dict[str, float], dict[str, float], tuple[str, ...]]:
    return dict(bounds.floors), dict(bounds.caps), bounds.exclude


def test_a_change_replaces_the_tables_that_it_gives_and_leaves_the_rest() -> None:
    floors, caps, exclude = as_written(PLAIN)
    assert as_written(CHANGES["floors"](PLAIN)) == ({"a": 0.05, "b": 0.3}, caps, exclude)
    assert as_written(CHANGES["caps"](PLAIN)) == (floors, {"a": 0.5}, exclude)
    assert as_written(CHANGES["exclude"](PLAIN)) == (floors, caps, ("c",))
    assert CHANGES["nothing"](PLAIN) == PLAIN
    assert CHANGES["all"](PLAIN) == Bounds(NAMES, {}, {}, ())


def test_bounds_without_a_source_exclude_it_and_its_floor_sleeps() -> None:
    out = PLAIN.without(["b"])
    assert as_written(out) == ({"a": 0.1}, {"a": 0.9, "c": 0.4}, ("d", "b"))
    assert out.names == NAMES
    assert out.region().upper[1] == out.region().lower[1] == 0


@pytest.mark.parametrize("active", [(), ("a", "b")])
def test_the_region_of_bounds_is_what_they_say(active: tuple[str, ...]) -> None:
    found = PLAIN.region(active)
    expected = Region(NAMES, floors=PLAIN.floors, caps=PLAIN.caps, exclude=PLAIN.exclude)
    expected = expected.restrict(active) if active else expected
    assert found.names == NAMES
    np.testing.assert_allclose(found.lower, expected.lower, atol=1e-15)
    np.testing.assert_allclose(found.upper, expected.upper, atol=1e-15)


@given(
    warmup_end=st.integers(0, STEPS),
    pivots=st.dictionaries(st.integers(1, STEPS - 1), st.sampled_from(sorted(CHANGES)), max_size=5),
)
@example(warmup_end=10, pivots={10: "caps"})
@example(warmup_end=10, pivots={4: "floors", 10: "caps", 11: "all"})
def test_at_each_step_the_newest_pivot_holds_and_until_the_warmup_ends_its_sources_alone(
    warmup_end: int, pivots: dict[int, str]
) -> None:
    active = ("a", "b")
    changes = [(step, f"{kind} at {step}", CHANGES[kind]) for step, kind in sorted(pivots.items())]
    regimes = plan_regimes(PLAIN, warmup=(warmup_end, active), changes=changes)
    assert [regime.start for regime in regimes] == sorted({0, warmup_end, *pivots})
    for step in range(STEPS + 1):
        bounds, name = PLAIN, WARMUP if step < warmup_end else FIREHOSE
        for start, pivot, change in changes:
            if start <= step:
                bounds, name = change(bounds), pivot
        found = regime_at(regimes, step)
        assert (found.name, found.bounds) == (name, bounds)
        region = bounds.region(active if step < warmup_end else ())
        np.testing.assert_array_equal(found.region.lower, region.lower)
        np.testing.assert_array_equal(found.region.upper, region.upper)


def test_without_a_warmup_and_pivots_one_regime_holds() -> None:
    (only,) = plan_regimes(PLAIN)
    assert (only.name, only.start, only.bounds) == (FIREHOSE, 0, PLAIN)
    np.testing.assert_array_equal(only.region.upper, PLAIN.region().upper)


def test_bounds_that_leave_no_mixture_name_their_regime_and_keep_the_numbers() -> None:
    changes = [(7, "too-much", lambda bounds: bounds.replaced(floors={"a": 0.8, "b": 0.7}))]
    with pytest.raises(InfeasibleRegionError) as plain:
        PLAIN.replaced(floors={"a": 0.8, "b": 0.7}).region()
    with pytest.raises(InfeasibleRegionError) as raised:
        plan_regimes(PLAIN, changes=changes)
    error = raised.value
    assert str(error) == f"regime too-much (from step 7): {plain.value}"
    assert isinstance(error.__cause__, InfeasibleRegionError)
    assert (error.sources, error.excess, error.total) == (plain.value.sources, plain.value.excess, plain.value.total)
    assert error.sources == ("a", "b")
    assert error.excess == pytest.approx(0.5)
    assert error.total == pytest.approx(1.5)
