"""A run that bad data stops says so at once, by the class of what is bad; one that is over or archived does, too."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import tokenizers

from mixer.config.curriculum import Curriculum
from mixer.errors import (
    EmptySourceError,
    JournalError,
    MalformedDataError,
    MissingDataError,
    MixerError,
    PreparedMismatchError,
    SourceExhaustedError,
    SourceUnavailableError,
)
from mixer.sources.prepared.prepare import prepare
from service.client import MixerClient, RemoteMixtureDataset
from service.errors import RunEndedError, RunStateError, StallError, StoreError, hint_of, lasts, status_of
from tests.support.dashboards import Server, curriculum
from tests.support.serving import post

PATIENCE_S = 600.0  # of the clients: what is told at once does not come near it, and what is not fails by its timeout


def plan_of(folder: Path, **fields: Any) -> Curriculum:
    return curriculum(folder, ["web", "code"], batch_rows=4, policy={"name": "static"}, **fields)


def trained(url: str, seen: list[Any], **options: Any) -> None:
    """Train until it ends, adding to ``seen`` what the model sees."""
    for batch in RemoteMixtureDataset(url, 0, 1, patience_s=PATIENCE_S, **options):
        seen.append(batch["input_ids"].tolist())


def break_record(folder: Path, index: int = 40) -> None:
    lines = (folder / "web.jsonl").read_text().splitlines()
    lines[index] = '{"text": "half'
    (folder / "web.jsonl").write_text("\n".join(lines) + "\n")


def lose_text(folder: Path) -> None:
    (folder / "web.jsonl").write_text(json.dumps({"text": ""}) + "\n")


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("spoil", "fields", "kind", "says"),
    [
        (break_record, {}, MalformedDataError, r"web\.jsonl.* line 41"),
        (lambda folder: (folder / "web.jsonl").unlink(), {}, MissingDataError, r"web\.jsonl"),
        (lose_text, {}, EmptySourceError, "web"),
        (lambda _folder: None, {"on_exhausted": "error"}, SourceExhaustedError, "web"),
    ],
)
def test_bad_data_ends_a_trainer_at_once_with_its_own_class(
    tmp_path: Path, spoil: Any, fields: dict[str, Any], kind: type[MixerError], says: str
) -> None:
    plan = plan_of(tmp_path)
    sources = [source.model_copy(update=fields) for source in plan.sources]
    spoil(tmp_path)
    with Server(plan.model_copy(update={"sources": tuple(sources)}), tmp_path / "runs") as server:
        with pytest.raises(kind, match=says) as told:
            trained(server.url, [])
        assert "run main cannot go on: " in str(told.value)
        with MixerClient(server.url, patience_s=PATIENCE_S) as client, pytest.raises(kind, match=says):
            client.batches(range(client.status().next_step, 5000))
        ready = server.get("/runs/main/readyz")
        assert (ready.status_code, ready.json()["error"]["code"]) == (503, "stalled")  # as probes want it


@pytest.mark.timeout(120)
def test_a_record_deep_in_a_file_stops_the_steps_from_there_on_and_a_mended_one_none(tmp_path: Path) -> None:
    words = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({"<|endoftext|>": 0, "web": 1, "code": 2}, unk_token="web")
    )
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    words.save(str(tmp_path / "words.json"))  # one that is trained has read the record
    plan = plan_of(tmp_path, tokenizer={"file": "words.json"})
    whole = "".join(json.dumps({"text": "some words of the web " * (1 + n % 9)}) + "\n" for n in range(4000))
    (tmp_path / "web.jsonl").write_text(whole)
    break_record(tmp_path, 3000)
    rows: list[Any] = []
    server = Server(plan, tmp_path / "runs")
    with server, pytest.raises(MalformedDataError, match=r"web\.jsonl, line 3001"):
        trained(server.url, rows)
    assert len(rows) > 200
    (tmp_path / "web.jsonl").write_text(whole)
    with server, MixerClient(server.url) as client:
        rows += [client.batch(step).rows[:, :-1].tolist() for step in range(len(rows), len(rows) + 50)]
    with Server(plan, tmp_path / "whole") as server, MixerClient(server.url) as client:
        assert rows == [client.batch(step).rows[:, :-1].tolist() for step in range(len(rows))]


@pytest.mark.timeout(120)
def test_a_run_that_is_archived_over_or_cannot_be_opened_is_told_at_once(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, total_steps=6)
    prepare(plan, tmp_path / "rows")
    server = Server(plan, tmp_path / "runs")
    server.settings = server.settings.model_copy(update={"allow_new_sources": True})
    with server:
        seen: list[Any] = []
        trained(server.url, seen)
        assert len(seen) == 6
        with MixerClient(server.url, patience_s=PATIENCE_S) as client:
            with pytest.raises(RunEndedError, match="ends before step 6"):
                client.batch(6)
            data = client.config()["curriculum"]
            for name in ("old", "lost"):
                body = {"name": name, "curriculum": data | {"prepared": "rows"}}
                post(f"{server.url}/runs", json=body).raise_for_status()
            with pytest.raises(RunStateError, match="there is a run old already"):
                client.fork("main", "old")
        post(f"{server.url}/runs/old/archive", json={}).raise_for_status()
        with MixerClient(server.url, run="old", patience_s=PATIENCE_S) as client:
            for ask in (lambda: client.batch(0), lambda: client.batches(range(4)), client.status):
                with pytest.raises(RunStateError, match="run old is archived"):
                    ask()
        with pytest.raises(RunStateError, match="run old is archived"):
            trained(server.url, [], run="old")
    shutil.rmtree(tmp_path / "rows")
    with server, pytest.raises(MixerError, match="run lost could not be opened") as told:
        trained(server.url, [], run="lost")
    assert told.value.code not in ("stalled", "unreachable", "refused")


def test_what_may_pass_by_itself_stays_a_stall() -> None:
    for problem in (JournalError("disk"), StoreError("down"), SourceUnavailableError("hub"), StallError("OSError: x")):
        answer = StallError("run main cannot go on", cause=problem)
        assert (lasts(problem), status_of(answer), hint_of(answer)) == (False, 503, StallError.hint)
        assert answer.retry_after_s == 1
    answer = StallError("run main cannot go on", cause=PreparedMismatchError(["a", "b"]))
    assert (status_of(answer), answer.retry_after_s) == (409, None)
    assert hint_of(answer) != StallError.hint
