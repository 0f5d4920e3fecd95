"""Losses as they are reported, what is refused, and the rewards made of them."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixer.errors import ConfigError, FeedbackError, InvalidLossError
from mixer.losses import SourceLosses, add_losses, check_losses
from mixer.policies.rewards import CallableReward, LossReward, ProgressReward, load_callable, make_reward
from mixer.types import Array
from tests.support.curricula import PEOPLE_REWARD

NAMES = ("web", "code", "chat")


def losses_of(means: list[float], rows: list[int] | None = None, *, tokens_per_row: int = 4) -> SourceLosses:
    """Return losses with the means given; by default one row of each source."""
    counts = np.ones(len(means), dtype=np.int64) if rows is None else np.array(rows)
    tokens = counts * tokens_per_row
    values = np.array(means)
    return SourceLosses(rows=counts, tokens=tokens, loss_sums=values * tokens, square_sums=values**2 * counts)


@st.composite
def reports(draw: st.DrawFn, num_sources: int = 3) -> SourceLosses:
    rows = draw(st.lists(st.integers(0, 5), min_size=num_sources, max_size=num_sources))
    means = draw(st.lists(st.floats(0, 20), min_size=num_sources, max_size=num_sources))
    return losses_of(means, rows)


@given(reports(), reports(), reports())
def test_the_sum_of_reports_holds_every_row_token_and_loss(one: SourceLosses, two: SourceLosses, three: Any) -> None:
    total = add_losses([one, two, three])
    check_losses(total, NAMES, step=0)
    for what in ("rows", "tokens", "loss_sums", "square_sums"):
        parts = [getattr(part, what) for part in (one, two, three)]
        assert getattr(total, what).tolist() == ((parts[0] + parts[1]) + parts[2]).tolist()


@given(reports())
def test_means_are_nats_per_token_and_nan_where_there_is_none(losses: SourceLosses) -> None:
    means = losses.means()
    assert np.isnan(means).tolist() == (losses.rows == 0).tolist()
    seen = losses.rows > 0
    np.testing.assert_allclose(means[seen] * losses.tokens[seen], losses.loss_sums[seen])


def test_losses_can_be_built_from_means_by_name() -> None:
    losses = SourceLosses.from_means(NAMES, {"code": 2.5}, rows={"code": 3}, tokens_per_row=10, rank=2)
    assert losses.rows.tolist() == [0, 3, 0]
    assert losses.tokens.tolist() == [0, 30, 0]
    assert losses.loss_sums.tolist() == [0, 75, 0]
    assert losses.square_sums.tolist() == [0, 18.75, 0]
    assert losses.rank == 2
    with pytest.raises(FeedbackError, match="unknown source 'cod'; the sources are web, code, chat"):
        SourceLosses.from_means(NAMES, {"cod": 2.5}, rows={}, tokens_per_row=10)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), -0.5])
@pytest.mark.parametrize("table", ["loss_sums", "square_sums"])
def test_a_loss_that_cannot_be_names_its_source_step_and_value(value: float, table: str) -> None:
    tables = {"loss_sums": np.ones(3), "square_sums": np.ones(3)}
    tables[table][1] = value
    ones = np.ones(3, dtype=np.int64)
    losses = SourceLosses(rows=ones, tokens=ones, loss_sums=tables["loss_sums"], square_sums=tables["square_sums"])
    with pytest.raises(InvalidLossError, match=rf"step 8: loss of code is {re.escape(str(value))}; .* finite and not"):
        check_losses(losses, NAMES, step=8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rows": np.ones(2)}, r"rows have shape \(2,\), but there are 3 sources"),
        ({"loss_sums": np.ones((3, 1))}, r"loss_sums have shape \(3, 1\)"),
        ({"rows": np.array([1, -1, 1])}, "code reports -1 rows and 1 tokens"),
        ({"rows": np.array([1, 2, 1])}, "code reports 2 rows and 1 tokens; .* a row has at least one token"),
        ({"rows": np.array([1, 0, 1])}, "code reports a loss of 1, but no rows"),
        ({"rank": -1}, "rank is -1; ranks count from 0"),
    ],
)
def test_counts_that_cannot_be_are_refused(change: dict[str, Any], message: str) -> None:
    ones = {"rows": np.ones(3), "tokens": np.ones(3), "loss_sums": np.ones(3)}
    with pytest.raises(FeedbackError, match=f"^step 8: {message}"):
        check_losses(SourceLosses(**{**ones, **change}), NAMES, step=8)


def test_the_loss_reward_is_the_mean_loss() -> None:
    _, rewards = LossReward().update({}, losses_of([2.0, 3.0, 9.0], [2, 1, 0]))
    assert rewards[:2].tolist() == [2.0, 3.0]
    assert np.isnan(rewards[2])


def test_progress_is_a_slow_average_minus_a_fast_one() -> None:
    reward, losses = ProgressReward(), [5.0, 4.0, 3.5, 3.0]
    state, fast, slow = reward.initial(1), losses[0], losses[0]
    for loss in losses:
        fast, slow = fast + 0.3 * (loss - fast), slow + 0.05 * (loss - slow)
        state, rewards = reward.update(state, losses_of([loss]))
        assert rewards[0] == pytest.approx(slow - fast)
    assert rewards[0] > 0


def test_progress_of_a_source_without_rows_is_unknown_and_its_averages_wait() -> None:
    reward = ProgressReward()
    state, _ = reward.update(reward.initial(2), losses_of([5.0, 5.0]))
    waited, rewards = reward.update(state, losses_of([4.0, 0.0], [1, 0]))
    assert np.isnan(rewards[1])
    assert [waited[name][1] for name in ("fast", "slow", "seen")] == [5.0, 5.0, 1.0]


def test_a_reward_of_ones_own_is_called_with_the_losses() -> None:
    reward = make_reward(PEOPLE_REWARD)
    assert isinstance(reward, CallableReward)
    _, rewards = reward.update(reward.initial(2), losses_of([2.0, 7.0], [1, 0]))
    assert rewards[0] == 2.0
    assert np.isnan(rewards[1])  # whatever it says of a source without rows


def one_number_too_many(losses: SourceLosses) -> Array:
    return np.zeros(losses.rows.size + 1)


def not_a_number(losses: SourceLosses) -> Array:
    return np.full(losses.rows.size, np.nan)


NOT_CALLABLE = 3


def spoils_its_losses(losses: SourceLosses) -> Array:
    losses.loss_sums[:] = 0.0
    return losses.loss_sums


def test_a_reward_that_changes_what_it_is_given_changes_no_report() -> None:
    losses = losses_of([1.0, 2.0])
    before = losses.loss_sums.copy()
    make_reward("tests.policies.test_rewards:spoils_its_losses").update({}, losses)
    assert losses.loss_sums.tolist() == before.tolist()


def test_the_sum_of_a_single_report_is_that_report_of_no_rank() -> None:
    losses = losses_of([1.0, 2.0])
    for of_rank in (losses, replace(losses, rank=3)):
        total = add_losses([of_rank])
        assert total.rank == 0
        for name in ("rows", "tokens", "loss_sums", "square_sums"):
            assert getattr(total, name).tolist() == getattr(losses, name).tolist()


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("tests.no_such_module:reward", "cannot import 'tests.no_such_module'"),
        ("tests.policies.test_rewards:no_such_reward", "module 'tests.policies.test_rewards' has no 'no_such_reward'"),
        ("tests.policies.test_rewards:NOT_CALLABLE", "'NOT_CALLABLE' is not a function"),
        (".rewards:reward", "cannot import '.rewards'"),
        (":reward", "no module before the colon"),
        ("tests.policies.test_rewards:", "no function after the colon"),
    ],
)
def test_a_reward_that_cannot_be_loaded_says_which_half_is_wrong(path: str, message: str) -> None:
    with pytest.raises(ConfigError, match=f"reward {path!r}: {message}"):
        load_callable(path)


def test_a_reward_that_returns_nonsense_is_refused() -> None:
    losses = losses_of([1.0, 1.0])
    with pytest.raises(ConfigError, match=r"one_number_too_many returned shape \(3,\), not \[2\]"):
        make_reward("tests.policies.test_rewards:one_number_too_many").update({}, losses)
    with pytest.raises(ConfigError, match=r"not_a_number returned \[nan nan\]; .* are finite"):
        make_reward("tests.policies.test_rewards:not_a_number").update({}, losses)
