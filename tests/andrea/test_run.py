"""``andrea train``: one file is the whole run, and whatever ends it, it goes on as if nothing had happened."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ruamel.yaml import YAML

from andrea.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from andrea.cli import app
from andrea.run import Origin, run_training
from mixer.config.curriculum import Curriculum
from mixer.errors import CheckpointError, ConfigError, InvalidLossError, StateMismatchError, TokenizerError
from mixer.journal.file import read_journal
from mixer.sources.prepared.prepare import prepare
from tests.andrea.test_checkpoint import files_limited_to
from tests.support.forking import Forked
from tests.support.serving import Served, wait_until, write_run

STEPS = 60
SECTION: dict[str, Any] = {
    "model": {"width": 16, "num_heads": 2, "num_layers": 1},
    "optimizer": {"peak_lr": 1e-2},
    "checkpoint_every": 10,
    "keep_checkpoints": 2,
    "log_every": 5,
}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MIXER_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


def config_in(folder: Path, andrea: dict[str, Any] | None = None, **changes: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return write_run(folder, **{"total_steps": STEPS, "andrea": SECTION | (andrea or {}), **changes})


def section_alone(folder: Path, **changes: Any) -> Path:
    path = folder / "section.yaml"
    with path.open("w") as file:
        YAML().dump({"andrea": SECTION | changes}, file)
    return path


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    state = load_checkpoint(folder).trainer_state
    return {f"{part}/{name}": t for part in ("model", "optimizer") for name, t in state[part].items()}


def assert_equal_bits(left: Path, right: Path) -> None:
    one, other = tensors_of(left), tensors_of(right)
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


def decided(folder: Path) -> dict[int, list[float]]:
    """The weights of each phase by its first step; one that was decided again after a kill is there once."""
    records = [record for record in read_journal(folder / "journal.jsonl") if record["type"] == "phase"]
    return {record["start"]: list(record["weights"]) for record in records}


def losses_of(folder: Path) -> list[float]:
    """The summed losses of every step, from the journal."""
    reports = [record for record in read_journal(folder / "journal.jsonl") if record["type"] == "feedback"]
    sums = {record["step"]: sum(record["loss_sums"]) for record in reports}
    return [sums[step] for step in range(len(sums))]


def run_in_process(config: str, out: str, url: str | None) -> None:
    """What a forked process does."""
    torch.set_num_threads(1)
    sys.exit(run_training(Path(config), Path(out), origin=None if url is None else Origin(url)))


def started(config: Path, out: Path, url: str | None = None) -> Forked:
    out.parent.mkdir(parents=True, exist_ok=True)
    return Forked(run_in_process, str(config), str(out), url, log=out.parent / f"{out.name}.log")


def wait_for_checkpoint(process: Forked, out: Path, step: int) -> None:
    """Wait until a checkpoint of this step or a later one is there."""

    def is_there() -> bool:
        assert process.poll() in (None, 0), (out.parent / f"{out.name}.log").read_text()
        found = [int(path.name[5:]) for path in out.glob("checkpoints/step_*")]
        return bool(found) and max(found) >= step

    wait_until(is_there)


# --- the whole run


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run from start to end: its config is beside its folder."""
    folder = tmp_path_factory.mktemp("undisturbed")
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MIXER_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        assert run_training(config_in(folder), folder / "out") == 0
    torch.set_num_threads(num_threads)
    return folder


def test_a_run_leaves_a_journal_and_its_newest_checkpoints(undisturbed: Path) -> None:
    out = undisturbed / "out"
    assert sorted(path.name for path in (out / "checkpoints").iterdir()) == ["step_0000050", "step_0000060"]
    checkpoint = load_checkpoint(out / "checkpoints")
    assert checkpoint.step == STEPS
    assert checkpoint.tokenizer is not None
    assert checkpoint.model_config.width == 16
    reports = [record for record in read_journal(out / "journal.jsonl") if record["type"] == "feedback"]
    assert sorted(record["step"] for record in reports) == list(range(STEPS))


def test_a_finished_run_is_said_to_be_over_and_left_as_it_is(
    undisturbed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = tensors_of(undisturbed / "out")
    assert run_training(undisturbed / "run.yaml", undisturbed / "out") == 0
    assert "was over already: 60 steps" in capsys.readouterr().err
    after = tensors_of(undisturbed / "out")
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_exits_and_the_next_start_ends_with_the_same_bits(
    number: signal.Signals, undisturbed: Path, tmp_path: Path
) -> None:
    config, out = config_in(tmp_path / "run", {"checkpoint_every": 1000}), tmp_path / "out"
    process = started(config, out)
    wait_for_checkpoint(process, out, 0)
    wait_until(lambda: "step 5/" in (tmp_path / "out.log").read_text())
    process.send_signal(number)
    assert process.wait(60) == 128 + number
    step = load_checkpoint(out).step
    assert 5 <= step < STEPS
    assert f"stopped at step {step} of {STEPS}; run it again" in (tmp_path / "out.log").read_text()
    assert run_training(config, out) == 0
    assert_equal_bits(out, undisturbed / "out")
    assert decided(out) == decided(undisturbed / "out")


@pytest.mark.parametrize("step", [0, 20])
def test_a_killed_run_ends_with_the_bits_of_an_undisturbed_one(step: int, undisturbed: Path, tmp_path: Path) -> None:
    config, out = config_in(tmp_path / "run"), tmp_path / "out"
    process = started(config, out)
    wait_for_checkpoint(process, out, step)
    process.kill()
    assert process.wait(60) != 0
    assert load_checkpoint(out).step < STEPS
    assert run_training(config, out) == 0
    assert_equal_bits(out, undisturbed / "out")
    assert decided(out) == decided(undisturbed / "out")


def test_sigusr1_saves_and_goes_on(tmp_path: Path) -> None:
    config, out = config_in(tmp_path / "run", {"checkpoint_every": 1000, "keep_checkpoints": 9}), tmp_path / "out"
    process = started(config, out)
    wait_until(lambda: (tmp_path / "out.log").exists() and "step 5/" in (tmp_path / "out.log").read_text())
    process.send_signal(signal.SIGUSR1)
    assert process.wait(100) == 0
    steps = sorted(int(path.name[5:]) for path in (out / "checkpoints").iterdir())
    assert (steps[0], len(steps), steps[-1]) == (0, 3, STEPS)
    assert 5 <= steps[1] < STEPS


def test_a_run_over_a_service_that_is_killed_with_its_trainer_ends_with_the_same_bits(
    undisturbed: Path, tmp_path: Path
) -> None:
    config, out = config_in(tmp_path / "run"), tmp_path / "out"
    section = section_alone(tmp_path)
    with Served(config, tmp_path / "service") as server:
        trainer = started(section, out, server.url)
        wait_for_checkpoint(trainer, out, 20)
        server.kill()
        time.sleep(0.05)
        trainer.kill()
        trainer.wait(60)
        assert load_checkpoint(out).step < STEPS
        server.start()
        assert run_training(section, out, origin=Origin(server.url)) == 0
    assert not (out / "journal.jsonl").exists()  # the service has it
    assert_equal_bits(out, undisturbed / "out")


# --- what it trains with


def test_the_same_step_is_taken_in_parts(undisturbed: Path, tmp_path: Path) -> None:
    assert run_training(config_in(tmp_path, {"accumulate": 4}, total_steps=6), tmp_path / "parts") == 0
    assert run_training(config_in(tmp_path, total_steps=6), tmp_path / "whole") == 0
    parts, whole = tensors_of(tmp_path / "parts"), tensors_of(tmp_path / "whole")
    for name in whole:
        torch.testing.assert_close(parts[name], whole[name], atol=2e-5, rtol=1e-3, msg=name)


def test_rows_that_cannot_be_divided_into_parts_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"batch of 8 rows cannot be divided into 3 parts \(accumulate\)"):
        run_training(config_in(tmp_path, {"accumulate": 3}), tmp_path / "out")


def test_a_pivots_checkpoint_stays(tmp_path: Path) -> None:
    config = config_in(tmp_path, total_steps=60, pivots=[{"name": "polish", "at_step": 25, "floors": {"s1": 0.3}}])
    assert run_training(config, tmp_path / "out") == 0
    names = sorted(path.name for path in (tmp_path / "out" / "checkpoints").iterdir())
    assert names == ["step_0000025", "step_0000050", "step_0000060"]


def test_a_run_begins_with_the_weights_and_moments_of_another_and_its_place_in_the_schedule(
    undisturbed: Path, tmp_path: Path
) -> None:
    start = undisturbed / "out" / "checkpoints" / "step_0000050"
    settings = {"start_from": str(start), "optimizer": {"peak_lr": 1e-2, "first_step": 50, "warmup_steps": 3}}
    assert run_training(config_in(tmp_path, settings, total_steps=10), tmp_path / "out") == 0
    first = load_checkpoint(tmp_path / "out" / "checkpoints")
    assert first.step == 10
    begun = load_checkpoint(start)
    zero = tmp_path / "again"
    run_training(config_in(tmp_path, settings | {"keep_checkpoints": 9}, total_steps=10), zero)
    at_zero = load_checkpoint(zero / "checkpoints" / "step_0000000")
    assert all(torch.equal(at_zero.trainer_state["model"][k], v) for k, v in begun.trainer_state["model"].items())
    assert all(
        torch.equal(at_zero.trainer_state["optimizer"][k], v) for k, v in begun.trainer_state["optimizer"].items()
    )


def test_held_out_losses_by_source_are_written_every_so_many_steps(tmp_path: Path) -> None:
    config = config_in(tmp_path, {"evaluate_every": 25, "loggers": ["tensorboard"]}, holdout=0.2)
    assert run_training(config, tmp_path / "out") == 0
    lines = [json.loads(line) for line in (tmp_path / "out" / "held_out.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [25, 50, 60]
    assert all(set(line["losses"]) == {"s0", "s1", "s2", "s3"} for line in lines)
    assert np.mean(list(lines[-1]["losses"].values())) < np.mean(list(lines[0]["losses"].values()))
    assert len(list((tmp_path / "out" / "tensorboard").iterdir())) == 1


def test_evaluating_changes_no_bit_of_the_training(tmp_path: Path) -> None:
    for name, every in (("with", 7), ("without", 0)):
        config = config_in(tmp_path, {"evaluate_every": every}, holdout=0.2)
        assert run_training(config, tmp_path / name) == 0
    assert_equal_bits(tmp_path / "with", tmp_path / "without")


def test_probes_are_answered_and_their_losses_kept(tmp_path: Path) -> None:
    config = config_in(tmp_path, {"evaluate_every": 0}, holdout=0.2, probes={"rows": 2}, prepared="rows")
    prepare(Curriculum.from_yaml(config), tmp_path / "rows")
    assert run_training(config, tmp_path / "out") == 0
    lines = [json.loads(line) for line in (tmp_path / "out" / "held_out.jsonl").read_text().splitlines()]
    records = [r for r in read_journal(tmp_path / "out" / "journal.jsonl") if r["type"] == "probe"]
    assert len(lines) == len(records) > 3


def test_lines_tell_of_the_run_where_there_is_no_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_training(config_in(tmp_path, total_steps=10), tmp_path / "out", as_json=True) == 0
    said = capsys.readouterr()
    assert re.search(r"step 10/10 loss \d\.\d+ [\d,]+ tokens/s left 0:00:00 firehose, \w+: s\d 0\.\d\d", said.err)
    summary = json.loads(said.out)
    assert (summary["steps"], summary["total_steps"]) == (10, 10)
    assert summary["checkpoint"].endswith("step_0000010")


# --- bad input, refused before anything starts


def refused(config: Path, out: Path, **options: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        run_training(config, out, **options)
    assert not out.exists()
    return str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimiser": {}}, r"andrea\.optimiser: unknown key; did you mean 'optimizer'"),
        ({"optimizer": {"peek_lr": 1}}, r"andrea\.optimizer\.peek_lr: unknown key; did you mean 'peak_lr'"),
        ({"optimizer": {"peak_lr": -1}}, r"andrea\.optimizer: peak_lr is -1\.0; it must be positive"),
        ({"optimizer": {"peak_lr": "fast"}}, r"andrea\.optimizer\.peak_lr: .* got 'fast'"),
        ({"model": "120b"}, r"andrea\.model\.size: .*'120m', '12m' or 'tiny'.* got '120b'"),
        ({"model": {"width": 8}}, r"andrea\.model: give a size .* or all of width, num_heads and num_layers"),
        ({"model": {"size": "12m", "width": 8}}, r"andrea\.model: size 12m has its own width"),
        ({"model": {"width": 9, "num_heads": 2, "num_layers": 1}}, r"width 9 cannot be split over 2 heads"),
        ({"model": {"size": "tiny", "context": 8}}, r"sequence_length 16 do not fit a context of 8"),
        ({"checkpoint_every": 0}, r"andrea\.checkpoint_every: .*greater than or equal to 1, got 0"),
        ({"evaluate_every": 5}, r"andrea\.evaluate_every: the curriculum holds nothing out"),
        ({"loggers": ["mlflow"]}, r"andrea\.loggers\.0: .*'tensorboard' or 'wandb'"),
    ],
)
def test_settings_that_cannot_be_are_named(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    assert re.search(message, refused(config_in(tmp_path, changes), tmp_path / "out"))


def test_problems_of_both_parts_are_reported_at_once(tmp_path: Path) -> None:
    said = refused(config_in(tmp_path, {"compil": True}, floors={"s9": 0.1}), tmp_path / "out")
    assert "andrea.compil: unknown key" in said
    assert "s9" in said


def test_a_file_with_sources_and_an_address_is_refused(tmp_path: Path) -> None:
    said = refused(config_in(tmp_path), tmp_path / "out", origin=Origin("http://127.0.0.1:1"))
    assert "names sources of its own (s0, s1, s2, ...), but with --url http://127.0.0.1:1" in said


def test_a_file_without_sources_needs_an_address(tmp_path: Path) -> None:
    assert "has no sources; add a curriculum" in refused(section_alone(tmp_path), tmp_path / "out")


def test_the_section_changes_neither_fingerprint_nor_what_mixer_reads(tmp_path: Path) -> None:
    with_section, without = config_in(tmp_path / "a"), write_run(tmp_path / "a", total_steps=STEPS)
    fingerprint = Curriculum.from_yaml(without).fingerprint
    assert Curriculum.from_yaml(with_section).fingerprint == fingerprint


def test_weights_of_another_shape_are_refused_and_the_folder_left_as_it_is(undisturbed: Path, tmp_path: Path) -> None:
    wider = {"model": {"width": 32, "num_heads": 2, "num_layers": 1}}
    with pytest.raises(StateMismatchError, match=r"width is 16 in the state and 32 here"):
        run_training(config_in(tmp_path, wider), _copy(undisturbed / "out", tmp_path / "out"))
    assert_equal_bits(tmp_path / "out", undisturbed / "out")
    settings = wider | {"start_from": str(undisturbed / "out")}
    with pytest.raises(
        StateMismatchError, match=r"token_table\.weight is \(300, 16\), where the model has \(300, 32\)"
    ):
        run_training(config_in(tmp_path, settings), tmp_path / "other")


def test_weights_of_another_tokenizer_are_refused(undisturbed: Path, tmp_path: Path) -> None:
    settings = {"start_from": str(undisturbed / "out")}
    config = config_in(tmp_path, settings, tokenizer={"train_vocab_size": 280}, vocab_size=300)
    with pytest.raises(TokenizerError, match=r"step 60 was trained with another tokenizer .* give its tokenizer\.json"):
        run_training(config, tmp_path / "out")


def test_a_torn_newest_checkpoint_is_named_with_the_one_before_it(undisturbed: Path, tmp_path: Path) -> None:
    out = _copy(undisturbed / "out", tmp_path / "out")
    torn = out / "checkpoints" / "step_0000060" / "model.safetensors"
    torn.write_bytes(torn.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=r"step_0000060 cannot be used .* cut short .* go back to .*step_0000050"):
        run_training(undisturbed / "run.yaml", out)


def test_a_converted_checkpoint_cannot_be_gone_on_with(undisturbed: Path, tmp_path: Path) -> None:
    checkpoint = load_checkpoint(undisturbed / "out")
    save_checkpoint(tmp_path / "out" / "checkpoints", Checkpoint(checkpoint.trainer_state, [], checkpoint.tokenizer))
    with pytest.raises(CheckpointError, match=r"does not say where the data stands; name it as andrea\.start_from"):
        run_training(undisturbed / "run.yaml", tmp_path / "out")


def _copy(folder: Path, target: Path) -> Path:
    return Path(shutil.copytree(folder, target))


# --- the command


def test_train_is_a_command_of_mixer_too() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert project["entry-points"]["mixer.commands"]["train"] == "andrea.cli:train"
    assert project["scripts"]["andrea"] == "andrea.cli:main"
    assert "train" in {command.callback.__name__ for command in app.registered_commands if command.callback}


@pytest.mark.slow
def test_two_ranks_of_torchrun_train_as_one_process_does_and_go_on_after_a_signal(tmp_path: Path) -> None:
    config = config_in(tmp_path, {"checkpoint_every": 1000}, total_steps=80, prepared="rows")
    prepare(Curriculum.from_yaml(config), tmp_path / "rows")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    command += ["andrea.train", str(config), "--out", str(tmp_path / "ranks")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    log = tmp_path / "log"
    with log.open("w") as file:
        process = subprocess.Popen(command, env=environment, stdout=file, stderr=file)
        wait_until(lambda: "step 10/" in log.read_text())
        process.send_signal(signal.SIGTERM)
        assert process.wait(100) != 0
    stopped = load_checkpoint(tmp_path / "ranks")
    assert 10 <= stopped.step < 80
    assert len(stopped.dataset_states) == 2
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert run_training(config, tmp_path / "one") == 0
    ranks, one = losses_of(tmp_path / "ranks"), losses_of(tmp_path / "one")
    np.testing.assert_allclose(ranks[:12], one[:12], rtol=1e-4)  # rounding is all that differs, and it grows
    np.testing.assert_allclose(ranks, one, rtol=0.05)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of torch's compiler, about itself
def test_a_compiled_run_learns_as_one_that_is_not(tmp_path: Path) -> None:
    losses = []
    for name, settings in (("plain", {}), ("compiled", {"compile": True})):
        assert run_training(config_in(tmp_path, settings, total_steps=12), tmp_path / name) == 0
        losses.append(load_checkpoint(tmp_path / name).trainer_state["model"])
    for name in losses[0]:
        torch.testing.assert_close(losses[1][name], losses[0][name], atol=1e-3, rtol=1e-2, msg=name)


# --- what goes wrong on the way


def test_a_full_disk_is_said_and_the_run_goes_on_from_the_checkpoint_before(undisturbed: Path, tmp_path: Path) -> None:
    """The disk is full once the journal and the first checkpoints are there."""
    config, out = config_in(tmp_path / "run"), tmp_path / "out"
    limit = max(path.stat().st_size for path in (undisturbed / "out" / "checkpoints").rglob("*")) - 1
    with (
        files_limited_to(limit),
        pytest.raises(CheckpointError, match=r"step_0000010 could not be written .*too large"),
    ):
        run_training(config, out)
    assert [path.name for path in (out / "checkpoints").iterdir()] == ["step_0000000"]
    assert run_training(config, out) == 0
    assert_equal_bits(out, undisturbed / "out")


def test_a_loss_that_is_not_finite_ends_the_run_and_leaves_the_checkpoint_before(tmp_path: Path) -> None:
    settings = {"optimizer": {"peak_lr": 1e30, "clip_norm": None, "warmup_steps": 0}, "checkpoint_every": 1}
    with pytest.raises(InvalidLossError, match=r"lower peak_lr"):
        run_training(config_in(tmp_path, settings), tmp_path / "out")
    assert load_checkpoint(tmp_path / "out").step < STEPS


def test_a_run_goes_on_with_as_many_threads_as_it_began_with(tmp_path: Path) -> None:
    config = config_in(tmp_path, total_steps=10)
    assert run_training(config, tmp_path / "out") == 0  # with one thread
    (tmp_path / "out" / "checkpoints" / "step_0000010").rename(tmp_path / "last")
    torch.set_num_threads(2)
    assert run_training(config, tmp_path / "out") == 0
    assert torch.get_num_threads() == 1
