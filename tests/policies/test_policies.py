"""What policies learn from losses and where they step, each against a second implementation written from the paper."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixer.config.curriculum import Curriculum
from mixer.config.policy import AndreaConfig, UcbConfig
from mixer.errors import ConfigError, InfeasibleRegionError
from mixer.losses import SourceLosses
from mixer.policies import (
    AndreaPolicy,
    BoundedUcb,
    Choice,
    FixedPolicy,
    Learnability,
    Policy,
    epoch_capped,
    make_policy,
)
from mixer.policies.rewards import LossReward
from mixer.policies.unit_reward import RING_BITS
from mixer.region.region import Region
from mixer.system.rounding import rounded
from mixer.types import Array, BoolArray, IntArray, State
from mixer.walk.walk import Walk
from tests.policies.test_rewards import losses_of
from tests.support.curricula import curriculum, drive, same_phases
from tests.support.strategies import problems

FIRST_TOKENS, TAU_0, KAPPA = 32.0, 100.0, 1.5
NO_LIMIT = np.zeros(1)  # distinct tokens unknown


def learnability(num_sources: int = 1, **settings: Any) -> Learnability:
    targets = np.full(num_sources, 1.0 / num_sources)
    return Learnability(UcbConfig(**settings), targets=targets, first_tokens=FIRST_TOKENS)


def absorbed(policy: Learnability, phases: Sequence[tuple[int, float, int]], *, tokens_per_row: int = 4) -> State:
    """Return what a policy remembers of one source after (rows, mean loss, steps) of each phase."""
    state, since = policy.initial(1), 0
    for rows, loss, length in phases:
        losses = losses_of([loss], [rows], tokens_per_row=tokens_per_row)
        state = policy.absorb(state, [losses], since=since, until=since + length)
        since += length
    return state


def observations(phases: Sequence[tuple[int, float, int]]) -> tuple[Array, Array, Array, Array]:
    """Return x, y, discounted rows and discounts of a source's phases, straight from the formulas."""
    x, y, rows = [], [], []
    discounts: list[float] = []
    tokens, since = 0, 0
    for num_rows, loss, length in phases:
        factor = ((since + TAU_0) / (since + length + TAU_0)) ** KAPPA
        discounts = [discount * factor for discount in discounts]
        if num_rows:
            x.append(math.log(tokens + 4 * num_rows / 2 + FIRST_TOKENS))
            y.append(loss)
            rows.append(num_rows)
            discounts.append(1.0)
        tokens += 4 * num_rows
        since += length
    return np.array(x), np.array(y), np.array(rows) * np.array(discounts), np.array(discounts)


phases_of_one_source = st.lists(
    st.tuples(st.integers(0, 60), st.floats(0.1, 12), st.integers(7, 42)), min_size=0, max_size=25
)


@given(phases_of_one_source)
def test_the_slope_is_that_of_a_discounted_weighted_regression(phases: list[tuple[int, float, int]]) -> None:
    policy = learnability()
    parts = policy.index(absorbed(policy, phases), NO_LIMIT)
    x, y, m, discounts = observations(phases)
    if x.size < 3:
        assert parts["index"][0] == math.inf
        return
    s, sx, sy, sxx, sxy, syy = (np.sum(m * term) for term in (1, x, y, x * x, x * y, y * y))  # the six plain sums
    variance = sxx - sx * sx / s
    slope = (sxy - sx * sy / s) / variance
    assert parts["slope"][0] == pytest.approx(-slope, rel=1e-6, abs=1e-6)
    assert parts["slope"][0] == pytest.approx(-np.polyfit(x, y, 1, w=np.sqrt(m))[0], rel=1e-6, abs=1e-6)
    residual = max(syy - sy * sy / s - slope * slope * variance, 0.0)
    error = math.sqrt(residual / max(discounts.sum() - 2, 1) / variance)
    assert parts["width"][0] == pytest.approx(error, rel=1e-5, abs=1e-5)
    tokens = 4 * sum(rows for rows, _, _ in phases)
    assert parts["tokens"][0] == tokens
    assert parts["index"][0] == pytest.approx(max(0.0, -slope + error) / tokens, rel=1e-4, abs=1e-6)


def test_without_discount_the_width_is_the_textbook_standard_error() -> None:
    policy = learnability(kappa=0.0)
    phases = [(8, loss, 10) for loss in (5.0, 4.1, 3.9, 3.2, 3.3, 2.9)]
    parts = policy.index(absorbed(policy, phases), NO_LIMIT)
    x, y, _, _ = observations(phases)
    design = np.stack([x, np.ones_like(x)], axis=1)
    (slope, _), (residual,), _, _ = np.linalg.lstsq(design, y, rcond=None)
    covariance = residual * 8 / (x.size - 2) * np.linalg.inv(design.T @ design * 8)
    assert parts["slope"][0] == pytest.approx(-slope)
    assert parts["width"][0] == pytest.approx(math.sqrt(covariance[0, 0]))
    doubled = learnability(kappa=0.0, width=2.0)
    assert doubled.index(absorbed(doubled, phases), NO_LIMIT)["width"][0] == pytest.approx(2 * parts["width"][0])


def test_fewer_than_three_observations_count_as_unexplored_and_go_to_the_fewest_tokens() -> None:
    policy = learnability(3)
    state = policy.initial(3)
    for step, rows in enumerate([[2, 1, 3], [2, 1, 3], [0, 0, 3]]):  # the third source alone has three
        state = policy.absorb(state, [losses_of([5.0 - step] * 3, rows)], since=10 * step, until=10 * step + 10)
    region = Region(["a", "b", "c"], caps={"b": 0.6})
    choice = policy.choose(state, region, np.full(3, 1 / 3), np.zeros(3))
    assert choice.parts["index"][:2].tolist() == [math.inf, math.inf]
    assert np.isfinite(choice.parts["index"][2])
    assert choice.vertex is not None
    np.testing.assert_allclose(choice.vertex, [0.4, 0.6, 0.0])  # b has fewer tokens than a, and a cap
    np.testing.assert_allclose(choice.weights, 0.7 * np.full(3, 1 / 3) + 0.3 * choice.vertex)


@given(st.lists(phases_of_one_source, min_size=1, max_size=4))
def test_the_index_of_a_source_does_not_hang_on_what_is_known_of_others(
    phases: list[list[tuple[int, float, int]]],
) -> None:
    alone = learnability()
    states = [absorbed(alone, own) for own in phases]
    together = {key: np.concatenate([state[key] for state in states]) for key in states[0]}
    parts = learnability(len(phases)).index(together, np.full(len(phases), 1000.0))
    for i, state in enumerate(states):
        own = learnability(1).index(state, np.array([1000.0]))
        own["index"] /= len(phases)  # its share of the targets
        for key, values in own.items():
            np.testing.assert_allclose(parts[key][i], values[0], rtol=1e-12, err_msg=key)


def test_a_source_read_many_times_over_loses_its_index() -> None:
    policy = learnability()
    phases = [(30, 5.0 - 0.3 * i, 20) for i in range(10)]
    state = absorbed(policy, phases)
    tokens = 4 * 30 * 10
    for unique, expected in ((0, 1.0), (2 * tokens, 1.0), (tokens, 1.0), (tokens / 17.0, math.exp(-16 / 15.4))):
        parts = policy.index(state, np.array([float(unique)]))
        assert parts["repetition"][0] == pytest.approx(expected)
        free = policy.index(state, NO_LIMIT)
        assert parts["index"][0] == pytest.approx(expected * free["index"][0])
    assert policy.index(state, np.array([tokens / 100.0]))["index"][0] < 0.002 * free["index"][0]


def test_targets_scale_the_index_and_a_source_nobody_wants_gets_none() -> None:
    run = curriculum(3, policy={"name": "ucb", "targets": {"source-0": 3.0, "source-1": 1.0}})
    policy = make_policy(run)
    assert isinstance(policy, Learnability)
    state = policy.initial(3)
    for i in range(5):
        state = policy.absorb(state, [losses_of([5.0 - 0.4 * i] * 3)], since=10 * i, until=10 * i + 10)
    index = policy.index(state, np.zeros(3))["index"]
    assert index[0] == pytest.approx(3 * index[1])
    assert index[2] == 0


def test_noise_without_a_slope_is_worth_little_beside_a_source_that_is_learned() -> None:
    policy = learnability(2)
    state, rng, tokens = policy.initial(2), np.random.default_rng(0), 0.0
    for i in range(60):
        learned = 1.0 + 4.0 * (1 + tokens / 500) ** -0.3 + 0.02 * rng.standard_normal()
        losses = losses_of([learned, 6.5 + 0.1 * rng.standard_normal()], [16, 16])
        state = policy.absorb(state, [losses], since=20 * i, until=20 * i + 20)
        tokens += 64
    index = policy.index(state, np.zeros(2))["index"]
    assert index[1] < 0.15 * index[0]


@given(phases_of_one_source.filter(lambda phases: sum(rows > 0 for rows, _, _ in phases) >= 3))
def test_a_pivot_keeps_a_quarter_of_the_weight_and_all_of_the_slope(phases: list[tuple[int, float, int]]) -> None:
    policy = learnability()
    state = absorbed(policy, phases)
    after = policy.after_pivot(state)
    for name in ("points", "weight", "sxx", "sxy", "syy"):
        assert after[name] == state[name] / 4
    for name in ("tokens", "count", "mean_x", "mean_y"):
        assert after[name] == state[name]
    slopes = [policy.index(s, NO_LIMIT)["slope"][0] for s in (state, after)]
    assert slopes[0] == pytest.approx(slopes[1])


def test_learning_changes_no_state_that_was_given() -> None:
    for policy in ("ucb", "andrea", {"name": "ucb", "reward": "progress"}):
        made = make_policy(curriculum(3, policy=policy))
        state = made.absorb(made.initial(3), [losses_of([5.0, 4.0, 3.0])], since=0, until=10)
        before = {name: values.copy() for name, values in state.items()}
        made.absorb(state, [losses_of([4.0, 4.0, 2.0])], since=10, until=30)
        made.after_pivot(state)
        made.choose(state, Region(["a", "b", "c"]), np.full(3, 1 / 3), np.zeros(3))
        assert all((state[name] == before[name]).all() for name in before)


class Towards(Policy):
    """A policy as a user may write one: half-way to what was reported least."""

    def initial(self, num_sources: int) -> State:
        return {"rows": np.zeros(num_sources)}

    def absorb(self, state: State, steps: Sequence[SourceLosses], *, since: int, until: int) -> State:
        return {"rows": state["rows"] + sum(losses.rows for losses in steps)}

    def after_pivot(self, state: State) -> State:
        return state

    def choose(
        self, state: State, region: Region, weights: Array, unique_tokens: Array, alarmed: BoolArray | None = None
    ) -> Choice:
        vertex = region.best_vertex(-state["rows"])
        return Choice(region.step(weights, vertex, 0.5), vertex)


def test_a_policy_of_ones_own_needs_four_methods_and_goes_on_exactly_from_a_state() -> None:
    run = curriculum(3, floors={"source-0": 0.1}, feedback_lag=5)
    walk = Walk(run, policy=Towards())
    assert {phase.kind for phase in drive(walk, 200)} == {"random", "bandit"}
    restored = Walk(run, policy=Towards())
    restored.load_state_dict(json.loads(json.dumps(walk.state_dict())))
    assert same_phases(drive(restored, 300, since=200), drive(walk, 300, since=200))


def test_a_policy_that_lacks_a_method_is_refused_naming_it() -> None:
    class Unfinished(Towards):
        choose = Policy.choose

    with pytest.raises(TypeError, match="choose"):
        Unfinished()  # type: ignore[abstract]


def with_bits(value: float, bits: int) -> float:
    """Return the nearest number with so many significant bits."""
    mantissa, exponent = math.frexp(value)
    return math.ldexp(math.floor(math.ldexp(abs(mantissa), bits) + 0.5), exponent - bits) * (-1 if value < 0 else 1)


@given(st.floats(-1e300, 1e300, allow_subnormal=False), st.integers(2, 52))
def test_rounded_numbers_are_the_nearest_with_so_many_bits(value: float, bits: int) -> None:
    assert rounded(np.array([value]), bits).tolist() == [with_bits(value, bits)]


# The bounded, discounted, count-weighted UCB of algorithms.md, B.2.


@given(
    st.lists(
        st.tuples(
            st.lists(st.integers(0, 20), min_size=3, max_size=3),
            st.lists(st.floats(0, 12), min_size=3, max_size=3),
            st.integers(7, 42),
        ),
        max_size=12,
    ),
    st.sampled_from([0.9, 0.999, 1.0]),
)
@settings(max_examples=60)
def test_bounded_ucb_is_the_formula(phases: list[tuple[list[int], list[float], int]], gamma: float) -> None:
    config, m_ref = UcbConfig(reward="loss", gamma=gamma, width=1.3), 196.0
    policy = BoundedUcb(config, reward=LossReward(), rows_per_phase=m_ref)
    state, step = policy.initial(3), 0
    n, s, q = np.zeros(3), np.zeros(3), np.zeros(3)
    pool: list[float] = []  # the last 256 rewards of all sources
    for rows, means, length in phases:
        state = policy.absorb(state, [losses_of(means, rows)], since=step, until=step + length)
        step += length
        seen = losses_of(means, rows).means()
        pool = (pool + [with_bits(seen[i], RING_BITS) for i in range(3) if rows[i]])[-256:]
        n, s, q = (gamma**length * total for total in (n, s, q))
        for i in range(3):
            if rows[i]:
                q20, q80 = np.quantile(pool, [0.2, 0.8])
                is_spread = q80 - q20 > 1e-9 * max(q80, 1)
                r = min(max((seen[i] - q20) / (q80 - q20), 0), 1) if is_spread else 0.5
                n[i], s[i], q[i] = n[i] + rows[i], s[i] + rows[i] * r, q[i] + rows[i] * r * r
    region = Region(["a", "b", "c"])
    parts = policy.choose(state, region, np.full(3, 1 / 3), np.zeros(3)).parts
    e = n / m_ref
    for i in range(3):
        if n[i] == 0:
            assert parts["index"][i] == math.inf
            continue
        mu = s[i] / n[i]
        v = max(q[i] / n[i] - mu * mu, 0.0)
        bound = mu + 1.3 * math.sqrt(2 * v * math.log(1 + e.sum()) / e[i]) + 3 * 1.3 * math.log(1 + e.sum()) / e[i]
        rounding = 1.3 * math.sqrt(2 * 1e-8 * math.log(1 + e.sum()) / e[i])  # sums have 29 bits: V is exact to 1e-8
        assert parts["index"][i] == pytest.approx(bound, rel=1e-5, abs=1e-5 + rounding)
        assert -1e-9 <= parts["mean"][i] <= 1 + 1e-9


def test_equal_rewards_are_worth_a_half_whatever_rounding_says() -> None:
    policy = BoundedUcb(UcbConfig(reward="loss"), reward=LossReward(), rows_per_phase=10.0)
    state = policy.absorb(policy.initial(2), [losses_of([0.05, 0.05], [1, 3])], since=0, until=10)
    assert state["sums"].tolist() == [0.5, 1.5]


def test_a_report_without_any_rows_teaches_nothing() -> None:
    for policy in ("ucb", "andrea", {"name": "ucb", "reward": "progress"}):
        made = make_policy(curriculum(3, policy=policy))
        first = made.absorb(made.initial(3), [losses_of([5.0, 4.0, 3.0])], since=0, until=10)
        none = made.absorb(first, [losses_of([0.0] * 3, [0] * 3)], since=10, until=10)
        assert all((none[name] == first[name]).all() for name in first)


def test_an_outlier_pays_no_more_than_one_and_a_pivot_keeps_a_quarter() -> None:
    policy = BoundedUcb(UcbConfig(reward="loss", gamma=1.0), reward=LossReward(), rows_per_phase=10.0)
    state = policy.initial(3)
    for means in ([1.0, 2.0, 3.0], [1.0, 2.0, 3.0], [1.0, 2.0, 1e9]):
        state = policy.absorb(state, [losses_of(means)], since=0, until=10)
    assert (state["sums"] <= state["rows"]).all()
    assert (state["squares"] <= state["rows"]).all()
    after = policy.after_pivot(state)
    for name in ("rows", "sums", "squares"):
        assert after[name].tolist() == (state[name] / 4).tolist()
    assert after["recent"].tolist() == state["recent"].tolist()


# ANDREA as published.


def test_the_worked_exercise_of_the_andrea_reward() -> None:
    policy = AndreaPolicy(AndreaConfig())
    state = policy.absorb(policy.initial(1), [losses_of([4.521])], since=0, until=1)
    assert state["ema"][0] == 4.521
    assert state["rewards"][0] == 0.0  # a first loss has no baseline to fall below
    state = policy.absorb(state, [losses_of([4.520])], since=1, until=2)
    assert state["ema"][0] == pytest.approx(4.5209, abs=1e-12)
    assert state["rewards"][0] == pytest.approx(1.0, abs=1e-9)
    assert state["pulls"][0] == 2
    state = policy.absorb(state, [losses_of([9.0])], since=2, until=3)
    assert state["rewards"][0] == pytest.approx(1.0, abs=1e-9)  # a rise costs nothing


def test_andrea_ranks_by_ucb1() -> None:
    policy = AndreaPolicy(AndreaConfig(exploration=2.0))
    state = {
        "tokens": np.array([9.0, 9.0, 0.0]),
        "pulls": np.array([9.0, 1.0, 0.0]),
        "rewards": np.array([18.0, 1.5, 0.0]),
        "ema": np.zeros(3),
    }
    parts = policy.choose(state, Region(["a", "b", "c"]), np.full(3, 1 / 3), np.zeros(3)).parts
    assert parts["index"][0] == pytest.approx(2.0 + 2.0 * math.sqrt(math.log(10) / 9))
    assert parts["index"][1] == pytest.approx(1.5 + 2.0 * math.sqrt(math.log(10) / 1))
    assert parts["index"][2] == math.inf
    after = policy.after_pivot(state)
    assert (after["pulls"].tolist(), after["rewards"].tolist()) == ([2.25, 0.25, 0.0], [4.5, 0.375, 0.0])
    assert after["ema"] is state["ema"]


# Baselines.


def with_tokens(tokens: Sequence[int], **fields: Any) -> Curriculum:
    sources = [{"name": f"source-{i}", "local": "topics", "tokens": num} for i, num in enumerate(tokens)]
    return curriculum(len(tokens), sources=sources, **fields)


def first_weights(run: Curriculum) -> Array:
    return Walk(run).phase_at(0).weights


@given(problems(), st.lists(st.floats(0.001, 3), min_size=12, max_size=12), st.floats(0.5, 8))
def test_unimax_is_the_projection_of_uniform_on_the_region_with_epoch_caps(
    problem: Any, sizes: list[float], max_epochs: float
) -> None:
    region = problem.region
    num = len(region.names)
    shares = np.array(sizes[:num])
    caps = np.minimum(1.0, max_epochs * shares)
    if np.minimum(region.upper, np.maximum(caps, region.lower)).sum() < 1 - 1e-9:
        with pytest.raises(InfeasibleRegionError):
            epoch_capped(region, caps)
        return
    weights = FixedPolicy(np.full(num, 1.0 / num), caps=caps).choose({}, region, region.lower, region.lower).weights
    assert region.contains(weights)
    assert (weights <= np.maximum(caps, region.lower) + 1e-9).all()
    low, high = region.lower, np.minimum(region.upper, np.maximum(caps, region.lower))
    levels = weights[(weights > low + 1e-9) & (weights < high - 1e-9)]  # water-filling: one level between the bounds
    if levels.size:
        np.testing.assert_allclose(levels, levels[0], atol=1e-9)
        assert (weights[weights < levels[0] - 1e-9] >= high[weights < levels[0] - 1e-9] - 1e-9).all()
        assert (weights[weights > levels[0] + 1e-9] <= low[weights > levels[0] + 1e-9] + 1e-9).all()


def test_unimax_reads_no_source_more_often_than_allowed() -> None:
    run = with_tokens([1_000, 50_000, 10**9], total_steps=10_000, policy={"name": "unimax", "max_epochs": 4.0})
    epochs = first_weights(run) * run.total_steps * run.batch_tokens / np.array([1_000, 50_000, 10**9])
    assert epochs[0] == pytest.approx(4.0)
    assert (epochs <= 4.0 + 1e-9).all()
    with pytest.raises(InfeasibleRegionError, match=r"unimax: 4 epochs of every source fill only 0\.0375 of the run"):
        Walk(with_tokens([1_000, 1_000, 1_000], policy={"name": "unimax"}))


def test_proportional_weights_follow_the_tokens_and_static_ones_the_file() -> None:
    np.testing.assert_allclose(first_weights(with_tokens([10, 30, 60], policy="proportional")), [0.1, 0.3, 0.6])
    capped = with_tokens([10, 30, 60], policy="proportional", caps={"source-2": 0.4})
    np.testing.assert_allclose(first_weights(capped), [0.2, 0.4, 0.4])
    table = {"source-0": 0.25, "source-2": 0.75}
    np.testing.assert_allclose(
        first_weights(curriculum(3, policy={"name": "static", "weights": table})), [0.25, 0, 0.75]
    )
    np.testing.assert_allclose(first_weights(curriculum(4, policy="static")), 0.25)


@pytest.mark.parametrize("policy", ["proportional", "unimax"])
def test_policies_that_need_sizes_name_the_sources_without(policy: str) -> None:
    sources = [{"name": "web", "local": "topics", "tokens": 5}, {"name": "code", "local": "topics"}]
    with pytest.raises(ConfigError, match=rf"policy {policy} needs `tokens:` of every source; missing: code"):
        curriculum(2, sources=sources, policy=policy)


def test_the_random_policy_teleports_in_every_phase_and_fixed_ones_never() -> None:
    kinds = {
        policy: {phase.kind for phase in drive(Walk(curriculum(3, policy=policy)), 300)}
        for policy in ("random", "static", "proportional", "unimax", "ucb", "andrea")
    }
    assert kinds["random"] == {"random"}
    assert kinds["static"] == kinds["proportional"] == kinds["unimax"] == {"fixed"}
    assert kinds["ucb"] == kinds["andrea"] == {"random", "bandit"}


# What the default is for: sources that teach nothing, and sources that are merely repeated.

NOISE, REPEATED, SPREAD, NUM_SOURCES = 0, 1, 2, 6


class Toy:
    """Power laws of tokens seen; one source is noise, one is memorised, one has a wide spread of documents."""

    def __init__(self) -> None:
        self.tokens = np.zeros(NUM_SOURCES)

    def __call__(self, run: Curriculum, step: int, rows: IntArray) -> SourceLosses:
        means = 1.5 + 4.0 * (1 + self.tokens / 3_000) ** -0.3
        means[NOISE] = 6.5
        means[REPEATED] = 0.2 + 4.0 * (1 + self.tokens[REPEATED] / 1_500) ** -0.5  # falls faster than any other
        spread = np.full(NUM_SOURCES, 0.3)
        spread[SPREAD] = 1.5
        noise = np.random.default_rng([run.seed, step]).standard_normal(NUM_SOURCES)
        losses = np.maximum(0.01, means + spread * noise / np.sqrt(np.maximum(rows, 1)))
        tokens = rows * run.sequence_length
        self.tokens += tokens
        return SourceLosses(rows=rows, tokens=tokens, loss_sums=losses * tokens)


def share_at_the_end(policy: str, seed: int) -> Array:
    """Return the mean weights of the last third of 3,000 steps, random phases left out."""
    tokens = [10**9, 4_000, *[10**9] * 4]
    run = with_tokens(tokens, seed=seed, policy=policy, batch_rows=16, phases={"random_probability": 0.05})
    phases = drive(Walk(run), 3_000, losses=Toy())
    return np.asarray(np.mean([phase.weights for phase in phases[2_000:] if phase.kind == "bandit"], axis=0))


def test_the_default_turns_from_noise_and_repetition_while_andrea_camps_on_spread() -> None:
    shares = {policy: np.stack([share_at_the_end(policy, seed) for seed in range(3)]) for policy in ("ucb", "andrea")}
    uniform = 1.0 / NUM_SOURCES
    assert (shares["ucb"][:, [NOISE, REPEATED]] < uniform).all(), shares["ucb"].round(3)
    assert (shares["andrea"].argmax(axis=1) == SPREAD).all(), shares["andrea"].round(3)  # the known failure
    assert (shares["andrea"][:, SPREAD] > 2 * uniform).all()
