"""Claims: delivery of prepared rows beside its limit and its peers; restart, memory, many sources, rows off target.

Each contender lives in a process of its own and is told in turn to run; all read the same rows, 16 x 1025 uint16
tokens a batch from 16 sources. LitData and mosaicml-streaming get environments of their own, under the cache folder,
because their requirements do not resolve beside the others'.
"""

from __future__ import annotations

import itertools
import json
import os
import statistics
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from benchmarks.common import head, medians, say
from benchmarks.contenders.environments import Contender, opened
from benchmarks.contenders.loaders import CONTENDERS, our_dataset
from benchmarks.contenders.rows import BATCH, ROW, make_prepared, make_rows, random_rows
from mixer.config.curriculum import Curriculum
from mixer.sampling.draws import phase_counts
from mixer.sources.prepared.rows import JointRows, Prepared
from mixer.system.files import cache_root
from mixer.walk.walk import Walk

LIMIT, OURS = "numpy gather, 16 files", "ours, prepared"
LEANEST = [OURS, "mosaicml-streaming", "LitData", "Grain, MapDataset.mix", "torch IterableDataset by hand"]
ROUNDS, SECONDS = 5, 0.5


def throughput(folder: Path, names: list[str]) -> None:
    """Tokens a second, first batch and memory of every contender, in turn."""
    running, failed = opened(folder, names)
    first = {}
    for contender in running:
        contender.ask("first")  # imports
        first[contender.name] = statistics.median(contender.ask("first")["seconds"] for _ in range(3))
    rates: dict[str, list[float]] = {contender.name: [] for contender in running}
    for turn in range(ROUNDS + 1):
        for contender in running:
            answer = contender.ask(f"run {SECONDS}")
            if turn:
                rates[contender.name].append(answer["batches"] / answer["seconds"] * BATCH * ROW / 1e6)
    memory = {contender.name: contender.ask("memory") for contender in running}
    for contender in running:
        contender.close()
    median = {name: statistics.median(values) for name, values in rates.items()}
    rows: list[list[object]] = [
        [n, rate, f"{min(rates[n]):.0f} to {max(rates[n]):.0f}", rate / median[LIMIT], median[OURS] / rate]
        for n, rate in sorted(median.items(), key=lambda pair: -pair[1])
    ]
    columns = ["contender", "million tokens/s", "range", "of the gather", "ours is times as fast"]
    say(f"Delivering {BATCH} x {ROW} tokens, median of {ROUNDS} turns of {SECONDS} s", columns, rows)
    table: list[list[object]] = [
        [n, first[n] * 1e3, memory[n]["peak_mb"], memory[n]["anon_mb"]] for n in sorted(first, key=lambda n: first[n])
    ]
    say("First batch (libraries imported), memory", ["contender", "ms", "peak MB", "MB without mapped files"], table)
    if failed:
        say("Did not run here", ["contender"], [[name] for name in failed])


def memory(folder: Path) -> None:
    """Memory of ours and of the leanest at one pace, side by side: most of what the slowest can do, or 200 a second."""
    rates = []
    for contender in (tried := opened(folder, LEANEST)[0]):
        contender.ask("first")
        rates.append((answer := contender.ask("run 3"))["batches"] / answer["seconds"])
        contender.close()
    pace, names = min(200.0, 0.8 * min(rates)), [contender.name for contender in tried]
    running = [Contender(name, folder) for name in names]  # afresh: at full speed memory is another
    with ThreadPoolExecutor(len(running)) as together:

        def ask(command: str) -> list[dict[str, float]]:
            return list(together.map(lambda contender: contender.ask(command), running))

        ask("first")
        early, late = ask(f"pace {pace} 1000"), ask(f"pace {pace} 9000")
    for contender in running:
        contender.close()
    leanest = min(answer["peak_mb"] for name, answer in zip(names, late, strict=True) if name != OURS)
    rows: list[list[object]] = []
    for name, one, other in sorted(zip(names, early, late, strict=True), key=lambda row: row[2]["peak_mb"]):
        mb = [one["rss_mb"], other["rss_mb"], other["anon_mb"], other["peak_mb"]]
        took = [other["cpu_seconds"] / 9, 9000 / other["seconds"]]  # ms
        rows.append([name, *mb, other["peak_mb"] / leanest, *took])
    columns = ["contender", "RSS, MB, at 1,000", "at 10,000", "without mapped files", "peak"]
    columns += ["of the leanest other", "ms of processor a batch", "batches/s"]
    say(f"Memory at {pace:.0f} batches/s", columns, rows)


def giving_back(folder: Path) -> None:
    """What it takes to give a batch's pages back, and to map those of the next batch again."""
    joint = JointRows(list(Prepared.open(make_prepared(folder, as_one=False)).sources.values()))
    batches = itertools.cycle(zip(*random_rows(4096), strict=True))

    def gather() -> object:
        return joint.gather(joint.addresses(*next(batches)))

    mapped = medians({"of pages that are mapped": gather}, rounds=4000)
    in_turn = medians({"of pages that were given back": gather, "giving them back": joint.give_back_pages}, rounds=500)
    rows = [[name, took_s * 1e6] for name, took_s in (mapped | in_turn).items()]
    say("A gather of 16 rows from 16 files, and giving its pages back", ["what", "us"], rows)


def restart(folder: Path) -> None:
    """From a state to the first batch, at 1 % and 99 % of 200,000 steps."""
    states = {}
    for share in (0.01, 0.99):
        dataset = our_dataset(folder)
        owner, step = dataset._main, int(share * 200_000)
        owner._phase_at(0)
        owner._phase_at(step)
        owner._stand_at(step, 0)
        states[share] = json.dumps(dataset.state_dict())
    times: dict[float, list[float]] = {share: [] for share in states}
    for _ in range(15):
        for share, state in states.items():
            begin = time.perf_counter()
            dataset = our_dataset(folder)
            dataset.load_state_dict(json.loads(state))
            batch = next(iter(dataset))
            times[share].append(time.perf_counter() - begin)
            assert batch["step"] == int(share * 200_000)
    rows = [[f"{share:.0%}", statistics.median(times[share]) * 1e3, len(states[share])] for share in states]
    say("Restart of ours: open, load the state, first batch", ["at", "ms", "bytes of state"], rows)


def many_sources(folder: Path) -> None:
    """Cost of a step with more and more sources, all of them tiny and equally likely."""
    from benchmarks.contenders import loaders
    from benchmarks.contenders import rows as made

    table: list[list[object]] = []
    for num_sources in (16, 256, 4096):
        names = [f"k{i}" for i in range(num_sources)]
        small = folder / f"small-{num_sources}"
        (small / "rows").mkdir(parents=True, exist_ok=True)
        for name in names:
            np.zeros((32, ROW), dtype=np.uint16).tofile(small / "rows" / f"{name}.bin")
        loaders.NAMES, made.NAMES = names, names
        loaders.WEIGHTS = np.full(num_sources, 1 / num_sources)
        dataset = our_dataset(small)
        batches = iter(dataset)
        next(batches)
        begin = time.perf_counter()
        for _ in range(2000):
            next(batches)
        us = (time.perf_counter() - begin) / 2000 * 1e6
        table.append([num_sources, us, us / num_sources])
    say("A step of ours with K sources", ["K", "us per step", "us per step and source"], table)


def off_target() -> None:
    """Rows by which the count of any source misses the sum of its weights, over every prefix of 10,000 steps."""
    names = [f"s{i}" for i in range(16)]
    curriculum = Curriculum(
        total_steps=10_000,
        batch_rows=BATCH,
        sequence_length=ROW - 1,
        sources=[{"name": name} for name in names],
        policy="random",
    )
    walk, rng = Walk(curriculum), np.random.default_rng(0)
    weights, drawn = np.empty((10_000, 16)), np.empty((10_000, 16))
    step = 0
    while step < 10_000:
        phase = walk.phase_at(step)
        stop = min(phase.end, 10_000)
        counts, _ = phase_counts(phase, seed=curriculum.seed, method="systematic", batch_rows=BATCH)
        weights[step:stop], drawn[step:stop] = phase.weights, counts[: stop - step]
        step = stop
    at_random = np.array([rng.multinomial(BATCH, w / w.sum()) for w in weights])
    rounded = np.floor(weights * BATCH)
    order = np.argsort(rounded - weights * BATCH, axis=1)
    for row, best, missing in zip(rounded, order, (BATCH - rounded.sum(axis=1)).astype(int), strict=True):
        row[best[:missing]] += 1
    rules = {
        "ours": drawn,
        "a draw per row (Hugging Face, torchdata.nodes, LitData)": at_random,
        "largest remainders of each batch, never corrected": rounded,
    }
    rows: list[list[object]] = []
    for name, counts_of in rules.items():
        miss = np.abs((counts_of - weights * BATCH).cumsum(axis=0))
        rows.append([name, float(miss.max()), float(np.median(miss.max(axis=1))), float(miss[-1].max())])
    say(
        "Rows off target, 10,000 steps, weights that change by the phase",
        ["rule", "worst", "median", "at the end"],
        rows,
    )


def main() -> None:
    """Run everything, or the parts that are named: throughput memory giving_back restart many_sources off_target."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    named = [argument for argument in sys.argv[1:] if not argument.startswith("--")]
    folder = cache_root() / "bench" / "rows"
    make_rows(folder)
    for as_one in (False, True):
        make_prepared(folder, as_one=as_one)
    head()
    parts = {
        "throughput": lambda: throughput(folder, list(CONTENDERS)),
        "memory": lambda: memory(folder),
        "giving_back": lambda: giving_back(folder),
        "restart": lambda: restart(folder),
        "off_target": off_target,
        "many_sources": lambda: many_sources(folder),  # last: it replaces the sources
    }
    for name, part in parts.items():
        if not named or name in named:
            part()


if __name__ == "__main__":
    main()
