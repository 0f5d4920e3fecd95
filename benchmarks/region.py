"""Claim: uniform draws of a region cost microseconds, where the exact alternative costs tens of milliseconds.

The contender is ``convolutionalfixedsum.cfsn`` on a region that both accept: it cannot take caps of 0, so it gets the
sources that are not pinned. ``drs`` is shown too, though its draws are not uniform (our tests reject them).
"""

from __future__ import annotations

import functools

import numpy as np
from convolutionalfixedsum import cfsn
from drs import drs

from benchmarks.common import head, medians, say
from mixer.region.region import Region


def polish_like(num_sources: int, *, num_excluded: int) -> Region:
    """Return a region with a 0.7 floor on the first source, caps of 0.25 on the others, and some excluded."""
    names = [f"s{i}" for i in range(num_sources)]
    return Region(
        names, floors={"s0": 0.7}, caps=dict.fromkeys(names[1:], 0.25), exclude=names[num_sources - num_excluded :]
    )


def sampling() -> None:
    """Print single draws and batches at K = 16, and single draws at K = 1,000 beside numpy's Dirichlet."""
    rng = np.random.default_rng(0)
    region = polish_like(16, num_excluded=4)
    free = region.upper > region.lower
    lower, upper = region.lower[free], region.upper[free]
    times = medians(
        {
            "region.sample, one": lambda: region.sample(rng),
            "region.sample, 1,000": lambda: region.sample(rng, 1000),
            "cfsn, one": lambda: cfsn(len(lower), total=1.0, lower_constraints=lower, upper_constraints=upper),
            "drs, one (not uniform)": lambda: drs(len(lower), 1.0, upper.tolist(), lower.tolist()),
        },
        rounds=15,
    )
    times["region.sample, 1,000"] /= 1000
    slowest = times["cfsn, one"]
    say(
        "K = 16: floor 0.7, caps 0.25, 4 excluded",
        ["draw", "median us", "cfsn / this"],
        [[name, seconds * 1e6, slowest / seconds] for name, seconds in times.items()],
    )
    large = polish_like(1000, num_excluded=250)
    times = medians(
        {"region.sample": lambda: large.sample(rng), "numpy dirichlet": lambda: rng.dirichlet(np.ones(1000))}, rounds=50
    )
    bar = max(2e-3, 15 * times["numpy dirichlet"])
    say(
        f"K = 1,000: must stay under {bar * 1e3:.2f} ms",
        ["draw", "median us", "share of the bar"],
        [[name, seconds * 1e6, seconds / bar] for name, seconds in times.items()],
    )


def growth() -> None:
    """Print projection and best vertex from K = 16 to 10,000, per K log K."""
    rng, rows = np.random.default_rng(0), []
    for num_sources in (16, 100, 1000, 10_000):
        region = polish_like(num_sources, num_excluded=num_sources // 4)
        point = rng.random(num_sources)
        contenders = {
            "project": functools.partial(region.project, point),
            "best_vertex": functools.partial(region.best_vertex, point),
        }
        times = medians(contenders, rounds=20)
        scale = num_sources * np.log2(num_sources)
        micros, per_scale = ([seconds * unit for seconds in times.values()] for unit in (1e6, 1e9 / scale))
        rows.append([num_sources, *micros, *per_scale])
    columns = ["K", "project us", "best_vertex us", "project ns / K log2 K", "best_vertex ns / K log2 K"]
    say("Exact geometry", columns, rows)


if __name__ == "__main__":
    head()
    sampling()
    growth()
