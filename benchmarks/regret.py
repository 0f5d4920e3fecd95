"""Regret of every policy in synthetic worlds whose best walk is known: ``python -m benchmarks.regret``.

The table gives, by world and arm, the mean over seeds of the final loss minus that of the best walk in the region, in
thousandths of a nat. It finds out why an arm does well or badly, and searches settings: an arm of one's own is
``--arm 'name={"policy": {"name": "ucb", "eta": 0.1}}'``, any fields of a curriculum.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
from collections.abc import Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from benchmarks.common import say
from benchmarks.laboratory.synthetic import (
    BATCH_ROWS,
    GULLY,
    NOISE,
    ROW_TOKENS,
    Best,
    Learner,
    World,
    best_walk,
    make_world,
)
from mixer.config.curriculum import Curriculum
from mixer.sampling.draws import phase_counts
from mixer.walk.walk import Walk

Config = dict[str, Any]


@dataclass(frozen=True)
class Setting:
    """A kind of world, how many sources it has, how tight the region is, and how feedback comes.

    Attributes:
        kind: of ``make_world``.
        num_sources: K.
        is_tight: floors of 0.4 in all on half of the sources and caps of 3 / K, instead of no bounds.
        late: steps by which every report comes late, ``feedback_lag``.
        missing: share of the steps that are never reported.
    """

    kind: str
    num_sources: int
    is_tight: bool = False
    late: int = 0
    missing: float = 0.0


SETTINGS: dict[str, Setting] = {
    "stationary, 3": Setting("stationary", 3),
    "stationary, 16": Setting("stationary", 16),
    "stationary, 100": Setting("stationary", 100),
    "stationary, 1000": Setting("stationary", 1000),
    "transfer, 16": Setting("transfer", 16),
    "drifting, 16": Setting("drifting", 16),
    "rotting, 16": Setting("rotting", 16),
    "abrupt, 16": Setting("abrupt", 16),
    "tight, 16": Setting("stationary", 16, is_tight=True),
    "late, 16": Setting("stationary", 16, late=40),
    "missing, 16": Setting("stationary", 16, missing=0.5),
}
QUIET: Config = {"random_probability": 0.0, "initial_random": 0}
PROBED: Config = {"holdout": 0.1, "probes": {"rows": 8}}
ARMS: dict[str, Config] = {
    "uniform": {"policy": "static"},
    "random": {"policy": "random"},
    "ucb": {"policy": "ucb"},
    "ucb, eta 0.1, quiet": {"policy": {"name": "ucb", "eta": 0.1}, "phases": QUIET},
    "water_filling, quiet": {"policy": "water_filling", "phases": QUIET},
    "water_filling, held-out": {"policy": {"name": "water_filling", "losses": "heldout"}, **PROBED},
    "d_ucb": {"policy": "d_ucb"},
    "sw_ucb": {"policy": "sw_ucb"},
    "aioli": {"policy": "aioli", **PROBED},
    "andrea": {"policy": "andrea"},
    "odm": {"policy": "odm"},
    "exp3": {"policy": "exp3"},
    "softmax": {"policy": "softmax"},
    "linear": {"policy": "linear", "phases": {"random_probability": 0.2}},
    "linear, held-out": {
        "policy": {"name": "linear", "losses": "heldout"},
        "phases": {"random_probability": 0.2},
        **PROBED,
    },
}


@dataclass(frozen=True)
class Outcome:
    """What one run came to: the final loss above the best, nats, and the share of the rows that were planted ones."""

    regret: float
    noise: float
    gully: float


def curriculum(setting: Setting, arm: Config, *, steps: int, seed: int) -> Curriculum:
    """Return the run of an arm in a setting; a field that both give is the arm's."""
    world = make_world(setting.kind, setting.num_sources, steps=steps, seed=seed)
    names = [f"s{i}" for i in range(setting.num_sources)]
    sources = [
        {"name": name, "local": "synthetic"} | ({} if np.isinf(size) else {"tokens": max(int(size), 1)})
        for name, size in zip(names, world.unique, strict=True)
    ]
    fields: Config = {"feedback_lag": setting.late}
    if setting.is_tight:
        half = names[: len(names) // 2]
        fields["floors"] = {name: 0.4 / len(half) for name in half}
        fields["caps"] = {name: min(1.0, 3 / len(names)) for name in names}
    return Curriculum(
        seed=seed,
        total_steps=steps,
        batch_rows=BATCH_ROWS,
        sequence_length=ROW_TOKENS,
        sources=sources,
        guard=None,
        **(fields | arm),
    )


@cache
def best_of(setting: Setting, steps: int, seed: int) -> Best:
    """Return the best walk of a setting."""
    world = make_world(setting.kind, setting.num_sources, steps=steps, seed=seed)
    region = curriculum(setting, {"policy": "static"}, steps=steps, seed=seed).regimes[-1].region
    return best_walk(world, region, steps=steps)


def run(setting: Setting, arm: Config, *, steps: int, seed: int) -> Outcome:
    """Train in a setting under an arm, and return what it came to."""
    learner = train(setting, make_world(setting.kind, setting.num_sources, steps=steps, seed=seed), arm, steps, seed)
    shares = learner.tokens / learner.tokens.sum()
    planted = shares if setting.num_sources >= 8 else np.full(2, np.nan)
    regret = learner.goal() - best_of(setting, steps, seed).loss
    return Outcome(regret, float(planted[NOISE]), float(planted[GULLY]))


def train(setting: Setting, world: World, arm: Config, steps: int, seed: int) -> Learner:
    """Return the learner of a world after a run under an arm."""
    learner = Learner(world, steps=steps, seed=seed)
    walk = Walk(curriculum(setting, arm, steps=steps, seed=seed), on_silence=lambda _: None)
    is_missing = np.random.default_rng([seed, 2]).uniform(size=steps) < setting.missing
    waiting: dict[int, Any] = {}
    for step in range(steps):
        phase = walk.phase_at(step)
        if walk.curriculum.probes is not None and walk.probe_step(step) == step:
            walk.report_probe(step, learner.probe(walk.curriculum.probes.rows))
        counts, _ = phase_counts(phase, seed=seed, method="systematic", batch_rows=BATCH_ROWS)
        waiting[step] = learner.train(step, counts[step - phase.start])
        losses = waiting.pop(step - setting.late, None)
        if losses is not None and not is_missing[step - setting.late]:
            walk.report(step - setting.late, losses)
    return learner


def _job(job: tuple[str, str, Config, int, int]) -> tuple[str, str, Outcome]:
    setting, name, arm, steps, seed = job
    return setting, name, run(SETTINGS[setting], arm, steps=steps, seed=seed)


def table(outcomes: Iterable[tuple[str, str, Outcome]], arms: Iterable[str]) -> list[list[object]]:
    """Return a row for each setting: mean regret of each arm, thousandths of a nat."""
    found: dict[str, dict[str, list[float]]] = {}
    for setting, arm, outcome in outcomes:
        found.setdefault(setting, {}).setdefault(arm, []).append(1000 * outcome.regret)
    arms = list(arms)
    return [[setting, *(statistics.fmean(row[arm]) for arm in arms)] for setting, row in found.items()]


def planted(outcomes: Iterable[tuple[str, str, Outcome]], arms: Iterable[str]) -> list[list[object]]:
    """Return a row for each arm: mean share of the rows that were noise and that were of the gully."""
    kept = [(arm, o.noise, o.gully) for _, arm, o in outcomes if not np.isnan(o.noise)]
    rows: list[list[object]] = []
    for arm in arms:
        shares = [(noise, gully) for name, noise, gully in kept if name == arm]
        if shares:
            rows.append([arm, *(statistics.fmean(column) for column in zip(*shares, strict=True))])
    return rows


def main() -> None:
    """Run every arm in every setting and print what they came to."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--worlds", nargs="+", choices=list(SETTINGS), default=None, help="default: all but K = 1000")
    parser.add_argument("--arms", nargs="*", choices=list(ARMS), default=None, help="default: all")
    parser.add_argument("--arm", action="append", default=[], metavar="NAME=JSON", help="fields of a curriculum")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    worlds = options.worlds or [name for name in SETTINGS if SETTINGS[name].num_sources < 1000]
    arms: Mapping[str, Config] = {name: ARMS[name] for name in (ARMS if options.arms is None else options.arms)}
    own = dict(each.split("=", 1) for each in options.arm)
    arms = {**arms, **{name: json.loads(fields) for name, fields in own.items()}}
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    jobs = [
        (world, name, arm, options.steps, seed)
        for world, seed, (name, arm) in itertools.product(worlds, seeds, arms.items())
    ]
    with ProcessPoolExecutor(options.jobs) as pool:
        outcomes = list(pool.map(_job, jobs, chunksize=max(len(arms), 1)))
    say(f"regret, mnats: {options.steps} steps, {options.seeds} seeds", ["world", *arms], table(outcomes, arms))
    say("share of rows drawn from planted sources", ["arm", "noise", "gully"], planted(outcomes, arms))
    off = max(best_of(SETTINGS[world], options.steps, seed).gap for world in worlds for seed in seeds)
    print(f"the best walks are off by at most {1000 * off:.3g} mnats")


if __name__ == "__main__":
    main()
