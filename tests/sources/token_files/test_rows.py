"""Rows over any pieces of any type are the windows of the stream that they make, compiled or not, masked or not."""

from __future__ import annotations

import pickle
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from mixer.errors import EmptySourceError, MalformedDataError
from mixer.sources.prepared.rows import Prepared
from mixer.sources.token_files import joint as joints
from mixer.sources.token_files.base import Pieces, TokenFile
from mixer.sources.token_files.joint import JointStreams
from mixer.sources.token_files.rows import TokenFileRows
from mixer.system import kernels as kernels_module
from mixer.types import AnyTokens, IntArray
from tests.sources.test_prepared import a_folder, some_rows

VOCAB, SEPARATOR = 200, 199
FOLDERS: list[Path] = []  # of the test that runs


class Scattered(TokenFile):
    """A file of documents with gaps of any number of bytes between them."""

    def __init__(self, path: Path, documents: Sequence[AnyTokens], gaps: Sequence[int], mask: Path | None) -> None:
        self.parts = documents
        offsets, data = [], b""
        for ids, gap in zip(documents, gaps, strict=True):
            data += bytes([255] * gap)
            offsets.append(len(data))
            data += ids.tobytes()
        path.write_bytes(data)
        super().__init__(path, dtype=documents[0].dtype, num_tokens=sum(map(len, documents)))
        self._pieces = Pieces(np.array(offsets), np.array([len(ids) for ids in documents]))
        self.mask = mask

    @property
    def num_documents(self) -> int:
        return len(self.parts)

    def pieces(self) -> Pieces:
        return self._pieces

    def documents(self) -> Pieces:
        return self._pieces


@dataclass
class Case:
    rows: TokenFileRows
    stream: IntArray  # as NumPy makes it
    counts: IntArray  # whether the loss of each counts


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Draw some files."""
    folder = Path(tempfile.mkdtemp(dir=FOLDERS[-1]))
    dtype = draw(st.sampled_from(["<u1", "<u2", "<u4", "<u8"]))
    inserts = draw(st.booleans())
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    files: list[TokenFile] = []
    stream: list[int] = []
    counts: list[int] = []
    for number in range(draw(st.integers(1, 3))):
        lengths = draw(st.lists(st.integers(1, 15), min_size=1, max_size=5))
        gaps = draw(st.lists(st.integers(0, 9), min_size=len(lengths), max_size=len(lengths)))
        parts = [rng.integers(0, VOCAB - 1, length).astype(dtype) for length in lengths]
        masks = [rng.integers(0, 2, length, dtype=np.uint8) for length in lengths]
        mask = folder / f"{number}.mask" if draw(st.booleans()) else None
        if mask is not None:
            mask.write_bytes(np.concatenate(masks).tobytes())
        files.append(Scattered(folder / f"{number}.bin", parts, gaps, mask))
        for ids, counted in zip(parts, masks, strict=True):
            stream += [*ids.tolist(), *[SEPARATOR] * inserts]
            counts += [*(counted.tolist() if mask is not None else [1] * len(ids)), *[1] * inserts]
    assume(len(stream) > 1)
    row_length = draw(st.integers(2, min(12, len(stream))))
    separator = SEPARATOR if inserts else None
    rows = TokenFileRows("web", files, row_length=row_length, vocab_size=VOCAB, separator_id=separator)
    return Case(rows, np.array(stream), np.array(counts))


@pytest.fixture(params=["compiled", "numpy"], autouse=True)
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    FOLDERS[:] = [tmp_path]
    if request.param == "numpy":
        monkeypatch.setattr(joints, "compiled", None)
    elif kernels_module.compiled is None:
        pytest.skip("not compiled here")


def windows(case: Case) -> IntArray:
    num_rows, row_length = case.rows.num_rows, case.rows.row_length
    return case.stream[: num_rows * row_length].reshape(num_rows, row_length)


@given(cases(), st.data())
def test_rows_are_the_windows_of_the_stream(case: Case, data: st.DataObject) -> None:
    numbers = np.array(data.draw(st.lists(st.integers(0, case.rows.num_rows - 1), min_size=1)), dtype=np.int64)
    for dtype in (np.uint8, np.uint16, np.uint32):
        out = np.empty((1, len(numbers), case.rows.row_length), dtype=dtype)
        JointStreams([case.rows], np.dtype(dtype)).gather(numbers, out)
        assert (out[0] == windows(case)[numbers]).all()
    assert case.rows.document_starts()[-1] == len(case.stream)  # type: ignore[index]


@given(cases(), st.data())
def test_labels_follow_inputs_and_are_minus_100_where_the_mask_says_so(case: Case, data: st.DataObject) -> None:
    numbers = np.array(data.draw(st.lists(st.integers(0, case.rows.num_rows - 1), min_size=1)), dtype=np.int64)
    rows = windows(case)[numbers]
    counts = case.counts[: windows(case).size].reshape(windows(case).shape)[numbers]
    inputs, labels = JointStreams([case.rows], np.dtype(np.uint8)).at(numbers).split(0, len(numbers))
    assert (inputs == rows[:, :-1]).all()
    assert (labels == np.where(counts[:, 1:], rows[:, 1:], -100)).all()


@given(cases(), cases(), st.integers(0, 5))
def test_several_sources_of_several_types_are_one_numbering(one: Case, other: Case, seed: int) -> None:
    row_length = min(one.rows.row_length, other.rows.row_length)
    sources = []
    for case in (one, other):
        case.rows.row_length, case.rows.num_rows = row_length, len(case.stream) // row_length
        sources.append(case.rows)
    joint = JointStreams(sources, np.dtype(np.uint32))
    ids = np.random.default_rng(seed).integers(0, 2, 9)
    positions = np.array([seed % sources[i].num_rows for i in ids])
    out = np.empty((3, 3, row_length), dtype=np.uint32)
    joint.gather(joint.addresses(ids, positions), out)
    expected = [windows((one, other)[i])[position] for i, position in zip(ids, positions, strict=True)]
    assert (out.reshape(9, row_length) == np.array(expected)).all()
    with pytest.raises(IndexError, match="was asked for"):
        joint.addresses(np.array([1]), np.array([sources[1].num_rows]))


@given(cases(), st.data())
def test_an_id_outside_the_vocabulary_is_refused_with_its_file_and_byte(case: Case, data: st.DataObject) -> None:
    file = data.draw(st.sampled_from(case.rows.files))
    piece = data.draw(st.integers(0, len(file.pieces().offsets) - 1))
    place = int(file.pieces().offsets[piece]) + file.dtype.itemsize * data.draw(
        st.integers(0, int(file.pieces().lengths[piece]) - 1)
    )
    content = bytearray(file.path.read_bytes())
    content[place : place + file.dtype.itemsize] = b"\xff" * file.dtype.itemsize
    file.path.write_bytes(content)
    message = f"{file.path}: the id {256**file.dtype.itemsize - 1} at byte {place:,} is outside the vocabulary of 200"
    with pytest.raises(MalformedDataError) as raised:
        case.rows.verify()
    assert message in str(raised.value)
    joint, numbers = JointStreams([case.rows], np.dtype(np.uint8)), np.arange(case.rows.num_rows)
    earlier = case.rows.files[: case.rows.files.index(file)]
    inserted = case.rows.stream.separator >= 0
    lengths = [n + inserted for f in earlier for n in f.pieces().lengths.tolist()]
    lengths += (file.pieces().lengths[:piece] + inserted).tolist()
    position = sum(lengths) + (place - int(file.pieces().offsets[piece])) // file.dtype.itemsize
    if position >= windows(case).size:  # in the end of the stream, which fills no row
        assert (joint.at(numbers).split(0, len(numbers))[0] == windows(case)[:, :-1]).all()
        return
    with pytest.raises(MalformedDataError) as raised:
        joint.at(numbers).split(0, len(numbers))
    assert message in str(raised.value)
    with pytest.raises(MalformedDataError):
        joint.gather(np.array([position // case.rows.row_length]), np.empty((1, 1, case.rows.row_length), np.uint8))


def test_rows_of_prepared_sources_are_read_beside_them(tmp_path: Path) -> None:
    prepared = Prepared.open(a_folder(tmp_path / "rows", {"s0": (some_rows(9), [5, 4])})).sources["s0"]
    ids = np.arange(100, dtype="<u4")
    files = [Scattered(tmp_path / "x", [ids], [1], None)]
    rows = TokenFileRows("web", files, row_length=8, vocab_size=VOCAB, separator_id=None)
    joint = JointStreams([prepared, rows], np.dtype(np.uint16))
    out = np.empty((1, 21, 8), dtype=np.uint16)
    joint.gather(np.arange(21), out)
    assert (out[0, :9] == some_rows(9)).all()
    assert out[0, 9:].ravel().tolist() == list(range(96))


def test_rows_pickle_as_names_and_map_the_files_again(tmp_path: Path) -> None:
    rows = TokenFileRows(
        "web",
        [Scattered(tmp_path / "x", [np.arange(64, dtype="<u2")], [0], None)],
        row_length=8,
        vocab_size=VOCAB,
        separator_id=None,
    )
    _ = rows.stream
    again: Any = pickle.loads(pickle.dumps(rows))
    assert "stream" not in vars(again)
    assert (again.stream.starts == rows.stream.starts).all()
    (tmp_path / "x").write_bytes(bytes(126))
    with pytest.raises(MalformedDataError, match="it has 126 bytes, and had 128 when it was opened"):
        _ = pickle.loads(pickle.dumps(rows)).stream


def test_fewer_ids_than_a_row_are_an_empty_source(tmp_path: Path) -> None:
    files = [Scattered(tmp_path / "x", [np.arange(7, dtype="<u2")], [0], None)]
    with pytest.raises(EmptySourceError, match="source web: its 7 token ids do not fill one row of 8"):
        TokenFileRows("web", files, row_length=8, vocab_size=VOCAB, separator_id=None)


def test_the_fingerprint_is_of_what_the_files_hold(tmp_path: Path) -> None:
    ids = np.arange(2**20, dtype="<u4") % VOCAB

    def fingerprint(name: str, data: AnyTokens) -> str:
        file = Scattered(tmp_path / name, [data], [0], None)
        return TokenFileRows("web", [file], row_length=8, vocab_size=VOCAB, separator_id=None).fingerprint

    first = fingerprint("x", ids)
    assert fingerprint("elsewhere", ids) == first
    for place in (0, 2**20 - 1):
        changed = ids.copy()
        changed[place] += 1
        assert fingerprint("x", changed) != first
    assert fingerprint("x", ids[:-1]) != first
