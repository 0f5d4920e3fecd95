"""Checkpoints: a folder for each, with weights and moments as safetensors and the rest as JSON.

A run keeps its newest checkpoints beside each other, ``step_0000100/``, ``step_0000200/``. Each has

- ``model.safetensors``: the weights, float32, by their names in ``Andrea``;
- ``optimizer.safetensors``: what AdamW keeps of each, ``NAME.exp_avg``, ``NAME.exp_avg_sq`` and ``NAME.step``;
- ``samples.safetensors``: the rows of the run that its samples are scored by, if it draws any;
- ``tokenizer.json``: what the text became token ids with, if the run has it;
- ``state.json``: the step, the shape of the model, the settings of the training, and where the data stands;
- ``checkpoint.json``: the format, and the size and digest of each of the files above.

The folder appears under its name once all of it is on disk, and nothing in it runs code when it is read. The digests
are compared on reading, as safetensors has none: a bit that flipped would be a weight like any other.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import safetensors
import safetensors.torch
import torch
import xxhash
from torch import Tensor

from andrea.model import Andrea, ModelConfig
from mixer.errors import CheckpointError, ConfigError, StateMismatchError, TokenizerError
from mixer.sources.tokenizer import TextTokenizer, tokenizer_of

FORMAT, VERSION = "andrea checkpoint", 2
MANIFEST, STATE, MODEL, OPTIMIZER, TOKENIZER = (
    "checkpoint.json",
    "state.json",
    "model.safetensors",
    "optimizer.safetensors",
    "tokenizer.json",
)
SAMPLES = "samples.safetensors"
_NAME = re.compile(r"step_(\d+)")
_PARTIAL = ".partial-"


@dataclass(frozen=True)
class Checkpoint:
    """A run at one step."""

    trainer_state: dict[str, Any]
    """What ``Trainer.state_dict`` gave: ``model`` and ``optimizer`` are tensors by name, the rest is plain data."""
    dataset_states: list[dict[str, Any]] = field(default_factory=list)
    """What ``dataset.state_dict`` gave in each rank; empty if the checkpoint came from elsewhere."""
    tokenizer: TextTokenizer | None = None
    gate_state: tuple[dict[str, Any], dict[str, Tensor]] | None = None
    """What ``Sampling.state_dict`` gave: plain data, and tensors by name; None of a run without samples."""

    @property
    def step(self) -> int:
        """Optimizer steps taken, which is also the number of the next one."""
        return int(self.trainer_state["num_steps"])

    @property
    def model_config(self) -> ModelConfig:
        """The shape of the model."""
        return ModelConfig(**self.trainer_state["model_config"])


class LoadedModel(NamedTuple):
    """What can be looked at or generated from."""

    model: Andrea
    tokenizer: TextTokenizer | None
    step: int


def save_checkpoint(
    folder: Path, checkpoint: Checkpoint, *, keep: int | None = None, always: Collection[int] = ()
) -> Path:
    """Write a checkpoint into a run's folder of checkpoints; it is there as a whole, or not at all.

    Args:
        folder: made if it is not there.
        checkpoint: whose step names it; one of the same step is replaced.
        keep: so many of the newest stay, older ones go once this one is there; None keeps all.
        always: steps whose checkpoints stay beside them.

    Returns:
        The folder of this checkpoint.

    Raises:
        TypeError: the state holds something that JSON could not give back.
        CheckpointError: it cannot be written, for want of space or permission; older checkpoints are as they were.
    """
    name = f"step_{checkpoint.step:07d}"
    tensors = {MODEL: checkpoint.trainer_state["model"], OPTIMIZER: checkpoint.trainer_state["optimizer"]}
    state = {
        "trainer": {key: value for key, value in checkpoint.trainer_state.items() if key not in ("model", "optimizer")},
        "dataset": checkpoint.dataset_states,
        "separator": None if checkpoint.tokenizer is None else checkpoint.tokenizer.separator,
        "gate": None,
    }
    if checkpoint.gate_state is not None:
        state["gate"], tensors[SAMPLES] = checkpoint.gate_state
    _check_plain("checkpoint", state)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.glob(f"{_PARTIAL}*"):  # of a process that was killed while it wrote
            shutil.rmtree(left)
        partial = Path(tempfile.mkdtemp(dir=folder, prefix=_PARTIAL))
        try:
            partial.chmod(0o755)  # mkdtemp keeps others out
            for file_name, named in tensors.items():
                safetensors.torch.save_file(dict(named), partial / file_name)
            (partial / STATE).write_text(json.dumps(state, indent=1), encoding="utf-8")
            if checkpoint.tokenizer is not None:
                (partial / TOKENIZER).write_text(checkpoint.tokenizer.to_json(), encoding="utf-8")
            files = {path.name: _measured(path) for path in sorted(partial.iterdir())}
            manifest = {"format": FORMAT, "version": VERSION, "files": files}
            (partial / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
            for path in (*partial.iterdir(), partial):
                _flush(path)  # or the rename may reach the disk before the data does
            _put_in_place(partial, folder / name)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        _flush(folder)
    except (OSError, safetensors.SafetensorError) as error:
        raise CheckpointError(
            f"checkpoint {folder / name} could not be written ({error}); make room or choose another place; "
            "older checkpoints there are untouched"
        ) from error
    if keep is not None:
        passing = [path for path in _checkpoints(folder) if int(path.name.removeprefix("step_")) not in always]
        for old in passing[:-keep]:
            shutil.rmtree(old)
    return folder / name


def _put_in_place(partial: Path, place: Path) -> None:
    """Give a written folder its name; a checkpoint of that name goes only once this one can take its place."""
    aside = partial.with_name(partial.name + "-old")
    if place.exists():
        place.rename(aside)
    partial.rename(place)
    shutil.rmtree(aside, ignore_errors=True)


def newest_checkpoint(path: Path) -> Path | None:
    """Return a checkpoint's own folder, or the newest in a run's folder or its ``checkpoints/``; None without one."""
    if (path / MANIFEST).exists() or _NAME.fullmatch(path.name):
        return path
    for folder in (path, path / "checkpoints"):
        found = _checkpoints(folder)
        if found:
            return found[-1]
    return None


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint, or the newest of a run's folder, without running any code that it might hold.

    Raises:
        CheckpointError: there is none, or it is torn, damaged, or of another program.
        StateMismatchError: it is of another version, or its tensors have other shapes than its model.
        TokenizerError: its tokenizer has more tokens than its model.
    """
    place, state = _read_state(path)
    trainer_state = dict(state["trainer"])
    trainer_state["model"] = _tensors(place, MODEL)
    trainer_state["optimizer"] = _tensors(place, OPTIMIZER)
    gate = state.get("gate")
    gate_state = None if gate is None else (gate, _tensors(place, SAMPLES))
    checkpoint = Checkpoint(trainer_state, state["dataset"], _read_tokenizer(place, state), gate_state)
    _check_fits(place, checkpoint)
    return checkpoint


def load_model(path: Path, *, device: str | torch.device = "cpu") -> LoadedModel:
    """Read the model and the tokenizer of a checkpoint, or of the newest in a run's folder; moments stay on disk.

    Args:
        path: ``runs/andrea/checkpoints/step_0000100``, or ``runs/andrea``.
        device: where the model is to be.

    Returns:
        The model in evaluation mode, its tokenizer (None if the checkpoint has none), and the step.

    Raises:
        As ``load_checkpoint``, and CheckpointError for weights that are not finite.
    """
    place, state = _read_state(path)
    checkpoint = Checkpoint({**state["trainer"], "model": _tensors(place, MODEL)}, [], _read_tokenizer(place, state))
    _check_fits(place, checkpoint)
    with torch.device("meta"):  # shapes alone: the weights are read once
        model = Andrea(checkpoint.model_config)
    model.load_state_dict(checkpoint.trainer_state["model"], assign=True)
    return LoadedModel(model.to(device).eval(), checkpoint.tokenizer, checkpoint.step)


def _read_state(path: Path) -> tuple[Path, dict[str, Any]]:
    """Return where a checkpoint lies and what its ``state.json`` says, once every file is as it was written."""
    place = newest_checkpoint(path)
    if place is None or not place.exists():
        raise CheckpointError(f"{path}: there is no checkpoint; give the folder of a run or of one checkpoint")
    manifest = _parsed(place, MANIFEST)
    if manifest.get("format") != FORMAT:
        raise _unusable(place, "another program wrote it")
    check_version(f"checkpoint {place}", manifest.get("version"), VERSION)
    files = manifest.get("files")
    if not isinstance(files, dict) or not {MODEL, OPTIMIZER, STATE} <= files.keys():
        raise _unusable(place, f"{MANIFEST} is damaged")
    for name, expected in files.items():
        file = place / Path(name).name
        if not file.is_file():
            raise _unusable(place, f"its file {name} is missing")
        if _measured(file) != expected:
            raise _unusable(place, f"its file {name} is cut short or damaged")
    return place, _parsed(place, STATE)


def _parsed(place: Path, name: str) -> dict[str, Any]:
    try:
        found = json.loads((place / name).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        raise _unusable(place, f"its file {name} cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise _unusable(place, f"its file {name} is damaged")
    return found


def _tensors(place: Path, name: str) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load_file(place / name)
    except (OSError, safetensors.SafetensorError) as error:
        raise _unusable(place, f"its file {name} cannot be read: {error}") from error


def _read_tokenizer(place: Path, state: Mapping[str, Any]) -> TextTokenizer | None:
    if state["separator"] is None:
        return None
    try:
        return tokenizer_of((place / TOKENIZER).read_text(encoding="utf-8"), state["separator"])
    except (OSError, UnicodeDecodeError, TokenizerError) as error:
        raise _unusable(place, f"its file {TOKENIZER} cannot be read: {error}") from error


def _check_fits(place: Path, checkpoint: Checkpoint) -> None:
    """Raise StateMismatchError, TokenizerError or CheckpointError unless shape, tensors and tokenizer fit."""
    try:
        config = checkpoint.model_config
    except (KeyError, TypeError, ConfigError) as error:
        raise _unusable(place, f"its {STATE} has no shape of a model: {error}") from error
    check_tensors(str(place), config, checkpoint.trainer_state["model"])
    if checkpoint.tokenizer is not None:
        check_vocabulary(config, checkpoint.tokenizer.vocab_size)


def check_tensors(what: str, config: ModelConfig, tensors: Mapping[str, Tensor]) -> None:
    """Raise unless tensors are the weights of a model of this shape.

    Raises:
        StateMismatchError: a tensor is missing, one too many, or of another shape.
        CheckpointError: a weight is NaN or infinite.
    """
    with torch.device("meta"):
        expected = {name: tuple(tensor.shape) for name, tensor in Andrea(config).state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    differences = [
        f"{name} is {found.get(name, 'missing')}, where the model has {expected.get(name, 'none')}"
        for name in dict.fromkeys([*expected, *found])
        if found.get(name) != expected.get(name)
    ]
    if differences:
        raise StateMismatchError(
            f"{what}: the weights are of a model of another shape: {'; '.join(differences[:4])}"
            f"{f'; and {len(differences) - 4} more' if len(differences) > 4 else ''}; "
            "give the shape that they were trained with"
        )
    for name, tensor in tensors.items():
        is_bad = ~torch.isfinite(tensor)
        if is_bad.any():
            first = [int(axis[0]) for axis in torch.nonzero(is_bad, as_tuple=True)]
            raise CheckpointError(
                f"{what}: {int(is_bad.sum())} of the weights {name} are not finite, the first at {first}: "
                f"{float(tensor[tuple(first)])}; go back to an older checkpoint"
            )


def check_vocabulary(config: ModelConfig, vocab_size: int) -> None:
    """Raise TokenizerError if a tokenizer of ``vocab_size`` tokens makes ids that the model has no row for.

    A smaller tokenizer is fine: the rows left over are never looked up.
    """
    if vocab_size > config.vocab_size:
        raise TokenizerError(
            f"the tokenizer has {vocab_size} tokens, but the model's vocabulary is {config.vocab_size}; "
            f"build the model with vocab_size={vocab_size}, or use the tokenizer that it was built for"
        )


def check_version(what: str, found: object, expected: int) -> None:
    """Raise StateMismatchError for a state that another release wrote."""
    if found != expected:
        raise StateMismatchError(
            f"{what} has version {found}, but this release reads version {expected}; "
            f"use the release that wrote it, or start a new run"
        )


def _unusable(place: Path, cause: str) -> CheckpointError:
    older = [path for path in _checkpoints(place.parent) if path.name < place.name]
    remedy = f"go back to {older[-1]}" if older else "there is no older one beside it"
    return CheckpointError(f"{place} cannot be used as a checkpoint: {cause}; {remedy}, or remove it to start anew")


def _checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints in a folder, the newest last."""
    if not folder.is_dir():
        return []
    found = [(int(match[1]), path) for path in folder.iterdir() if (match := _NAME.fullmatch(path.name))]
    return [path for _, path in sorted(found)]


def _measured(path: Path) -> dict[str, Any]:
    """Return size and digest of a file."""
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return {"bytes": path.stat().st_size, "xxh3_128": digest.hexdigest()}


def _flush(path: Path) -> None:
    """Wait until a file or folder is on disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _check_plain(where: str, value: object) -> None:
    """Raise TypeError, saying where, unless JSON gives ``value`` back as it is."""
    # by exact type: numpy's float64 is a float to isinstance, and a tuple would come back as a list
    if type(value) is dict:
        for key, item in value.items():
            if type(key) is not str:
                raise TypeError(f"{where} has the key {key!r}, which JSON would give back as text; use text")
            _check_plain(f"{where}.{key}", item)
    elif type(value) is list:
        for i, item in enumerate(value):
            _check_plain(f"{where}.{i}", item)
    elif type(value) not in (str, int, float, bool, type(None)):
        raise TypeError(f"{where} is a {type(value).__module__}.{type(value).__name__}; make it plain data")
