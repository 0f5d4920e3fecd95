"""Claims: raw text is streamed at 85 % of what `encode_batch_fast` alone does, 16 columns of token rows at 90 % of one.

Everybody reads the same Parquet and JSON lines files in batches of 16 x 1025 tokens. "Alone" are the limits: one source
as Arrow batches and nothing else, and the tokenizer on text in memory. Then `datasets` as commonly written, and at the
best setting found.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tokenizers import Tokenizer

from benchmarks.common import head, medians, say
from mixer.config.curriculum import Curriculum
from mixer.config.sources import SourceConfig
from mixer.delivery.batch import Planner
from mixer.delivery.streamed import StreamedReader
from mixer.sources.base import RowSource
from mixer.sources.huggingface import open_stream
from mixer.sources.local import COLLECTIONS
from mixer.sources.opening import open_sources
from mixer.sources.tokenizer import TextTokenizer
from mixer.sources.tokenizer_training import train
from mixer.walk.walk import Walk

NUM_SOURCES = 16
ROW = 1025
ROWS_PER_SOURCE = 1024
VOCAB = 8449
SEPARATOR = "<|endoftext|>"
SPARE_STEPS = 4  # that a run leaves unread: draws let a source be a row or two ahead of its share
SLOW_SHARE = 8  # the slowest contenders read that part only

Contenders = dict[str, tuple[Callable[[], object], int]]  # what to run, and the rows or tokens that it reads


def token_files(folder: Path) -> list[str]:
    """Write 16 Parquet files of rows of token ids, int32, as a tokenizing script leaves them."""
    rng = np.random.default_rng(0)
    paths = []
    for i in range(NUM_SOURCES):
        ids = pa.array(rng.integers(0, VOCAB, ROWS_PER_SOURCE * ROW, dtype=np.int32))
        rows = pa.ListArray.from_arrays(np.arange(0, len(ids) + 1, ROW, dtype=np.int32), ids)
        paths.append(str(folder / f"rows{i}.parquet"))
        pq.write_table(pa.table({"input_ids": rows}), paths[-1], row_group_size=1000)
    return paths


def streaming(files: str | list[str], builder: str = "parquet") -> datasets.IterableDataset:
    """Return a data set as users open it."""
    return datasets.load_dataset(builder, data_files=files, split="train", streaming=True)


def alone(paths: list[str], batch_size: int = 1000) -> Callable[[], object]:
    """One source, in Arrow batches, as flat arrays."""
    dataset = streaming(paths).with_format("arrow")

    def run() -> int:
        total = 0
        for table in dataset.iter(batch_size):
            for chunk in table["input_ids"].chunks:
                total += len(chunk.flatten().to_numpy())
        return total

    return run


def mixed(sources: list[RowSource], num_steps: int) -> Callable[[], object]:
    """Compose batches of 16 rows, of as many sources as there are, from the beginning and with nothing read ahead."""
    each = NUM_SOURCES // len(sources)
    beginnings = [source.state_dict() for source in sources]

    def run() -> None:
        for _ in range(num_steps):
            batch = np.empty((NUM_SOURCES, ROW), dtype=np.uint32)
            for i, source in enumerate(sources):
                batch[i * each : (i + 1) * each] = source.take(each)
        for source, beginning in zip(sources, beginnings, strict=True):
            source.load_state_dict(beginning)  # or what is read ahead would be read in the time of others

    return run


def composed(sources: list[RowSource], num_steps: int, num_tokens: list[int] | None = None) -> Callable[[], object]:
    """Read the batches of a run, drawn by a walk whose weights are equal, or go by how many tokens each source has."""
    sizes = num_tokens or [1] * len(sources)
    fields = [{"name": s.name, "local": "topics", "tokens": size} for s, size in zip(sources, sizes, strict=True)]
    shape = {"batch_rows": NUM_SOURCES, "sequence_length": ROW - 1}
    curriculum = Curriculum(total_steps=num_steps, sources=fields, policy="proportional", **shape)
    reader = StreamedReader(sources, Planner(curriculum, Walk(curriculum).phase_at))
    beginning = reader.state_dict()

    def run() -> None:
        for step in range(num_steps):
            reader.read(step)
        reader.load_state_dict(beginning)

    return run


def interleaved(dataset: datasets.IterableDataset, num_rows: int) -> Callable[[], object]:
    """Read batches of 16 from an interleaving of `datasets`."""

    def run() -> None:
        left = num_rows
        for batch in dataset.iter(NUM_SOURCES):
            ids = batch["input_ids"]
            array = np.asarray(ids) if isinstance(ids, list) else ids.combine_chunks().flatten().to_numpy()
            left -= array.size // ROW
            if left <= 0:
                return

    return run


def row_sources(paths: list[list[str]], tokenizer: TextTokenizer, **fields: Any) -> list[RowSource]:
    """Open the files as sources of a curriculum."""
    ends = {"on_exhausted": "stop"}  # or the next epoch would be read ahead in the time of this one
    sources = [{"name": f"s{i}", "data_files": files, **ends, **fields} for i, files in enumerate(paths)]
    curriculum = Curriculum(total_steps=1, batch_rows=NUM_SOURCES, sequence_length=ROW - 1, sources=sources)
    return open_sources(curriculum, tokenizer)


def measure_rows(folder: Path, tokenizer: TextTokenizer) -> None:
    """Columns of token rows."""
    paths = token_files(folder)
    total = NUM_SOURCES * ROWS_PER_SOURCE
    steps = ROWS_PER_SOURCE
    each = [streaming(path) for path in paths]
    as_arrow = [dataset.with_format("arrow") for dataset in each]
    in_batches = [dataset.batch(NUM_SOURCES) for dataset in as_arrow]
    apart = [[path] for path in paths]
    part = total // SLOW_SHARE
    opened = partial(row_sources, tokenizer=tokenizer)
    drawn = steps - SPARE_STEPS
    rows: Contenders = {
        "one source alone, Arrow batches of 1,000": (alone(paths), total),
        "one source alone, Arrow batches of 256": (alone(paths, 256), total),
        "mixer, 16 sources, batches of a run": (composed(opened(apart, rows="input_ids"), drawn), drawn * NUM_SOURCES),
        "mixer, 1 source, batches of a run": (composed(opened([paths], rows="input_ids"), drawn), drawn * NUM_SOURCES),
        "mixer, 16 packed, batches of a run": (
            composed(opened(apart, token_ids="input_ids"), drawn),
            drawn * NUM_SOURCES,
        ),
        "mixer, 16 sources, 16 x take(1)": (mixed(opened(apart, rows="input_ids"), steps), total),
        "mixer, 1 source, take(16)": (mixed(opened([paths], rows="input_ids"), steps), total),
        "datasets, interleaved": (interleaved(datasets.interleave_datasets(each), part), part),
        "datasets, interleaved as Arrow": (interleaved(datasets.interleave_datasets(as_arrow), part), part),
        "datasets, Arrow batches of 16": (interleaved_batches(datasets.interleave_datasets(in_batches), total), total),
    }
    report("Token rows in Parquet, 16 x 1025 a step", rows, ROW)


def interleaved_batches(dataset: datasets.IterableDataset, num_rows: int) -> Callable[[], object]:
    """Read whole batches of each source in turn: the mixture is then of batches, not of rows."""

    def run() -> None:
        left = num_rows
        for table in dataset.with_format("arrow").iter(1):
            left -= len(table["input_ids"].combine_chunks().flatten().flatten().to_numpy()) // ROW
            if left <= 0:
                return

    return run


def text_files(folder: Path) -> list[Path]:
    """Write the text found on this machine into 16 files of JSON lines, dealt out document by document."""
    texts: list[str] = []
    for name in COLLECTIONS:
        stream = open_stream(SourceConfig(name=name, local=name))
        while len(group := stream.next_group()):
            texts += [str(text) for text in group]
    paths = [folder / f"text{i}.jsonl" for i in range(NUM_SOURCES)]
    for i, path in enumerate(paths):
        mine = texts[i :: 2 * NUM_SOURCES]  # half of it, about two million tokens
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in mine))
    return paths


def documents(paths: list[Path]) -> Iterator[str]:
    """Yield the texts in the files."""
    for path in paths:
        for line in path.read_text().splitlines():
            yield json.loads(line)["text"]


def measure_text(paths: list[Path], tokenizer: TextTokenizer) -> None:
    """Raw text, tokenised on the fly."""
    texts = list(documents(paths))
    num_tokens = sum(map(len, tokenizer.encode(texts))) + len(texts)
    num_steps = num_tokens // ROW // NUM_SOURCES
    core = Tokenizer.from_str(tokenizer.to_json())

    def encode_alone() -> None:
        for start in range(0, len(texts), 1000):
            core.encode_batch_fast(texts[start : start + 1000], add_special_tokens=False)

    def tokenized(batch: dict[str, list[str]]) -> dict[str, list[list[int]]]:
        return {"input_ids": [e.ids for e in core.encode_batch_fast(batch["text"], add_special_tokens=False)]}

    def mapped(batch_size: int, *, first: bool) -> Callable[[], object]:
        """Tokenise each source and interleave, or interleave and tokenise; every document once, to the end."""
        options: dict[str, Any] = {"batched": True, "batch_size": batch_size, "remove_columns": ["text"]}
        each = [streaming(str(path), "json") for path in paths]
        if first:
            each = [dataset.map(tokenized, **options) for dataset in each]
        dataset = datasets.interleave_datasets(each, stopping_strategy="all_exhausted_without_replacement")
        dataset = dataset if first else dataset.map(tokenized, **options)
        return lambda: sum(len(row["input_ids"]) + 1 for row in dataset)

    files = [str(path) for path in paths]
    apart = [[file] for file in files]
    lengths = [sum(map(len, each)) + len(each) for each in (tokenizer.encode([*documents([path])]) for path in paths)]
    drawn = sum(lengths) // ROW // NUM_SOURCES - SPARE_STEPS
    rows: Contenders = {
        "encode_batch_fast alone, lists of 1,000": (encode_alone, num_tokens),
        "mixer, 1 source, take(16)": (mixed(row_sources([files], tokenizer), num_steps), num_tokens),
        "mixer, 16 sources, batches of a run": (
            composed(row_sources(apart, tokenizer), drawn, lengths),
            drawn * NUM_SOURCES * ROW,
        ),
        "datasets, map in batches of 64, then interleave": (mapped(64, first=True), num_tokens),
        "datasets, interleave, then map in batches of 64": (mapped(64, first=False), num_tokens),
        "datasets, interleave, then map in batches of 1,000": (mapped(1000, first=False), num_tokens),
    }
    report(f"Raw text, {len(texts):,} documents, {num_tokens:,} tokens", rows, 1)


def report(title: str, contenders: Contenders, tokens_each: int) -> None:
    """Time them interleaved and print speeds, and shares of the first."""
    times = medians({name: run for name, (run, _) in contenders.items()}, rounds=5)
    speeds = {name: size * tokens_each / times[name] / 1e6 for name, (_, size) in contenders.items()}
    limit = next(iter(speeds.values()))
    say(title, ["who", "M tokens/s", "of the limit"], [[name, speed, speed / limit] for name, speed in speeds.items()])


if __name__ == "__main__":
    head()
    datasets.disable_progress_bars()
    datasets.config.SLEEP_TIME_ON_THREADS_SHUTDOWN = 0  # else an interleaving that is left early sleeps for 5 s
    with tempfile.TemporaryDirectory() as folder:
        paths = text_files(Path(folder))
        tokenizer = TextTokenizer(train(documents(paths), VOCAB, SEPARATOR), SEPARATOR)
        if "rows" not in sys.argv:
            measure_text(paths, tokenizer)
        if "text" not in sys.argv:
            measure_rows(Path(folder), tokenizer)
