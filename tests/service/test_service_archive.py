"""Archived runs can be looked at as they were, and the journals of a service say when their lines were written."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mixer.journal.file import read_journal
from mixer.replay.fork import fork
from mixer.replay.verify import audit
from service.settings import Settings
from tests.support.dashboards import NAMES, SMALL, Server, Trainer, curriculum
from tests.support.postgres import postgres
from tests.support.serving import post

READ = ("overview", "series", "region", "journal?limit=500", "phases?limit=1000", "walk", "config", "weights?step=20")
PASSING = ("quiet_s", "stall_s", "steps_per_s")  # of a run that goes on


@contextlib.contextmanager
def trained(folder: Path, **settings: Any) -> Iterator[tuple[Server, float]]:
    """Give a server with a run ``other`` that was trained on, and the time at which it began."""
    server = Server(curriculum(folder, NAMES[:3], **SMALL), folder / "runs")
    server.settings = Settings(**{**server.settings.model_dump(), **settings})
    begin = time.time()
    with server:
        plan = server.plan.model_dump(mode="json", exclude_none=True, exclude={"base_dir"})
        assert post(server.url + "/runs", json={"name": "other", "curriculum": plan}).status_code == 201
        Trainer(server.url, "other").train(70)
        yield server, begin


def answers(server: Server) -> dict[str, Any]:
    """Return what everybody who looks at the run reads, but for what passes."""
    found: dict[str, Any] = {}
    for path in READ:
        answer = server.get(f"/runs/other/{path}")
        assert answer.status_code == 200, answer.text
        found[path] = answer.text if path == "walk" else answer.json()
    found["overview"] = {key: value for key, value in found["overview"].items() if key not in PASSING}
    return found


def check_is_read_as_it_was(server: Server) -> None:
    before = answers(server)
    assert post(f"{server.url}/runs/other/archive", json={}).status_code == 200
    assert answers(server) == before
    overview = server.get("/runs/other/overview").json()
    assert [overview[key] for key in PASSING] == [None, None, None]
    for path in ("status", "batches/3?rank=0&world_size=1", "events"):
        assert server.get(f"/runs/other/{path}").json()["error"]["code"] == "run-state", path


def test_an_archived_run_is_read_as_it_was_and_goes_on_no_more(tmp_path: Path) -> None:
    with trained(tmp_path) as (server, _):
        check_is_read_as_it_was(server)


@pytest.mark.slow
def test_an_archived_run_is_read_as_it_was_where_the_journal_lies_in_postgresql(tmp_path: Path) -> None:
    with postgres() as database, trained(tmp_path, database=database.new_database()) as (server, _):
        check_is_read_as_it_was(server)


def test_lines_say_when_they_were_written_and_no_decision_knows(tmp_path: Path) -> None:
    with trained(tmp_path) as (server, begin):
        post(f"{server.url}/runs/other/pivots", json={"name": "live", "floors": {"code": 0.2}}).raise_for_status()
        shown = server.get("/runs/other/journal").json()["entries"]
    end = time.time()
    journal = tmp_path / "runs" / "other" / "journal.jsonl"
    lines = list(read_journal(journal))
    times = [line["at"] for line in lines if line["type"] != "feedback"]
    assert times == sorted(times)
    assert begin - 1 <= times[0] <= times[-1] <= end
    assert all("at" not in line for line in lines if line["type"] == "feedback")
    assert {entry["line"]: entry["at"] for entry in shown} == {
        line["number"]: line["at"] for line in lines if line["type"] not in ("feedback", "header")
    }
    assert audit(journal).difference is None  # every decision again, to the last bit, at another time
    phases = [line["start"] for line in lines if line["type"] == "phase"]
    fork(journal, phases[3], server.plan, tmp_path / "fork.jsonl")
    assert audit(tmp_path / "fork.jsonl").difference is None
    shared = [line for line in read_journal(tmp_path / "fork.jsonl") if line["type"] == "phase"]
    assert [line["at"] for line in shared] == [line["at"] for line in lines if line["type"] == "phase"][:3]


def test_a_changed_time_breaks_the_chain_as_any_other_change_does(tmp_path: Path) -> None:
    with trained(tmp_path):
        pass
    journal = tmp_path / "runs" / "other" / "journal.jsonl"
    lines = journal.read_text(encoding="utf-8").splitlines()
    number = next(i for i, line in enumerate(lines) if '"type":"phase"' in line)
    record = json.loads(lines[number])
    lines[number] = lines[number].replace(f'"at":{record["at"]}', '"at":1.5')
    journal.write_text("\n".join(lines) + "\n", encoding="utf-8")
    with pytest.raises(Exception, match=f"line {number + 1}"):
        list(read_journal(journal))
