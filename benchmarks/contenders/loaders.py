"""How each contender is driven, at the best setting found; each yields batches of 16 x 1025 tokens of one mixture.

What a batch is differs: only ours and the last of the gathers hand over int64 inputs and labels, as a model takes them;
the others stop at what they read, which is less work.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.contenders.rows import (
    BATCH,
    NAMES,
    NUM_SOURCES,
    ROW,
    VOCAB,
    WEIGHTS,
    make_parquet,
    make_prepared,
    mapped,
    random_rows,
)

Batches = Iterator[Any]


def gather_16_files(folder: Path) -> Batches:
    """The limit: precomputed rows of 16 memory-mapped files, those of one source together."""
    sources, numbers = random_rows(4096)
    maps = [mapped(folder, name) for name in NAMES]
    plans = []
    for batch_sources, batch_numbers in zip(sources, numbers, strict=True):
        edges = [0, *np.cumsum(np.bincount(batch_sources, minlength=NUM_SOURCES)).tolist()]
        ordered = batch_numbers[batch_sources.argsort(kind="stable")]
        spans = itertools.pairwise(edges)
        plans.append([(maps[i], ordered[a:b], a, b) for i, (a, b) in enumerate(spans) if a < b])
    while True:
        for plan in plans:
            out = np.empty((BATCH, ROW), dtype=np.uint16)
            for rows, chosen, begin, end in plan:
                rows.take(chosen, axis=0, out=out[begin:end], mode="clip")
            yield out


def gather_one_file(folder: Path) -> Batches:
    """The limit of one file that holds all rows."""
    sources, numbers = random_rows(4096)
    rows, chosen = mapped(folder, "all"), sources * (len(mapped(folder, NAMES[0]))) + numbers
    while True:
        for batch in chosen:
            yield rows.take(batch, axis=0, mode="clip")


def gather_for_a_model(folder: Path) -> Batches:
    """The same with what a model takes: int64 tensors of inputs and labels."""
    import torch

    for rows in gather_one_file(folder):
        tokens = torch.from_numpy(rows.astype(np.int64))
        yield {"input_ids": tokens[:, :-1], "labels": tokens[:, 1:]}


def ours(folder: Path, *, num_workers: int = 0, **options: Any) -> Batches:
    """A MixtureDataset with static weights; the options are those of ``our_dataset``."""
    dataset = our_dataset(folder, **options)
    if num_workers == 0:
        return iter(dataset)
    from torch.utils.data import DataLoader

    return iter(DataLoader(dataset, batch_size=None, num_workers=num_workers, prefetch_factor=8))


def our_dataset(
    folder: Path,
    *,
    as_one: bool = False,
    streamed: bool = False,
    compact: bool = False,
    total_steps: int = 200_000,
    **fields: Any,
) -> Any:
    """Return the data set over prepared rows, or over Parquet."""
    from mixer import Curriculum, MixtureDataset

    names = ["all"] if as_one else NAMES
    weights = {"all": 1.0} if as_one else dict(zip(NAMES, WEIGHTS.tolist(), strict=True))
    sources: list[dict[str, Any]] = [{"name": name} for name in names]
    tokenizer: Any = None
    if streamed:
        from tokenizers import Tokenizer, models

        from mixer.sources.tokenizer import TextTokenizer

        paths = make_parquet(folder, "lists")
        sources = [{"name": n, "data_files": p, "rows": "input_ids"} for n, p in zip(names, paths, strict=True)]
        vocabulary = {"<|endoftext|>": 0, **{f"t{i}": i for i in range(1, VOCAB)}}
        tokenizer = TextTokenizer(Tokenizer(models.WordLevel(vocabulary, unk_token="<|endoftext|>")), "<|endoftext|>")
    else:
        fields = {"prepared": str(make_prepared(folder, as_one=as_one)), **fields}
    policy = {"name": "static", "weights": weights}
    curriculum = Curriculum(
        **{
            "total_steps": total_steps,
            "batch_rows": BATCH,
            "sequence_length": ROW - 1,
            "sources": sources,
            "policy": policy,
            **fields,
        }
    )
    return MixtureDataset(curriculum, tokenizer=tokenizer, compact=compact)


def hf_interleave(folder: Path) -> Batches:
    """Hugging Face streaming Parquet as commonly written: rows as tensors, collated by a DataLoader."""
    import datasets
    from torch.utils.data import DataLoader

    parts = [_hf(path).with_format("torch") for path in make_parquet(folder, "lists")]
    mixed = datasets.interleave_datasets(parts, probabilities=WEIGHTS.tolist(), seed=0, stopping_strategy=_FOREVER)
    return iter(DataLoader(mixed.repeat(None), batch_size=BATCH))


def hf_arrow_batches(folder: Path) -> Batches:
    """Its best: Arrow batches of 16 rows of one source are interleaved, so that no batch is itself a mixture."""
    import datasets

    parts = [_hf(path).with_format("arrow").batch(BATCH) for path in make_parquet(folder, "lists")]
    mixed = datasets.interleave_datasets(parts, probabilities=WEIGHTS.tolist(), seed=0, stopping_strategy=_FOREVER)
    for table in mixed.repeat(None).with_format("arrow"):
        column = table["input_ids"].combine_chunks().flatten().flatten()
        yield column.to_numpy(zero_copy_only=False).reshape(-1, ROW)


_FOREVER = "all_exhausted"


def _hf(path: str) -> Any:
    import datasets

    return datasets.load_dataset("parquet", data_files=path, split="train", streaming=True)


def hf_map_style(folder: Path) -> Batches:
    """Hugging Face map-style over the prepared Arrow files, numpy format, 16 rows at a time by index."""
    import datasets

    out = make_prepared(folder, as_one=False)
    files = sorted(str(path) for path in out.glob("sources/*/train/*.arrow"))
    together = datasets.concatenate_datasets([datasets.Dataset.from_file(file) for file in files])
    sources, numbers = random_rows(4096)
    table = together.with_format("numpy")
    chosen = (sources * (len(together) // NUM_SOURCES) + numbers).tolist()
    while True:
        for batch in chosen:
            yield table[batch]["input_ids"]


def torchdata_nodes(folder: Path) -> Batches:
    """torchdata.nodes over Parquet with binary rows: a weighted sampler of sources that cycle, then a batcher."""
    import pyarrow.parquet as pq
    from torchdata.nodes import Batcher, IterableWrapper, Loader, Mapper, MultiNodeWeightedSampler, StopCriteria

    class File:
        def __init__(self, path: str) -> None:
            self.path = path

        def __iter__(self) -> Iterator[bytes]:
            for batch in pq.ParquetFile(self.path).iter_batches(batch_size=1000):
                yield from batch.column(0).to_pylist()

    paths = make_parquet(folder, "binary")
    nodes = {name: IterableWrapper(File(path)) for name, path in zip(NAMES, paths, strict=True)}
    weights = dict(zip(NAMES, WEIGHTS.tolist(), strict=True))
    mixed = MultiNodeWeightedSampler(nodes, weights, stop_criteria=StopCriteria.CYCLE_FOREVER, seed=0)
    batches = Mapper(Batcher(mixed, BATCH), _joined)
    return iter(Loader(batches))


def _joined(rows: list[bytes]) -> Any:
    return np.frombuffer(b"".join(rows), dtype=np.uint16).reshape(-1, ROW)


def torch_iterable(folder: Path) -> Batches:
    """What one writes by hand: an IterableDataset over memory maps with random.choices; no state."""
    import torch

    maps = [mapped(folder, name) for name in NAMES]
    weights, rng = WEIGHTS.tolist(), random.Random(0)
    while True:
        chosen = rng.choices(maps, weights, k=BATCH)
        yield torch.from_numpy(np.stack([rows[rng.randrange(len(rows))] for rows in chosen]))


def grain_mix(folder: Path) -> Batches:
    """Grain: a shuffled, repeated map data set per source, mixed by weights, batched; read in this process."""
    import grain

    class Source:
        def __init__(self, name: str) -> None:
            self.rows = np.asarray(mapped(folder, name))

        def __len__(self) -> int:
            return len(self.rows)

        def __getitem__(self, number: int) -> Any:
            return self.rows[number]

    parts = [grain.MapDataset.source(Source(name)).shuffle(seed=i).repeat() for i, name in enumerate(NAMES)]
    mixed = grain.MapDataset.mix(parts, WEIGHTS.tolist()).batch(BATCH)
    return iter(mixed.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)))


def grain_iter_mix(folder: Path) -> Batches:
    """Grain, its other way: the sources as iterators, mixed and batched."""
    import grain

    options = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
    parts = [
        grain.MapDataset.source(mapped(folder, name)).shuffle(seed=i).repeat().to_iter_dataset(options)
        for i, name in enumerate(NAMES)
    ]
    return iter(grain.IterDataset.mix(parts, WEIGHTS.tolist()).batch(BATCH))


def litdata_combined(folder: Path) -> Batches:
    """LitData: token chunks, a StreamingDataset per source, combined by weights, 0 workers."""
    import torch
    from litdata import CombinedStreamingDataset, StreamingDataLoader, StreamingDataset, TokensLoader
    from litdata.streaming.writer import BinaryWriter

    parts = []
    for name in NAMES:
        out = folder / "litdata" / name
        if not (out / "index.json").exists():
            out.mkdir(parents=True, exist_ok=True)
            writer = BinaryWriter(str(out), chunk_bytes=64 << 20, item_loader=TokensLoader(block_size=ROW))
            writer.add_item(0, torch.from_numpy(mapped(folder, name).reshape(-1).astype(np.int16)))
            writer.done()
            writer.merge()
        parts.append(StreamingDataset(str(out), item_loader=TokensLoader(block_size=ROW), shuffle=True, seed=0))
    mixed = CombinedStreamingDataset(parts, weights=WEIGHTS.tolist(), iterate_over_all=False, seed=0)
    while True:
        yield from StreamingDataLoader(mixed, batch_size=BATCH, num_workers=0)


def mosaic_streams(folder: Path) -> Batches:
    """mosaicml-streaming: MDS shards, a Stream per source with its proportion, 0 workers.

    Stratified batches refuse such small shares.
    """
    import importlib.machinery
    import sys
    import types

    for name in ("torchvision", "torchvision.datasets", "torchvision.transforms", "torchvision.transforms.functional"):
        module: Any = types.ModuleType(name)  # imported for pictures, which are not read here
        module.__spec__ = importlib.machinery.ModuleSpec(name, None)
        module.VisionDataset, module.to_tensor = object, None
        sys.modules[name] = module
    from streaming import MDSWriter, Stream, StreamingDataset
    from streaming.base.util import clean_stale_shared_memory
    from torch.utils.data import DataLoader

    clean_stale_shared_memory()
    streams = []
    for name, weight in zip(NAMES, WEIGHTS.tolist(), strict=True):
        out = folder / "mds" / name
        if not (out / "index.json").exists():
            with MDSWriter(out=str(out), columns={"x": f"ndarray:uint16:{ROW}"}, size_limit=64 << 20) as writer:
                for row in mapped(folder, name):
                    writer.write({"x": row})
        streams.append(Stream(local=str(out), proportion=weight))
    epoch = NUM_SOURCES * len(mapped(folder, NAMES[0]))
    mixed = StreamingDataset(
        streams=streams, epoch_size=epoch, batch_size=BATCH, shuffle=True, batching_method="random"
    )
    while True:
        yield from DataLoader(mixed, batch_size=BATCH, num_workers=0, collate_fn=_stacked)


def _stacked(rows: list[dict[str, Any]]) -> Any:
    return np.stack([row["x"] for row in rows])


CONTENDERS: dict[str, Callable[[Path], Batches]] = {
    "numpy gather, 16 files": gather_16_files,
    "numpy gather, one file": gather_one_file,
    "numpy gather, int64 inputs and labels": gather_for_a_model,
    "ours, prepared": ours,
    "ours, prepared, compact": lambda folder: ours(folder, compact=True),
    "ours, prepared, one source": lambda folder: ours(folder, as_one=True),
    "ours, prepared, 2 workers": lambda folder: ours(folder, num_workers=2),
    "ours, prepared, compact, 2 workers": lambda folder: ours(folder, num_workers=2, compact=True),
    "ours, streamed Parquet": lambda folder: ours(folder, streamed=True),
    "torch IterableDataset by hand": torch_iterable,
    "torchdata.nodes": torchdata_nodes,
    "Grain, MapDataset.mix": grain_mix,
    "Grain, IterDataset.mix": grain_iter_mix,
    "LitData": litdata_combined,
    "Hugging Face map-style": hf_map_style,
    "Hugging Face interleave, Arrow batches": hf_arrow_batches,
    "Hugging Face interleave": hf_interleave,
    "mosaicml-streaming": mosaic_streams,
}
