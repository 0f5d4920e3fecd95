"""The arms of the laboratory: what a curriculum says under each, given the tokens that each source has."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.laboratory.corpora import PLANTED

Config = dict[str, Any]


@dataclass(frozen=True)
class Setting:
    """What an arm may know beforehand: the tokens of each source, and those of the whole run."""

    tokens: Mapping[str, int]
    total_steps: int
    batch_tokens: int

    def epoch_caps(self, epochs: float) -> dict[str, float]:
        """Return the largest weights under which no source is read more than ``epochs`` times, where they bind."""
        budget = self.total_steps * self.batch_tokens
        return {name: epochs * tokens / budget for name, tokens in self.tokens.items() if epochs * tokens < budget}


SHORT = {"min_steps": 7, "max_steps": 14}  # a regression over as many sources needs many phases


def _policy(**settings: Any) -> Callable[[Setting], Config]:
    return lambda _setting: {"policy": settings}


def _filling(max_epochs: float | None) -> Callable[[Setting], Config]:
    return lambda _setting: {"policy": "water_filling", "max_epochs": max_epochs}


def _real_alone(setting: Setting) -> Config:
    real = [name for name in setting.tokens if name not in PLANTED]
    return {"policy": {"name": "static", "weights": {name: 1 / len(real) for name in real}}}


def _ado(setting: Setting) -> Config:
    every = max(setting.total_steps // 6, 1)  # the published 1,000 steps are for runs of tens of thousands
    return {"policy": {"name": "ado", "first_fit_step": every, "refit_steps": every}}


def _calm(
    eta: float, *, epochs: float | None = None, random: float = 0.0, initial: int = 0
) -> Callable[[Setting], Config]:
    def config(setting: Setting) -> Config:
        return {
            "policy": {"name": "ucb", "eta": eta},
            "phases": {"random_probability": random, "initial_random": initial},
            "caps": {} if epochs is None else setting.epoch_caps(epochs),
        }

    return config


ARMS: dict[str, Callable[[Setting], Config]] = {
    "uniform over real sources": _real_alone,  # nobody may know them: an upper reference
    "uniform": _policy(name="static"),
    "proportional": _policy(name="proportional"),
    "unimax-1": _policy(name="unimax", max_epochs=1),
    "unimax-4": _policy(name="unimax", max_epochs=4),
    "random": _policy(name="random"),
    "andrea": _policy(name="andrea"),
    "odm": _policy(name="odm"),
    "ado": _ado,
    "ucb": _policy(name="ucb"),
    "ucb, no random": _calm(0.3),
    "ucb, no random, 4 epochs": _calm(0.3, epochs=4),
    "ucb, eta 0.1, no random, 4 epochs": _calm(0.1, epochs=4),
    "ucb, eta 0.03, no random, 4 epochs": _calm(0.03, epochs=4),
    "water_filling": _policy(name="water_filling"),
    "water_filling, power 0": _policy(name="water_filling", power=0.0),
    "water_filling, power 0.25": _policy(name="water_filling", power=0.25),
    "water_filling, the law": _policy(name="water_filling", power=1.0, gate=0.0),
    "water_filling, no epochs": _filling(max_epochs=None),
    "water_filling, 6 epochs": _filling(max_epochs=6),
    "water_filling, 8 epochs": _filling(max_epochs=8),
    "water_filling, 16 epochs": _filling(max_epochs=16),
    "water_filling, held-out": _policy(name="water_filling", losses="heldout"),
    "water_filling, held-out, no epochs": lambda _setting: {
        "policy": {"name": "water_filling", "losses": "heldout"},
        "max_epochs": None,
    },
    "linear, held-out": lambda _setting: {
        "policy": {"name": "linear", "losses": "heldout"},
        "phases": SHORT,
        "max_epochs": 4,
    },
    "ucb, target gain": lambda _setting: {
        "policy": {"name": "ucb", "reward": "target_gain"},
        "phases": SHORT,
        "max_epochs": 4,
    },
    "water_filling, random phases": lambda _setting: {
        "policy": {"name": "water_filling", "random_phases": True},
        "phases": {"initial_random": 0, "random_probability": 0.1},
    },
    "exp3": _policy(name="exp3"),
    "softmax": _policy(name="softmax"),
    "linear": _policy(name="linear"),
}
OF_PROBES = ("water_filling, held-out", "water_filling, held-out, no epochs", "linear, held-out", "ucb, target gain")
QUICK = ("uniform", "unimax-4", "ucb", "water_filling")
