"""A batch on the wire: an Arrow IPC stream of one record batch, tokens in the smallest dtype, and its digest.

Arrow, because every user of this package has it, no byte of it is code, and decoding copies nothing (ADR 10).
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import xxhash

from mixer.batches import RowBatch
from mixer.types import IntArray, RowArray
from service.errors import BatchDigestError

MEDIA_TYPE = "application/vnd.apache.arrow.stream"
SEVERAL_TYPE = "application/vnd.curriculum-mixer.batches"
STEP_HEADER, PHASE_HEADER = "x-mixer-step", "x-mixer-phase"
MAX_STEPS = 99  # in one answer with several
MAX_LINE = 80  # bytes of the line before a body among several, which is four numbers
DIGEST_HEADER = "content-digest"  # RFC 9530


@dataclass(frozen=True, eq=False)
class Body:
    """One rank's rows as they are sent."""

    data: bytes
    step: int
    phase: int

    @cached_property
    def headers(self) -> tuple[tuple[bytes, bytes], ...]:
        """What goes before it alone, as ASGI takes headers; the digest takes 0.6 ms a MiB, once."""
        digest = hashlib.sha256(self.data).digest()
        headers = {
            "content-type": MEDIA_TYPE,
            "content-length": str(len(self.data)),
            "etag": f'"{digest[:16].hex()}"',
            DIGEST_HEADER: f"sha-256=:{base64.b64encode(digest).decode()}:",
            STEP_HEADER: str(self.step),
            PHASE_HEADER: str(self.phase),
            "cache-control": "private, immutable, max-age=3600",
        }
        return tuple((key.encode(), value.encode()) for key, value in headers.items())

    @property
    def etag(self) -> str:
        """The tag among the headers."""
        return dict(self.headers)[b"etag"].decode()

    @cached_property
    def head(self) -> bytes:
        """What goes before it among several: length, step, phase and a checksum of 128 bits, 30 times as fast."""
        checksum = xxhash.xxh3_128_hexdigest(self.data)
        return f"{len(self.data)} {self.step} {self.phase} {checksum}\n".encode()


def joined(bodies: list[Body]) -> bytes:
    """Return several bodies as one: before each a line of length, step, phase and XXH3-128 of the body."""
    return b"".join([part for body in bodies for part in (body.head, body.data)])


def split(data: bytes | memoryview) -> Iterator[RowBatch]:
    """Yield the batches that were joined; raise BatchDigestError for one that is not what its line says."""
    view, begin = memoryview(data), 0
    while begin < len(data):
        line = bytes(view[begin : begin + MAX_LINE]).partition(b"\n")[0]
        end = begin + len(line)
        length, step, phase, checksum = line.decode("ascii").split(" ")
        begin = end + 1 + int(length)
        body = view[end + 1 : begin]
        found = xxhash.xxh3_128_hexdigest(body)
        if found != checksum:
            raise BatchDigestError(f"the batch of step {step} has XXH3-128 {found}, but its line says {checksum}")
        yield decode(body, step=int(step), phase=int(phase))


def encode(batch: RowBatch, rank: int, world_size: int) -> Body:
    """Return rows ``rank::world_size`` of a global batch, in its dtype; the same bytes for the same rows, always."""
    mine = slice(rank, None, world_size)
    rows = np.ascontiguousarray(batch.rows[mine])
    source_ids = batch.source_ids[mine].astype(np.uint16)
    row_numbers = np.ascontiguousarray(batch.row_numbers[mine])
    frame = _frame(*rows.shape, rows.dtype)
    parts = [part for array in (rows, source_ids, row_numbers) for part in (array.data, b"\0" * (-array.nbytes % 8))]
    data = b"".join((frame, *parts, _END))
    return Body(data, batch.step, batch.phase)


def rows_in(body: Body, batch: RowBatch) -> RowArray:
    """Return the rows of a batch as a view of the body that holds all of them."""
    shape, dtype = batch.rows.shape, batch.rows.dtype
    begin = len(_frame(*shape, dtype))
    return np.frombuffer(body.data, dtype, batch.rows.size, begin).reshape(shape)


_END = b"\xff\xff\xff\xff\0\0\0\0"  # of an Arrow IPC stream


def arrow_stream(rows: RowArray, source_ids: npt.NDArray[np.uint16], row_numbers: IntArray) -> bytes:
    """Return the columns as Arrow writes them, which takes it 30 us: ``encode`` writes the same bytes."""
    columns = [
        pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel()), rows.shape[1]),
        pa.array(source_ids),
        pa.array(row_numbers),
    ]
    record = pa.record_batch(columns, names=["rows", "source_ids", "row_numbers"])
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, record.schema) as writer:
        writer.write_batch(record)
    return bytes(sink.getvalue().to_pybytes())


@lru_cache(maxsize=256)
def _frame(num_rows: int, row_length: int, dtype: np.dtype[Any]) -> bytes:
    """Return all that comes before the numbers: it depends on nothing but these, so Arrow writes it once."""
    rows = np.zeros((num_rows, row_length), dtype=dtype)
    source_ids, row_numbers = np.zeros(num_rows, dtype=np.uint16), np.zeros(num_rows, dtype=np.int64)
    num_bytes = sum(array.nbytes + -array.nbytes % 8 for array in (rows, source_ids, row_numbers))
    return arrow_stream(rows, source_ids, row_numbers)[: -num_bytes - len(_END)]


def decode(data: bytes | memoryview, *, step: int, phase: int) -> RowBatch:
    """Return what ``encode`` was given; arrays are read-only views of ``data``."""
    record = pa.ipc.open_stream(pa.py_buffer(data)).read_next_batch()
    flat: RowArray = record.column("rows").flatten().to_numpy()
    return RowBatch(
        step=step,
        phase=phase,
        rows=flat.reshape(record.num_rows, -1),
        source_ids=record.column("source_ids").to_numpy().astype(np.int64),
        row_numbers=record.column("row_numbers").to_numpy(),
    )


def check_digest(data: bytes | memoryview, header: str | None, *, step: int) -> None:
    """Raise BatchDigestError unless ``data`` has the digest that the header claims."""
    found = f"sha-256=:{base64.b64encode(hashlib.sha256(data).digest()).decode()}:"
    if header != found:
        raise BatchDigestError(f"the batch of step {step} has digest {found}, but its header says {header}")
