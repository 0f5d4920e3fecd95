"""Records that ``on_bad_record: skip`` leaves out stand in the journal, with file and line, once each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from mixer import Curriculum, Journal, MixtureDataset, read_journal
from mixer.errors import UnknownSourceError
from mixer.replay.verify import audit
from mixer.walk.walk import Walk

BAD = {20: '{"text": 7}', 60: "{", 61: '{"word": "no text"}'}
STEPS = 60


@pytest.fixture
def curriculum(tmp_path: Path) -> Curriculum:
    lines = [BAD.get(i, json.dumps({"text": f"document {i} of some words"})) for i in range(80)]
    (tmp_path / "web.jsonl").write_text("\n".join(lines) + "\n")
    (tmp_path / "code.jsonl").write_text("".join(json.dumps({"text": f"x = {i}"}) + "\n" for i in range(50)))
    (tmp_path / "run.yaml").write_text(
        f"total_steps: {STEPS}\nbatch_rows: 4\nsequence_length: 16\ntokenizer: {{train_vocab_size: 300}}\n"
        "feedback_lag: 8\nsources:\n  - {name: web, data_files: web.jsonl, on_bad_record: skip}\n"
        "  - {name: code, data_files: code.jsonl}\n"
    )
    return Curriculum.from_yaml(tmp_path / "run.yaml")


def skipped(path: Path) -> list[str]:
    return [line["record"] for line in read_journal(path) if line["type"] == "skipped"]


def train(dataset: MixtureDataset, steps: int = STEPS, num_workers: int = 0) -> None:
    for batch in DataLoader(dataset, batch_size=None, num_workers=num_workers):
        dataset.report(batch, torch.ones(4, 16))
        if batch["step"] + 1 == steps:
            return


@pytest.mark.parametrize("num_workers", [0, 1, 2])
def test_each_record_that_is_left_out_is_journalled_once_with_its_line(
    curriculum: Curriculum, tmp_path: Path, num_workers: int
) -> None:
    path = tmp_path / "walk.jsonl"
    train(MixtureDataset(curriculum, journal=path), num_workers=num_workers)  # each source is read several times
    found = sorted(skipped(path), key=lambda record: int(record.split("line ")[1].split(":")[0]))
    assert [record.split(": ")[0] for record in found] == [f"{tmp_path / 'web.jsonl'}, line {i + 1}" for i in BAD]
    assert "column 'text' is int '7', not text" in found[0]
    assert audit(path).difference is None


def test_a_restored_run_journals_none_twice_and_misses_none(curriculum: Curriculum, tmp_path: Path) -> None:
    whole = tmp_path / "whole.jsonl"
    train(MixtureDataset(curriculum, journal=whole))
    for stop in (1, 3, 9, 25):
        path = tmp_path / f"{stop}.jsonl"
        with Journal.create(path) as journal:
            dataset = MixtureDataset(curriculum, journal=journal)
            train(dataset, stop)
            state: dict[str, Any] = json.loads(json.dumps(dataset.state_dict()))
            train(dataset, stop + 4)  # lost
        with Journal.open(path) as journal:
            dataset = MixtureDataset(curriculum, journal=journal)
            dataset.load_state_dict(state)
            train(dataset)
        assert sorted(skipped(path)) == sorted(skipped(whole))
        assert audit(path).difference is None


def test_a_record_of_an_unknown_source_is_refused(curriculum: Curriculum) -> None:
    with pytest.raises(UnknownSourceError, match="unknown source 'wbe'"):
        Walk(curriculum).note_skipped("wbe", "a.jsonl, line 1: not JSON")
