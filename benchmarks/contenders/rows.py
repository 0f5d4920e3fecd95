"""The rows that all contenders read: 16 sources of uint16 ids below 8,449, in the format that each reads best."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

NUM_SOURCES, BATCH, ROW, VOCAB = 16, 16, 1025, 8449
ROWS_PER_SOURCE = 8000  # 16.4 MB a source, 262 MB in all
NAMES = [f"s{i:02d}" for i in range(NUM_SOURCES)]
WEIGHTS = np.arange(NUM_SOURCES, 0, -1) / (NUM_SOURCES * (NUM_SOURCES + 1) / 2)  # from 11.8 % down to 0.7 %

Rows = npt.NDArray[np.uint16]


def make_rows(folder: Path) -> None:
    """Write ``rows/s00.bin`` and so on, and ``rows/all.bin``: bare uint16 rows."""
    if (folder / "rows" / "all.bin").exists():
        return
    (folder / "rows").mkdir(parents=True, exist_ok=True)
    with (folder / "rows" / "all.part").open("wb") as together:
        for i, name in enumerate(NAMES):
            rows = np.random.default_rng(i).integers(0, VOCAB, (ROWS_PER_SOURCE, ROW), dtype=np.uint16)
            rows.tofile(folder / "rows" / f"{name}.bin")
            rows.tofile(together)
    (folder / "rows" / "all.part").rename(folder / "rows" / "all.bin")


def mapped(folder: Path, name: str) -> Rows:
    """Return one of the files as an array in place, [n, 1025]."""
    return np.memmap(folder / "rows" / f"{name}.bin", dtype=np.uint16, mode="r").reshape(-1, ROW)


def make_prepared(folder: Path, *, as_one: bool) -> Path:
    """Write what ``mixer prepare`` would: 16 sources, or all their rows as one."""
    out = folder / ("prepared-1" if as_one else "prepared-16")
    sources = {"all": mapped(folder, "all")} if as_one else {name: mapped(folder, name) for name in NAMES}
    return arrow_rows(out, sources)


def arrow_rows(out: Path, sources: dict[str, Any]) -> Path:
    """Write rows by source, unsigned [n, 1025], as prepared rows, unless they are there."""
    from mixer.sources.prepared.manifest import MANIFEST, Manifest, SourceManifest, SplitManifest, TokenizerManifest
    from mixer.sources.prepared.shards import write_shard, write_split_files, write_splits_file

    if (out / MANIFEST).exists():
        return out
    shutil.rmtree(out, ignore_errors=True)
    made = {}
    for name, rows in sources.items():
        train = out / "sources" / name / "train"
        train.mkdir(parents=True)
        shards = (write_shard(train / "data-00000-of-00001.arrow", rows),)
        write_split_files(train, "train", shards, rows[:0])
        write_splits_file(out / "sources" / name, ["train"])
        split = SplitManifest(documents=len(rows), rows=len(rows), tokens=rows.size, shards=shards)
        made[name] = SourceManifest(definition={}, train=split)
    manifest = Manifest(
        code_version="0",
        dtype=next(iter(sources.values())).dtype.name,
        sequence_length=ROW - 1,
        holdout=0.0,
        tokenizer=TokenizerManifest(definition={}, fingerprint="", separator="", separator_id=0, vocab_size=VOCAB),
        sources=made,
    )
    (out / MANIFEST).write_text(manifest.model_dump_json())
    return out


def make_parquet(folder: Path, column: str) -> list[str]:
    """Write one Parquet file per source: ``lists`` of uint16, or ``binary`` rows, uncompressed."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    paths = [folder / "parquet" / column / f"{name}.parquet" for name in NAMES]
    for name, path in zip(NAMES, paths, strict=True):
        if path.exists():
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = mapped(folder, name)
        array: Any
        if column == "lists":
            offsets = np.arange(0, rows.size + 1, ROW, dtype=np.int32)
            array = pa.ListArray.from_arrays(offsets, pa.array(rows.reshape(-1)))
        else:
            array = pa.array([row.tobytes() for row in rows], type=pa.binary(2 * ROW))
        table = pa.table({"input_ids": array})
        pq.write_table(table, path.with_suffix(".part"), row_group_size=1000, use_dictionary=False, compression="none")
        path.with_suffix(".part").rename(path)
    return [str(path) for path in paths]


def random_rows(num_batches: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return sources and row numbers of batches of the mixture, [num_batches, 16] both."""
    rng = np.random.default_rng(0)
    sources = rng.choice(NUM_SOURCES, (num_batches, BATCH), p=WEIGHTS)
    return sources, rng.integers(0, ROWS_PER_SOURCE, (num_batches, BATCH))
