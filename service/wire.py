"""A batch on the wire: an Arrow IPC stream of one record batch, tokens in the smallest dtype, and its digest.

Arrow, because every user of this package has it, no byte of it is code, and decoding copies nothing (ADR 10).
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa

from mixer.batches import RowBatch
from mixer.types import RowArray
from service.errors import BatchDigestError

MEDIA_TYPE = "application/vnd.apache.arrow.stream"
SEVERAL_TYPE = "application/vnd.curriculum-mixer.batches"
STEP_HEADER, PHASE_HEADER = "x-mixer-step", "x-mixer-phase"
DIGEST_HEADER = "content-digest"  # RFC 9530


@dataclass(frozen=True, eq=False)
class Body:
    """One rank's rows as they are sent; ``headers`` are as ASGI takes them."""

    data: bytes
    etag: str
    headers: tuple[tuple[bytes, bytes], ...]

    @cached_property
    def head(self) -> bytes:
        """The headers as they precede this body among several."""
        return b"".join(b"%b: %b\r\n" % pair for pair in self.headers) + b"\r\n"


def joined(bodies: list[Body]) -> bytes:
    """Return several bodies as one: before each its headers, as they would come with it alone, and an empty line."""
    return b"".join([part for body in bodies for part in (body.head, body.data)])


def split(data: bytes) -> Iterator[tuple[dict[str, str], memoryview]]:
    """Yield what ``joined`` was given: headers and a view of each body."""
    view, begin = memoryview(data), 0
    while begin < len(data):
        end = data.index(b"\r\n\r\n", begin)
        lines = data[begin:end].decode("latin-1").split("\r\n")
        headers: dict[str, str] = dict(line.split(": ", 1) for line in lines)
        begin = end + 4 + int(headers["content-length"])
        yield headers, view[end + 4 : begin]


def encode(batch: RowBatch, rank: int, world_size: int) -> Body:
    """Return rows ``rank::world_size`` of a global batch, in its dtype; the same bytes for the same rows, always."""
    mine = slice(rank, None, world_size)
    rows = np.ascontiguousarray(batch.rows[mine])
    row_length = rows.shape[1]
    columns = [
        pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel()), row_length),
        pa.array(batch.source_ids[mine].astype(np.uint16)),
        pa.array(np.ascontiguousarray(batch.row_numbers[mine])),
    ]
    record = pa.record_batch(columns, names=["rows", "source_ids", "row_numbers"])
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, record.schema) as writer:
        writer.write_batch(record)
    data = sink.getvalue().to_pybytes()
    digest = hashlib.sha256(data).digest()
    etag = f'"{digest[:16].hex()}"'
    headers = {
        "content-type": MEDIA_TYPE,
        "content-length": str(len(data)),
        "etag": etag,
        DIGEST_HEADER: f"sha-256=:{base64.b64encode(digest).decode()}:",
        STEP_HEADER: str(batch.step),
        PHASE_HEADER: str(batch.phase),
        "cache-control": "private, immutable, max-age=3600",
    }
    return Body(data, etag, tuple((key.encode(), value.encode()) for key, value in headers.items()))


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
