"""Files that the peers' own writers wrote: every id, border and mask, through the delivery; and damaged ones, refused."""

from __future__ import annotations

import gzip
import json
import shutil
import struct
import tracemalloc
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixer import Curriculum, MixtureDataset
from mixer.errors import ConfigError, MixerError
from mixer.sources.opening import check_sources
from mixer.sources.token_files.joint import JointStreams
from mixer.sources.token_files.opening import open_source
from mixer.sources.token_files.rows import TokenFileRows
from mixer.types import BoolArray, IntArray
from service.runs.engine import Engine
from service.settings import Settings
from service.storage.store import Store
from tests.support.documents import SEPARATOR, VOCAB, documents, leading, masks, samples, starts, stream
from tests.support.token_files import WRITTEN

T = 7


class Written(NamedTuple):
    """What some files hold."""

    path: str
    parts: Sequence[IntArray]
    tokens: Mapping[str, Any] = MappingProxyType({})
    counts: Sequence[BoolArray] | None = None


def of_mds(name: str, seed: int) -> Written:
    parts = samples(name, seed)
    more = {"column": "input", "dtype": "int64"} if name == "bytes" else {}
    return Written(f"mds/{name}", parts, more)


CASES = [
    Written("megatron/plain", documents(ends=False), {"separator": "none"}),
    Written("megatron/wide.bin", documents(seed=2)),
    Written("bare/nanogpt.bin", documents(), {"format": "bare", "dtype": "uint16"}),
    Written("bare/llmc.bin", leading(1)),
    Written("bare/llmc-wide.bin", leading(2)),
    Written("bare/nemo.bin", leading(3)),
    Written("bare/nemo-wide.bin", leading(4)),
    Written("datatrove/plain.ds", documents(seed=0)),
    Written("datatrove/masked.ds", documents(seed=1), {}, masks(1)),
    Written("datatrove/wide.ds", documents(seed=2)),
    Written("olmo/part-*.npy", [*documents(), *documents(seed=1)]),
    Written("olmo/part-*.npy", [*documents(), *documents(seed=1)], {"mask": "olmo/*.mask"}, [*masks(0), *masks(1)]),
    Written("olmo/wide.npy", documents(seed=2)),
    Written("olmo/wide.npy", documents(seed=2), {"dtype": "uint32"}),
    Written("litdata/int32", documents()),
    Written("litdata/uint16/index.json", documents(seed=1)),
    Written("litdata/numpy", documents(seed=2)),
    *(of_mds(name, seed) for seed, name in enumerate(["int32", "free", "beside", "fixed", "bytes"])),
]
every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.path} {' '.join(case.tokens)}")


def a_curriculum(path: Path, root: Path = WRITTEN, **tokens: Any) -> Curriculum:
    if "mask" in tokens:
        tokens["mask"] = str(root / tokens["mask"])
    return Curriculum(
        total_steps=100,
        batch_rows=2,
        sequence_length=T,
        policy="random",
        sources=[{"name": "web", "tokens": {"path": str(path), "separator": "present", **tokens}}],
        tokenizer={"vocab_size": VOCAB, "separator_id": SEPARATOR},
    )


def opened(curriculum: Curriculum) -> TokenFileRows:
    return open_source(curriculum.sources[0], curriculum, vocab_size=VOCAB, separator_id=SEPARATOR)


@every_case
def test_every_id_is_delivered_as_it_was_written(case: Written) -> None:
    ids = stream(case.parts)
    counts = np.ones(len(ids), dtype=bool) if case.counts is None else np.concatenate(case.counts)
    windows, counted = (each[: len(ids) // (T + 1) * (T + 1)].reshape(-1, T + 1) for each in (ids, counts))
    expected = {
        (*row[:-1].tolist(), *np.where(is_in[1:], row[1:], -100).tolist())
        for row, is_in in zip(windows, counted, strict=True)
    }
    dataset = MixtureDataset(a_curriculum(WRITTEN / case.path, **case.tokens))
    found = {
        (*inputs.tolist(), *labels.tolist())
        for batch in dataset
        for inputs, labels in zip(batch["input_ids"], batch["labels"], strict=True)
    }
    assert found == expected
    assert dataset._rows._token_files["web"].stream_length == len(ids)


@every_case
def test_every_border_is_where_it_was_written(case: Written) -> None:
    found = opened(a_curriculum(WRITTEN / case.path, **case.tokens)).document_starts()
    assert found is not None
    expected = starts(case.parts).tolist()
    if case.path == "mds/fixed":  # samples of a length, cut from a stream of documents
        expected = [*(begin for begin in starts(documents(seed=3)).tolist() if begin < expected[-1]), expected[-1]]
    assert found.tolist() == expected


@pytest.mark.parametrize("path", ["datatrove/plain.ds", "olmo/wide.npy", "litdata/int32", "bare/nemo.bin"])
def test_a_second_separator_is_not_put_in_unnoticed(path: str) -> None:
    with pytest.raises(ConfigError, match=r"with the separator 50256 already; set `separator: present`"):
        opened(a_curriculum(WRITTEN / path, separator="insert"))


@pytest.mark.parametrize("path", ["megatron/plain"])
def test_a_separator_that_is_not_there_is_not_taken_for_present(path: str) -> None:
    with pytest.raises(ConfigError, match=r"document \d+ ends with the id \d+, not with the separator 50256"):
        opened(a_curriculum(WRITTEN / path))


@pytest.mark.parametrize("path", ["bare/llmc.bin", "mds/int32"])
def test_where_no_border_is_known_no_separator_can_be_put_in(path: str) -> None:
    with pytest.raises(ConfigError, match="it does not say where documents end"):
        opened(a_curriculum(WRITTEN / path, separator="insert"))


@pytest.mark.parametrize("path", ["mds/int32", "litdata/int32"])
def test_a_folder_of_shards_is_never_read_as_its_index(path: str) -> None:
    for place in ({"path": str(WRITTEN / path)}, {"data_files": str(WRITTEN / path / "*.json")}):
        curriculum = Curriculum(
            total_steps=9, batch_rows=1, sequence_length=T, sources=[{"name": "web", **place}], policy="random"
        )
        [problem] = check_sources(curriculum)
        assert f"{WRITTEN / path / 'index.json'} lists the files of a folder of" in problem
        assert f"`tokens: {{path: {WRITTEN / path}}}`" in problem


def test_masks_fit_in_no_compact_batch() -> None:
    with pytest.raises(ConfigError, match="compact: source web has a loss mask"):
        MixtureDataset(a_curriculum(WRITTEN / "datatrove/masked.ds"), compact=True)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shutil.copytree(WRITTEN, tmp_path / "written", ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    return tmp_path / "written"


def cut(path: Path, length: int) -> None:
    path.write_bytes(path.read_bytes()[:length])


def put(path: Path, offset: int, data: bytes) -> None:
    content = bytearray(path.read_bytes())
    content[offset : offset + len(data)] = data
    path.write_bytes(content)


def in_json(path: Path, key: str, value: Any, *, inside: tuple[str | int, ...] = ()) -> None:
    listing = json.loads(path.read_text())
    place = listing
    for part in inside:
        place = place[part]
    place[key] = value
    path.write_text(json.dumps(listing))


def table(path: Path, text: str) -> None:
    path.write_bytes(gzip.compress(text.encode()))


DAMAGE: list[tuple[str, dict[str, Any], Any, str]] = [
    ("bare/nanogpt.bin", {"format": "bare"}, lambda f: None, "give their `dtype`"),
    ("bare/nanogpt.bin", {}, lambda f: None, "does not say what it is; give its `format`"),
    ("bare/nanogpt.bin", {"format": "bare", "dtype": "uint16"}, lambda f: cut(f, 541), "no whole number of ids of 2"),
    ("bare/nanogpt.bin", {"format": "bare", "dtype": "uint16"}, lambda f: cut(f, 0), "no token id is in it"),
    ("bare/nanogpt.bin", {"format": "llm.c"}, lambda f: None, "fewer than its header of 1,024"),
    ("bare/llmc.bin", {"format": "nemo", "dtype": "uint16"}, lambda f: None, "leave `dtype` out"),
    ("bare/llmc.bin", {"format": "llm.c"}, lambda f: put(f, 0, b"\0"), "it begins with the number"),
    ("bare/llmc.bin", {}, lambda f: put(f, 4, b"\7"), "version 7, and version 1 is known"),
    ("bare/llmc.bin", {}, lambda f: put(f, 8, b"\xff\xff\xff\xff"), "its header counts -1 ids"),
    ("bare/llmc.bin", {}, lambda f: cut(f, 1500), "end at byte 1,576, but it has 1,500"),
    ("bare/llmc.bin", {}, lambda f: cut(f, 1000), "fewer than its header"),
    ("bare/nemo.bin", {}, lambda f: put(f, 12, b"\3"), "its ids have 3 bytes each"),
    ("bare/nemo.bin", {}, lambda f: cut(f.with_suffix(".bos.idx"), 7), "no whole number of places"),
    ("bare/nemo.bin", {}, lambda f: put(f.with_suffix(".bos.idx"), 4, b"\1\4"), r"it has byte 1,025 as number 1"),
    ("bare/nemo.bin", {}, lambda f: put(f.with_suffix(".bos.idx"), 4, struct.pack("<I", 9**9)), "as number 1"),
    ("datatrove/plain.ds", {}, lambda f: cut(f.with_suffix(".ds.index"), 95), "no whole number of ends"),
    ("datatrove/plain.ds", {}, lambda f: put(f.with_suffix(".ds.index"), 8, bytes(8)), "document 1 ends at 0, before"),
    ("datatrove/plain.ds", {"dtype": "uint32"}, lambda f: None, "its ids are uint16, but `dtype` is uint32"),
    ("datatrove/wide.ds", {}, lambda f: cut(f, 800), "end at byte 816, but it has 800"),
    ("datatrove/wide.ds", {}, lambda f: cut(f.with_suffix(".ds.metadata"), 5), "not TOKENIZER|BYTES"),
    ("datatrove/wide.ds", {}, lambda f: put(f.with_suffix(".ds.metadata"), 7, b"9"), "it counts 904 ids"),
    ("datatrove/masked.ds", {}, lambda f: cut(f.with_suffix(".ds.loss"), 275), "275 bytes for 276 ids"),
    ("datatrove/plain.ds", {}, lambda f: f.with_suffix(".ds.index").unlink(), "neither plain.ds.metadata nor .index"),
    ("olmo/wide.npy", {}, lambda f: np.save(f, np.arange(9)), "a file that numpy.save wrote"),
    ("olmo/wide.npy", {}, lambda f: f.with_suffix(".csv.gz").unlink(), "give `dtype: uint16` or uint32"),
    ("olmo/wide.npy", {}, lambda f: cut(f.with_suffix(".csv.gz"), 100), "cannot be read after document"),
    (
        "olmo/wide.npy",
        {},
        lambda f: table(f.with_suffix(".csv.gz"), "0,9\n8,20\n"),
        "document 1 lies from 8 to 20, but",
    ),
    ("olmo/wide.npy", {}, lambda f: table(f.with_suffix(".csv.gz"), "0,a\n"), r"document 0 is \['0', 'a'\]"),
    ("olmo/wide.npy", {}, lambda f: table(f.with_suffix(".csv.gz"), "0,9\n9,200\n"), "documents end at id 200, but"),
    (
        "olmo/wide.npy",
        {},
        lambda f: table(f.with_suffix(".csv.gz"), "0," + "9" * 10**6),
        "more than 131,072 characters",
    ),
    ("olmo/wide.npy", {"dtype": "uint32"}, lambda f: cut(f, 812), "documents end at id 204, but wide.npy has 203"),
    ("olmo/part-0.npy", {"mask": "olmo/*.mask"}, lambda f: None, "1 token files, but 2 loss masks"),
    ("olmo/part-0.npy", {"mask": "olmo/part-1.mask"}, lambda f: None, "276 bytes for the 271 ids of part-0.npy"),
    ("olmo/part-0.npy", {"mask": "olmo/none"}, lambda f: None, "no such file or folder of loss masks"),
    ("olmo/*.npy", {}, lambda f: None, "ids of several types"),
    ("litdata/int32", {}, lambda f: cut(f / "chunk-0-1.bin", 300), "items lie from byte 28 to 368, but the ids"),
    ("litdata/int32", {}, lambda f: cut(f / "chunk-0-1.bin", 3), "too few for the offsets"),
    ("litdata/int32", {}, lambda f: put(f / "chunk-0-1.bin", 0, b"\xff\xff"), "too few for the offsets"),
    ("litdata/int32", {}, lambda f: put(f / "chunk-0-1.bin", 8, b"\0\0"), "before the one before it"),
    ("litdata/int32", {}, lambda f: (f / "chunk-0-1.bin").unlink(), r"chunk-0-1.bin: No such file"),
    (
        "litdata/int32",
        {},
        lambda f: in_json(f / "index.json", "dim", 9, inside=("chunks", 1)),
        "has 85 ids, but .* says 9",
    ),
    (
        "litdata/int32",
        {},
        lambda f: in_json(f / "index.json", "compression", "zstd", inside=("config",)),
        "compression 'zstd'",
    ),
    (
        "litdata/int32",
        {},
        lambda f: in_json(f / "index.json", "data_format", ["str"], inside=("config",)),
        "not one flat tensor",
    ),
    (
        "litdata/int32",
        {},
        lambda f: in_json(f / "index.json", "data_format", ["no_header_tensor:1"], inside=("config",)),
        "type 1 of no_header_tensor",
    ),
    (
        "litdata/int32",
        {},
        lambda f: in_json(f / "index.json", "filename", "../x", inside=("chunks", 0)),
        "is not in its folder",
    ),
    ("litdata/int32", {"dtype": "int32"}, lambda f: None, "leave `dtype` out"),
    ("litdata/int32", {}, lambda f: cut(f / "index.json", 90), "it is no JSON"),
    ("litdata/int32", {}, lambda f: (f / "index.json").write_text("[]"), "it holds a list, not an object"),
    ("litdata/int32", {}, lambda f: (f / "index.json").write_text("{}"), "it does not say what it is"),
    ("mds/int32", {}, lambda f: cut(f / "shard.00001.mds", 500), "samples lie from byte"),
    ("mds/int32", {}, lambda f: cut(f / "shard.00001.mds", 2), "too few for the offsets"),
    ("mds/int32", {}, lambda f: put(f / "shard.00001.mds", 0, b"\1"), "it has 1 samples, but"),
    ("mds/int32", {"column": "text"}, lambda f: None, "no column 'text'; there are tokens"),
    ("mds/beside", {"column": "source"}, lambda f: None, "column 'source' holds str"),
    ("mds/bytes", {"column": "input"}, lambda f: None, "give the `dtype` of its ids"),
    ("mds/bytes", {"column": "input", "dtype": "uint32"}, lambda f: put(f / "index.json", 0, b"["), "it is no JSON"),
    ("mds/int32", {}, lambda f: in_json(f / "index.json", "version", 1), "version 1, and version 2 is known"),
    (
        "mds/int32",
        {},
        lambda f: in_json(f / "index.json", "format", "json", inside=("shards", 0)),
        "a shard of format 'json'",
    ),
    (
        "mds/int32",
        {},
        lambda f: in_json(f / "index.json", "samples", "x", inside=("shards", 0)),
        "its 'samples' is 'x', not a int",
    ),
    (
        "mds/int32",
        {},
        lambda f: in_json(f / "index.json", "column_sizes", [], inside=("shards", 0)),
        "do not fit together",
    ),
    (
        "mds/int32",
        {},
        lambda f: in_json(f / "index.json", "column_encodings", ["ndarray:float32"], inside=("shards", 0)),
        "which are no token ids",
    ),
    (
        "mds/int32",
        {},
        lambda f: in_json(f / "index.json", "column_encodings", ["ndarray:int64"], inside=("shards", 0)),
        "sample 0, bytes .* does not hold one axis of ids",
    ),
    (
        "mds/int32",
        {},
        lambda f: in_json(f / "index.json", "column_encodings", ["pkl"], inside=("shards", 0)),
        "holds pkl, not arrays",
    ),
]


@pytest.mark.parametrize(("path", "tokens", "damage", "message"), DAMAGE)
def test_damage_is_refused_with_the_source_the_file_and_the_place(
    folder: Path, path: str, tokens: dict[str, Any], damage: Any, message: str
) -> None:
    damage(folder / path)
    with pytest.raises(MixerError, match=message) as raised:
        opened(a_curriculum(folder / path, folder, **tokens))
    assert "source web: tokens: " in str(raised.value)


FILES = sorted(path.relative_to(WRITTEN) for path in WRITTEN.rglob("*") if path.parent != WRITTEN and path.is_file())


@st.composite
def damages(draw: st.DrawFn) -> tuple[Written, Path, bytes]:
    """Draw one of the cases, and a file of it with any bytes, or with some of its own changed."""
    case = draw(st.sampled_from(CASES))
    kind, _, name = case.path.partition("/")
    of_case = [
        path
        for path in FILES
        if path.parts[0] == kind
        and (kind in ("bare", "olmo") or path.parts[1].startswith(name.split("/")[0].split(".")[0]))
    ]
    path = draw(st.sampled_from(of_case))
    content = bytearray((WRITTEN / path).read_bytes())
    if draw(st.booleans()):
        return case, path, draw(st.binary(max_size=2000))
    for _ in range(draw(st.integers(1, 4))):
        place = (
            draw(st.integers(0, len(content) - 1))
            if draw(st.booleans())
            else min(len(content) - 1, draw(st.integers(0, 60)))
        )
        content[place : place + 4] = draw(
            st.sampled_from([b"\0", b"\xff" * 4, b"\x7f", b"\x01\0\0\0", b"\xff\xff\xff\x7f"])
        )
    if draw(st.booleans()):
        del content[draw(st.integers(0, len(content))) :]
    return case, path, bytes(content)


@settings(max_examples=300)
@given(damages())
def test_any_bytes_give_rows_or_our_error_and_take_little_memory(damaged: tuple[Written, Path, bytes]) -> None:
    case, path, content = damaged
    root = Path(FUZZED[0])
    (root / path).write_bytes(content)
    tracemalloc.start()
    try:
        rows = opened(a_curriculum(root / case.path, root, **case.tokens))
        rows.document_starts()
        assert rows.stream_length <= sum(file.size for file in rows.files)
        joint = JointStreams([rows], np.dtype(np.uint16))
        numbers = np.arange(rows.num_rows)
        inputs, labels = joint.at(numbers).split(0, len(numbers))
        assert inputs.min() >= 0
        assert max(inputs.max(), labels.max()) < VOCAB
    except MixerError:
        pass
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        shutil.copy(WRITTEN / path, root / path)
    assert peak < 16 << 20


FUZZED: list[str] = []


@pytest.fixture(autouse=True, scope="module")
def _fuzzed(tmp_path_factory: pytest.TempPathFactory) -> None:
    root = tmp_path_factory.mktemp("fuzzed") / "written"
    shutil.copytree(WRITTEN, root, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    FUZZED[:] = [str(root)]


def test_the_service_refuses_masks_that_it_cannot_send(tmp_path: Path) -> None:
    settings = Settings(folder=tmp_path)
    store = Store.open(settings.database_url)
    with pytest.raises(ConfigError, match="source web has a loss mask, which batches over HTTP do not carry"):
        Engine("run", a_curriculum(WRITTEN / "datatrove/masked.ds"), store, settings)
    store.close()
