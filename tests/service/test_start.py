"""`mixer serve` starts without what it does not need, and what it starts with is not in the way of requests later."""

from __future__ import annotations

import json
import logging
import sys
from datetime import datetime
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from mixer.config.curriculum import Curriculum
from mixer.sources.prepared.prepare import prepare
from service.client.client import MixerClient
from service.web.logs import JsonLines
from tests.support.serving import Served, losses_of, write_run

NEEDED_BY_OTHERS = {  # commands, runs and libraries' conveniences
    *("torch", "datasets", "tokenizers", "transformers", "pandas", "pyarrow.compute", "pyarrow.parquet", "plotly"),
    *("alembic", "psycopg", "httpx2", "urllib3", "tenacity", "rich", "pygments", "doctest", "pdb", "unittest"),
    *(
        "mixer.replay.verify",
        "mixer.journal.schema",
        "mixer.replay.fork",
        "mixer.replay.replay",
        "service.replay_app",
        "service.client.client",
        "andrea.demo",
    ),
}


def test_a_server_of_prepared_rows_loads_nothing_that_it_does_not_need(tmp_path: Path) -> None:
    config = write_run(tmp_path, prepared="rows")
    prepare(Curriculum.from_yaml(config), tmp_path / "rows")
    with Served(config, tmp_path / "runs", prelude=TELL) as server:
        with MixerClient(server.url) as client:
            rows = client.batch(0, 0, 1)
            client.report(0, losses_of(rows, 0), tuple(f"s{k}" for k in range(4)))
        assert server.terminate() == 0
    unneeded, is_searching, num_left_out = json.loads(server.log().splitlines()[-1])
    assert unneeded == []
    assert is_searching
    assert num_left_out > 50_000  # each search of them all would hold up requests for 0.1 s


TELL = f"""
import atexit, gc, json, sys
unneeded = {sorted(NEEDED_BY_OTHERS)}
atexit.register(lambda: print(json.dumps([sorted({{*unneeded}} & {{*sys.modules}}), gc.isenabled(), gc.get_freeze_count()])))
"""


TEXT = st.text(st.characters())  # halves of characters too: names of files may have them


@given(
    st.dictionaries(st.sampled_from(["id", "path", "status", "who", "run"]), st.none() | st.integers() | TEXT),
    TEXT,
    st.sampled_from([logging.INFO, logging.WARNING, logging.ERROR]),
)
def test_each_message_is_one_line_of_json_with_its_fields(fields: dict[str, object], text: str, level: int) -> None:
    record = logging.getLogger("service").makeRecord("service", level, "x.py", 1, "%s", (text,), None, extra=fields)
    line = JsonLines().format(record)
    assert "\n" not in line
    told = json.loads(line)
    assert datetime.fromisoformat(told.pop("timestamp")).tzinfo is not None
    assert told == {"event": text, "level": logging.getLevelName(level).lower(), **fields}


def test_a_message_says_what_was_raised_and_what_json_has_no_word_for() -> None:
    try:
        Path("/nowhere/at/all").read_text()
    except OSError:
        record = logging.getLogger("service").makeRecord(
            "service", logging.ERROR, "x.py", 1, "failed", (), sys.exc_info(), extra={"folder": Path("runs")}
        )
    told = json.loads(JsonLines().format(record))
    assert told["folder"] == "runs"
    assert told["exception"].startswith("Traceback")
    assert told["exception"].splitlines()[-1].startswith("FileNotFoundError: ")
