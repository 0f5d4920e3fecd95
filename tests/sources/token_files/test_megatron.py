"""Megatron's pairs of files: read as megatron-core wrote them, refused when they are not what it writes."""

from __future__ import annotations

import shutil
import struct
from pathlib import Path

import numpy as np
import pytest

from mixer.errors import EmptySourceError, MalformedDataError, MissingDataError
from mixer.sources.token_files.megatron import HEADER, MegatronFile
from tests.support.documents import documents
from tests.support.token_files import WRITTEN, rows_of, stream_of

FILES = {"plain": documents(ends=False), "ended": documents(seed=1), "wide": documents(seed=2)}


@pytest.mark.parametrize("name", FILES)
def test_every_id_and_border_is_as_megatron_wrote_them(name: str) -> None:
    file = MegatronFile(WRITTEN / "megatron" / name)
    parts = FILES[name]
    assert stream_of(file).tolist() == np.concatenate(parts).tolist()
    assert file.borders().tolist() == np.cumsum([0, *map(len, parts)]).tolist()
    assert file.num_documents == len(parts)


def test_a_separator_is_put_in_after_each_document() -> None:
    parts = FILES["plain"]
    rows = rows_of([MegatronFile(WRITTEN / "megatron" / "plain.idx")], row_length=8, separator_id=7)
    expected = np.concatenate([np.append(ids, 7) for ids in parts])
    assert rows.stream_length == len(expected)
    assert rows.document_starts().tolist() == np.cumsum([0, *(len(ids) + 1 for ids in parts)]).tolist()  # type: ignore[union-attr]


@pytest.fixture
def pair(tmp_path: Path) -> Path:
    for suffix in (".bin", ".idx"):
        shutil.copy(WRITTEN / "megatron" / f"wide{suffix}", tmp_path / f"wide{suffix}")
    return tmp_path / "wide"


def patched(path: Path, offset: int, data: bytes) -> None:
    content = bytearray(path.read_bytes())
    content[offset : offset + len(data)] = data
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("offset", "data", "message"),
    [
        (0, b"MMIDIDY", "not with b'MMIDIDX"),
        (9, struct.pack("<Q", 2), "version 2"),
        (17, b"\x07", "type 7 \\(float32\\)"),
        (17, b"\x63", "type 99 \\(unknown\\)"),
        (18, struct.pack("<Q", 13), "an index of 13 sequences and 12 documents has"),
        (18, struct.pack("<Q", 2**63), "documents has"),
        (26, struct.pack("<Q", 2**64 - 1), "documents has"),
        (HEADER.size, struct.pack("<i", -3), "sequence 0 has -3 ids"),
        (HEADER.size, struct.pack("<i", 3), "sequence 1 has"),
        (HEADER.size + 4 * 12, struct.pack("<q", 2**40), "sequence 0 .* at byte 1,099,511,627,776"),
        (HEADER.size + 4 * 11, struct.pack("<i", 2**31 - 1), "its 2,147,483,844 ids of 4 bytes end at byte"),
        (HEADER.size + 12 * 12, struct.pack("<q", 1), "borders of documents are 1 to 12"),
        (HEADER.size + 12 * 12 + 8, struct.pack("<q", 9), "border 2 of its documents, 2, is below"),
    ],
)
def test_an_index_that_is_not_megatrons_is_refused_with_its_place(
    pair: Path, offset: int, data: bytes, message: str
) -> None:
    patched(pair.with_suffix(".idx"), offset, data)
    with pytest.raises(MalformedDataError, match=message) as raised:
        MegatronFile(pair)
    assert "wide." in str(raised.value)


def test_a_torn_file_of_either_kind_is_refused(pair: Path) -> None:
    ids = pair.with_suffix(".bin").read_bytes()
    pair.with_suffix(".bin").write_bytes(ids[:-2])
    with pytest.raises(MalformedDataError, match=r"wide\.bin: its 204 ids of 4 bytes end at byte 816, but it has 814"):
        MegatronFile(pair)
    pair.with_suffix(".bin").write_bytes(ids)
    index = pair.with_suffix(".idx").read_bytes()
    for length in (0, 8, 33, 34, len(index) - 1):
        pair.with_suffix(".idx").write_bytes(index[:length])
        with pytest.raises(MalformedDataError, match=r"wide\.idx"):
            MegatronFile(pair)


def test_a_file_of_a_pair_that_is_missing_is_named(pair: Path) -> None:
    pair.with_suffix(".bin").unlink()
    with pytest.raises(MissingDataError, match=r"wide\.bin: No such file"):
        MegatronFile(pair)


def test_an_index_of_no_sequence_is_an_empty_source(tmp_path: Path) -> None:
    (tmp_path / "none.bin").touch()
    (tmp_path / "none.idx").write_bytes(HEADER.pack(b"MMIDIDX\0\0", 1, 8, 0, 1) + bytes(8))
    with pytest.raises(EmptySourceError, match=r"none\.bin: no token id"):
        MegatronFile(tmp_path / "none")
