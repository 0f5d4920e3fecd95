"""Losses as trainers report them, and the bounded rewards that a bandit can be given instead of learnability.

Never rectify a noisy difference of losses: ``max(0, noise)`` pays for spread, not for learning. The published ANDREA
reward does exactly that and lives in ``policies.AndreaPolicy``, for fidelity.
"""

from __future__ import annotations

import copy
import importlib
from collections.abc import Callable
from typing import Protocol

import numpy as np

from mixer.errors import ConfigError
from mixer.losses import SourceLosses
from mixer.types import Array, State


class Reward(Protocol):
    """Losses of one phase -> one number per source, any scale; a policy brings them to [0, 1]."""

    def initial(self, num_sources: int) -> State:
        """Return an empty memory."""

    def update(self, state: State, losses: SourceLosses) -> tuple[State, Array]:
        """Return the memory and the rewards, [K]; NaN for a source without rows."""


class LossReward:
    """The loss level, as Online Data Mixing has it (arXiv 2312.02406): camps on irreducible noise."""

    def initial(self, num_sources: int) -> State:
        """Return an empty memory."""
        return {}

    def update(self, state: State, losses: SourceLosses) -> tuple[State, Array]:
        """Return the mean losses, [K]."""
        return state, losses.means()


class ProgressReward:
    """A slow average of the loss minus a fast one: the smoothed drop, averaged before it is differenced."""

    fast_rate, slow_rate = 0.3, 0.05  # per phase; a time constant of about 3 and 20 phases

    def initial(self, num_sources: int) -> State:
        """Return an empty memory."""
        return {name: np.zeros(num_sources) for name in ("fast", "slow", "seen")}

    def update(self, state: State, losses: SourceLosses) -> tuple[State, Array]:
        """Return slow minus fast, [K]."""
        means = losses.means()
        has_rows = losses.rows > 0
        new: State = {"seen": np.maximum(state["seen"], has_rows)}
        for name, rate in (("fast", self.fast_rate), ("slow", self.slow_rate)):
            old = np.where(state["seen"] > 0, state[name], means)
            new[name] = np.where(has_rows, old + rate * (means - old), state[name])
        return new, np.where(has_rows, new["slow"] - new["fast"], np.nan)


class CallableReward:
    """A user's ``package.module:function``; it gets SourceLosses and returns float64 [K]."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._function = load_callable(path)

    def initial(self, num_sources: int) -> State:
        """Return an empty memory."""
        return {}

    def update(self, state: State, losses: SourceLosses) -> tuple[State, Array]:
        """Return what the function says, [K], after checking its shape and values."""
        rewards = np.asarray(self._function(copy.deepcopy(losses)), dtype=np.float64)  # the walk's own stay as they are
        if rewards.shape != losses.rows.shape:
            raise ConfigError(f"reward {self._path} returned shape {rewards.shape}, not [{losses.rows.size}]")
        if not np.isfinite(rewards[losses.rows > 0]).all():
            raise ConfigError(f"reward {self._path} returned {rewards}; rewards of sources with rows are finite")
        return state, np.where(losses.rows > 0, rewards, np.nan)


def load_callable(path: str) -> Callable[[SourceLosses], Array]:
    """Import ``package.module:function``, or raise ConfigError saying which half is wrong."""
    module_name, _, attribute = path.partition(":")
    for half, what in ((module_name, "module before"), (attribute, "function after")):
        if not half:
            raise ConfigError(f"reward {path!r}: no {what} the colon; write package.module:function")
    try:
        function = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, TypeError) as error:  # TypeError: a relative name, such as .module
        raise ConfigError(f"reward {path!r}: cannot import {module_name!r}: {error}") from error
    except AttributeError as error:
        raise ConfigError(f"reward {path!r}: module {module_name!r} has no {attribute!r}") from error
    if not callable(function):
        raise ConfigError(f"reward {path!r}: {attribute!r} is not a function")
    return function  # type: ignore[no-any-return]


def make_reward(name: str) -> Reward:
    """Return the reward that the config names."""
    if name == "loss":
        return LossReward()
    return ProgressReward() if name == "progress" else CallableReward(name)
