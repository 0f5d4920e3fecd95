"""The command line: exit codes, one message per error, JSON for machines, and the demo from start to resume."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mixer.config.curriculum import Curriculum
from mixer.config.files import shipped_config
from mixer.journal.tables import read_tables

MIXER = [sys.executable, "-c", "from mixer.cli import main; main()"]
DEMO_STEPS = 90  # past the warmup and the first checkpoint


def run(*arguments: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*MIXER, *map(str, arguments)], capture_output=True, text=True, check=False, **options)


@pytest.fixture(scope="module")
def cache(gathered: Path) -> dict[str, str]:
    """An environment with a cache that the demos share."""
    return {**os.environ, "MIXER_CACHE": str(gathered), "OMP_NUM_THREADS": "1"}


@pytest.fixture
def config(tmp_path: Path) -> Path:
    (tmp_path / "web.jsonl").write_text("".join(json.dumps({"text": f"page {n} of the web"}) + "\n" for n in range(80)))
    (tmp_path / "code.jsonl").write_text("".join(json.dumps({"text": f"def f{n}(): pass"}) + "\n" for n in range(80)))
    path = tmp_path / "run.yaml"
    path.write_text(
        """
total_steps: 100
batch_rows: 4
sequence_length: 16
tokenizer: {train_vocab_size: 300}
sources:
  - {name: web, data_files: web.jsonl}
  - {name: code, data_files: code.jsonl}
floors: {web: 0.3}
"""
    )
    return path


def test_help_teaches_and_misuse_exits_with_2() -> None:
    text = run("--help").stdout
    assert "mixer demo" in text
    assert all(command in text for command in ("check", "simulate", "demo"))
    assert run("simulate").returncode == 2
    assert run("chekc").returncode == 2
    assert run("check", "no-such-file.yaml").returncode == 2


def test_check_prints_the_regions_and_exits_with_0(config: Path, cache: dict[str, str]) -> None:
    done = run("check", config, "--json", env=cache)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["problems"] == []
    assert report["regimes"][0]["bounds"] == {"web": [0.3, 1.0], "code": [0.0, 0.7]}
    assert report["regimes"][0]["num_vertices"] == 2


def test_check_prints_every_problem_at_once_and_exits_with_1(config: Path, cache: dict[str, str]) -> None:
    (config.parent / "web.jsonl").write_text('{"text": "fine"}\n{"text": \n')
    (config.parent / "code.jsonl").unlink()
    done = run("check", config, env=cache)
    assert done.returncode == 1
    assert "code.jsonl" in done.stdout
    assert "web.jsonl" in done.stdout
    assert "2 problems found" in done.stdout


def test_an_infeasible_file_is_one_message_with_its_code(config: Path) -> None:
    config.write_text(config.read_text().replace("{web: 0.3}", "{web: 0.7, code: 0.5}"))
    done = run("check", config)
    assert done.returncode == 1
    assert "infeasible-region" in done.stderr
    assert "lower them by 0.2 in total" in done.stderr
    assert "Traceback" not in done.stderr


def test_simulate_walks_within_bounds_and_writes_journal_and_page(config: Path, tmp_path: Path) -> None:
    done = run("simulate", config, "--steps", "300", "--out", tmp_path / "out", "--json")
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    story = read_tables(tmp_path / "out" / "journal.jsonl")
    assert summary["phases"] == len(story.phases)
    assert (story.weights()[:, 0] >= 0.3 - 1e-12).all()
    assert "plotly" in Path(summary["page"]).read_text(encoding="utf-8").lower()
    assert run("simulate", config, "--out", tmp_path / "out").returncode == 1  # a journal is never written over


def demo(out: Path, env: dict[str, str], steps: int = DEMO_STEPS) -> subprocess.CompletedProcess[str]:
    return run("demo", "--out", out, "--steps", str(steps), "--json", "--no-report", env=env)


of_one_demo = pytest.mark.xdist_group("finished demo")  # in one process, or two would run it


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, cache: dict[str, str]) -> Path:
    out = tmp_path_factory.mktemp("demo") / "run"
    done = demo(out, cache)
    assert done.returncode == 0, done.stderr
    (out / "summary.json").write_text(done.stdout)
    return out


@of_one_demo
def test_the_demo_learns_and_moves_within_its_bounds(finished: Path) -> None:
    summary = json.loads((finished / "summary.json").read_text())
    assert summary["steps"] == DEMO_STEPS
    assert summary["last_loss"] < summary["first_loss"] - 1
    story = read_tables(finished / "journal.jsonl")
    kinds = {phase["kind"] for phase in story.phases}
    assert kinds == {"random", "bandit"}
    curriculum = Curriculum.from_yaml(shipped_config("demo.yaml"))
    regions = {regime.name: regime.region for regime in curriculum.regimes}
    for phase in story.phases:
        assert regions[phase["regime"]].contains(phase["weights"], atol=1e-12)
    assert np.abs(story.proportions() - story.mean_weights()).max() < 0.01
    assert {row["source"] for row in summary["sources"]} == set(curriculum.names)


@pytest.mark.slow
@of_one_demo
def test_an_interrupted_demo_goes_on_to_the_same_end(finished: Path, tmp_path: Path, cache: dict[str, str]) -> None:
    out = tmp_path / "run"
    process = subprocess.Popen(
        [*MIXER, "demo", "--out", str(out), "--steps", str(DEMO_STEPS), "--json", "--no-report"],
        env=cache, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    journal = out / "journal.jsonl"
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline and not (journal.exists() and journal.stat().st_size > 20_000):
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 1
    assert any((out / "checkpoints").glob("step_*"))
    assert demo(out, cache).returncode == 0
    assert phases_of(out) == phases_of(finished)


@of_one_demo
def test_a_demo_killed_outright_goes_on_from_its_last_checkpoint(
    finished: Path, tmp_path: Path, cache: dict[str, str]
) -> None:
    out = tmp_path / "run"
    process = subprocess.Popen(
        [*MIXER, "demo", "--out", str(out), "--steps", str(DEMO_STEPS), "--json", "--no-report"],
        env=cache, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline and not any((out / "checkpoints").glob("step_*")):
        time.sleep(0.05)
    time.sleep(1.0)  # a few more steps, so that the journal is ahead of the checkpoint
    process.kill()
    process.wait(timeout=60)
    assert demo(out, cache).returncode == 0
    assert phases_of(out) == phases_of(finished)


def phases_of(out: Path) -> list[tuple[int, str, list[float]]]:
    return [(phase["start"], phase["kind"], phase["weights"]) for phase in read_tables(out / "journal.jsonl").phases]


def test_a_served_demo_trains_says_where_its_page_is_and_leaves_nothing_running(
    tmp_path: Path, cache: dict[str, str]
) -> None:
    done = run("demo", "--serve", "--out", tmp_path / "run", "--steps", "6", "--json", env=cache)
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert summary["steps"] == 6
    assert "Inside ANDREA at step 6" in Path(summary["report"]).read_text(encoding="utf-8")
    url = re.search(r"http://127\.0\.0\.1:(\d+)", done.stderr)
    assert url is not None
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", int(url[1]))) != 0


@pytest.mark.slow
@of_one_demo
def test_a_served_demo_that_ctrl_c_stopped_goes_on_to_the_end_of_one_in_process(
    finished: Path, tmp_path: Path, cache: dict[str, str]
) -> None:
    out = tmp_path / "run"
    command = [*MIXER, "demo", "--serve", "--out", str(out), "--steps", str(DEMO_STEPS), "--json", "--no-report"]
    process = subprocess.Popen(command, env=cache, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline and not any((out / "checkpoints").glob("step_*")):
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "run it again to go on" in said
    assert "Traceback" not in said
    again = subprocess.run(command, env=cache, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    story = read_tables(out / "demo" / "journal.jsonl")
    assert [(phase["start"], phase["kind"], phase["weights"]) for phase in story.phases] == phases_of(finished)
    summary = json.loads((finished / "summary.json").read_text())
    assert json.loads(again.stdout)["last_loss"] == summary["last_loss"]


@of_one_demo
def test_a_finished_demo_is_kept_beside_the_new_one(finished: Path, tmp_path: Path, cache: dict[str, str]) -> None:
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    assert demo(out, cache, steps=14).returncode == 0
    assert len(phases_of(tmp_path / "run-1")) == len(phases_of(finished))
    assert len(phases_of(out)) < len(phases_of(finished))
