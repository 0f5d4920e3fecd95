"""Encodes batches for HTTP: an Arrow IPC stream of one record batch, tokens in the smallest dtype, and its digest.

Arrow, because every user of this package has it, it cannot carry code, and decoding copies nothing (ADR 6). The server
writes the same bytes without Arrow (``encode``), which is faster; ``decode`` and ``split`` are the client's side.
"""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import xxhash

from mixer.delivery.batch import RowBatch, RowBatches
from mixer.sources.prepared.shards import arrow_array
from mixer.system.memory import Bytes
from mixer.types import IntArray, RowArray
from service.errors import BatchDigestError

MEDIA_TYPE = "application/vnd.apache.arrow.stream"
ROWS, MASKED_ROWS = "rows", "masked_rows"  # the column's name
SEVERAL_TYPE = "application/vnd.curriculum-mixer.batches"
STEP_HEADER, PHASE_HEADER = "x-mixer-step", "x-mixer-phase"
MAX_STEPS = 99  # in one answer with several batches
HEAD_BYTES = 72  # of the line before each body in such an answer; a multiple of 8, so that arrays are aligned
DIGEST_HEADER = "content-digest"  # RFC 9530


@dataclass(frozen=True, eq=False)
class Body:
    """One rank's rows of a step, encoded."""

    data: memoryview
    step: int
    phase: int

    @cached_property
    def headers(self) -> tuple[tuple[bytes, bytes], ...]:
        """The headers of an answer with this body alone, as ASGI takes them; the digest takes 0.6 ms a MiB, once."""
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
        """The entity tag, one of the headers."""
        return dict(self.headers)[b"etag"].decode()


@dataclass(frozen=True, eq=False)
class Layout:
    """Where the arrays of a batch lie in its body. Their shape alone decides, so that Arrow encodes each shape once.

    Attributes:
        frame: the bytes before the first array.
        source_ids_at, row_numbers_at: the offsets of those arrays.
        num_bytes: the size of the body.
        is_masked: as in ``RowBatch``; the column of rows is then called MASKED_ROWS, which other clients do not know.
    """

    num_rows: int
    row_length: int
    dtype: np.dtype[Any]
    frame: bytes
    source_ids_at: int
    row_numbers_at: int
    num_bytes: int
    is_masked: bool = False

    def read(self, data: memoryview, *, step: int, phase: int) -> RowBatch:
        """Return the batch in a body of this layout; rows and row numbers are views of ``data``."""
        num_rows = self.num_rows
        rows = np.frombuffer(data, self.dtype, num_rows * self.row_length, len(self.frame))
        source_ids = np.frombuffer(data, np.uint16, num_rows, self.source_ids_at)
        row_numbers = np.frombuffer(data, np.int64, num_rows, self.row_numbers_at)
        columns = (rows.reshape(num_rows, self.row_length), source_ids.astype(np.int64), row_numbers)
        return RowBatch(step, phase, *columns, self.is_masked)

    def columns(self, records: Bytes) -> tuple[RowArray, npt.NDArray[np.uint16], IntArray]:
        """Return the arrays in records of this layout, uint8 [n, HEAD_BYTES + num_bytes], as views of them.

        Returns:
            Rows [n, b, T + 1], source_ids [n, b], row_numbers [n, b].
        """
        num_rows, stride = self.num_rows, records.strides[0]

        def column(at: int, dtype: Any, *shape: int) -> Any:
            inner = [math.prod(shape[i + 1 :]) * dtype.itemsize for i in range(len(shape))]
            return np.ndarray((len(records), *shape), dtype, records, HEAD_BYTES + at, (stride, *inner))

        return (
            column(len(self.frame), self.dtype, num_rows, self.row_length),
            column(self.source_ids_at, np.dtype(np.uint16), num_rows),
            column(self.row_numbers_at, np.dtype(np.int64), num_rows),
        )


@lru_cache(maxsize=256)
def layout_of(num_rows: int, row_length: int, dtype: np.dtype[Any], is_masked: bool = False) -> Layout:  # noqa: FBT001, FBT002  # cached by place
    """Return the layout of batches of a shape."""
    rows = np.zeros((num_rows, row_length), dtype=dtype)
    source_ids, row_numbers = np.zeros(num_rows, dtype=np.uint16), np.zeros(num_rows, dtype=np.int64)
    data = arrow_stream(rows, source_ids, row_numbers, is_masked=is_masked)
    row_numbers_at = len(data) - len(_END) - row_numbers.nbytes
    source_ids_at = row_numbers_at - _padded(source_ids.nbytes)
    frame = data[: source_ids_at - _padded(rows.nbytes)]
    return Layout(num_rows, row_length, dtype, frame, source_ids_at, row_numbers_at, len(data), is_masked)


class Encoded:
    """One rank's rows of some steps of one phase, encoded: a record for each step, contiguous in memory.

    A record is a line of text (``_head``) and a body. Neighbouring records are sent as one slice, without a copy.

    Args:
        records: uint8 [n, HEAD_BYTES + bytes of a body].
        steps: the steps of the records, in order.
        phase: the phase of all of them.
        layout: the layout of the bodies.

    Attributes:
        on_body: called when a ``Body`` is made; it is kept, and takes memory.
    """

    on_body: Callable[[], None] | None = None

    def __init__(self, records: Bytes, steps: range, phase: int, layout: Layout) -> None:
        self.steps, self._phase, self._layout = steps, phase, layout
        self._records = records
        self._view = memoryview(records.reshape(-1)).toreadonly()  # type: ignore[arg-type]
        self._bodies: dict[int, Body] = {}

    @property
    def num_bytes(self) -> int:
        """The size of all records."""
        return self._records.nbytes

    @property
    def num_bodies(self) -> int:
        """How many ``Body`` objects were made."""
        return len(self._bodies)

    @property
    def rows(self) -> RowArray:
        """The rows of all records, [n, b, T + 1]."""
        return self._layout.columns(self._records)[0]

    def body(self, step: int) -> Body:
        """Return the body of a step, always the same object."""
        body = self._bodies.get(step)
        if body is None:
            size = self._records.shape[1]
            begin = self.steps.index(step) * size
            body = Body(self._view[begin + HEAD_BYTES : begin + size], step, self._phase)
            self._bodies[step] = body
            if self.on_body is not None:
                self.on_body()
        return body

    def among(self, steps: range, room: int) -> range:
        """Return the first of ``steps``, which must be here, and those after it that are, up to ``room`` bytes."""
        mine = steps[: len(range(steps.start, self.steps.stop, steps.step))]
        return mine[: max(1, -(-room // self._records.shape[1]))]

    def pieces(self, steps: range) -> list[memoryview]:
        """Return the records of steps that are here, as one slice if the steps are consecutive."""
        size = self._records.shape[1]
        begins = [(step - self.steps.start) * size for step in steps]
        if steps.step == 1:
            return [self._view[begins[0] : begins[-1] + size]]
        return [self._view[begin : begin + size] for begin in begins]

    def until(self, step: int) -> Encoded:
        """Return the records before a step."""
        steps = range(self.steps.start, min(self.steps.stop, step))
        return Encoded(self._records[: len(steps)], steps, self._phase, self._layout)


class SendBuffer:
    """Memory for the rows of whole global batches inside their encoded records, so that no copy is needed."""

    records: Bytes

    def __init__(self, *, is_masked: bool = False) -> None:
        self._is_masked = is_masked

    def __call__(self, shape: tuple[int, int, int], dtype: np.dtype[Any]) -> RowArray:
        """Return an uninitialised array of a shape [n, b, T + 1]."""
        layout = layout_of(shape[1], shape[2], dtype, self._is_masked)
        self.records = _new_records(shape[0], layout)
        return layout.columns(self.records)[0]


def _new_records(num_steps: int, layout: Layout) -> Bytes:
    """Return records in which everything is written that depends on the layout alone."""
    records = np.empty((num_steps, HEAD_BYTES + layout.num_bytes), dtype=np.uint8)
    for at, text in ((HEAD_BYTES, layout.frame), (-len(_END), _END)):
        records[:, at : at + len(text) or None] = np.frombuffer(text, np.uint8)
    for end in (layout.source_ids_at, layout.row_numbers_at):  # the padding of a column must not be uninitialised
        records[:, HEAD_BYTES + end - 8 : HEAD_BYTES + end] = 0
    return records


def encode(batches: RowBatches, rank: int, world_size: int, *, room: SendBuffer | None = None) -> Encoded:
    """Return rows ``rank::world_size`` of global batches, encoded in their dtype; deterministic, byte for byte.

    Args:
        batches: of consecutive steps.
        rank: whose rows.
        world_size: the number of ranks.
        room: the buffer that the rows were read into, if they were; then ``world_size`` is 1.
    """
    mine = slice(rank, None, world_size)
    rows = batches.rows[:, mine]
    layout = layout_of(rows.shape[1], rows.shape[2], rows.dtype, batches.is_masked)
    records = _new_records(len(rows), layout) if room is None else room.records
    all_rows, source_ids, row_numbers = layout.columns(records)
    if room is None:
        np.copyto(all_rows, rows)
    np.copyto(source_ids, batches.source_ids[:, mine], casting="unsafe")  # they fit into 16 bits
    np.copyto(row_numbers, batches.row_numbers[:, mine])
    view, size = memoryview(records.reshape(-1)), records.shape[1]  # type: ignore[arg-type]
    for begin, step in zip(range(0, len(view), size), batches.steps, strict=True):
        body = begin + HEAD_BYTES
        view[begin:body] = _head(view[body : begin + size], step, batches.phase)
    return Encoded(records, batches.steps, batches.phase, layout)


def _head(body: memoryview, step: int, phase: int) -> bytes:
    """Return the line before a body, HEAD_BYTES long: length, step, phase and a checksum of 128 bits."""
    return f"{len(body):012d} {step:012d} {phase:012d} {xxhash.xxh3_128_hexdigest(body)}\n".encode()


def split(data: bytes | memoryview) -> Iterator[RowBatch]:
    """Yield the batches of several records; raise BatchDigestError for a body that does not fit its checksum.

    Arrays are read-only views of ``data``.
    """
    view, begin = memoryview(data).toreadonly(), 0
    while begin < len(data):
        line = bytes(view[begin : begin + HEAD_BYTES]).partition(b"\n")[0]
        end = begin + len(line)
        length, step, phase, checksum = line.decode("ascii").split(" ")
        begin = end + 1 + int(length)
        body = view[end + 1 : begin]
        found = xxhash.xxh3_128_hexdigest(body)
        if found != checksum:
            raise BatchDigestError(f"the batch of step {int(step)} has XXH3-128 {found}, but its line says {checksum}")
        yield decode(body, step=int(step), phase=int(phase))


_END = b"\xff\xff\xff\xff\0\0\0\0"  # the end marker of an Arrow IPC stream


def arrow_stream(
    rows: RowArray, source_ids: npt.NDArray[np.uint16], row_numbers: IntArray, *, is_masked: bool = False
) -> bytes:
    """Return the columns as Arrow writes them, which takes 30 us; ``encode`` writes the same bytes faster."""
    columns = [
        pa.FixedSizeListArray.from_arrays(arrow_array(rows), rows.shape[1]),
        arrow_array(source_ids),
        arrow_array(row_numbers),
    ]
    record = pa.record_batch(columns, names=[MASKED_ROWS if is_masked else ROWS, "source_ids", "row_numbers"])
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, record.schema) as writer:
        writer.write_batch(record)
    return bytes(sink.getvalue().to_pybytes())


def _padded(num_bytes: int) -> int:
    return num_bytes + -num_bytes % 8


_layouts: dict[int, Layout] = {}  # the layouts of decoded bodies, by length
MAX_LAYOUTS = 64


def decode(data: bytes | memoryview, *, step: int, phase: int) -> RowBatch:
    """Return a rank's rows of a step; arrays are read-only views of ``data``.

    Arrow decodes the first body of a shape, in 30 us. A body that starts with the same bytes has the same shape.
    """
    view = memoryview(data).toreadonly()
    known = _layouts.get(len(view))
    if known is not None and bytes(view[: len(known.frame)]) == known.frame:
        return known.read(view, step=step, phase=phase)
    record = pa.ipc.open_stream(pa.py_buffer(view)).read_next_batch()
    is_masked = MASKED_ROWS in record.schema.names
    name = MASKED_ROWS if is_masked else ROWS
    of_rows = record.column(name).type
    layout = layout_of(record.num_rows, of_rows.list_size, np.dtype(of_rows.value_type.to_pandas_dtype()), is_masked)
    if layout.num_bytes == len(view) and bytes(view[: len(layout.frame)]) == layout.frame:
        if len(_layouts) < MAX_LAYOUTS:
            _layouts[len(view)] = layout
        return layout.read(view, step=step, phase=phase)
    flat: RowArray = record.column(name).flatten().to_numpy()  # another version of Arrow encoded it
    return RowBatch(
        step=step,
        phase=phase,
        rows=flat.reshape(record.num_rows, -1),
        source_ids=record.column("source_ids").to_numpy().astype(np.int64),
        row_numbers=record.column("row_numbers").to_numpy(),
        is_masked=is_masked,
    )


def check_digest(data: bytes | memoryview, header: str | None, *, step: int) -> None:
    """Raise BatchDigestError unless ``data`` has the digest that the header claims."""
    found = f"sha-256=:{base64.b64encode(hashlib.sha256(data).digest()).decode()}:"
    if header != found:
        raise BatchDigestError(f"the batch of step {step} has digest {found}, but its header says {header}")
