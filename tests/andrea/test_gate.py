"""The coherence gate: it changes no bit of the training, survives every stop, and halts at the fifth low sample."""

from __future__ import annotations

import json
import logging
import shutil
import signal
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from andrea.checkpoint import load_checkpoint
from andrea.cli import app
from andrea.gate import Gate
from andrea.lines import append_line, keep_up_to, read_lines
from andrea.progress import check_loggers
from andrea.run import HALTED, Origin, run_training
from andrea.settings import AndreaSettings, GateSettings
from mixer.errors import CheckpointError, ConfigError, MissingDataError, MissingDependencyError
from tests.andrea.test_checkpoint import files_limited_to
from tests.andrea.test_run import (
    STEPS,
    assert_equal_bits,
    cache,
    config_in,
    one_thread,
    section_alone,
    started,
    tensors_of,
    undisturbed,
    wait_for_checkpoint,
)
from tests.support.serving import Served, get, write_run
from tests.test_tools import scalars

__all__ = ["cache", "one_thread", "undisturbed"]  # fixtures

SAMPLED: dict[str, Any] = {"sample_every": 6, "sample_tokens": 24, "gate": {"halt": False}}


def samples(out: Path) -> list[dict[str, Any]]:
    return read_lines(out / "samples.jsonl")


# --- counting


def counted(scores: list[float | None], *, grace_steps: int = 0, **settings: Any) -> list[int]:
    gate = Gate(GateSettings(**settings), grace_steps)
    found = []
    for number, score in enumerate(scores):
        gate.note(number, score)
        found.append(gate.low_in_row)
    return found


def test_the_gate_halts_exactly_at_the_fifth_in_a_row() -> None:
    gate = Gate(GateSettings(), 0)
    halted = []
    for step, score in enumerate([50.0, 29.9, 29.9, 29.9, 29.9, 29.9]):
        gate.note(step, score)
        halted.append(gate.is_halted)
    assert halted == [False, False, False, False, False, True]


def test_a_good_one_between_begins_anew_and_the_threshold_itself_is_good() -> None:
    assert counted([40.0, 1.0, 1.0, 1.0, 1.0, 30.0, 1.0, 1.0]) == [0, 1, 2, 3, 4, 0, 1, 2]


def test_what_was_never_coherent_cannot_collapse_before_the_grace_is_over() -> None:
    assert counted([1.0] * 6, grace_steps=4) == [0, 0, 0, 0, 1, 2]
    assert counted([1.0, 31.0, 1.0, 1.0], grace_steps=100) == [0, 0, 1, 2]


def test_a_sample_without_a_score_counts_as_nothing() -> None:
    assert counted([50.0, 1.0, None, 1.0]) == [0, 1, 1, 2]


@given(st.lists(st.floats(0, 100), max_size=40), st.integers(1, 6))
def test_the_gate_is_halted_when_the_newest_are_low_and_as_many_as_its_patience(
    scores: list[float], patience: int
) -> None:
    gate = Gate(GateSettings(patience=patience), 0)
    for number, score in enumerate(scores):
        gate.note(number, score)
    newest = scores[-patience:]
    assert gate.is_halted == (len(newest) == patience and all(score < 30 for score in newest))


# --- in a run


@pytest.fixture(scope="module")
def sampled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run from start to end that draws samples: its config is beside its folder."""
    folder = tmp_path_factory.mktemp("sampled")
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MIXER_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        assert run_training(config_in(folder, SAMPLED), folder / "out") == 0
    torch.set_num_threads(num_threads)
    return folder


def test_samples_are_kept_and_change_no_bit_of_the_training(undisturbed: Path, sampled: Path) -> None:
    assert_equal_bits(sampled / "out", undisturbed / "out")
    found = samples(sampled / "out")
    assert [sample["step"] for sample in found] == list(range(6, STEPS + 1, 6))
    assert all(sample["text"] and 0 <= sample["score"] <= 100 for sample in found)
    assert found[0]["text"] != found[1]["text"]


def test_a_run_that_was_stopped_draws_the_same_samples_again(sampled: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = started(sampled / "run.yaml", out)
    wait_for_checkpoint(process, out, 20)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert run_training(sampled / "run.yaml", out) == 0
    assert samples(out) == samples(sampled / "out")
    one, other = (load_checkpoint(folder).gate_state for folder in (out, sampled / "out"))
    assert one is not None
    assert other is not None
    assert one[0] == other[0]
    assert all(torch.equal(one[1][name], other[1][name]) for name in ("rows", "source_ids"))


def test_samples_of_after_the_checkpoint_and_a_torn_line_are_drawn_again(sampled: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(sampled / "out", out)
    shutil.rmtree(out / "checkpoints" / "step_0000060")
    with (out / "samples.jsonl").open("a") as file:
        file.write('{"step": 66, "te')
    assert run_training(sampled / "run.yaml", out) == 0
    assert samples(out) == samples(sampled / "out")


HALTING = {"sample_every": 3, "sample_tokens": 24, "gate": {"threshold": 100, "patience": 5, "grace_steps": 6}}


def test_a_run_halts_at_the_fifth_low_sample_with_a_checkpoint_and_counts_on_after_a_resume(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, out = config_in(tmp_path, HALTING), tmp_path / "out"
    assert run_training(config, out) == HALTED
    assert [sample["low_in_row"] for sample in samples(out)] == [0, 1, 2, 3, 4, 5]
    assert load_checkpoint(out).step == 18
    said = " ".join(capsys.readouterr().err.split())
    assert "halted by the coherence gate at step 18 of 60: 5 samples in a row scored less than 100" in said
    assert run_training(config, out) == HALTED  # goes on, and halts at the next one that is low
    assert load_checkpoint(out).step == 21


def test_the_count_is_in_the_checkpoint(tmp_path: Path) -> None:
    config, out = config_in(tmp_path, HALTING | {"checkpoint_every": 1}), tmp_path / "out"
    process = started(config, out)
    wait_for_checkpoint(process, out, 10)
    process.send_signal(signal.SIGTERM)
    assert process.wait() in (128 + signal.SIGTERM, HALTED)
    assert run_training(config, out) == HALTED
    assert [sample["low_in_row"] for sample in samples(out)][:6] == [0, 1, 2, 3, 4, 5]


def test_without_halt_low_samples_are_counted_alone(tmp_path: Path) -> None:
    gate = {**HALTING["gate"], "halt": False}  # type: ignore[dict-item]
    assert run_training(config_in(tmp_path, HALTING | {"gate": gate}), tmp_path / "out") == 0
    assert samples(tmp_path / "out")[-1]["low_in_row"] == 19


def test_a_prompt_longer_than_the_context_is_refused_before_anything_is_trained(tmp_path: Path) -> None:
    config = config_in(tmp_path, SAMPLED | {"sample_prompt": "one two three " * 20})
    with pytest.raises(ConfigError, match=r"andrea\.sample_prompt has \d+ tokens .* context is 16; shorten it"):
        run_training(config, tmp_path / "out")
    assert not (tmp_path / "out" / "checkpoints").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sample_every": -1}, r"andrea\.sample_every"),
        ({"gate": {"threshold": 101}}, r"andrea\.gate\.threshold"),
        ({"gate": {"patience": 0}}, r"andrea\.gate\.patience"),
        ({"gate": {"tolerance": 3}}, r"andrea\.gate\.tolerance"),
        ({"sample_temperature": float("nan")}, r"andrea\.sample_temperature"),
    ],
)
def test_settings_that_cannot_be_are_named(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        run_training(config_in(tmp_path, changes), tmp_path / "out")


def test_loggers_that_are_not_installed_are_named_before_anything_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    absent = ("wandb", "tensorboardX")
    monkeypatch.setattr("andrea.progress.find_spec", lambda name: None if name in absent else find_spec(name))
    config = config_in(tmp_path, {"loggers": ["tensorboard", "wandb"]})
    with pytest.raises(MissingDependencyError, match=r"\(tensorboardX,wandb\).*\[tensorboard,wandb\]"):
        run_training(config, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    check_loggers(AndreaSettings())


def test_event_files_have_the_text_and_its_score(tmp_path: Path) -> None:
    pytest.importorskip("tensorboardX")
    config = config_in(tmp_path, SAMPLED | {"loggers": ["tensorboard"]}, total_steps=12)
    assert run_training(config, tmp_path / "out") == 0
    [folder] = tmp_path.rglob("tensorboard")
    kept, told = samples(tmp_path / "out"), scalars(folder)
    assert [value for _, value in told["sample/score"]] == pytest.approx([sample["score"] for sample in kept], rel=1e-3)
    [texts] = [found for name, found in told.items() if name.startswith("sample/text")]
    assert [step for step, _ in texts] == [sample["step"] for sample in kept]


# --- the service's page


def test_samples_of_a_trainer_of_a_service_are_shown_by_it_and_survive_its_restart(tmp_path: Path) -> None:
    with Served(write_run(tmp_path, total_steps=STEPS), tmp_path / "service") as service:
        config = section_alone(tmp_path, **SAMPLED)
        assert run_training(config, tmp_path / "out", origin=Origin(service.url)) == 0
        shown = get(service.url + "/samples?limit=100").json()["samples"]
        kept = samples(tmp_path / "out")
        assert [sample["step"] for sample in shown] == [sample["step"] for sample in reversed(kept)]
        assert [sample["text"] for sample in shown] == [sample["text"] for sample in reversed(kept)]
        service.kill()
        service.start()
        assert get(service.url + "/samples?limit=2").json()["samples"] == shown[:2]


# --- the file and the command


def test_a_torn_last_line_is_named_and_left_out_and_damage_before_it_is_an_error(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "samples.jsonl"
    append_line(path, {"step": 1})
    append_line(path, {"step": 2})
    with path.open("a") as file:
        file.write('{"step": 3, "text": "to')
    with caplog.at_level(logging.WARNING):
        assert read_lines(path) == [{"step": 1}, {"step": 2}]
    assert "line 3 is torn" in caplog.text
    keep_up_to(path, 1)
    assert path.read_text() == '{"step": 1}\n'
    path.write_text('{"step": 1}\n{"st\n{"step": 3}\n')
    with pytest.raises(CheckpointError, match="line 2 is damaged"):
        read_lines(path)


def test_a_full_disk_leaves_the_lines_that_are_there(tmp_path: Path) -> None:
    path = tmp_path / "samples.jsonl"
    append_line(path, {"step": 1})
    before = path.read_bytes()
    with files_limited_to(len(before) + 5), pytest.raises(CheckpointError, match="make room"):
        append_line(path, {"step": 2, "text": "x" * 100})
    assert path.read_bytes() == before


def test_the_command_shows_the_newest_samples(sampled: Path, tmp_path: Path) -> None:
    kept = samples(sampled / "out")
    shown = CliRunner().invoke(app, ["samples", str(sampled / "out"), "--last", "2"])
    assert shown.exit_code == 0
    assert f"step {STEPS}: coherence {kept[-1]['score']:.1f}" in shown.output
    assert shown.output.count("coherence") == 2
    found = CliRunner().invoke(app, ["samples", str(sampled / "out"), "--json", "--last", "3"])
    assert json.loads(found.output)["samples"] == kept[-3:]
    with pytest.raises(MissingDataError, match=r"samples\.jsonl: no samples"):
        CliRunner().invoke(app, ["samples", str(tmp_path)], catch_exceptions=False)


def test_a_run_without_samples_keeps_none_in_its_checkpoints(undisturbed: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run_training(config_in(tmp_path, {"sample_every": 0}), out) == 0
    assert load_checkpoint(out).gate_state is None
    assert not (out / "samples.jsonl").exists()
    assert tensors_of(out).keys() == tensors_of(undisturbed / "out").keys()
