"""Runs from token files: alone, beside prepared rows, over ranks and workers, stopped and gone on with, and refused."""

from __future__ import annotations

import itertools
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ruamel.yaml import YAML
from torch.utils.data import DataLoader

from mixer import Curriculum, MixtureDataset
from mixer.analysis.check import check
from mixer.errors import ConfigError, MalformedDataError, MissingDataError, StateMismatchError, TokenizerError
from mixer.sampling.permutation import order_key, permuted, sides
from mixer.sources.prepared.prepare import prepare
from service.client.dataset import RemoteMixtureDataset
from tests.support.curricula import write_sources
from tests.support.documents import SEPARATOR, VOCAB, documents, stream
from tests.support.serving import Served
from tests.support.token_files import WRITTEN

T, B, STEPS = 7, 4, 60
MEGATRON = WRITTEN / "megatron"
TOKENIZER = {"vocab_size": VOCAB, "separator_id": SEPARATOR}


def a_source(name: str, **tokens: Any) -> dict[str, Any]:
    return {"name": name, "tokens": {"path": str(MEGATRON / name), "separator": "present", **tokens}}


def a_curriculum(*sources: dict[str, Any], **changes: Any) -> Curriculum:
    given = list(sources) or [a_source("plain", separator="insert"), a_source("ended"), a_source("wide")]
    fields = {"total_steps": STEPS, "batch_rows": B, "sequence_length": T, "policy": "random", "tokenizer": TOKENIZER}
    return Curriculum(sources=given, **(fields | changes))


def streams() -> list[Any]:
    """Return the stream of each source, as NumPy makes it from the documents."""
    plain = [np.append(ids, SEPARATOR) for ids in documents(ends=False)]
    return [stream(plain), stream(documents(seed=1)), stream(documents(seed=2))]


def batches(dataset: Any, num: int | None = None) -> list[dict[str, Any]]:
    return list(itertools.islice(iter(dataset), num))


def same(one: list[dict[str, Any]], other: list[dict[str, Any]]) -> bool:
    return len(one) == len(other) and all(
        torch.equal(torch.as_tensor(a[key]), torch.as_tensor(b[key]))
        for a, b in zip(one, other, strict=True)
        for key in a
    )


def test_every_row_is_the_window_that_the_keyed_order_of_its_epoch_says() -> None:
    curriculum = a_curriculum(seed=3)
    seen: dict[int, set[int]] = {0: set(), 1: set(), 2: set()}
    for batch in MixtureDataset(curriculum, provenance=True):
        for i, number, inputs, labels in zip(
            batch["source_ids"].tolist(),
            batch["row_numbers"].tolist(),
            batch["input_ids"],
            batch["labels"],
            strict=True,
        ):
            ids = streams()[i]
            num_rows = len(ids) // (T + 1)
            epoch, place = divmod(number, num_rows)
            sizes = np.array([num_rows])
            key = np.array([order_key(3, curriculum.names[i], epoch)], dtype=np.uint64)
            row = int(permuted(np.array([place]), sizes, key, sides(sizes))[0])
            window = ids[row * (T + 1) : (row + 1) * (T + 1)].tolist()
            assert inputs.tolist() == window[:-1]
            assert labels.tolist() == window[1:]
            seen[i].add(row)
    assert all(seen[i] == set(range(len(streams()[i]) // (T + 1))) for i in seen)


def test_ranks_and_workers_share_the_global_batches() -> None:
    whole = batches(MixtureDataset(a_curriculum()))
    parts = [batches(MixtureDataset(a_curriculum(), rank=rank, world_size=2)) for rank in range(2)]
    for batch, one, other in zip(whole, *parts, strict=True):
        assert torch.equal(batch["input_ids"][0::2], one["input_ids"])
        assert torch.equal(batch["input_ids"][1::2], other["input_ids"])
    assert same(batches(DataLoader(MixtureDataset(a_curriculum()), batch_size=None, num_workers=2)), whole)


def test_a_run_goes_on_exactly_at_another_number_of_ranks() -> None:
    whole = batches(MixtureDataset(a_curriculum()))
    dataset = MixtureDataset(a_curriculum())
    batches(dataset, 23)
    state = json.loads(json.dumps(dataset.state_dict()))
    again = MixtureDataset(a_curriculum())
    again.load_state_dict(state)
    assert same(batches(again), whole[23:])
    half = MixtureDataset(a_curriculum(), rank=1, world_size=2)
    half.load_state_dict(state)
    assert torch.equal(next(iter(half))["input_ids"], whole[23]["input_ids"][1::2])


def test_a_state_goes_on_where_the_files_lie_elsewhere_and_not_where_they_changed(tmp_path: Path) -> None:
    dataset = MixtureDataset(a_curriculum(a_source("wide")))
    batches(dataset, 5)
    for suffix in (".bin", ".idx"):
        shutil.copy(MEGATRON / f"wide{suffix}", tmp_path / f"wide{suffix}")
    moved = a_curriculum(a_source("wide", path=str(tmp_path / "wide")))
    again = MixtureDataset(moved)
    again.load_state_dict(dataset.state_dict())
    assert again.step == 5
    content = bytearray((tmp_path / "wide.bin").read_bytes())
    content[40] ^= 1
    (tmp_path / "wide.bin").write_bytes(content)
    with pytest.raises(StateMismatchError):
        MixtureDataset(moved).load_state_dict(dataset.state_dict())


def test_token_files_and_prepared_rows_are_mixed(tmp_path: Path) -> None:
    write_sources(tmp_path)
    text = {"name": "s0", "data_files": str(tmp_path / "s0.jsonl")}
    fields = {"tokenizer": {"train_vocab_size": 300}, "sequence_length": T}
    prepare(a_curriculum(text, **fields), tmp_path / "rows")
    changes = {"prepared": str(tmp_path / "rows"), "tokenizer": None}
    with pytest.raises(ConfigError, match="source ended: tokens: .* ends with the id 50256, not with the separator 0"):
        MixtureDataset(a_curriculum(text, a_source("ended"), **changes))
    with pytest.raises(
        MalformedDataError, match=r"ended\.bin: the id \d+ at byte \d+ is outside the vocabulary of 300"
    ):
        batches(MixtureDataset(a_curriculum(text, a_source("ended", separator="none"), **changes)))
    ids = np.arange(600, dtype=np.uint16) % 300
    _write_megatron(tmp_path / "small", ids)
    mixed = a_curriculum(text, a_source("small", path=str(tmp_path / "small"), separator="none"), **changes)
    alone = MixtureDataset(a_curriculum(text, **changes), provenance=True)
    rows = {int(n): row for batch in alone for n, row in zip(batch["row_numbers"], batch["input_ids"], strict=True)}
    seen = set()
    for batch in MixtureDataset(mixed, provenance=True):
        for i, number, row in zip(batch["source_ids"], batch["row_numbers"], batch["input_ids"], strict=True):
            seen.add(int(i))
            assert torch.equal(row, rows[int(number)]) if i == 0 else int(row[1]) == (int(row[0]) + 1) % 300
    assert seen == {0, 1}
    assert check(mixed, reads_all=True).problems == ()


def _write_megatron(prefix: Path, ids: Any) -> None:
    prefix.with_suffix(".bin").write_bytes(ids.tobytes())
    header = (
        b"MMIDIDX\0\0" + (1).to_bytes(8, "little") + b"\x08" + (1).to_bytes(8, "little") + (2).to_bytes(8, "little")
    )
    index = len(ids).to_bytes(4, "little") + bytes(8) + bytes(8) + (1).to_bytes(8, "little")
    prefix.with_suffix(".idx").write_bytes(header + index)


def test_streamed_sources_beside_token_files_are_refused_by_name(tmp_path: Path) -> None:
    write_sources(tmp_path)
    text = {"name": "s0", "data_files": str(tmp_path / "s0.jsonl"), "token_ids": "text"}
    mixed = a_curriculum(text, a_source("ended"))
    with pytest.raises(ConfigError, match="source s0: streamed, beside sources of token files"):
        MixtureDataset(mixed)
    assert any("source s0: streamed, beside sources" in problem for problem in check(mixed).problems)


def test_check_lists_what_is_wrong_with_every_source(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    wrong = a_curriculum(
        a_source("gone", path=str(tmp_path / "gone")),
        a_source("empty", path=str(tmp_path / "empty")),
        a_source("nothing", path=str(tmp_path / "*.bin")),
        a_source("plain"),
        a_source("ended", separator="insert"),
        a_source("wide"),
    )
    found = "\n".join(check(wrong).problems)
    for message in (
        "source gone: tokens: ",
        "source empty: tokens: ",
        "source nothing: tokens: no file matches",
        "source plain: tokens: ",
        "source ended: tokens: .*documents end with the separator 50256 already; set `separator: present`",
    ):
        assert re.search(message, found), message
    assert "source wide" not in found


def test_all_ids_are_read_by_check_all(tmp_path: Path) -> None:
    small = a_curriculum(a_source("wide", separator="none"), tokenizer={"vocab_size": 50_000, "separator_id": 0})
    assert check(small).problems == ()
    [problem] = check(small, reads_all=True).problems
    assert "wide.bin: the id" in problem
    with pytest.raises(MalformedDataError, match="outside the vocabulary of 50,000"):
        batches(MixtureDataset(small))


@pytest.mark.parametrize(
    ("source", "changes", "message"),
    [
        (
            {"data_files": "x.jsonl"},
            {},
            "source ended: token files are read as they are, without data_files; remove it",
        ),
        ({"text": "body"}, {}, "without text"),
        ({"where": {"a": 1}}, {}, "without where"),
        ({"on_bad_record": "skip"}, {}, "without on_bad_record"),
        ({"role": "target"}, {}, "cannot be a target"),
        ({}, {"holdout": 0.1}, "holdout: source ended is of token files"),
        ({}, {"tokenizer": {"train_vocab_size": 300}}, "tokenizer: one that is trained"),
        (
            {"tokens": {"path": "x", "formt": "megatron"}},
            {},
            r"sources\.0\.tokens\.formt: unknown key; did you mean 'format'",
        ),
        ({"tokens": {"format": "megatron"}}, {}, r"sources\.0\.tokens\.path: required"),
        ({"tokens": {"path": "x", "format": "gguf"}}, {}, r"sources\.0\.tokens\.format"),
        ({}, {"tokenizer": {"vocab_size": 10}}, "vocab_size and separator_id go together"),
        ({}, {"tokenizer": {"vocab_size": 10, "separator_id": 10}}, "separator_id 10 is outside the vocab_size of 10"),
        ({}, {"tokenizer": {**TOKENIZER, "file": "x.json"}}, "stand for a tokenizer"),
    ],
)
def test_what_token_files_rule_out_is_refused_with_the_other_problems(
    source: dict[str, Any], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        a_curriculum({**a_source("ended"), **source}, **changes)


def test_a_vocabulary_of_which_only_the_size_is_known_encodes_nothing(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match="the tokenizer's vocab_size is 50257, but the model's is 100"):
        MixtureDataset(a_curriculum(vocab_size=100))
    with pytest.raises(TokenizerError, match="no text can be encoded or decoded"):
        MixtureDataset(a_curriculum()).tokenizer.decode([1])
    write_sources(tmp_path)
    text = {"name": "s0", "data_files": str(tmp_path / "s0.jsonl")}
    with pytest.raises(TokenizerError, match="source s0: text needs a tokenizer's file"):
        MixtureDataset(a_curriculum(text))


def test_a_file_that_is_gone_is_named() -> None:
    with pytest.raises(MissingDataError, match="source gone: tokens: .*gone: no such file or folder"):
        MixtureDataset(a_curriculum(a_source("gone")))


def test_a_folder_a_glob_and_a_pair_are_read_in_order(tmp_path: Path) -> None:
    for number in (2, 1, 3):
        _write_megatron(tmp_path / f"part-{number}", np.arange(8, dtype=np.uint16) + 8 * number)
    expected = {tuple(range(8 * n, 8 * n + 7)) for n in (1, 2, 3)}
    for path in (tmp_path, tmp_path / "part-*", tmp_path / "*.bin"):
        dataset = MixtureDataset(a_curriculum(a_source("x", path=str(path), separator="none")), provenance=True)
        assert {tuple(row.tolist()) for batch in dataset for row in batch["input_ids"]} == expected
        assert dataset._rows._token_files["x"].stream.held[0][:2].tolist() == [8, 0]


def test_max_epochs_and_on_exhausted_hold_for_token_files() -> None:
    once = a_curriculum(a_source("wide"), total_steps=100)
    num_rows = len(streams()[2]) // (T + 1)
    ending = once.model_copy(update={"sources": (once.sources[0].model_copy(update={"on_exhausted": "stop"}),)})
    assert len(batches(MixtureDataset(ending))) == num_rows // B


def test_the_service_delivers_the_same_batches(tmp_path: Path) -> None:
    fields = a_curriculum().model_dump(mode="json", include={"total_steps", "batch_rows", "sequence_length", "policy"})
    sources = [a_source("plain", separator="insert"), a_source("ended"), a_source("wide")]
    config = tmp_path / "run.yaml"
    with config.open("w") as file:
        YAML().dump({**fields, "sources": sources, "tokenizer": TOKENIZER}, file)
    expected = batches(MixtureDataset(Curriculum.from_yaml(config)))
    with Served(config, tmp_path / "runs") as server:
        served = batches(RemoteMixtureDataset(server.url, rank=0, world_size=1))
    assert same(served, expected)
