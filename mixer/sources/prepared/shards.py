"""Token rows as files that `datasets` and `numpy` both read in place: as ``save_to_disk`` writes, but in one batch.

An Arrow stream of one record batch is a header of about 500 bytes, the values of all rows without a gap, and an end
mark. `datasets` itself writes batches of 1,000 rows, of which no single array can be made without a copy.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy.typing as npt
import orjson
import pyarrow as pa

from mixer.sources.prepared.manifest import Shard
from mixer.sources.prepared.rows import file_digest

COLUMN = "input_ids"
SAVED_SPLITS = "dataset_dict.json"


def arrow_array(numbers: npt.NDArray[Any]) -> Any:
    """Return contiguous numbers, flat, as Arrow has them; ``pa.array`` would import pandas: 0.5 s and 40 MB."""
    return pa.Array.from_buffers(pa.from_numpy_dtype(numbers.dtype), numbers.size, [None, pa.py_buffer(numbers)])


def write_shard(path: Path, rows: npt.NDArray[Any]) -> Shard:
    """Write rows, [n, T + 1] of an unsigned dtype, as one Arrow file; the same rows give the same bytes.

    ``rows`` may be a memory map: it is copied in one pass.
    """
    num_rows, row_length = rows.shape
    column = pa.FixedSizeListArray.from_arrays(arrow_array(rows), row_length)
    schema = pa.schema(
        [(COLUMN, column.type)], metadata={"huggingface": _json({"info": {"features": _features(rows)}})}
    )
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, schema) as writer:
        writer.write_batch(pa.record_batch([column], schema=schema))
    offset = _offset_of_values(path)
    with path.open("rb") as written:
        header = written.read(offset)
    return Shard(
        file=path.name,
        rows=num_rows,
        offset=offset,
        size=path.stat().st_size,
        header_digest=hashlib.blake2b(header, digest_size=16).hexdigest(),
        digest=file_digest(path),
    )


def write_split_files(folder: Path, split: str, shards: Sequence[Shard], example: npt.NDArray[Any]) -> None:
    """Write what ``datasets.load_from_disk`` wants beside the Arrow files of a split.

    Args:
        folder: where the shards are.
        split: its name.
        shards: the files in order.
        example: any rows of the right dtype and length; none are needed.
    """
    state: dict[str, Any] = {
        "_data_files": [{"filename": shard.file} for shard in shards],
        "_fingerprint": hashlib.blake2b(_json([shard.digest for shard in shards]), digest_size=8).hexdigest(),
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": split,
    }
    info = {"citation": "", "description": "", "features": _features(example), "homepage": "", "license": ""}
    (folder / "state.json").write_bytes(orjson.dumps(state, option=orjson.OPT_INDENT_2))
    (folder / "dataset_info.json").write_bytes(orjson.dumps(info, option=orjson.OPT_INDENT_2))


def write_splits_file(folder: Path, splits: Sequence[str]) -> None:
    """Write what makes a folder of splits one ``DatasetDict``."""
    (folder / SAVED_SPLITS).write_bytes(_json({"splits": list(splits)}))


def _features(rows: npt.NDArray[Any]) -> dict[str, Any]:
    value = {"dtype": rows.dtype.name, "_type": "Value"}
    return {COLUMN: {"feature": value, "length": rows.shape[1], "_type": "List"}}


def _offset_of_values(path: Path) -> int:
    """Return where the values begin in a file; all before is the header."""
    with pa.memory_map(str(path)) as file:
        buffer = file.read_buffer()
    [column] = pa.ipc.open_stream(buffer).read_next_batch().columns
    return int(column.values.buffers()[1].address - buffer.address)


def _json(data: object) -> bytes:
    return orjson.dumps(data)
