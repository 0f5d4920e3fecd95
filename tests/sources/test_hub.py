"""Data sets by hub id, over real HTTP from a stand-in for the hub: streamed, resumed, pinned to their commit."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.hub import Hub, serving

OLD, NEW = "0" * 39 + "1", "0" * 39 + "2"
REPOSITORY = "owner/words"

# huggingface_hub reads its environment when it is imported, hence a process of its own
PROGRAM = """
import json, sys
from mixer.config.sources import SourceConfig
from mixer.errors import MixerError
from mixer.sources.huggingface import open_stream

task = json.load(sys.stdin)
try:
    stream = open_stream(SourceConfig(name="hub", **task["source"]))
    if task["state"]:
        stream.load_state_dict(task["state"])
    groups = []
    for _ in range(task["groups"]):
        groups.append(stream.next_group())
    json.dump({"groups": groups, "state": stream.state_dict(), "fingerprint": stream.fingerprint}, sys.stdout)
except MixerError as error:
    json.dump({"code": error.code, "message": str(error)}, sys.stdout)
"""


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    folder = tmp_path_factory.mktemp("hub")
    for commit, word in ((OLD, "old"), (NEW, "new")):
        (folder / commit / "data").mkdir(parents=True)
        for part in range(2):
            texts = [f"{word} {part} {i}" for i in range(400)]
            table = pa.table({"text": texts, "category": ["a", "b"] * 200})
            pq.write_table(table, folder / commit / "data" / f"train-0000{part}-of-00002.parquet", row_group_size=30)
        lines = (json.dumps({"chat": [{"role": "user", "content": f"{word} chat {i}"}]}) for i in range(3))
        (folder / commit / "extra.jsonl").write_text("\n".join(lines))
        (folder / commit / "table.csv").write_text("zip,when\n02116,2024-01-03T10:30:00+02:00\n1.10,NA\n")
        more = (
            '{"zip": 27, "when": 2.50}\n{"when": 9007199254740993, "zip": null, "new": {}}\n{"zip": true, "when": 1}\n'
        )
        (folder / commit / "more.jsonl.gz").write_bytes(gzip.compress(more.encode()))
    with serving(folder, REPOSITORY, OLD) as hub:
        yield hub


@pytest.fixture
def endpoint(hub: Hub) -> Hub:
    hub.newest = OLD
    hub.requests.clear()
    return hub


def read(
    url: str,
    home: Path,
    *,
    state: dict[str, Any] | None = None,
    groups: int = 1,
    offline: bool = False,
    quiet: bool = True,
    **source: Any,
) -> dict[str, Any]:
    """Stream in a new process that knows no other hub and has an empty cache."""
    environment = {
        **os.environ,
        "HF_ENDPOINT": url,
        "HF_HOME": str(home),
        "HF_HUB_OFFLINE": str(int(offline)),
        "HF_DATASETS_OFFLINE": str(int(offline)),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "USE_TORCH": "0",  # `datasets` would import it, for half the time of a test
    }
    task = {"source": {"path": REPOSITORY, **source}, "state": state, "groups": groups}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        input=json.dumps(task),
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (done.stderr == "") == quiet, done.stderr  # nothing is said on the way, unless a record is skipped
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def test_a_data_set_is_streamed_by_its_id(endpoint: Hub, tmp_path: Path) -> None:
    result = read(endpoint.url, tmp_path, groups=5)
    documents = [document for group in result["groups"] for document in group]
    assert documents == [f"old {part} {i}" for part in range(2) for i in range(400)]
    assert result["groups"][-1] == []
    assert any("/data/train-00001" in request for request in endpoint.requests)


def test_a_stream_of_the_hub_resumes_at_its_commit_when_a_newer_one_is_there(endpoint: Hub, tmp_path: Path) -> None:
    first = read(endpoint.url, tmp_path / "a", groups=2)
    assert first["state"]["revision"] == OLD
    assert first["fingerprint"] == f"commit {OLD}"  # what a journal's header says
    endpoint.newest = NEW
    assert read(endpoint.url, tmp_path / "b")["groups"][0][0] == "new 0 0"  # a new run reads the new text
    resumed = read(endpoint.url, tmp_path / "c", state=first["state"])
    assert resumed["groups"] == [[f"old 1 {i}" for i in range(112, 368)]]  # 2 groups of 256 before, of 800 documents
    assert resumed["state"]["revision"] == OLD


def test_a_hub_that_may_not_be_asked_is_an_error_of_the_source(endpoint: Hub, tmp_path: Path) -> None:
    result = read(endpoint.url, tmp_path, offline=True)
    assert result["code"] == "source", result
    assert result["message"].startswith("source hub: cannot be read: ")
    assert endpoint.requests == []


def test_files_of_a_repository_are_chosen_and_rendered(endpoint: Hub, tmp_path: Path) -> None:
    endpoint.newest = NEW
    result = read(endpoint.url, tmp_path, data_files="extra.jsonl", messages="chat", revision=OLD)
    assert result["groups"] == [["> old chat 0", "> old chat 1", "> old chat 2"]]


def test_values_are_as_the_files_of_the_hub_spell_them(endpoint: Hub, tmp_path: Path) -> None:
    found = read(endpoint.url, tmp_path, data_files="table.csv", template="{zip} {when}")
    assert found["groups"] == [["02116 2024-01-03T10:30:00+02:00", "1.10 NA"]]
    skipping = {"template": "{zip} {when}", "on_bad_record": "skip"}
    environment: dict[str, Any] = {"data_files": "more.jsonl.gz", **skipping}
    assert read(endpoint.url, tmp_path, **environment, quiet=False)["groups"] == [["27 2.50", "true 1"]]
    stopped = read(endpoint.url, tmp_path, data_files="more.jsonl.gz", template="{zip} {when}")
    assert stopped["code"] == "malformed-data"
    assert f"@{OLD}/more.jsonl.gz, line 2: column 'zip' of the template is null" in stopped["message"]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"path": "owner/nothing"}, "'owner/nothing' doesn't exist on the Hub"),
        ({"split": "test"}, "Bad split: test. Available splits"),
        ({"config_name": "large"}, "BuilderConfig 'large' not found"),
        ({"data_files": "none.jsonl"}, "none.jsonl"),
        ({"revision": "3" * 40}, "doesn't exist"),
        ({"text": "body"}, "no column 'body'; columns: text, category"),
    ],
)
def test_what_the_hub_lacks_is_named(endpoint: Hub, tmp_path: Path, source: dict[str, Any], message: str) -> None:
    result = read(endpoint.url, tmp_path, **source)
    assert result["code"] == "missing-data", result
    assert result["message"].startswith("source hub: ")
    assert message in result["message"]
