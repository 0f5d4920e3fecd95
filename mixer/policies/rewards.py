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

MAX_VELOCITY = 1e6  # of a source that began hardly above its reference: exponentials of it stay finite


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


class ExcessReward:
    """The loss above that of a reference model (DoReMi, arXiv 2305.10429): the noise that nobody can learn is gone."""

    def __init__(self, reference: Array) -> None:
        self._reference = reference

    def initial(self, num_sources: int) -> State:
        """Return an empty memory."""
        return {}

    def update(self, state: State, losses: SourceLosses) -> tuple[State, Array]:
        """Return loss minus reference, [K]; a mean below the reference is worth less than 0, so noise is not paid."""
        return state, losses.means() - self._reference


class VelocityReward:
    """What is left to learn, ``(l - l_ref) / (l_first - l_ref)`` (Velocitune, arXiv 2411.14318): slow ones catch up."""

    def __init__(self, reference: Array) -> None:
        self._reference = reference

    def initial(self, num_sources: int) -> State:
        """Return no first losses."""
        return {"first": np.zeros(num_sources), "seen": np.zeros(num_sources)}

    def update(self, state: State, losses: SourceLosses) -> tuple[State, Array]:
        """Return the share that is left, [K]; 0 for a source that began at its reference or below."""
        means, has_rows = losses.means(), losses.tokens > 0
        first = np.where((state["seen"] == 0) & has_rows, means, state["first"])
        whole = first - self._reference
        left = np.divide(means - self._reference, whole, out=np.zeros(means.size), where=has_rows & (whole > 0))
        left = np.clip(left, -MAX_VELOCITY, MAX_VELOCITY)
        return {"first": first, "seen": np.maximum(state["seen"], has_rows)}, np.where(has_rows, left, np.nan)


class TargetGainReward:
    """The fall of the held-out loss that is wanted, nats per row, shared by the sources whose rows it came from.

    The target prediction gain of Graves et al. 2017 (arXiv 1704.03003), with probes in place of samples of the target:
    between two probes the loss fell by so much, and each source is credited in proportion to its rows. It sees
    what sources teach each other, and pays little attention to any one of them: expect to need long phases.
    """

    def __init__(self, wanted: Array) -> None:
        self._wanted = wanted

    def initial(self, num_sources: int) -> State:
        """Return no probe; ``exposure`` are rows since the last one, ``credited`` those of the fall before it."""
        vectors = {name: np.zeros(num_sources) for name in ("exposure", "credited")}
        return {**vectors, "level": np.zeros(1), "is_known": np.zeros(1), "fall": np.zeros(1)}

    def absorb_probe(self, state: State, losses: SourceLosses) -> State:
        """Return the memory with the fall since the last probe; a probe with no rows learned from between waits."""
        level, rows = losses.goal(self._wanted), float(state["exposure"].sum())
        if level is None or (state["is_known"][0] and not rows):
            return state
        new = {
            **state,
            "level": np.array([level]),
            "is_known": np.ones(1),
            "exposure": np.zeros_like(state["exposure"]),
        }
        if state["is_known"][0]:
            new |= {"fall": (state["level"] - level) / rows, "credited": state["exposure"]}
        return new

    def update(self, state: State, losses: SourceLosses) -> tuple[State, Array]:
        """Return the fall for every source it is credited to, [K]; NaN for others and until two probes came."""
        rewards = np.where(state["credited"] > 0, state["fall"], np.nan)
        exposure = state["exposure"] + losses.rows
        return {**state, "exposure": exposure, "credited": np.zeros(exposure.size)}, rewards


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


def make_reward(name: str, *, reference: Array | None = None, wanted: Array | None = None) -> Reward:
    """Return the reward that the config names.

    Args:
        name: of the config.
        reference: losses of a reference model, nats, [K]; for ``excess`` and ``velocity``.
        wanted: weight of the held-out loss of each source and target in the goal, [K + M]; for ``target_gain``.
    """
    match name:
        case "loss":
            return LossReward()
        case "progress":
            return ProgressReward()
        case "excess" | "velocity":
            assert reference is not None, "the config was checked"
            return ExcessReward(reference) if name == "excess" else VelocityReward(reference)
        case "target_gain":
            assert wanted is not None, "the factory knows the sources"
            return TargetGainReward(wanted)
    return CallableReward(name)
