"""Claims: preparing costs little more than tokenising; prepared rows are gathered as fast as from a bare memory map.

The gathers are of 16 random rows of 1,025 uint16 tokens, from each candidate format (ADR 4). Opening is
everything from a path to an array of one file per source, after the imports.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
from tokenizers import Tokenizer

from benchmarks.common import head, medians, say
from mixer.config.curriculum import Curriculum
from mixer.sources.local import gather
from mixer.sources.prepared.prepare import prepare
from mixer.sources.prepared.rows import Prepared, PreparedRows
from mixer.sources.tokenizer_training import load_tokenizer

COLLECTIONS = ("docstrings", "code", "comments", "topics")
ROWS, T = 100_000, 1024
BATCH = 16
ROUNDS = 7


def curriculum(folder: Path) -> Curriculum:
    """Return a curriculum of text from this machine and a tokenizer trained on it."""
    sources = [{"name": name, "local": name} for name in COLLECTIONS]
    fields: dict[str, Any] = {"total_steps": 100, "batch_rows": 16, "sequence_length": T}
    path = folder / "run.yaml"
    path.write_text(json.dumps({**fields, "tokenizer": {"train_vocab_size": 8449}, "sources": sources}))
    return Curriculum.from_yaml(path)


def preparation(folder: Path) -> list[list[object]]:
    """Return a row for each way to turn the same text into tokens."""
    run = curriculum(folder)
    tokenizer = load_tokenizer(run)
    bare = Tokenizer.from_str(tokenizer.to_json())
    texts = [json.loads(line)["text"] for name in COLLECTIONS for line in gather(name).read_bytes().splitlines()]
    num_tokens = sum(map(len, tokenizer.encode(texts))) + len(texts)
    number = iter(range(1000))

    def alone() -> None:
        for start in range(0, len(texts), 4096):  # all at once holds every encoding in memory
            bare.encode_batch_fast(texts[start : start + 4096], add_special_tokens=False)

    def prepared(jobs: int) -> Callable[[], object]:
        return lambda: prepare(run, folder / f"out-{next(number)}", jobs=jobs)

    contenders = {"encode_batch_fast alone": alone, "prepare, one source at a time": prepared(1)}
    contenders[f"prepare, {os.cpu_count()} processes"] = prepared(os.cpu_count() or 1)
    times = medians(contenders, rounds=3)
    base = times["encode_batch_fast alone"]
    return [[name, num_tokens / seconds / 1e6, base / seconds] for name, seconds in times.items()]


def write_candidates(folder: Path, rows: Any) -> dict[str, Callable[[Any], Any]]:
    """Write the rows in every format and return what gathers positions from each."""
    from mixer.sources.prepared.manifest import SplitManifest
    from mixer.sources.prepared.shards import write_shard

    rows.tofile(folder / "rows.bin")
    bare = np.memmap(folder / "rows.bin", dtype=rows.dtype, mode="r", shape=rows.shape)
    np.save(folder / "rows.npy", rows)
    npy = np.load(folder / "rows.npy", mmap_mode="r")
    shard = write_shard(folder / "data-00000.arrow", rows)
    prepared = PreparedRows(
        "web", folder, SplitManifest(rows=len(rows), shards=(shard,)), dtype=rows.dtype, row_length=rows.shape[1]
    )
    values = pa.array(rows.ravel())
    table = pa.table({"input_ids": pa.FixedSizeListArray.from_arrays(values, rows.shape[1])})
    datasets.Dataset(table).save_to_disk(str(folder / "hf"))
    loaded = datasets.load_from_disk(str(folder / "hf")).with_format("numpy", dtype=np.uint16)
    out = np.empty((BATCH, rows.shape[1]), dtype=rows.dtype)
    return {
        "bare np.memmap, indexed": lambda positions: bare[positions],
        "bare array on the map, take into": lambda positions: np.asarray(bare).take(positions, 0, mode="clip", out=out),
        "Arrow, one record batch (ours)": lambda positions: prepared.gather(positions, out=out),
        ".npy, indexed": lambda positions: npy[positions],
        "Arrow as save_to_disk cuts it, datasets": lambda positions: loaded[positions]["input_ids"],
    }


def gathers(folder: Path) -> list[list[object]]:
    """Return a row for each format: tokens a second of random batches, the same for all."""
    rows = np.random.default_rng(0).integers(0, 8449, (ROWS, T + 1), dtype=np.uint16)
    candidates = write_candidates(folder, rows)
    positions = np.random.default_rng(1).integers(0, ROWS, (200, BATCH))
    for take in candidates.values():
        np.testing.assert_array_equal(take(positions[0]), rows[positions[0]])

    def all_of(take: Callable[[Any], Any]) -> Callable[[], object]:
        return lambda: [take(batch) for batch in positions]

    times = medians({name: all_of(take) for name, take in candidates.items()}, rounds=ROUNDS)
    base = times["bare np.memmap, indexed"]
    return [[name, positions.size * (T + 1) / s / 1e6, base / s] for name, s in times.items()]


def openings(folder: Path) -> list[list[object]]:
    """Return a row for each format: milliseconds to open 16 and 256 sources."""
    made: list[dict[str, float]] = []
    for num_sources in (16, 256):
        place = folder / f"open-{num_sources}"
        place.mkdir()
        texts: Any = datasets.Dataset.from_dict({"text": ["a few words to fill a row or two " * 40]})
        names = [f"s{i}" for i in range(num_sources)]
        run = Curriculum(
            total_steps=1,
            batch_rows=1,
            sequence_length=64,
            tokenizer={"file": str(folder / "tokenizer.json")},
            sources=[{"name": name} for name in names],
        )
        prepare(run, place, streams=dict.fromkeys(names, texts.to_iterable_dataset()))
        for name in names:
            np.save(place / f"{name}.npy", np.zeros((4, 65), np.uint16))
        made.append(medians(_openers(place, names), rounds=5))
    return [[name, made[0][name] * 1e3, made[1][name] * 1e3] for name in made[0]]


def _openers(place: Path, names: list[str]) -> dict[str, Callable[[], object]]:
    return {
        "ours: manifest, sizes, headers, maps": lambda: Prepared.open(place),
        ".npy, np.load(mmap_mode='r') alone": lambda: [np.load(place / f"{name}.npy", mmap_mode="r") for name in names],
        "datasets.load_from_disk": lambda: [datasets.load_from_disk(str(place / "sources" / name)) for name in names],
    }


def writing(folder: Path) -> list[list[object]]:
    """Return a row for each format: MB/s of writing rows that are in memory, digest included where there is one."""
    from mixer.sources.prepared.shards import write_shard

    rows = np.random.default_rng(0).integers(0, 8449, (ROWS, T + 1), dtype=np.uint16)
    contenders: dict[str, Callable[[], object]] = {
        "plain file": lambda: rows.tofile(folder / "w.bin"),
        ".npy": lambda: np.save(folder / "w.npy", rows),
        "ours, with the digest": lambda: write_shard(folder / "w.arrow", rows),
    }
    times = medians(contenders, rounds=ROUNDS)
    return [[name, rows.nbytes / s / 1e6, times["plain file"] / s] for name, s in times.items()]


if __name__ == "__main__":
    head()
    datasets.disable_progress_bars()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "tokenizer.json").write_text(load_tokenizer(curriculum(folder)).to_json())
        if "--formats" not in sys.argv:
            columns = ["text to tokens", "million tokens/s", "of encode_batch_fast"]
            say("Preparing text of this machine, vocabulary 8,449", columns, preparation(folder))
        say("Gathering 16 random rows", ["format", "million tokens/s", "of bare"], gathers(folder))
        say("Opening", ["format", "ms, 16 sources", "ms, 256 sources"], openings(folder))
        say("Writing", ["format", "MB/s", "of a plain file"], writing(folder))
