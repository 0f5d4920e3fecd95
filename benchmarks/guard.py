"""Claim: the guard finds text being learned by heart within tens of observations, and hardly ever cries wolf.

The losses are made up: a power law that falls from 4.0 towards 1.5 nats, with noise of Student's t with 5 degrees of
freedom and a standard deviation of 0.12. At observation 40,000 something happens, or nothing does. One observation has
one report of one row, as in the table of ``benchmarks/README.md``; 100,000 of them, 8 seeds.
"""

from __future__ import annotations

import statistics
import time

import numpy as np

from benchmarks.common import head, say
from mixer.config.policy import GuardConfig
from mixer.losses import SourceLosses
from mixer.types import Array
from mixer.walk.guard import Guard
from mixer.walk.reports import ReportSum

EVENT, SD = 40_000, 0.12
TOKENS = 1024  # of an observation


def curve(num: int) -> Array:
    """Return the loss that a source without events has, [num]."""
    return 1.5 + 2.5 * (1.0 + np.arange(num) / 200) ** -0.3


def noise(num: int, seed: int) -> Array:
    """Return Student's t noise with 5 degrees of freedom and standard deviation SD, [num]."""
    return np.asarray(np.random.default_rng(seed).standard_t(5, num) * SD / np.sqrt(5 / 3))


def losses_of(event: str, num: int, seed: int) -> Array:
    """Return the losses of one source, [num]."""
    losses = curve(num) + noise(num, seed)
    since = np.arange(num) - EVENT
    if event == "cliff":  # a document known by heart, and again every 40 observations
        losses[(since >= 0) & (since % 40 == 0)] = 0.13
    elif event == "one cliff":
        losses[since == 0] = 0.13
    elif event == "ramp":
        losses -= 1.6 * np.clip(since / 1500, 0.0, 1.0)
    elif event == "shift":
        losses -= np.where(since >= 0, 0.1, 0.0)
    return np.maximum(losses, 0.02)


def alarms(losses: Array, config: GuardConfig, *, epochs: float | None = None) -> list[list[tuple[int, str]]]:
    """Return (observation, detector) of every alarm of each source.

    Args:
        losses: of observations and sources, [N, K].
        config: thresholds.
        epochs: how often the sources have been read through at the event; None if that is not known.
    """
    num, num_sources = losses.shape
    guard, ones = Guard(config, TOKENS), np.ones(num_sources, dtype=np.int64)
    state = guard.initial(num_sources)
    unique = np.full(num_sources, 0.0 if epochs is None else EVENT * TOKENS / epochs)
    found: list[list[tuple[int, str]]] = [[] for _ in range(num_sources)]
    for step in range(num):
        seen = SourceLosses(rows=ones, tokens=ones * TOKENS, loss_sums=losses[step] * TOKENS)
        used = [ReportSum(step, step, seen)]
        state, begun = guard.look(state, used, since=step, until=step + 1, unique_tokens=unique)
        for alarm in begun:
            found[alarm.source].append((step, alarm.detector))
    return found


def measured(event: str, num: int, seeds: range, *, others: int = 0) -> list[object]:
    """Return a row of the table: false alarms by detector, delays after the event, and how often it was missed.

    Args:
        event: what happens to the source of each seed.
        num: observations of each source.
        seeds: one source each.
        others: sources beside them to which nothing happens; fewer than 4 sources have no tide.
    """
    made = [losses_of(event, num, seed) for seed in seeds]
    made += [losses_of("nothing", num, 1000 + i) for i in range(others)]
    found = alarms(np.stack(made, axis=1), GuardConfig())
    ends = [EVENT if event != "nothing" and i < len(seeds) else num for i in range(len(made))]
    false = {
        name: sum(d == name and at < end for of, end in zip(found, ends, strict=True) for at, d in of)
        for name in ("cliff", "drift")
    }
    delays = [next((at - EVENT for at, _ in of if at >= EVENT), None) for of in found[: len(seeds)]]
    known = sorted(delay for delay in delays if delay is not None)
    happens = event != "nothing"
    shown = f"{known[0]} to {known[-1]}" if known and happens else "-"
    median = statistics.median(known) if known and happens else "-"
    missed = sum(delay is None for delay in delays) if happens else 0
    return [event, sum(ends), false["cliff"], false["drift"], shown, median, missed]


def ebbing(num_sources: int, seed: int = 0) -> list[object]:
    """Return how many sources of losses that all fall by 15 % together, as a learning rate decays, raise a drift."""
    rng, num = np.random.default_rng(seed), 2000
    fall = 1.0 - 0.15 * np.clip((np.arange(num) - 1000) / 1000, 0.0, 1.0)
    made = []
    for i in range(num_sources):
        level, sd = rng.uniform(1.5, 4.0), np.exp(rng.uniform(np.log(0.03), np.log(0.3)))
        made.append(np.maximum(level * fall + noise(num, 2000 + i) * sd / SD, 0.02))
    found = alarms(np.stack(made, axis=1), GuardConfig())
    return [num_sources, sum(any(d == "drift" for _, d in of) for of in found)]


def cost(num_sources: int, num: int = 400) -> float:
    """Return the median microseconds of one observation of every source."""
    rng = np.random.default_rng(0)
    guard, state = Guard(GuardConfig(), TOKENS), Guard(GuardConfig(), TOKENS).initial(num_sources)
    ones, unknown, times = np.ones(num_sources, dtype=np.int64), np.zeros(num_sources), []
    for step in range(num):
        sums = (3.0 + 0.1 * rng.standard_normal(num_sources)) * TOKENS
        seen = SourceLosses(rows=ones, tokens=ones * TOKENS, loss_sums=sums)
        used = [ReportSum(step, step, seen)]
        start = time.perf_counter()
        state, _ = guard.look(state, used, since=step, until=step + 1, unique_tokens=unknown)
        times.append(time.perf_counter() - start)
    return statistics.median(times) * 1e6


if __name__ == "__main__":
    head()
    columns = ["event", "observations without", "false cliffs", "false drifts", "delays", "median", "missed"]
    events = ("cliff", "one cliff", "ramp", "shift")
    for title, num_seeds, others in (("Three sources alone, as in the table", 3, 0), ("Eight of 80 sources", 8, 72)):
        rows = [measured("nothing", 100_000, range(num_seeds), others=others)]
        rows += [measured(event, EVENT + 2_000, range(num_seeds), others=others) for event in events]
        say(title, columns, rows)
    say("All losses fall together", ["sources", "in alarm"], [ebbing(1), ebbing(3), ebbing(4), ebbing(16), ebbing(64)])
    say("An observation of every source", ["K", "us"], [[k, cost(k)] for k in (1, 16, 256, 4096)])
