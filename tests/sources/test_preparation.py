"""Preparing rows: the same rows as streaming, the same bytes after any kill, and what has changed is named."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers

from mixer.analysis.check import check
from mixer.config.curriculum import Curriculum
from mixer.errors import (
    ConfigError,
    EmptySourceError,
    MissingDataError,
    PreparationError,
    PreparedMismatchError,
    SourceError,
    UnknownSourceError,
)
from mixer.sources.base import EndOfSource
from mixer.sources.holdout import is_held_out
from mixer.sources.huggingface import open_stream
from mixer.sources.prepared import writer as preparing
from mixer.sources.prepared.prepare import prepare
from mixer.sources.prepared.rows import Prepared
from mixer.sources.rows import StreamedRows
from mixer.sources.tokenizer import read_tokenizer
from mixer.sources.tokenizer_training import train

SEPARATOR = "<|endoftext|>"
TEXTS = [f"text {i} " + "ab " * (i * 7 % 23) for i in range(90)]
MORE = [f"def function_{i}(x): return x + {i}" for i in range(70)]
T = 15


@pytest.fixture(scope="session")
def tokenizer_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    train(TEXTS, 290, SEPARATOR).save(str(path))
    return path


@pytest.fixture
def folder(tmp_path: Path, tokenizer_file: Path) -> Path:
    """A folder with two sources and their tokenizer."""
    (tmp_path / "tokenizer.json").write_bytes(tokenizer_file.read_bytes())
    write(tmp_path / "web.jsonl", TEXTS)
    write(tmp_path / "code.jsonl", MORE)
    return tmp_path


def write(path: Path, texts: list[str]) -> None:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))


def config(folder: Path, names: tuple[str, ...] = ("web", "code"), **fields: Any) -> Curriculum:
    """Return the curriculum of the sources, as if read from a file in ``folder``."""
    sources = [{"name": name, "data_files": f"{name}.jsonl"} for name in names]
    data = {
        "total_steps": 100,
        "batch_rows": 2,
        "sequence_length": T,
        "tokenizer": {"file": "tokenizer.json"},
        "sources": sources,
        **fields,
    }
    path = folder / "run.yaml"
    path.write_text(json.dumps(data))  # JSON is YAML
    return Curriculum.from_yaml(path)


def contents(folder: Path) -> dict[str, bytes]:
    """Return every file of a folder by its path, but for locks."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.endswith(".lock")
    }


def rows_of(folder: Path, name: str = "web") -> Any:
    source = Prepared.open(folder).sources[name]
    return source.gather(np.arange(source.num_rows))


def streamed(curriculum: Curriculum, name: str = "web") -> Any:
    """Return all rows that streaming gives in one epoch."""
    [source] = [source for source in curriculum.sources if source.name == name]
    stream = open_stream(source, resolve=curriculum.resolve)
    tokenizer = read_tokenizer(curriculum.resolve("tokenizer.json"), SEPARATOR)
    rows = StreamedRows(stream, tokenizer, sequence_length=curriculum.sequence_length, on_exhausted="stop")
    try:
        rows.take(10**6)
    except EndOfSource as end:
        return rows.take(end.rows_left)
    raise AssertionError("endless")


documents = st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=60), min_size=1, max_size=40)


@settings(max_examples=40)
@given(documents, st.integers(1, 30), st.integers(40, 2000), st.integers(1, 50))
def test_rows_are_those_that_streaming_gives_in_one_epoch(
    tokenizer_file: Path, texts: list[str], sequence_length: int, shard_bytes: int, chunk_documents: int
) -> None:
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        patch.setattr(preparing, "CHUNK_DOCUMENTS", chunk_documents)
        folder = Path(name)
        (folder / "tokenizer.json").write_bytes(tokenizer_file.read_bytes())
        write(folder / "web.jsonl", [*texts, "and enough for one row of any length " * 4])
        curriculum = config(folder, ("web",), sequence_length=sequence_length)
        outcome = prepare(curriculum, folder / "out", shard_bytes=shard_bytes)
        expected = streamed(curriculum)
        np.testing.assert_array_equal(rows_of(folder / "out"), expected)
        assert outcome.manifest is not None
        made = outcome.manifest.sources["web"].train
        assert made.rows == len(expected)
        assert made.tokens == expected.size + made.tail_tokens
        assert made.tail_tokens <= sequence_length
        assert made.documents == sum(map(bool, texts)) + 1
        loaded = datasets.load_from_disk(str(folder / "out" / "sources" / "web"))["train"]
        np.testing.assert_array_equal(np.array(loaded.with_format("arrow")[:]["input_ids"].to_pylist()), expected)


def test_held_out_documents_are_in_no_training_row_and_all_tokens_are_somewhere(folder: Path) -> None:
    curriculum = config(folder, ("web",), holdout=0.3)
    manifest = prepare(curriculum, folder / "out").manifest
    assert manifest is not None
    source = manifest.sources["web"]
    is_out = [is_held_out(text.encode(), 0.3) for text in TEXTS]
    assert 0 < source.held_out.documents == sum(is_out) < source.train.documents
    tokenizer = read_tokenizer(folder / "tokenizer.json", SEPARATOR)
    prepared = Prepared.open(folder / "out")
    for rows, wanted in ((prepared.sources["web"], False), (prepared.held_out("web"), True)):
        texts = [text for text, out in zip(TEXTS, is_out, strict=True) if out == wanted]
        tokens = np.concatenate([[*ids, tokenizer.separator_id] for ids in tokenizer.encode(texts)])
        found = rows.gather(np.arange(rows.num_rows)).ravel()
        np.testing.assert_array_equal(found, tokens[: len(found)])
        assert 0 <= len(tokens) - len(found) <= T


def test_the_same_input_gives_the_same_bytes_with_any_number_of_jobs(folder: Path) -> None:
    curriculum = config(folder, holdout=0.1)
    prepare(curriculum, folder / "one")
    prepare(curriculum, folder / "two", jobs=2)
    assert contents(folder / "one") == contents(folder / "two")
    assert len(contents(folder / "one")) > 8


@pytest.fixture
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of 7 documents, the place saved after each."""
    monkeypatch.setattr("mixer.sources.text_stream.GROUP_DOCUMENTS", 7)
    monkeypatch.setattr(preparing, "CHUNK_DOCUMENTS", 7)
    monkeypatch.setattr(preparing, "SAVE_EVERY_S", -1.0)


@pytest.mark.usefixtures("small_steps")
@pytest.mark.parametrize("save_every_s", [-1.0, 1e9])
def test_stopped_after_any_chunk_it_goes_on_to_the_same_bytes(
    folder: Path, monkeypatch: pytest.MonkeyPatch, save_every_s: float
) -> None:
    monkeypatch.setattr(preparing, "SAVE_EVERY_S", save_every_s)
    write(folder / "web.jsonl", TEXTS[:36])
    curriculum = config(folder, ("web",), holdout=0.2)
    calls: list[object] = []
    prepare(curriculum, folder / "whole", shard_bytes=200, report=calls.append)
    expected = contents(folder / "whole")
    assert len([path for path in expected if path.endswith(".arrow")]) > 4
    assert len(calls) == 8  # the beginning, 6 chunks, the end

    def interrupted(after: int) -> None:
        count = iter(range(after))

        def report(done: object) -> None:
            if next(count, None) is None:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            prepare(curriculum, folder / "out", shard_bytes=200, report=report)

    for after in range(1, len(calls) - 1):  # the last call is made when all is written
        out = folder / "out"
        interrupted(after)
        interrupted(1)  # and once more, a chunk later or at the same place
        again: list[object] = []
        prepare(curriculum, out, shard_bytes=200, report=again.append)
        assert contents(out) == expected
        if save_every_s < 0:
            assert len(again) <= len(calls) - after + 1  # it did not begin anew
        subprocess.run(["rm", "-r", str(out)], check=True)


SLOW = """
import os, sys, time
from mixer.config.curriculum import Curriculum
from mixer.sources import text_stream
from mixer.sources.prepared import writer as preparing
text_stream.GROUP_DOCUMENTS = preparing.CHUNK_DOCUMENTS = 7
preparing.SAVE_EVERY_S = 0.0
read = preparing.SourcePreparation._read_chunk
parent, left = os.getppid(), [int(sys.argv[4]) if len(sys.argv) > 4 else 1_000_000]
def slowly(self):
    time.sleep(0.02)
    left[0] -= 1
    while left[0] < 0 and os.getppid() == parent:  # so many chunks alone, until somebody is killed
        time.sleep(0.02)
    return read(self)
preparing.SourcePreparation._read_chunk = slowly
if __name__ == "__main__":
    from mixer.sources.prepared.prepare import prepare
    prepare(Curriculum.from_yaml(sys.argv[1]), sys.argv[2], jobs=int(sys.argv[3]), shard_bytes=200)
"""


@pytest.mark.parametrize("jobs", [1, 2])
def test_killed_outright_it_goes_on_to_the_same_bytes(folder: Path, jobs: int) -> None:
    write(folder / "web.jsonl", TEXTS * 4)
    curriculum = config(folder, holdout=0.1)
    prepare(curriculum, folder / "whole", shard_bytes=200)
    script = folder / "slow.py"
    script.write_text(SLOW)
    out = folder / "out"
    state = out / ".unfinished" / "sources" / "web" / "state.json"
    process = subprocess.Popen([sys.executable, str(script), str(folder / "run.yaml"), str(out), str(jobs), "12"])
    deadline = time.monotonic() + 100
    while time.monotonic() < deadline and not state.exists():
        time.sleep(0.01)
    time.sleep(0.1)
    assert process.poll() is None
    process.kill()
    process.wait()
    with pytest.raises(MissingDataError, match="is not finished; run `mixer prepare` again: it goes on where it"):
        Prepared.open(out)
    assert state.exists()
    prepare(curriculum, out, jobs=jobs, shard_bytes=200)
    assert contents(out) == contents(folder / "whole")


def test_a_worker_that_dies_is_named_and_the_others_are_finished(folder: Path) -> None:
    script = folder / "slow.py"
    write(folder / "web.jsonl", TEXTS * 20)
    config(folder)
    body = SLOW.replace(
        "    return read(self)",
        "    import os, signal\n    if self._source.name == 'web': os.kill(os.getpid(), signal.SIGKILL)\n    return read(self)",
    )
    script.write_text(body)
    done = subprocess.run(
        [sys.executable, str(script), str(folder / "run.yaml"), str(folder / "out"), "2"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "PreparationError: source web: its worker was killed by SIGKILL; run `mixer prepare` again" in done.stderr
    outcome = prepare(config(folder), folder / "out")
    assert (outcome.made, outcome.ready) == (("web",), ("code",))


def test_a_second_time_there_is_nothing_to_do(folder: Path) -> None:
    curriculum = config(folder)
    prepare(curriculum, folder / "out")
    before = contents(folder / "out")
    stamp = (folder / "out" / "prepared.json").stat().st_mtime_ns
    outcome = prepare(curriculum, folder / "out", report=lambda done: pytest.fail("it read"))
    assert (outcome.made, outcome.ready, outcome.missing) == ((), ("web", "code"), ())
    assert contents(folder / "out") == before
    assert (folder / "out" / "prepared.json").stat().st_mtime_ns == stamp


def test_sources_can_be_prepared_one_by_one_and_the_manifest_comes_last(folder: Path) -> None:
    curriculum = config(folder)
    outcome = prepare(curriculum, folder / "out", sources=["code"])
    assert (outcome.made, outcome.missing, outcome.manifest) == (("code",), ("web",), None)
    with pytest.raises(MissingDataError, match="is not finished"):
        Prepared.open(folder / "out")
    outcome = prepare(curriculum, folder / "out", sources=["web"])
    assert (outcome.made, outcome.missing) == (("web",), ())
    prepare(curriculum, folder / "whole")
    assert contents(folder / "out") == contents(folder / "whole")
    with pytest.raises(UnknownSourceError, match="prepare: unknown source 'wep'; did you mean 'web'"):
        prepare(curriculum, folder / "out", sources=["wep"])


def test_a_new_source_is_added_and_the_others_stay(folder: Path) -> None:
    prepare(config(folder, ("web",)), folder / "out")
    before = contents(folder / "out" / "sources" / "web")
    outcome = prepare(config(folder), folder / "out")
    assert (outcome.made, outcome.ready) == (("code",), ("web",))
    assert contents(folder / "out" / "sources" / "web") == before
    smaller = config(folder, ("code",))  # a config with fewer sources reads the same folder, and takes none away
    assert prepare(smaller, folder / "out").made == ()
    Prepared.open(folder / "out").check_against(smaller)
    Prepared.open(folder / "out").check_against(config(folder))


CHANGES: list[tuple[str, dict[str, Any], str]] = [
    ("length", {"sequence_length": 7}, "source web: sequence_length is 7, but the rows were prepared with 15"),
    ("holdout", {"holdout": 0.5}, "source code: holdout is 0.5, but the rows were prepared with 0.0"),
    (
        "separator",
        {"tokenizer": {"file": "tokenizer.json", "separator": "<|other|>"}},
        r"source web: the separator's id is 290, but the rows were prepared with 0",
    ),
    (
        "where",
        {"sources": [{"name": "web", "data_files": "web.jsonl", "where": {"text": ["x"]}}]},
        r"source web: where is {'text': \['x'\]}, but the rows were prepared with none",
    ),
    (
        "files",
        {"sources": [{"name": "web", "data_files": "code.jsonl"}]},
        "source web: data_files is 'code.jsonl', but the rows were prepared with 'web.jsonl'",
    ),
]


@pytest.mark.parametrize(("fields", "message"), [case[1:] for case in CHANGES], ids=[case[0] for case in CHANGES])
def test_rows_of_another_config_are_named_and_kept_unless_forced(
    folder: Path, fields: dict[str, Any], message: str
) -> None:
    if "tokenizer" in fields:  # both tokens are in the vocabulary of either run
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        tokenizer.add_special_tokens(["<|other|>"])
        tokenizer.save(str(folder / "tokenizer.json"))
    prepare(config(folder), folder / "out")
    before = contents(folder / "out")
    changed = config(folder, **fields)
    with pytest.raises(PreparedMismatchError, match=message) as caught:
        prepare(changed, folder / "out")
    assert "let --force replace the rows that differ" in caught.value.differences[-1]
    assert contents(folder / "out") == before
    with pytest.raises(PreparedMismatchError):
        Prepared.open(folder / "out").check_against(changed)
    if "where" not in str(fields):  # which leaves no rows at all
        outcome = prepare(changed, folder / "out", force=True)
        assert "web" in outcome.made
        Prepared.open(folder / "out").check_against(changed)


def test_a_run_from_other_rows_is_told_everything_that_differs(folder: Path) -> None:
    prepare(config(folder), folder / "out")
    write(folder / "code.jsonl", MORE[1:])
    changed = config(
        folder,
        sequence_length=7,
        vocab_size=100,
        sources=[
            {"name": "web", "data_files": "web.jsonl", "template": "> {text}"},
            {"name": "code", "data_files": "code.jsonl"},
            {"name": "new", "data_files": "web.jsonl"},
        ],
    )
    with pytest.raises(PreparedMismatchError) as caught:
        Prepared.open(folder / "out").check_against(changed, "another")
    size = (folder / "code.jsonl").stat().st_size
    fingerprint = read_tokenizer(folder / "tokenizer.json", SEPARATOR).fingerprint
    assert caught.value.differences == (
        "sequence_length is 7, but the rows were prepared with 15",
        f"the tokenizer's fingerprint is 'another', but the rows were prepared with '{fingerprint}'",
        "vocab_size is 100, but the rows need 290",
        "source web: template is '> {text}', but the rows were prepared with none",
        f"source code: the file code.jsonl has {size} bytes, but the rows were prepared from {size + 44}",
        "source new has not been prepared",
        f"the rows in {folder / 'out'} are not those of this config; run `mixer prepare` again, or undo the change",
    )


def test_rows_of_another_kind_of_vocabulary_are_named(folder: Path) -> None:
    prepare(config(folder, tokenizer={"train_vocab_size": 280}), folder / "out")
    Prepared.open(folder / "out").check_against(config(folder, tokenizer={"train_vocab_size": 280, "kind": "bpe"}))
    changed = config(folder, tokenizer={"train_vocab_size": 280, "kind": "harris"})
    with pytest.raises(PreparedMismatchError, match=r"tokenizer\.kind is 'harris', but .* prepared with 'bpe'"):
        Prepared.open(folder / "out").check_against(changed)


def test_only_what_changed_is_made_anew(folder: Path) -> None:
    prepare(config(folder), folder / "out")
    before = contents(folder / "out" / "sources" / "web")
    write(folder / "code.jsonl", MORE * 2)
    with pytest.raises(PreparedMismatchError, match="source code: the file code.jsonl has"):
        prepare(config(folder), folder / "out")
    assert prepare(config(folder), folder / "out", force=True).made == ("code",)
    assert contents(folder / "out" / "sources" / "web") == before
    prepare(config(folder), folder / "whole")
    assert contents(folder / "out") == contents(folder / "whole")


def test_an_unfinished_source_whose_text_changed_begins_anew(folder: Path, small_steps: None) -> None:
    def stop(done: Any) -> None:
        if done.documents > 30:
            raise KeyboardInterrupt

    curriculum = config(folder, ("web",))
    with pytest.raises(KeyboardInterrupt):
        prepare(curriculum, folder / "out", report=stop)
    write(folder / "web.jsonl", MORE)
    prepare(curriculum, folder / "out")
    prepare(curriculum, folder / "whole")
    assert contents(folder / "out") == contents(folder / "whole")


def test_a_file_that_changes_while_it_is_read_is_noticed(folder: Path, small_steps: None) -> None:
    def meddle(done: Any) -> None:
        if done.documents > 30:
            write(folder / "other.jsonl", MORE)

    curriculum = config(folder, sources=[{"name": "web", "data_files": "*.jsonl"}])
    with pytest.raises(SourceError, match="source web: the file other.jsonl is new: this happened while it was read"):
        prepare(curriculum, folder / "out", report=meddle)


def test_rows_copied_to_a_machine_without_the_text_can_be_used(folder: Path) -> None:
    curriculum = config(folder, prepared="out")
    prepare(curriculum, folder / "out")
    for path in folder.glob("*.jsonl"):
        path.unlink()
    (folder / "tokenizer.json").unlink()
    prepared = Prepared.open(folder / "out")
    prepared.check_against(curriculum)
    assert prepared.tokenizer().fingerprint == prepared.manifest.tokenizer.fingerprint
    assert check(curriculum).problems == ()


def test_check_tells_of_rows_that_are_missing_or_other(folder: Path) -> None:
    curriculum = config(folder, ("web",), prepared="out")
    [problem] = check(curriculum).problems
    assert "prepared: prepared rows: no folder" in problem
    prepare(curriculum, folder / "out")
    problems = check(config(folder, ("web",), prepared="out", sequence_length=9)).problems
    assert problems[0] == "sequence_length is 9, but the rows were prepared with 15"
    shard = folder / "out" / "sources" / "web" / "train" / "data-00000.arrow"
    shard.write_bytes(shard.read_bytes()[:-9])
    [problem] = check(curriculum).problems
    assert "data-00000.arrow: it has" in problem


def test_where_the_rows_lie_is_not_in_the_runs_fingerprint(folder: Path) -> None:
    assert config(folder, prepared="out").fingerprint == config(folder).fingerprint
    assert config(folder, holdout=0.1).fingerprint != config(folder).fingerprint


@pytest.mark.parametrize("vocab_size", [256, 257, 65_536, 65_537])
def test_every_id_of_the_vocabulary_survives(folder: Path, vocab_size: int) -> None:
    vocabulary = {f"w{i}": i for i in range(vocab_size - 1)} | {SEPARATOR: vocab_size - 1}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens([SEPARATOR])
    tokenizer.save(str(folder / "tokenizer.json"))
    write(folder / "web.jsonl", [f"w{vocab_size - 2} w1 w{vocab_size // 2}"])
    manifest = prepare(config(folder, ("web",), sequence_length=3), folder / "out").manifest
    assert manifest is not None
    assert manifest.dtype == {256: "uint8", 257: "uint16", 65_536: "uint16", 65_537: "uint32"}[vocab_size]
    assert rows_of(folder / "out").tolist() == [[vocab_size - 2, 1, vocab_size // 2, vocab_size - 1]]


def test_a_source_of_exactly_one_row_has_no_tail(folder: Path) -> None:
    tokenizer = read_tokenizer(folder / "tokenizer.json", SEPARATOR)
    [ids] = tokenizer.encode([TEXTS[3]])
    write(folder / "web.jsonl", [TEXTS[3]])
    manifest = prepare(config(folder, ("web",), sequence_length=len(ids)), folder / "out").manifest
    assert manifest is not None
    assert (manifest.sources["web"].train.rows, manifest.sources["web"].train.tail_tokens) == (1, 0)
    assert rows_of(folder / "out").tolist() == [[*ids, tokenizer.separator_id]]


@pytest.mark.parametrize("jobs", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_sources_that_cannot_be_prepared_are_all_named_and_the_rest_is_kept(folder: Path, jobs: int) -> None:
    write(folder / "web.jsonl", ["", ""])
    with pytest.raises(EmptySourceError, match="source web: 2 rows were read and none has text"):
        prepare(config(folder), folder / "out", jobs=jobs)
    write(folder / "web.jsonl", ["ab"])
    (folder / "broken.jsonl").write_text('{"text": "fine"}\n{"text": \n')
    with pytest.raises(PreparationError) as caught:
        prepare(config(folder, ("web", "broken", "code")), folder / "out", jobs=jobs)
    assert "source web: its 2 tokens do not fill one row of 16; give it more text" in str(caught.value)
    assert "broken.jsonl, line 2: not JSON" in str(caught.value)
    write(folder / "web.jsonl", TEXTS)
    outcome = prepare(config(folder), folder / "out")
    assert (outcome.made, outcome.ready) == (("web",), ("code",))


def test_a_full_disk_is_told_and_leaves_what_was_done(folder: Path) -> None:
    """The limit on the size of a file stands for a full disk."""
    write(folder / "web.jsonl", TEXTS * 40)
    curriculum = config(folder, ("web",))
    prepare(curriculum, folder / "whole")
    code = f"""
import resource, sys
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
from mixer.config.curriculum import Curriculum
from mixer.sources.prepared.prepare import prepare
from mixer.sources import text_stream
from mixer.sources.prepared import writer as preparing
preparing.CHUNK_DOCUMENTS = text_stream.GROUP_DOCUMENTS = 64
preparing.SAVE_EVERY_S = 0.0
resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))
prepare(Curriculum.from_yaml({str(folder / "run.yaml")!r}), {str(folder / "out")!r})
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "PreparationError: source web: cannot write to" in done.stderr
    assert "File too large; make room and run `mixer prepare` again: it goes on where it stopped" in done.stderr
    state = json.loads((folder / "out" / ".unfinished" / "sources" / "web" / "state.json").read_text())
    assert state["splits"]["train"]["rows"] > 1000
    prepare(curriculum, folder / "out")
    assert contents(folder / "out") == contents(folder / "whole")


def test_two_preparations_in_one_folder_are_refused(folder: Path) -> None:
    curriculum = config(folder, ("web",))

    def second(done: object) -> None:
        with pytest.raises(PreparationError, match="another `mixer prepare` is at work in .*; wait for it"):
            prepare(curriculum, folder / "out")

    prepare(curriculum, folder / "out", report=second)


def test_a_place_that_cannot_be_written_is_told(folder: Path) -> None:
    (folder / "out").write_text("a file")
    with pytest.raises(PreparationError, match="cannot write to .*out: File exists"):
        prepare(config(folder), folder / "out")


def test_data_sets_of_the_program_are_prepared_too(folder: Path) -> None:
    dataset: Any = datasets.Dataset.from_dict({"text": TEXTS}).to_iterable_dataset()
    curriculum = config(folder, sources=[{"name": "mine"}])
    prepare(curriculum, folder / "out", streams={"mine": dataset})
    np.testing.assert_array_equal(rows_of(folder / "out", "mine"), streamed(config(folder, ("web",))))


@pytest.mark.parametrize(
    "url", ["s3://bucket/x", "gs://bucket", "hf://datasets/me/rows", "file:///rows", "https://host/x", "abfs+s://x"]
)
def test_a_url_is_refused_as_the_place_of_rows_before_anything_is_made(folder: Path, url: str) -> None:
    curriculum = config(folder)
    before = sorted(folder.rglob("*"))
    for out in (url, Path(url)):
        with pytest.raises(
            ConfigError, match="is a URL, but rows are prepared into a folder of this machine; name one"
        ):
            prepare(curriculum, out)
    with pytest.raises(ConfigError, match=f"prepared: '{re.escape(url)}' is a URL"):
        config(folder, prepared=url)
    config(folder)
    assert sorted(folder.rglob("*")) == before


def test_the_command_refuses_a_url_as_it_was_written(folder: Path) -> None:
    config(folder)
    before = sorted(folder.rglob("*"))
    run = [sys.executable, "-c", "from mixer.cli import main; main()", "prepare"]
    command = [*run, "run.yaml", "--out", "s3://bucket/x"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "'s3://bucket/x' is a URL" in done.stderr
    assert sorted(folder.rglob("*")) == before


def test_a_folder_with_a_colon_in_its_name_is_none(folder: Path) -> None:
    assert prepare(config(folder), folder / "rows:2024").manifest is not None
    assert config(folder, prepared="rows:2024").prepared == "rows:2024"


def test_the_command_prepares_verifies_and_finds_a_changed_bit(folder: Path) -> None:
    config(folder, prepared="out")
    run = [sys.executable, "-c", "from mixer.cli import main; main()", "prepare"]
    done = subprocess.run([*run, str(folder / "run.yaml"), "--json"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert summary["made"] == ["web", "code"]
    assert summary["fingerprint"] == Prepared.open(folder / "out").fingerprint
    assert summary["sources"][0]["documents"] == len(TEXTS)
    done = subprocess.run([*run, "--verify", str(folder / "out")], capture_output=True, text=True, check=False)
    assert (done.returncode, "every file is as it was written" in done.stdout) == (0, True), done.stderr
    shard = folder / "out" / "sources" / "code" / "train" / "data-00000.arrow"
    data = bytearray(shard.read_bytes())
    data[-60] ^= 1
    shard.write_bytes(data)
    done = subprocess.run([*run, "--verify", str(folder / "out")], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "malformed-data" in done.stderr
    assert subprocess.run([*run], capture_output=True, check=False).returncode == 2


@pytest.mark.parametrize("kind", ["token_ids", "rows"])
def test_sources_of_token_ids_are_prepared_as_they_stream(folder: Path, kind: str) -> None:
    lengths = [T + 1] * 30 if kind == "rows" else range(1, 31)
    rows = [[(i * 31 + j) % 290 for j in range(length)] for i, length in enumerate(lengths)]
    datasets.Dataset.from_dict({"ids": rows}).to_parquet(str(folder / "ids.parquet"))
    curriculum = config(folder, sources=[{"name": "ids", "data_files": "ids.parquet", kind: "ids"}])
    prepare(curriculum, folder / "out")
    source = curriculum.sources[0]
    stream = open_stream(source, resolve=curriculum.resolve, row_length=T + 1, vocab_size=290)
    tokenizer = read_tokenizer(folder / "tokenizer.json", SEPARATOR)
    streaming = StreamedRows(stream, tokenizer, sequence_length=T, on_exhausted="stop")
    found = rows_of(folder / "out", "ids")
    np.testing.assert_array_equal(found, streaming.take(len(found)))
    with pytest.raises(EndOfSource):
        streaming.take(1)
