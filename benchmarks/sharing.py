"""Claim: two runs of one service that stream the same source take less than two that read for themselves.

Engines of a service open 16 files, build the batches of their runs, and are asked for them step by step. "Apart" each
run shares with itself alone, which is how runs read before they shared. Weights are equal and fixed, or random, so that
of each source one run has read more than the other.
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.common import head, say
from benchmarks.streams import NUM_SOURCES, ROW, SEPARATOR, VOCAB, documents, text_files, token_files
from mixer.config.curriculum import Curriculum
from mixer.sources.tokenizer import TextTokenizer
from mixer.sources.tokenizer_training import train
from service.runs.engine import Engine
from service.runs.sharing import Sharing
from service.settings import Settings
from service.storage.store import Store

ROUNDS = 3
CASES: dict[str, dict[str, Any]] = {
    "one run, equal weights": {"seeds": [1], "policy": "static"},
    "two, apart, equal weights": {"seeds": [1, 2], "policy": "static"},
    "two, sharing, equal weights": {"seeds": [1, 2], "policy": "static", "is_shared": True},
    "two, apart, random weights": {"seeds": [1, 2], "policy": "random"},
    "two, sharing, random weights": {"seeds": [1, 2], "policy": "random", "is_shared": True},
}

Spent = tuple[float, float]  # seconds of processor, and by the clock


def runs(
    paths: list[str],
    tokenizer: TextTokenizer,
    num_steps: int,
    *,
    seeds: list[int],
    policy: str,
    is_shared: bool = False,
    **source: Any,
) -> Spent:
    """Have the batches of a run for each seed built, in turn, and return what that took."""
    began = time.process_time(), time.perf_counter()
    sources = [{"name": f"s{i}", "data_files": path, **source} for i, path in enumerate(paths)]
    shape = {"batch_rows": NUM_SOURCES, "sequence_length": ROW - 1, "policy": policy}
    sharing = Sharing()
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(folder=Path(folder), feedback_wait_s=0)
        store = Store.open(settings.database_url)
        engines = []
        for seed in seeds:
            run = Curriculum(total_steps=num_steps, sources=sources, seed=seed, **shape)
            own = sharing if is_shared else Sharing()
            engines.append(Engine(f"run{seed}", run, store, settings, tokenizer=tokenizer, sharing=own))
        for engine in engines:
            engine.start()
        for step in range(num_steps):
            for engine in engines:
                if engine.batches.held(step, 0, 1) is None:
                    asyncio.run(engine.batches.body(step, 0, 1, 60.0))
        for engine in engines:
            engine.stop()
        store.close()
    return time.process_time() - began[0], time.perf_counter() - began[1]


def measure(title: str, num_steps: int, run: Callable[..., Spent]) -> None:
    """Run each case in turn and print its medians."""
    took: dict[str, list[Spent]] = {name: [] for name in CASES}
    for _ in range(ROUNDS + 1):
        for name, options in CASES.items():
            took[name].append(run(**options))
    rows = []
    for name, options in CASES.items():
        processor, wall = (statistics.median(values) for values in zip(*took[name][1:], strict=True))
        num_tokens = len(options["seeds"]) * num_steps * NUM_SOURCES * ROW
        rows.append([name, processor, wall, num_tokens / wall / 1e6])
    say(title, ["who", "processor s", "s", "M tokens/s"], rows)


def main() -> None:
    """Measure text and token rows."""
    head()
    with tempfile.TemporaryDirectory() as name:
        paths = text_files(Path(name))
        tokenizer = TextTokenizer(train(documents(paths), VOCAB, SEPARATOR), SEPARATOR)
        text, rows = [str(path) for path in paths], token_files(Path(name))
        steps = 60  # half of the text, and what is read ahead beyond: an epoch read again would be encoded once
        measure("Raw text", steps, lambda **o: runs(text, tokenizer, steps, **o))
        steps = 300
        measure("Token rows in Parquet", steps, lambda **o: runs(rows, tokenizer, steps, rows="input_ids", **o))


if __name__ == "__main__":
    main()
