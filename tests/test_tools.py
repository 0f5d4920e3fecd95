"""Exports and loggers: what other tools get is what the journal holds, and they cannot stop a run."""

from __future__ import annotations

import csv
import logging
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
from typer.testing import CliRunner

from mixer.analysis.export import export_tables
from mixer.cli import app
from mixer.journal.file import Journal, read_journal
from mixer.loggers import LoggedWalk, MlflowLogger, PhaseLogger, TensorBoardLogger, WandbLogger
from mixer.losses import SourceLosses
from mixer.sampling.phases import Phase
from mixer.walk.walk import Walk
from tests.policies.test_rewards import losses_of
from tests.support.curricula import curriculum, drive, same_phases

STEPS = 120


@pytest.fixture
def path(tmp_path: Path) -> Path:
    with Journal.create(tmp_path / "w") as journal:
        drive(Walk(curriculum(3), journal=journal), STEPS)
    return tmp_path / "w"


@pytest.mark.parametrize("kind", ["parquet", "csv"])
def test_tables_hold_every_phase_and_report_to_the_last_digit(path: Path, tmp_path: Path, kind: str) -> None:
    done = CliRunner().invoke(app, ["export", str(path), "--to", kind, "-o", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    tables: dict[str, list[dict[str, Any]]] = {}
    for name in ("phases", "feedback"):
        file = tmp_path / "out" / f"{name}.{kind}"
        if kind == "parquet":
            tables[name] = pyarrow.parquet.read_table(file).to_pylist()
        else:
            tables[name] = list(csv.DictReader(file.read_text(encoding="utf-8").splitlines()))
    records = list(read_journal(path))
    weights = [w for record in records if record["type"] == "phase" for w in record["weights"]]
    assert [float(row["weight"]) for row in tables["phases"]] == weights
    sums = [value for record in records if record["type"] == "feedback" for value in record["loss_sums"]]
    assert [float(row["loss_sum"]) for row in tables["feedback"]] == sums
    assert {row["source"] for row in tables["phases"]} == {"source-0", "source-1", "source-2"}
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [f"feedback.{kind}", f"phases.{kind}"]
    again = CliRunner().invoke(app, ["export", str(path), "--to", kind, "-o", str(tmp_path / "out")])
    assert again.exit_code == 2  # what is there is never written over


def test_a_damaged_journal_leaves_no_half_written_table(path: Path, tmp_path: Path) -> None:
    raw = path.read_bytes()
    path.write_bytes(raw[:-40] + b"x" + raw[-39:])
    done = CliRunner().invoke(app, ["export", str(path), "--to", "csv", "-o", str(tmp_path / "out")])
    assert done.exit_code == 1
    assert list((tmp_path / "out").iterdir()) == []


def test_large_tables_are_written_in_parts(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mixer.analysis.export.CHUNK_ROWS", 7)
    files = export_tables(path, tmp_path / "out", "parquet")
    assert pyarrow.parquet.ParquetFile(files[0]).num_row_groups > 2
    assert pyarrow.parquet.read_table(files[1]).num_rows == sum(
        len(record["sources"]) for record in read_journal(path) if record["type"] == "feedback"
    )


class Recorder(PhaseLogger):
    def __init__(self) -> None:
        super().__init__()
        self.sent: list[tuple[int, dict[str, float]]] = []

    def send(self, metrics: Any, step: int) -> None:
        self.sent.append((step, dict(metrics)))


class Broken:
    def on_phase(self, phase: Phase) -> None:
        raise ConnectionError("no network")

    def on_feedback(self, step: int, losses: SourceLosses) -> None:
        raise ConnectionError("no network")

    def close(self) -> None:
        raise ConnectionError("no network")


def test_a_logged_walk_decides_as_any_walk_and_tells_of_each_phase_once(caplog: pytest.LogCaptureFixture) -> None:
    run, recorder = curriculum(3), Recorder()
    logged, plain = LoggedWalk(run, loggers=[Broken(), recorder]), Walk(run)
    with caplog.at_level(logging.WARNING):
        phases = drive(logged, STEPS)
    assert same_phases(phases, drive(plain, STEPS))
    assert [record.getMessage() for record in caplog.records] == [
        "Broken failed and is told no more: ConnectionError: no network"
    ]
    starts = sorted({phase.start for phase in phases})
    assert [step for step, _ in recorder.sent] == starts
    assert recorder.sent[0][1]["weight/source-0"] == phases[0].weights[0]
    losses = [value for _, metrics in recorder.sent for name, value in metrics.items() if name.startswith("loss/")]
    assert losses
    assert all(1 <= value <= 5 for value in losses)
    assert not any(name.startswith("loss/") for name in recorder.sent[0][1])
    logged.close_loggers()
    assert recorder.sent[-1][0] == STEPS - 1
    assert set(recorder.sent[-1][1]) <= {"loss/source-0", "loss/source-1", "loss/source-2"}


def test_losses_are_means_over_the_reports_since_the_phase_before() -> None:
    recorder = Recorder()
    walk = LoggedWalk(curriculum(2), loggers=[recorder])
    phase = walk.phase_at(0)
    losses = [losses_of([level, 0.0], [1, 0]) for level in (1.0, 3.0)]
    walk.report(0, losses[0])
    walk.report(0, losses[0])  # a report that comes twice counts once
    walk.report(1, losses[1])
    walk.phase_at(phase.end)
    assert recorder.sent[1][1]["loss/source-0"] == 2.0
    assert "loss/source-1" not in recorder.sent[1][1]


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Read event files back with the reader of tensorboardX's own protocol buffers."""
    from tensorboardX.proto.event_pb2 import Event

    found: dict[str, list[tuple[int, float]]] = {}
    [file] = folder.iterdir()
    raw, at = file.read_bytes(), 0
    while at < len(raw):  # TFRecord: length, its checksum, the record, its checksum
        length = int.from_bytes(raw[at : at + 8], "little")
        event = Event.FromString(raw[at + 12 : at + 12 + length])
        for value in event.summary.value:
            found.setdefault(value.tag, []).append((event.step, value.simple_value))
        at += 16 + length
    return found


def test_tensorboard_gets_weights_and_losses_live_and_from_a_journal(path: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboardX")
    done = CliRunner().invoke(app, ["export", str(path), "--to", "tensorboard", "-o", str(tmp_path / "exported")])
    assert done.exit_code == 0, done.output
    walk = LoggedWalk(curriculum(3), loggers=[TensorBoardLogger(tmp_path / "live")])
    drive(walk, STEPS)
    walk.close_loggers()
    phases = [record for record in read_journal(path) if record["type"] == "phase"]
    for found in (scalars(tmp_path / "exported"), scalars(tmp_path / "live")):
        steps, values = zip(*found["weight/source-1"], strict=True)
        assert list(steps) == [phase["start"] for phase in phases]
        np.testing.assert_allclose(values, [phase["weights"][1] for phase in phases], rtol=1e-6)
        assert len(found["loss/source-1"]) >= len(phases) - 1


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # theirs
def test_wandb_gets_them_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    run = wandb.init(project="mixer", dir=str(tmp_path), settings=wandb.Settings(silent=True))
    logger = WandbLogger(run)
    walk = LoggedWalk(curriculum(3), loggers=[logger])
    drive(walk, STEPS)
    logger.on_sample(STEPS - 1, "region <b> region", {"score": 12.5})
    walk.close_loggers()
    summary = dict(run.summary)
    run.finish()
    newest = walk.phase_at(walk.frontier - 1)
    assert summary["mixer/weight/source-0"] == pytest.approx(newest.weights[0])
    assert summary["mixer/step"] == STEPS - 1
    assert summary["mixer/sample/score"] == 12.5
    [page] = tmp_path.rglob("*.html")
    assert "region &lt;b&gt; region" in page.read_text()
    [file] = tmp_path.rglob("run-*.wandb")
    deadline = time.monotonic() + 20
    while b"mixer/weight/source-0" not in file.read_bytes():  # its service writes after finish() has returned
        assert time.monotonic() < deadline
        time.sleep(0.2)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # theirs
def test_mlflow_gets_them_in_its_file_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow.set_tracking_uri(f"file://{tmp_path}/mlruns")
    with mlflow.start_run() as run:
        walk = LoggedWalk(curriculum(3), loggers=[MlflowLogger(run.info.run_id)])
        phases = drive(walk, STEPS)
        walk.close_loggers()
    history = mlflow.tracking.MlflowClient().get_metric_history(run.info.run_id, "mixer/weight/source-0")
    expected = {phase.start: phase.weights[0] for phase in phases}
    assert {metric.step: metric.value for metric in history} == pytest.approx(expected)
