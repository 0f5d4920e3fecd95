"""Faults of a hub and of the network before it, over real HTTP: rows are those of an undisturbed read, or nothing is lost.

Each process streams several sources, because importing `datasets` takes longer than all that is tested here.
"""

from __future__ import annotations

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
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils._http import http_backoff

from mixer.sources.faults import calm
from tests.support.hub import Fault, Hub, serving

COMMIT = "0" * 39 + "1"
REPOSITORY = "owner/words"
FILES = {"parquet": "data/train-0000*.parquet", "jsonl": "lines/*.jsonl"}
METADATA, DATA = "/api/datasets", "/resolve/"
RETRIES = {"attempts": 4, "wait_s": 0.05, "max_wait_s": 3, "timeout_s": 60.0}

PROGRAM = """
import json, sys
from tests.support.reading import read_all
json.dump(read_all(json.load(sys.stdin)), sys.stdout)
"""


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    folder = tmp_path_factory.mktemp("hub")
    for name in ("data", "lines"):
        (folder / COMMIT / name).mkdir(parents=True)
    for part in range(2):
        texts = [f"part {part} text {i} " + "word " * (i % 13) for i in range(400)]
        table = pa.table({"text": texts})
        pq.write_table(table, folder / COMMIT / "data" / f"train-0000{part}-of-00002.parquet", row_group_size=100)
        lines = (json.dumps({"text": text}) + "\n" for text in texts)
        (folder / COMMIT / "lines" / f"{part}.jsonl").write_text("".join(lines))
    with serving(folder, REPOSITORY, COMMIT) as hub:
        yield hub


@pytest.fixture
def hub(served: Hub) -> Hub:
    served.faults.clear()
    served.requests.clear()
    return served


def read(hub: Hub, home: Path, **task: Any) -> dict[str, Any]:
    """Stream in a new process that knows no other hub and has an empty cache; see ``tests.support.reading``."""
    environment = {
        **os.environ,
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(home),
        "HF_HUB_OFFLINE": "0",
        "HF_DATASETS_OFFLINE": "0",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "USE_TORCH": "0",
    }
    task = {"repository": REPOSITORY, "retries": RETRIES, "url": hub.url, **task}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        input=json.dumps(task),
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result


@pytest.fixture(scope="module")
def undisturbed(served: Hub, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return read(served, tmp_path_factory.mktemp("home"), files=FILES)


@pytest.mark.parametrize(
    "kind", ["503", "cut", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("500", "429", "reset", "stall"))]
)
def test_rows_are_those_of_an_undisturbed_read(
    hub: Hub, tmp_path: Path, undisturbed: dict[str, Any], kind: str
) -> None:
    seconds = 1.0 if kind == "429" else 30.0
    hub.faults += [
        Fault(kind, METADATA, times=2, after=1, seconds=seconds),
        Fault(kind, f"{DATA}{COMMIT}/data", times=2, after=2, seconds=seconds),
        Fault(kind, f"{DATA}{COMMIT}/lines", times=2, after=1, seconds=seconds),
    ]
    timeout_s = 3.0 if kind == "stall" else 60.0
    result = read(hub, tmp_path, files=FILES, retries={**RETRIES, "timeout_s": timeout_s})
    assert [fault.times for fault in hub.faults] == [0, 0, 0]  # they did happen
    for name, rows in undisturbed["rows"].items():
        assert result["rows"][name] == rows
    assert len(result["log"]) >= 3
    assert all("attempt 1 of 4" in line or "attempt 2 of 4" in line for line in result["log"])
    assert {line.split(":")[0] for line in result["log"]} <= {"source parquet", "source jsonl"}
    if kind == "429":
        assert all(float(line.split("in ")[-1].split()[0]) >= 1 for line in result["log"])  # as the server asked
    assert result["settings"] == undisturbed["settings"]  # of `datasets`, as they were before


def test_a_source_that_stays_down_says_so_and_goes_on_when_it_is_back(
    hub: Hub, tmp_path: Path, undisturbed: dict[str, Any]
) -> None:
    result = read(hub, tmp_path, files={"parquet": FILES["parquet"]}, down_after=3)
    error = result["error"]
    assert (error["code"], error["name"]) == ("source-unavailable", "parquet")
    assert "source parquet: cannot be reached: HfHubHTTPError: " in error["message"]
    assert "503" in error["message"]
    assert "after 4 attempts in" in error["message"]
    assert "Nothing is lost" in error["message"]
    assert result["probes"] == [False, True]
    assert result["state_kept"]
    assert result["rows"]["parquet"] == undisturbed["rows"]["parquet"]


def test_a_server_that_asks_for_an_hour_is_given_up_at_once(hub: Hub, tmp_path: Path) -> None:
    hub.faults.append(Fault("429", METADATA, times=100, seconds=3600))
    result = read(hub, tmp_path, files={"jsonl": FILES["jsonl"]})
    assert result["error"]["code"] == "source-unavailable"
    assert "which asks to wait 3600 s; gave up opening it after 1 attempt in 0 s" in result["error"]["message"]


def test_the_hub_retries_what_else_the_process_asks_but_not_what_a_source_reads(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)

    def ask() -> int:
        hub.faults[:] = [Fault("503", METADATA, times=1)]
        options: dict[str, Any] = {"base_wait_time": 0.01, "retry_on_status_codes": 503}
        return int(http_backoff("GET", f"{hub.url}{METADATA}/{REPOSITORY}", **options).status_code)

    for _ in range(2):
        with calm(60.0), pytest.raises(HfHubHTTPError, match="503"):
            ask()
        assert ask() == 200
