"""Prepared rows: gathered as numpy gathers, loaded by `datasets`, refused when a file is not what was written."""

from __future__ import annotations

import pickle
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from random import Random
from typing import Any

import datasets
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixer.errors import MalformedDataError, MissingDataError, UnknownSourceError
from mixer.sources.packing import smallest_dtype
from mixer.sources.prepared.manifest import MANIFEST, Manifest, SourceManifest, SplitManifest, TokenizerManifest
from mixer.sources.prepared.rows import JointRows, Prepared
from mixer.sources.prepared.shards import write_shard, write_split_files, write_splits_file

T = 7
Rows = npt.NDArray[Any]


def some_rows(num_rows: int, dtype: str = "uint16", seed: int = 0) -> Rows:
    high = np.iinfo(dtype).max
    return np.random.default_rng(seed).integers(0, high, (num_rows, T + 1), dtype=dtype, endpoint=True)


def a_split(folder: Path, rows: Rows, shard_sizes: list[int]) -> SplitManifest:
    folder.mkdir(parents=True)
    starts = np.cumsum([0, *shard_sizes])
    assert starts[-1] == len(rows)
    shards = tuple(
        write_shard(folder / f"data-{i:05d}-of-{len(shard_sizes):05d}.arrow", rows[start : start + size])
        for i, (start, size) in enumerate(zip(starts, shard_sizes, strict=False))
    )
    write_split_files(folder, folder.name, shards, rows[:0])
    return SplitManifest(documents=len(rows), rows=len(rows), tokens=rows.size, shards=shards)


def a_folder(folder: Path, sources: dict[str, tuple[Rows, list[int]]]) -> Path:
    """Write a folder of prepared rows by hand."""
    made = {}
    for name, (rows, shard_sizes) in sources.items():
        train = a_split(folder / "sources" / name / "train", rows, shard_sizes)
        write_splits_file(folder / "sources" / name, ["train"])
        made[name] = SourceManifest(definition={}, train=train)
    [dtype] = {rows.dtype.name for rows, _ in sources.values()}
    manifest = Manifest(
        code_version="0",
        dtype=dtype,  # type: ignore[arg-type]
        sequence_length=T,
        holdout=0.0,
        tokenizer=TokenizerManifest(definition={}, fingerprint="", separator="", separator_id=0, vocab_size=1),
        sources=made,
    )
    (folder / MANIFEST).write_text(manifest.model_dump_json())
    return folder


@st.composite
def gathers(draw: st.DrawFn) -> tuple[Rows, list[int], list[int]]:
    """Draw rows, how they are cut into shards, and row numbers."""
    sizes = draw(st.lists(st.integers(1, 9), min_size=1, max_size=4))
    rows = some_rows(sum(sizes), draw(st.sampled_from(["uint8", "uint16", "uint32"])), draw(st.integers(0, 9)))
    return rows, sizes, draw(st.lists(st.integers(0, len(rows) - 1), max_size=20))


@given(gathers())
def test_gathering_is_indexing_however_the_rows_are_cut_into_shards(case: tuple[Rows, list[int], list[int]]) -> None:
    rows, sizes, numbers = case
    positions = np.array(numbers, dtype=np.int64)
    with tempfile.TemporaryDirectory() as folder:
        source = Prepared.open(a_folder(Path(folder), {"web": (rows, sizes)})).sources["web"]
        assert (source.num_rows, source.row_length, source.num_tokens) == (len(rows), T + 1, rows.size)
        assert source.first_rows.tolist() == np.cumsum([0, *sizes])[:-1].tolist()
        gathered = source.gather(positions)
        assert gathered.dtype == rows.dtype
        np.testing.assert_array_equal(gathered, rows[positions])
        out = np.zeros_like(gathered)
        assert source.gather(positions, out=out) is out
        np.testing.assert_array_equal(out, rows[positions])


@given(gathers(), st.lists(st.integers(1, 5), min_size=1, max_size=3), st.randoms())
def test_gathering_from_several_sources_is_gathering_from_each(
    case: tuple[Rows, list[int], list[int]], other_sizes: list[int], random: Random
) -> None:
    rows, sizes, numbers = case
    other = some_rows(sum(other_sizes), rows.dtype.name, seed=99)
    wanted = [(0, number) for number in numbers] + [(1, number) for number in range(len(other))]
    random.shuffle(wanted)
    source_ids, positions = np.array(wanted, dtype=np.int64).T
    with tempfile.TemporaryDirectory() as folder:
        sources = Prepared.open(a_folder(Path(folder), {"a": (rows, sizes), "b": (other, other_sizes)})).sources
        joint = JointRows([sources["a"], sources["b"]])
        addresses = joint.addresses(source_ids, positions)
        apart = np.zeros((len(wanted), 3, rows.shape[1]), dtype=rows.dtype)
        joint.at(addresses).gather(apart[:, 1:2], 0)
        inputs, labels = joint.at(addresses).split(1, len(wanted) - 1)
        joint.touch(addresses)
    gathered = apart[:, 1]
    assert not apart[:, [0, 2]].any()
    np.testing.assert_array_equal(gathered, [(rows, other)[i][number] for i, number in wanted])
    np.testing.assert_array_equal(inputs, gathered[1:, :-1])
    np.testing.assert_array_equal(labels, gathered[1:, 1:])


@settings(max_examples=20)
@given(gathers())
def test_datasets_loads_the_same_rows(case: tuple[Rows, list[int], list[int]]) -> None:
    rows, sizes, _ = case
    with tempfile.TemporaryDirectory() as folder:
        a_folder(Path(folder), {"web": (rows, sizes)})
        loaded = datasets.load_from_disk(f"{folder}/sources/web")
        assert isinstance(loaded, datasets.DatasetDict)
        table = loaded["train"].with_format("arrow")[:]
        np.testing.assert_array_equal(np.array(table["input_ids"].to_pylist()), rows)
        assert table.schema.field("input_ids").type.value_type == rows.dtype.name


@pytest.mark.parametrize("sizes", [[10], [4, 6]])
@pytest.mark.parametrize(("numbers", "message"), [([3, 10], "rows 3 to 10"), ([-1], "rows -1 to -1")])
def test_a_row_that_does_not_exist_is_refused(
    tmp_path: Path, sizes: list[int], numbers: list[int], message: str
) -> None:
    source = Prepared.open(a_folder(tmp_path, {"web": (some_rows(10), sizes)})).sources["web"]
    with pytest.raises(IndexError, match=f"source web: {message} were asked for, but it has rows 0 to 9"):
        source.gather(np.array(numbers))


@pytest.mark.parametrize(("source_ids", "numbers"), [([0, 1], [9, 4]), ([1, 0], [0, -1]), ([0], [10])])
def test_a_row_that_no_source_has_is_refused_before_it_is_read(
    tmp_path: Path, source_ids: list[int], numbers: list[int]
) -> None:
    folder = a_folder(tmp_path, {"web": (some_rows(10), [4, 6]), "code": (some_rows(4), [4])})
    joint = JointRows(list(Prepared.open(folder).sources.values()))
    with pytest.raises(IndexError, match=r"source (web: row (-1|10)|code: row 4) was asked for, but it has rows 0 to"):
        joint.addresses(np.array(source_ids), np.array(numbers))


def test_shards_are_plain_arrays_that_cannot_be_written(tmp_path: Path) -> None:
    source = Prepared.open(a_folder(tmp_path, {"web": (some_rows(10), [10])})).sources["web"]
    [shard] = source.shards
    assert type(shard) is np.ndarray
    assert not shard.flags.writeable
    assert shard.flags.c_contiguous


def test_open_files_do_not_grow_with_sources(tmp_path: Path) -> None:
    folder = tmp_path.resolve()

    def open_here() -> list[Path]:
        files = (entry.resolve() for entry in Path("/proc/self/fd").iterdir())
        return [file for file in files if file.is_relative_to(folder)]

    a_folder(tmp_path, {f"s{i}": (some_rows(2), [1, 1]) for i in range(20)})
    with (tmp_path / "sources" / "seen").open("w"):
        assert open_here() == [folder / "sources" / "seen"]
    prepared = Prepared.open(tmp_path)
    assert all(len(source.gather(np.arange(2))) == 2 for source in prepared.sources.values())
    assert open_here() == []
    assert len(prepared.sources) == 20


def test_another_process_maps_the_files_itself(tmp_path: Path) -> None:
    rows = some_rows(5000)
    prepared = Prepared.open(a_folder(tmp_path, {"web": (rows, [5000])}))
    data = pickle.dumps(prepared)
    assert len(data) < 4000
    np.testing.assert_array_equal(pickle.loads(data).sources["web"].gather(np.arange(9)), rows[:9])


def test_opening_imports_neither_torch_nor_datasets_nor_pandas(tmp_path: Path) -> None:
    a_folder(tmp_path, {"web": (some_rows(10), [10])})
    code = f"""
import sys
from mixer.sources.prepared.rows import JointRows, Prepared
Prepared.open({str(tmp_path)!r}).sources["web"].shards
sys.exit(bool({{"torch", "datasets", "tokenizers", "pandas"}} & set(sys.modules)))"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_fingerprint_is_of_the_rows_and_not_of_the_place(tmp_path: Path) -> None:
    one = Prepared.open(a_folder(tmp_path / "one", {"a": (some_rows(9), [9]), "b": (some_rows(9, seed=1), [9])}))
    same = Prepared.open(a_folder(tmp_path / "two", {"b": (some_rows(9, seed=1), [9]), "a": (some_rows(9), [9])}))
    other = Prepared.open(a_folder(tmp_path / "three", {"a": (some_rows(9, seed=1), [9]), "b": (some_rows(9), [9])}))
    assert one.fingerprint == same.fingerprint != other.fingerprint
    assert one.sources["a"].fingerprint == other.sources["b"].fingerprint != one.sources["b"].fingerprint


def shard_of(folder: Path) -> Path:
    return folder / "sources" / "web" / "train" / "data-00000-of-00001.arrow"


def test_a_truncated_shard_is_refused_with_both_sizes(tmp_path: Path) -> None:
    shard = shard_of(a_folder(tmp_path, {"web": (some_rows(10), [10])}))
    data = shard.read_bytes()
    shard.write_bytes(data[:-100])
    with pytest.raises(
        MalformedDataError, match=f"source web: .*arrow: it has {len(data) - 100} bytes, not {len(data)}"
    ):
        Prepared.open(tmp_path)


def test_a_shard_of_the_right_size_with_another_header_is_refused(tmp_path: Path) -> None:
    shard = shard_of(a_folder(tmp_path, {"web": (some_rows(10), [10])}))
    shard.write_bytes(bytes(shard.stat().st_size))
    with pytest.raises(MalformedDataError, match="source web: .* does not begin as it was written; copy it again"):
        Prepared.open(tmp_path)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    shard = shard_of(a_folder(tmp_path, {"web": (some_rows(10), [10])}))
    shard.unlink()
    with pytest.raises(MissingDataError, match=f"source web: prepared rows: no file {shard}; copy it again"):
        Prepared.open(tmp_path)


def test_a_flipped_bit_is_found_by_verifying_and_not_by_opening(tmp_path: Path) -> None:
    shard = shard_of(a_folder(tmp_path, {"web": (some_rows(10), [10])}))
    Prepared.open(tmp_path).verify()
    data = bytearray(shard.read_bytes())
    data[-50] ^= 1
    shard.write_bytes(data)
    prepared = Prepared.open(tmp_path)
    with pytest.raises(
        MalformedDataError, match=r"source web: .*arrow: its digest is \w+, not \w+: it has been changed"
    ):
        prepared.verify()


def test_the_digest_is_what_b2sum_prints(tmp_path: Path) -> None:
    if shutil.which("b2sum") is None:
        pytest.skip("no b2sum on this machine")
    shard = shard_of(a_folder(tmp_path, {"web": (some_rows(10), [10])}))
    printed = subprocess.run(["b2sum", "-l", "128", str(shard)], capture_output=True, text=True, check=True).stdout
    [recorded] = Prepared.open(tmp_path).manifest.sources["web"].train.shards
    assert printed.split()[0] == recorded.digest


@pytest.mark.parametrize(
    ("manifest", "error", "message"),
    [
        (None, MissingDataError, "holds no prepared.json, so it was not made by `mixer prepare`"),
        ("{", MalformedDataError, "prepared.json: not a manifest of prepared rows: "),
        ("[]", MalformedDataError, "manifest version None, but this curriculum-mixer reads version 1"),
        ('{"version": 2}', MalformedDataError, "manifest version 2, but .* run `mixer prepare` again"),
        ('{"version": 1}', MalformedDataError, "not a manifest of prepared rows: code_version: Field required"),
    ],
)
def test_a_foreign_folder_is_refused(
    tmp_path: Path, manifest: str | None, error: type[Exception], message: str
) -> None:
    if manifest is not None:
        (tmp_path / MANIFEST).write_text(manifest)
    with pytest.raises(error, match=message):
        Prepared.open(tmp_path)


def test_no_folder_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(MissingDataError, match=f"no folder {tmp_path}/no; make it with `mixer prepare CONFIG --out"):
        Prepared.open(tmp_path / "no")


def test_held_out_rows_of_an_unknown_source_suggest_the_nearest(tmp_path: Path) -> None:
    prepared = Prepared.open(a_folder(tmp_path, {"web": (some_rows(3), [3])}))
    assert prepared.held_out("web").num_rows == 0
    with pytest.raises(UnknownSourceError, match="unknown source 'wep'; did you mean 'web'"):
        prepared.held_out("wep")


@pytest.mark.parametrize(
    ("vocab_size", "dtype"),
    [(1, "uint8"), (256, "uint8"), (257, "uint16"), (65_536, "uint16"), (65_537, "uint32")],
)
def test_the_dtype_is_the_smallest_that_holds_the_vocabulary(vocab_size: int, dtype: str) -> None:
    assert smallest_dtype(vocab_size) == np.dtype(dtype)
