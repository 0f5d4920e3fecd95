"""Checkpoints: whole or not there, every damage noticed, and refused where they do not fit."""

from __future__ import annotations

import json
import math
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from andrea.checkpoint import (
    Checkpoint,
    load_checkpoint,
    load_model,
    newest_checkpoint,
    save_checkpoint,
)
from andrea.model import Andrea, ModelConfig
from andrea.train import Trainer, TrainingConfig
from mixer.errors import CheckpointError, StateMismatchError, TokenizerError
from mixer.sources.tokenizer import TextTokenizer
from mixer.sources.tokenizer_training import train as train_tokenizer

SMALL = ModelConfig(vocab_size=300, width=8, num_heads=2, num_layers=1, context=8)
SEPARATOR = "<|endoftext|>"


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


@pytest.fixture(scope="module")
def tokenizer() -> TextTokenizer:
    return TextTokenizer(train_tokenizer(["some text, some more text"], 262, SEPARATOR), SEPARATOR)


def checkpoint_of(step: int, tokenizer: TextTokenizer | None = None, **dataset_state: Any) -> Checkpoint:
    trainer = Trainer(Andrea(SMALL, seed=step), TrainingConfig(), 10)
    rows = torch.arange(18).view(2, 9)
    trainer.step({"input_ids": rows[:, :-1], "labels": rows[:, 1:]})
    trainer.num_steps = step
    return Checkpoint(trainer.state_dict(), [dataset_state], tokenizer)


@contextmanager
def files_limited_to(num_bytes: int) -> Iterator[None]:
    """Make writes past a size fail as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# --- what comes back

plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**130), 2**130) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None, max_examples=20)
@given(state=st.dictionaries(st.text(), plain, max_size=3), step=st.integers(0, 9))
def test_everything_comes_back_as_it_was(
    state: dict[str, Any], step: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    saved = checkpoint_of(step, **state)
    loaded = load_checkpoint(save_checkpoint(tmp_path_factory.mktemp("run"), saved))
    assert loaded.step == step
    assert loaded.dataset_states == [state]
    for part in ("model", "optimizer"):
        assert loaded.trainer_state[part].keys() == saved.trainer_state[part].keys()
        assert all(torch.equal(loaded.trainer_state[part][k], v) for k, v in saved.trainer_state[part].items())
    rest = [{k: v for k, v in c.trainer_state.items() if k not in ("model", "optimizer")} for c in (saved, loaded)]
    assert rest[0] == rest[1]


def test_the_model_of_a_checkpoint_is_the_one_that_was_saved_with_its_tokenizer(
    tmp_path: Path, tokenizer: TextTokenizer
) -> None:
    saved = checkpoint_of(3, tokenizer)
    save_checkpoint(tmp_path / "checkpoints", saved)
    loaded = load_model(tmp_path)  # of the newest in a run's folder
    assert loaded.step == 3
    assert loaded.model.config == SMALL
    assert not loaded.model.training
    assert all(torch.equal(saved.trainer_state["model"][k], v) for k, v in loaded.model.state_dict().items())
    assert loaded.tokenizer is not None
    assert loaded.tokenizer.fingerprint == tokenizer.fingerprint
    assert load_model(save_checkpoint(tmp_path / "other", checkpoint_of(1))).tokenizer is None


def test_the_weights_can_be_read_without_this_project(tmp_path: Path) -> None:
    saved = checkpoint_of(3)
    place = save_checkpoint(tmp_path, saved)
    weights = safetensors.torch.load_file(place / "model.safetensors")
    assert torch.equal(weights["head.weight"], saved.trainer_state["model"]["head.weight"])
    assert json.loads((place / "state.json").read_text())["trainer"]["num_steps"] == 3


def test_the_newest_are_kept_and_older_ones_go(tmp_path: Path) -> None:
    for step in (8, 9, 10, 11, 100):
        save_checkpoint(tmp_path, checkpoint_of(step), keep=3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_0000010", "step_0000011", "step_0000100"]
    assert newest_checkpoint(tmp_path) == tmp_path / "step_0000100"
    assert load_checkpoint(tmp_path / "step_0000010").step == 10


def test_a_checkpoint_of_the_same_step_is_replaced(tmp_path: Path) -> None:
    for number in (1, 2):
        save_checkpoint(tmp_path, checkpoint_of(5, number=number))
    assert load_checkpoint(tmp_path).dataset_states == [{"number": 2}]
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.float64(0.5), r"checkpoint\.dataset\.0\.cursor\.1 is a numpy\.float64; make it plain data"),
        (np.zeros(3), r"is a numpy\.ndarray"),
        (torch.zeros(3), r"is a torch\.Tensor"),
        ((1, 2), r"is a builtins\.tuple"),
        (b"raw", r"is a builtins\.bytes"),
        ({1: 2}, r"has the key 1, which JSON would give back as text"),
    ],
)
def test_states_that_would_not_come_back_are_refused_when_saved(value: object, message: str, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=message):
        save_checkpoint(tmp_path, checkpoint_of(1, cursor=[0, value]))
    assert list(tmp_path.iterdir()) == []


# --- what happens to files


@pytest.mark.parametrize("num_bytes", [0, 100, 2000, 12_000])
def test_a_full_disk_is_said_and_leaves_older_checkpoints_and_no_litter(num_bytes: int, tmp_path: Path) -> None:
    save_checkpoint(tmp_path, checkpoint_of(1))
    before = contents(tmp_path)
    with (
        files_limited_to(num_bytes),
        pytest.raises(CheckpointError, match=r"step_0000002 could not be written .*too large.* untouched"),
    ):
        save_checkpoint(tmp_path, checkpoint_of(2), keep=1)
    assert contents(tmp_path) == before
    assert len(list(tmp_path.iterdir())) == 1
    save_checkpoint(tmp_path, checkpoint_of(2), keep=1)
    assert load_checkpoint(tmp_path).step == 2


@pytest.mark.parametrize("point", ["safetensors.torch.save_file", "os.fsync", "Path.rename"])
def test_a_process_killed_while_it_writes_leaves_the_older_checkpoint(
    point: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_checkpoint(tmp_path, checkpoint_of(1))

    class Killed(BaseException):
        pass

    def kill(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(f"andrea.checkpoint.{point}", kill)
        patch.setattr("andrea.checkpoint.shutil.rmtree", lambda *_, **__: None)  # it tidies nothing up
        with pytest.raises(Killed):
            save_checkpoint(tmp_path, checkpoint_of(2))
    assert load_checkpoint(tmp_path).step == 1
    save_checkpoint(tmp_path, checkpoint_of(3))  # what was left behind is no obstacle, and goes
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_0000001", "step_0000003"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, tokenizer: TextTokenizer) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("whole"), checkpoint_of(7, tokenizer, next=7))


FILES = ["checkpoint.json", "state.json", "model.safetensors", "optimizer.safetensors", "tokenizer.json"]


@settings(deadline=None, max_examples=60)
@given(name=st.sampled_from(FILES), where=st.floats(0, 1, exclude_max=True), data=st.data())
def test_a_checkpoint_that_is_torn_or_damaged_anywhere_is_refused(
    name: str, where: float, data: st.DataObject, whole: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    place = shutil.copytree(whole, tmp_path_factory.mktemp("run") / "step_0000007")
    save_checkpoint(place.parent, checkpoint_of(2))
    raw = bytearray((place / name).read_bytes())
    at = int(where * len(raw))
    if data.draw(st.booleans(), label="cut"):
        raw = raw[:at]
    else:
        raw[at] ^= 1 << data.draw(st.integers(0, 7), label="bit")
    (place / name).write_bytes(raw)
    is_same = name == "checkpoint.json" and _json_or_none(bytes(raw)) == json.loads((whole / name).read_bytes())
    for load in (load_checkpoint, load_model):
        if is_same:  # white space in the one file without a digest
            load(place.parent)  # type: ignore[operator]
            continue
        with pytest.raises((CheckpointError, StateMismatchError)) as caught:
            load(place.parent)  # type: ignore[operator]
        assert "go back to" in str(caught.value) or caught.type is StateMismatchError


def _json_or_none(raw: bytes) -> object:
    try:
        return json.loads(raw)
    except ValueError:
        return None


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(name: str, whole: Path, tmp_path: Path) -> None:
    place = shutil.copytree(whole, tmp_path / "step_0000007")
    (place / name).unlink()
    with pytest.raises(CheckpointError, match=rf"step_0000007 cannot be used.*{name}.*no older one"):
        load_checkpoint(place)


def test_a_place_without_a_checkpoint_is_refused(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path) is None
    for place in (tmp_path, tmp_path / "nowhere", tmp_path / "step_0000004"):
        with pytest.raises(CheckpointError, match="there is no checkpoint; give the folder of a run"):
            load_model(place)


def rewritten(whole: Path, folder: Path, **changes: Any) -> Path:
    """A copy whose manifest says something else."""
    place = shutil.copytree(whole, folder / "step_0000007")
    manifest = json.loads((place / "checkpoint.json").read_text())
    (place / "checkpoint.json").write_text(json.dumps(manifest | changes))
    return place


def test_checkpoints_of_other_programs_and_versions_are_refused(whole: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="another program wrote it"):
        load_checkpoint(rewritten(whole, tmp_path / "a", format="other"))
    with pytest.raises(StateMismatchError, match="has version 3, but this release reads version 2"):
        load_checkpoint(rewritten(whole, tmp_path / "b", version=3))


# --- what does not fit


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": 16}, r"token_table\.weight is \(300, 8\), where the model has \(300, 16\)"),
        ({"vocab_size": 301}, r"token_table\.weight is \(300, 8\), where the model has \(301, 8\)"),
        ({"context": 9}, r"position_table\.weight is \(8, 8\), where the model has \(9, 8\)"),
        ({"num_layers": 2}, r"blocks\.1\.attention\.output\.weight is missing, where the model has \(8, 8\)"),
    ],
)
def test_weights_of_another_shape_are_named(change: dict[str, int], message: str, tmp_path: Path) -> None:
    saved = checkpoint_of(1)
    state = saved.trainer_state | {"model_config": saved.trainer_state["model_config"] | change}
    place = save_checkpoint(tmp_path, Checkpoint(state))
    with pytest.raises(StateMismatchError, match=message):
        load_model(place)


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused(tmp_path: Path, tokenizer: TextTokenizer) -> None:
    config = replace(SMALL, vocab_size=100)
    trainer = Trainer(Andrea(config), TrainingConfig(), 10)
    place = save_checkpoint(tmp_path, Checkpoint(trainer.state_dict(), [], tokenizer))
    with pytest.raises(TokenizerError, match=r"tokenizer has 262 tokens, but the model's vocabulary is 100"):
        load_model(place)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_weights_that_are_not_finite_are_refused_and_their_place_named(value: float, tmp_path: Path) -> None:
    saved = checkpoint_of(1)
    saved.trainer_state["model"]["head.weight"][4, 2] = value
    place = save_checkpoint(tmp_path, saved)
    for load in (load_checkpoint, load_model):
        with pytest.raises(
            CheckpointError, match=r"1 of the weights head\.weight are not finite, the first at \[4, 2\]"
        ):
            load(place)  # type: ignore[operator]
