"""Claims: token files of other tools are read as fast as prepared rows, and 1.5 times as fast as by their own loaders.

One corpus of 32 Mi tokens in each format, written by the peer; each contender in a process of its own, told in turn to
run.
"""

from __future__ import annotations

import statistics
import sys

from benchmarks.common import head, say
from benchmarks.contenders.environments import opened
from benchmarks.contenders.formats import CONTENDERS, PREPARED, WIDE
from benchmarks.contenders.rows import BATCH, ROW
from mixer.system.files import cache_root

ROUNDS, SECONDS = 25, 0.2

Rates = dict[str, list[float]]  # million tokens a second, in turns


def table(rates: Rates) -> list[list[object]]:
    """Return a line for each contender, ours beside prepared rows of ids of the same size and beside the peer."""
    rows: list[list[object]] = []
    for name, values in rates.items():
        ratios: list[object] = ["", ""]
        if name.endswith(": ours"):
            prepared = WIDE if name.startswith("mds") else PREPARED
            peer = next((other for other in rates if other != name and other.split(":")[0] == name.split(":")[0]), None)
            ratios = [ratio(values, rates[prepared]), ratio(values, rates[peer]) if peer else ""]
        low, _, high = statistics.quantiles(values, n=4)
        rows.append([name, statistics.median(values), f"{low:.1f} to {high:.1f}", *ratios])
    return rows


def ratio(one: list[float], other: list[float]) -> float:
    """Return the median of the ratios of two contenders' turns."""
    return statistics.median(a / b for a, b in zip(one, other, strict=True))


def main() -> None:
    """Run all formats, or those that are named."""
    named = [argument for argument in sys.argv[1:] if not argument.startswith("-")]
    chosen = [name for name in CONTENDERS if not named or name in (PREPARED, WIDE) or name.partition(":")[0] in named]
    folder = cache_root() / "bench" / "rows"
    folder.mkdir(parents=True, exist_ok=True)
    head()
    running, failed = opened(folder, chosen)
    for contender in running:
        contender.ask("first")
        contender.ask(f"run {SECONDS}")
    elapsed: Rates = {contender.name: [] for contender in running}
    processor: Rates = {contender.name: [] for contender in running}
    for _ in range(ROUNDS):
        for contender in running:
            answer = contender.ask(f"run {SECONDS}")
            tokens = answer["batches"] * BATCH * ROW / 1e6
            elapsed[contender.name].append(tokens / answer["seconds"])
            processor[contender.name].append(tokens / answer["cpu_seconds"])
    for contender in running:
        contender.close()
    columns = ["contender", "million tokens/s", "quartiles", "of prepared rows", "times its own loader"]
    title = f"Delivering {BATCH} x {ROW} tokens, {ROUNDS} turns of {SECONDS} s: medians, and those of each turn's ratio"
    say(f"{title}; elapsed", columns, table(elapsed))
    say(f"{title}; of a second of the processor", columns, table(processor))
    if failed:
        say("Did not run here", ["contender"], [[name] for name in failed])


if __name__ == "__main__":
    main()
