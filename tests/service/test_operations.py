"""What docs/operations.md and deploy/ tell operators to do works."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
import typer
from alembic.script import ScriptDirectory

import service
from mixer.config.curriculum import Curriculum
from service.app import create_app
from service.cli import serve
from service.runs.engine import Engine
from service.settings import Settings
from service.storage import tables
from service.storage.store import Store, upgrade
from service.web.metrics import Metrics
from tests.support.fleet import digest_of
from tests.support.load import simulate_ranks
from tests.support.serving import Served, get, losses_of, write_run
from tests.support.undisturbed import engine_in, rows_of, undisturbed, what_was_decided

ROOT = Path(__file__).parents[2]
OPERATIONS = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
LOAD_S = float(os.environ.get("MIXER_LOAD_S", "60"))


def test_the_backup_that_the_document_takes_goes_on_with_the_same_bytes(tmp_path: Path) -> None:
    [script] = [block for block in re.findall(r"```bash\n(.*?)```", OPERATIONS, re.DOTALL) if "BACKUP" in block]
    curriculum = Curriculum.from_yaml(config := write_run(tmp_path))
    expected, journal = undisturbed(config, tmp_path / "undisturbed", 1)
    folder, backup = tmp_path / "runs", tmp_path / "backup"

    def train(engine: Engine, steps: range) -> None:
        for step in steps:
            rows = rows_of(engine, step, 0, 1)
            assert digest_of(rows) == expected[step, 0]
            engine.report(step, losses_of(rows, 0))

    with engine_in(folder, curriculum, snapshot_lines=5, place_steps=4) as engine:
        train(engine, range(30))
        environment = {**os.environ, "FOLDER": str(folder), "BACKUP": str(backup)}
        subprocess.run(["bash", "-euc", script], env=environment, check=True)
        train(engine, range(30, 50))
    shutil.rmtree(folder)
    shutil.copytree(backup, folder)
    with engine_in(folder, curriculum) as engine:
        assert digest_of(rows_of(engine, 29, 0, 1)) == expected[29, 0]  # as before the backup
        train(engine, range(30, curriculum.total_steps))
    assert what_was_decided(list(map(json.loads, engine.journal_lines()))) == what_was_decided(journal)


@pytest.mark.parametrize(("fsync", "is_flushed"), [("phase", False), ("always", True), ("never", False)])
def test_a_report_is_on_the_disk_before_its_answer_if_that_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fsync: str, is_flushed: bool
) -> None:
    flushed: list[Path] = []

    def noting(file: int) -> None:
        if threading.current_thread() is threading.main_thread():
            flushed.append(Path(f"/dev/fd/{file}").resolve())

    curriculum = Curriculum.from_yaml(write_run(tmp_path))
    with engine_in(tmp_path, curriculum, fsync=fsync) as engine:
        rows = rows_of(engine, 0, 0, 1)
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", noting)
            engine.report(0, losses_of(rows, 0))
    assert flushed == ([tmp_path.resolve() / "run" / "journal.jsonl"] if is_flushed else [])


def options_of_serve() -> set[str]:
    app = typer.Typer()
    app.command()(serve)
    return {option for parameter in typer.main.get_command(app).params for option in parameter.opts}


def test_the_unit_starts_the_command_with_options_that_it_has() -> None:
    unit = (ROOT / "deploy" / "mixer.service").read_text()
    [start] = re.findall(r"^ExecStart=(.*)$", unit, re.MULTILINE)
    program, *arguments = shlex.split(start)
    assert Path(program).name == "mixer"
    assert arguments[0] == "serve"
    assert {argument for argument in arguments if argument.startswith("--")} <= options_of_serve()
    [stop_s] = re.findall(r"^TimeoutStopSec=(\d+)$", unit, re.MULTILINE)
    assert int(stop_s) > 30


def test_every_option_and_file_that_the_document_names_is_there() -> None:
    named = set(re.findall(r"`(--[a-z-]+)[` ]", OPERATIONS)) - {"--folder"}
    assert named
    assert named <= options_of_serve()
    links = [link for link in re.findall(r"\]\(([^)]+)\)", OPERATIONS) if "://" not in link]
    assert [link for link in links if not (ROOT / "docs" / link).exists()] == []


def test_the_dashboard_of_grafana_asks_for_metrics_and_labels_that_there_are(tmp_path: Path) -> None:
    curriculum = Curriculum.from_yaml(write_run(tmp_path))
    with engine_in(tmp_path, curriculum) as engine:
        metrics = Metrics(lambda: [engine])
        metrics.request("/weights", "GET", 200, 0.1)
        engine.report(0, losses_of(rows_of(engine, 0, 0, 1), 0))
        engine.alarms.append({"source": engine.curriculum.names[0], "detector": "cliff"})
        text = metrics.text().decode()
    labels: dict[str, set[str]] = {}
    for name, given in re.findall(r"^(mixer_\w+)(?:\{(.*)\})? ", text, re.MULTILINE):
        labels.setdefault(name, set()).update(re.findall(r'(\w+)="', given))
    dashboard = json.loads((ROOT / "deploy" / "grafana.json").read_text())
    expressions = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    legends = [target["legendFormat"] for panel in dashboard["panels"] for target in panel["targets"]]
    assert len(expressions) >= 12
    for expression, legend in zip(expressions, legends, strict=True):
        for name, given in re.findall(r"(mixer_\w+)(?:\{([^}]*)\})?", expression):
            assert name in labels, expression
            shown = re.findall(r"\{\{(\w+)\}\}", legend)
            grouped = re.findall(r"by \(([^)]*)\)", expression)
            used = {*re.findall(r"(\w+)=", given), *shown, *", ".join(grouped).split(", ")} - {""}
            assert used <= labels[name], expression
    variable = dashboard["templating"]["list"][1]["query"]["query"]
    assert re.fullmatch(r"label_values\((\w+), run\)", variable)[1] in labels  # type: ignore[index]


def resident_bytes(status: Path) -> int:
    [kib] = re.findall(r"^VmRSS:\s+(\d+) kB$", status.read_text(), re.MULTILINE)
    return 1024 * int(kib)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_sixty_four_ranks_train_without_an_error_in_memory_that_stays_flat(tmp_path: Path) -> None:
    """For MIXER_LOAD_S seconds, 60 by default."""
    config = write_run(tmp_path, batch_rows=64, total_steps=10**6, phases={"initial_random": 2})
    with Served(config, tmp_path / "runs", "--memory-mib", "16", "--retain-steps", "512") as server:
        assert server.process is not None
        status = Path(f"/proc/{server.process.pid}/status")
        if not status.exists():
            pytest.skip("this system has no /proc to read a process's memory from")
        deadline = time.monotonic() + LOAD_S
        result = simulate_ranks(server.url, num_ranks=64, until=deadline, sample=lambda: resident_bytes(status))
        answer = get(server.url + "/readyz")
        assert answer.status_code == 200
        assert "Traceback" not in server.log()
    assert result.errors == []
    assert result.steps > LOAD_S / 10
    third = len(result.samples) // 3
    middle, last = result.samples[third : 2 * third], result.samples[2 * third :]
    growth = sum(last) / len(last) - sum(middle) / len(middle)
    moments = [result.samples[n * (len(result.samples) - 1) // 10] / 2**20 for n in range(11)]
    print(
        f"{result.steps} steps of 64 ranks in {LOAD_S:.0f} s, {len(result.errors)} errors; MiB at each tenth of the time: "
        f"{', '.join(f'{mebibytes:.0f}' for mebibytes in moments)}; {growth / 2**20:+.1f} from the middle to the last third"
    )
    assert growth < 0.05 * middle[0]


def shape_of(engine: sa.Engine) -> dict[str, Any]:
    """Return the tables of a database, column by column."""
    found = sa.inspect(engine)
    return {
        name: (
            [(each["name"], str(each["type"]), each["nullable"]) for each in found.get_columns(name)],
            found.get_pk_constraint(name),
        )
        for name in found.get_table_names()
    }


def test_a_new_database_has_what_migrations_make_of_an_old_one_and_does_without_them(tmp_path: Path) -> None:
    engines = {name: sa.create_engine(f"sqlite:///{tmp_path / name}.db") for name in ("new", "old")}
    with engines["old"].begin() as connection:
        upgrade(connection, "first")
    opening = "import sys; from service.storage.store import Store; Store.open(sys.argv[1]).close(); print('alembic' in sys.modules)"
    is_migrated = [
        subprocess.check_output([sys.executable, "-c", opening, str(engines[name].url)], text=True).strip()
        for name in ("new", "old", "old")
    ]
    assert is_migrated == ["False", "True", "False"]
    assert shape_of(engines["old"]) == shape_of(engines["new"])
    assert {*shape_of(engines["new"])} == {*tables.metadata.tables}
    for engine in engines.values():
        with engine.begin() as connection:
            assert connection.scalars(sa.select(tables.versions)).all() == [tables.REVISION]
        engine.dispose()


def test_a_new_database_that_a_kill_met_halfway_is_begun_again(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'service.db'}"
    dying = """
import os, sys, sqlalchemy as sa
from service.storage import store
from service.storage import tables
sa.event.listen(tables.audit, "after_create", lambda *_, **__: os._exit(9))
store.Store.open(sys.argv[1])"""
    assert subprocess.run([sys.executable, "-c", dying, url], check=False).returncode == 9
    with contextlib.closing(Store.open(url)) as store:
        assert {*shape_of(store.engine)} == {*tables.metadata.tables}


def test_the_tables_are_those_of_the_newest_migration() -> None:
    folder = Path(service.__file__).parent / "storage" / "migrations"
    assert ScriptDirectory(str(folder)).get_current_head() == tables.REVISION


def test_every_error_of_every_route_is_documented_in_the_one_shape(tmp_path: Path) -> None:
    settings = Settings(folder=tmp_path)
    with contextlib.closing(Store.open(settings.database_url)) as store:
        document = create_app(settings, store).openapi()
    shapes = {
        str(answer["content"]["application/json"]["schema"])
        for path in document["paths"].values()
        for route in path.values()
        for status, answer in route["responses"].items()
        if status >= "400"
    }
    assert shapes == {"{'$ref': '#/components/schemas/ErrorBody'}"}
    assert "ErrorBody" in document["components"]["schemas"]
