"""Files that an earlier commit wrote (``tests/old``) are read, or refused by name with what to do about it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mixer.cli import app
from mixer.config.curriculum import Curriculum
from mixer.dataset import MixtureDataset
from mixer.errors import JournalError, MalformedDataError, StateMismatchError
from mixer.journal.file import Journal, read_journal
from mixer.journal.header import read_header
from mixer.replay.replay import Replay
from mixer.sources.prepared.rows import Prepared
from mixer.walk.state import STATE_VERSION
from mixer.walk.walk import Walk
from service.client import MixerClient
from tests.old.make import FIELDS, STEPS, STOP
from tests.support.serving import Served, decisions, losses_of

OLD = Path(__file__).parent / "old"
NAMES = ("s0", "s1", "s2", "s3")


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """Return a copy of the old files, whose configs name the policy that was the default of their time."""
    copy = shutil.copytree(OLD, tmp_path / "old")
    for config in copy.glob("*.yaml"):
        config.write_text(config.read_text() + "policy: ucb\n")
    return copy


@pytest.mark.parametrize("name", ["alone", "fork"])
def test_every_decision_of_an_old_journal_is_computed_again_bit_for_bit(name: str) -> None:
    found = CliRunner().invoke(app, ["replay", str(OLD / f"{name}.jsonl"), "--json"])
    assert found.exit_code == 0, found.output


def test_old_prepared_rows_are_whole_and_give_the_batches_that_they_gave(old: Path) -> None:
    Prepared.open(old / "rows").verify()
    dataset = MixtureDataset(Curriculum.from_yaml(old / "prepared.yaml"), walk=Replay(old / "alone.jsonl"))
    assert [int(batch["input_ids"].sum()) for batch in dataset] == json.loads((old / "sums.json").read_text())


def test_a_run_goes_on_from_an_old_state_and_journal_or_is_told_why_not(old: Path) -> None:
    curriculum, state = Curriculum.from_yaml(old / "prepared.yaml"), json.loads((old / "state.json").read_text())
    with Journal.open(old / "alone.jsonl") as journal:
        dataset = MixtureDataset(curriculum, walk=Walk(curriculum, journal=journal))
        if state["walk"]["version"] != STATE_VERSION:
            with pytest.raises(StateMismatchError, match="version.*; restore it with the release that saved it"):
                dataset.load_state_dict(state)
            return
        dataset.load_state_dict(state)
        sums = [int(batch["input_ids"].sum()) for batch, _ in zip(dataset, range(5), strict=False)]
    assert sums == json.loads((old / "sums.json").read_text())[STOP : STOP + 5]


def test_a_journal_whose_policy_was_the_default_of_its_time_says_which_to_name(old: Path) -> None:
    curriculum = Curriculum.from_yaml(OLD / "prepared.yaml")
    with Journal.open(old / "alone.jsonl") as journal, pytest.raises(StateMismatchError) as error:
        Walk(curriculum, journal=journal)
    assert "they differ in policy (there ucb, here water_filling)" in str(error.value)


def test_a_service_goes_on_with_an_old_database_and_journal(old: Path) -> None:
    journal = old / "served" / "run" / "journal.jsonl"
    before = decisions(journal)
    with Served(old / "run.yaml", old / "served") as server, MixerClient(server.url) as client:
        for step in range(STOP, STEPS):
            client.report(step, losses_of(client.batch(step), 0), NAMES)
        assert server.terminate() == 0
    assert decisions(journal)[: len(before)] == before
    assert len(decisions(journal)) > len(before)
    assert CliRunner().invoke(app, ["replay", str(journal)]).exit_code == 0
    assert {r["step"] for r in read_journal(journal) if r["type"] == "feedback"} == set(range(STEPS))


@pytest.mark.parametrize("version", [1, 3])
def test_a_journal_of_another_version_is_refused_by_name(tmp_path: Path, version: int) -> None:
    path = tmp_path / "other.jsonl"
    with Journal.create(path) as journal:
        journal.append({"type": "header", "version": version, "fingerprint": "0" * 32, **FIELDS})
    with pytest.raises(JournalError, match=rf"other\.jsonl: a journal of version {version}, .*; read it with the rel"):
        read_header(path)


def test_prepared_rows_of_another_version_are_refused_by_name(old: Path) -> None:
    path = old / "rows" / "prepared.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "version": 7}))
    with pytest.raises(MalformedDataError, match="version 7, .*run `mixer prepare` again, or install the release"):
        Prepared.open(old / "rows")
