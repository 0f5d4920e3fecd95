"""Rows of a source: exact at every row and across epochs, whatever happens between two calls."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest

from mixer.config.curriculum import Curriculum
from mixer.config.sources import SourceConfig
from mixer.errors import EmptySourceError, SourceError, SourceExhaustedError, StateMismatchError, UnknownSourceError
from mixer.sources import text_stream
from mixer.sources.base import EndOfSource, RowSource
from mixer.sources.huggingface import open_stream
from mixer.sources.opening import check_sources, open_sources
from mixer.sources.rows import StreamedRows
from mixer.sources.tokenizer import TextTokenizer
from mixer.sources.tokenizer_training import train
from mixer.testing import assert_source_is_exact

SEPARATOR = "<|endoftext|>"
TEXTS = [f"text {i} " + "ab " * (i * 7 % 23) for i in range(90)]
TOKENIZER = TextTokenizer(train(TEXTS, 290, SEPARATOR), SEPARATOR)
TOKENS = np.concatenate([[*ids, TOKENIZER.separator_id] for ids in TOKENIZER.encode(TEXTS)])  # one epoch
T = 15


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return a_file(tmp_path, TEXTS)


def a_file(folder: Path, texts: list[str]) -> Path:
    path = folder / "web.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def rows_of(file: Path, **options: Any) -> StreamedRows:
    stream = open_stream(SourceConfig(name="web", data_files=str(file)))
    return StreamedRows(stream, TOKENIZER, **{"sequence_length": T, **options})


def test_rows_are_the_tokens_of_every_epoch_without_a_gap(file: Path) -> None:
    num_rows = 3 * len(TOKENS) // (T + 1)
    rows = rows_of(file).take(num_rows)
    np.testing.assert_array_equal(rows.ravel(), np.tile(TOKENS, 3)[: num_rows * (T + 1)])


def test_a_source_passes_the_check_that_users_run_over_an_epochs_end(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_stream, "GROUP_DOCUMENTS", 13)
    epoch = len(TOKENS) // (T + 1)
    assert_source_is_exact(lambda: rows_of(file), epoch + 9)


def test_rows_longer_than_an_epoch_are_filled_from_several(tmp_path: Path) -> None:
    file = a_file(tmp_path, ["tiny"])
    source = rows_of(file)
    [tokens] = TOKENIZER.encode(["tiny"])
    expected = np.resize([*tokens, TOKENIZER.separator_id], 4 * (T + 1)).reshape(4, T + 1)
    np.testing.assert_array_equal(source.take(4), expected)
    assert_source_is_exact(lambda: rows_of(file), 9)


def test_progress_counts_rows_tokens_documents_and_epochs(file: Path) -> None:
    source = rows_of(file)
    assert (source.progress.rows, source.progress.epoch, source.progress.unique_tokens) == (0, 0, None)
    epoch = len(TOKENS) // (T + 1)
    source.take(epoch)
    assert source.progress.unique_tokens is None  # an epoch is known to have ended when the next one begins
    source.take(1)
    assert source.progress.epoch == 1
    assert source.progress.unique_tokens == len(TOKENS)
    assert source.progress.rows == epoch + 1
    assert source.progress.tokens == (epoch + 1) * (T + 1)
    assert source.progress.documents > len(TEXTS)


def test_a_state_is_small_and_plain(file: Path) -> None:
    source = rows_of(file)
    source.take(7)
    assert len(json.dumps(source.state_dict())) < 2000


def test_stop_gives_every_whole_row_and_then_signals(file: Path) -> None:
    source = rows_of(file, on_exhausted="stop")
    num_rows = len(TOKENS) // (T + 1)
    source.take(num_rows - 2)
    state = source.state_dict()
    for _ in range(2):  # asking again does not lose rows
        with pytest.raises(EndOfSource) as caught:
            source.take(3)
        assert (caught.value.name, caught.value.rows_left) == ("web", 2)
        assert source.state_dict() == state
    rows = source.take(2)
    np.testing.assert_array_equal(rows.ravel(), TOKENS[(num_rows - 2) * (T + 1) : num_rows * (T + 1)])
    with pytest.raises(EndOfSource):
        source.take(1)


def test_a_stopped_source_resumes_at_its_end(file: Path) -> None:
    source = rows_of(file, on_exhausted="stop")
    num_rows = len(TOKENS) // (T + 1)
    source.take(num_rows)
    restored = rows_of(file, on_exhausted="stop")
    restored.load_state_dict(json.loads(json.dumps(source.state_dict())))
    assert restored.progress == source.progress
    with pytest.raises(EndOfSource):
        restored.take(1)


def test_error_names_the_source_its_rows_and_what_to_do(file: Path) -> None:
    source = rows_of(file, on_exhausted="error")
    num_rows = len(TOKENS) // (T + 1)
    source.take(num_rows - 1)
    message = rf"source web ran dry after {num_rows - 1} rows .*5 more were asked for and 1 are left; set on_exhausted"
    with pytest.raises(SourceExhaustedError, match=message):
        source.take(5)
    assert len(source.take(1)) == 1


def test_an_empty_source_is_an_error_and_not_an_endless_loop(tmp_path: Path) -> None:
    with pytest.raises(EmptySourceError, match="source web: 2 rows were read and none has text"):
        rows_of(a_file(tmp_path, ["", ""])).take(1)


def test_a_failed_take_loses_no_row(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_stream, "GROUP_DOCUMENTS", 13)
    expected = rows_of(file).take(20)
    source = rows_of(file)
    first = source.take(3)
    state = source.state_dict()
    encode = TOKENIZER.encode_joined
    calls = iter([None, None])

    def fail_at_the_third(texts: list[str]) -> Any:
        if next(calls, True):
            raise SourceError("unplugged")
        return encode(texts)

    monkeypatch.setattr(TOKENIZER, "encode_joined", fail_at_the_third)
    with pytest.raises(SourceError, match="unplugged"):
        source.take(40)
    monkeypatch.setattr(TOKENIZER, "encode_joined", encode)
    assert source.state_dict() == state
    np.testing.assert_array_equal(np.concatenate([first, source.take(17)]), expected)


def test_a_state_of_another_tokenizer_or_row_length_is_refused(file: Path) -> None:
    state = rows_of(file).state_dict()
    with pytest.raises(StateMismatchError, match="source web: .*row_length 16, but this run has 8"):
        rows_of(file, sequence_length=7).load_state_dict(state)
    with pytest.raises(StateMismatchError, match="source web: the saved state has tokenizer 'other'"):
        rows_of(file).load_state_dict({**state, "tokenizer": "other"})


def test_text_that_changed_under_a_state_is_noticed(tmp_path: Path) -> None:
    def source(texts: list[str]) -> StreamedRows:
        dataset: Any = datasets.Dataset.from_dict({"text": texts})
        stream = open_stream(SourceConfig(name="web"), dataset=dataset)
        return StreamedRows(stream, TOKENIZER, sequence_length=T)

    before = source(TEXTS)
    before.take(20)
    with pytest.raises(StateMismatchError, match="source web: the saved state has taken 20 rows .* has changed since"):
        source(["short"] * 3).load_state_dict(before.state_dict())


def a_curriculum(folder: Path, *sources: dict[str, Any]) -> Curriculum:
    return Curriculum(total_steps=100, batch_rows=2, sequence_length=T, sources=[*sources])


def test_open_sources_opens_each_in_declared_order(file: Path) -> None:
    dataset: Any = datasets.Dataset.from_dict({"text": ["from python"]}).to_iterable_dataset()
    curriculum = a_curriculum(file.parent, {"name": "object"}, {"name": "web", "data_files": str(file)})
    sources: list[RowSource] = open_sources(curriculum, TOKENIZER, {"object": dataset})
    assert [source.name for source in sources] == ["object", "web"]
    assert TOKENIZER.decode(sources[0].take(1)[0]).startswith("from python" + SEPARATOR + "from")
    np.testing.assert_array_equal(sources[1].take(1).ravel(), TOKENS[: T + 1])


def test_a_stream_for_no_source_suggests_the_nearest(file: Path) -> None:
    dataset: Any = datasets.Dataset.from_dict({"text": ["x"]}).to_iterable_dataset()
    curriculum = a_curriculum(file.parent, {"name": "web", "data_files": str(file)})
    with pytest.raises(UnknownSourceError, match="streams: unknown source 'wep'; did you mean 'web'"):
        open_sources(curriculum, TOKENIZER, {"wep": dataset})


def test_check_sources_tells_every_problem_at_once(file: Path) -> None:
    curriculum = a_curriculum(
        file.parent,
        {"name": "good", "data_files": str(file)},
        {"name": "missing", "data_files": "nowhere.jsonl"},
        {"name": "nothing"},
        {"name": "column", "data_files": str(file), "text": "body"},
        {"name": "unmatched", "data_files": str(file), "where": {"text": "none such"}},
        {"name": "gathered", "local": "docstring"},
    )
    problems = check_sources(curriculum)
    assert [problem.split(":")[0] for problem in problems] == [
        "source missing",
        "source nothing",
        "source column",
        "source unmatched",
        "source gathered",
    ]
    assert "did you mean 'docstrings'" in problems[-1]


def test_importing_sources_does_not_import_datasets() -> None:
    import subprocess
    import sys

    code = "import sys, mixer.sources, mixer.testing; sys.exit('datasets' in sys.modules or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
