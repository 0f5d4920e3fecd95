"""What ``test_faults`` runs in a process of its own: sources of a hub read to the end of their epoch, row by row."""

from __future__ import annotations

import hashlib
import json
import logging
from typing import Any
from urllib.request import urlopen

import datasets
import numpy as np

from mixer.config.curriculum import Curriculum
from mixer.errors import SourceUnavailableError
from mixer.sources.base import EndOfSource, RowSource
from mixer.sources.opening import open_sources
from mixer.sources.rows import StreamedRows
from mixer.sources.tokenizer import TextTokenizer
from mixer.sources.tokenizer_training import train

SEPARATOR = "<|endoftext|>"


class _Lines(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def read_all(task: dict[str, Any]) -> dict[str, Any]:
    """Read ``files`` (by source name) of a repository; with ``down_after`` the hub fails after so many rows."""
    handler = _Lines()
    logging.getLogger("mixer.sources").addHandler(handler)
    logging.getLogger("mixer.sources").propagate = False
    result: dict[str, Any] = {"log": handler.lines, "rows": {}}
    curriculum = Curriculum(
        total_steps=1,
        batch_rows=1,
        sequence_length=31,
        retries=task["retries"],
        sources=[
            {"name": name, "path": task["repository"], "data_files": pattern, "on_exhausted": "stop"}
            for name, pattern in task["files"].items()
        ],
    )
    tokenizer = TextTokenizer(train(["part text word "], 300, SEPARATOR), SEPARATOR)
    try:
        for source in open_sources(curriculum, tokenizer):
            rows = _rows_through_an_outage(source, task, result) if "down_after" in task else _rows(source)
            result["rows"][source.name] = hashlib.sha256(np.concatenate(rows).tobytes()).hexdigest()
    except SourceUnavailableError as error:
        result["error"] = _described(error)
    result["settings"] = [
        datasets.config.STREAMING_READ_MAX_RETRIES,
        datasets.config.STREAMING_OPEN_RETRY_INTERVAL,
        datasets.logging.get_verbosity(),
    ]
    return result


def _rows(source: RowSource) -> list[Any]:
    rows = []
    while True:
        try:
            rows.append(source.take(1))
        except EndOfSource:
            return rows


def _rows_through_an_outage(source: RowSource, task: dict[str, Any], result: dict[str, Any]) -> list[Any]:
    assert isinstance(source, StreamedRows)
    rows = [source.take(1) for _ in range(task["down_after"])]
    _switch(task, "down")
    try:
        while True:
            rows.append(source.take(1))
    except SourceUnavailableError as error:
        result["error"] = _described(error)
    state = json.dumps(source.state_dict())
    result["probes"] = [source.probe()]
    _switch(task, "up")
    result["probes"].append(source.probe())
    result["state_kept"] = json.dumps(source.state_dict()) == state
    return rows + _rows(source)


def _described(error: SourceUnavailableError) -> dict[str, str]:
    return {"code": error.code, "message": str(error), "name": error.name}


def _switch(task: dict[str, Any], to: str) -> None:
    with urlopen(f"{task['url']}/switch/{to}"):
        pass
