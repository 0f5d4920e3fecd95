"""Checkpoints in the layouts of others: ANDREA's own, and one that ``transformers`` loads.

ANDREA's layout is ``[int32 step][int32 n_params][weights][m][v]``, little-endian, all three float32. Which tensor comes
when is not published. Our reading is the order of microgpt, from which ANDREA grew (lesson "microgpt to ANDREA"): the
tables of tokens and positions, the head, then for each block query, key, value and output of attention and the two
matrices of the MLP, each [outputs, inputs] by rows. It has no tokenizer, no settings and no place in the data.

For ``transformers`` ANDREA is a GPT-2 whose layer norms have gains of 1 and whose biases are 0: the same function, so
that no code has to be trusted and whatever reads GPT-2 reads it. Training it there would train gains and biases that
ANDREA has not; such a model is refused when it is read back.
"""

from __future__ import annotations

import json
import shutil
import struct
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from andrea.checkpoint import (
    MANIFEST,
    Checkpoint,
    check_tensors,
    check_vocabulary,
    load_checkpoint,
    newest_checkpoint,
    save_checkpoint,
)
from andrea.model import Andrea, ModelConfig
from andrea.train import Trainer, TrainingConfig
from mixer.errors import CheckpointError, StateMismatchError
from mixer.sources.tokenizer import TextTokenizer, read_tokenizer

Layout = Literal["checkpoint", "andrea", "huggingface"]
LAYOUTS: tuple[Layout, ...] = ("checkpoint", "andrea", "huggingface")
HEADER = struct.Struct("<ii")
MOMENTS = ("exp_avg", "exp_avg_sq")
SEPARATOR = "<|endoftext|>"
ARCHITECTURE = "GPT2LMHeadModel"


def layout_of(path: Path) -> Layout:
    """Return in which layout a file or folder is; raise CheckpointError for neither."""
    if path.is_file():
        return "andrea"
    if newest_checkpoint(path) is not None or (path / MANIFEST).exists():
        return "checkpoint"
    if (path / "config.json").exists():
        return "huggingface"
    raise CheckpointError(
        f"{path}: there is no checkpoint; give a run's folder or one of its checkpoints, a folder with config.json of "
        "transformers, or a .bin file of ANDREA"
    )


def read_any(path: Path, *, shape: ModelConfig | None = None, tokenizer: TextTokenizer | None = None) -> Checkpoint:
    """Read a checkpoint in any of the layouts.

    Args:
        path: a file of ANDREA's layout, or a folder of one of the others.
        shape: of the model, which ANDREA's layout does not say; None for its published sizes.
        tokenizer: to go with it, instead of the one that it has.

    Raises:
        CheckpointError: it is torn, of none of the layouts, or has weights that are not finite.
        StateMismatchError: weights of another shape, or a GPT-2 that no ANDREA is equal to.
        TokenizerError: the tokenizer has more tokens than the model.
    """
    layout = layout_of(path)
    if layout == "checkpoint":
        found = load_checkpoint(path)
    elif layout == "andrea":
        found = _read_andrea(path, shape)
    else:
        found = _read_huggingface(path)
    check_tensors(str(path), found.model_config, found.trainer_state["model"])
    kept = found.tokenizer if tokenizer is None else tokenizer
    if kept is not None:
        check_vocabulary(found.model_config, kept.vocab_size)
    return Checkpoint(found.trainer_state, found.dataset_states, kept)


def write_any(path: Path, checkpoint: Checkpoint, layout: Layout) -> Path:
    """Write a checkpoint in a layout; it is there as a whole, or not at all.

    Args:
        path: a file for ANDREA's layout, a folder that is not there yet for that of ``transformers``, and for ours the
            folder that gets ``step_N/``.
        checkpoint: what to write.
        layout: which.

    Returns:
        Where it is.

    Raises:
        CheckpointError: something is there already, or it cannot be written.
    """
    if layout == "checkpoint":
        return save_checkpoint(path, checkpoint)
    if path.exists():
        raise CheckpointError(f"{path} is there already; name another place, or remove it first")
    with _appearing(path, is_folder=layout == "huggingface") as partial:
        if layout == "andrea":
            _write_andrea(partial, checkpoint)
        else:
            _write_huggingface(partial, checkpoint)
    return path


@contextmanager
def _appearing(path: Path, *, is_folder: bool) -> Iterator[Path]:
    """Give a place beside ``path`` that takes its name once all is written; an error leaves no trace."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        room = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
        try:
            partial = room / path.name
            if is_folder:
                partial.mkdir()
            yield partial
            partial.rename(path)
        finally:
            shutil.rmtree(room, ignore_errors=True)
    except (OSError, safetensors.SafetensorError) as error:
        raise CheckpointError(f"{path} could not be written ({error}); make room or choose another place") from error


# --- ANDREA's own layout


def _ordered(config: ModelConfig, tensors: Mapping[str, Tensor]) -> Iterator[Tensor]:
    """Yield views of a model's tensors, one for each matrix of ANDREA's layout, in its order."""
    yield tensors["token_table.weight"]
    yield tensors["position_table.weight"]
    yield tensors["head.weight"]
    for i in range(config.num_layers):
        yield from tensors[f"blocks.{i}.attention.query_key_value.weight"].chunk(3)
        yield tensors[f"blocks.{i}.attention.output.weight"]
        yield tensors[f"blocks.{i}.mlp_input.weight"]
        yield tensors[f"blocks.{i}.mlp_output.weight"]


def _write_andrea(path: Path, checkpoint: Checkpoint) -> None:
    config, weights = checkpoint.model_config, checkpoint.trainer_state["model"]
    moments = checkpoint.trainer_state["optimizer"]
    with path.open("wb") as file:
        file.write(HEADER.pack(checkpoint.step, config.num_parameters))
        for tensors in (weights, *({name: moments.get(f"{name}.{key}") for name in weights} for key in MOMENTS)):
            named = {name: torch.zeros_like(weights[name]) if t is None else t for name, t in tensors.items()}
            for tensor in _ordered(config, named):
                file.write(tensor.numpy().astype("<f4").tobytes())


def _read_andrea(path: Path, shape: ModelConfig | None) -> Checkpoint:
    size = path.stat().st_size
    if size < HEADER.size:
        raise CheckpointError(f"{path} is no checkpoint of ANDREA: {size} bytes are too few for its header")
    with path.open("rb") as file:
        step, num_parameters = HEADER.unpack(file.read(HEADER.size))
        expected = HEADER.size + 3 * 4 * num_parameters
        if num_parameters < 1 or step < 0 or size != expected:
            raise CheckpointError(
                f"{path} is torn, or no checkpoint of ANDREA: its header says step {step} and {num_parameters:,} "
                f"parameters, which would be {expected:,} bytes, but it has {size:,}"
            )
        config = _shape_of(path, num_parameters, shape)
        values = [np.fromfile(file, dtype="<f4", count=num_parameters) for _ in range(3)]
    parts = [_named(config, torch.from_numpy(part.astype(np.float32))) for part in values]
    optimizer = {f"{name}.{key}": t for key, part in zip(MOMENTS, parts[1:], strict=True) for name, t in part.items()}
    optimizer |= {f"{name}.step": torch.tensor(float(step)) for name in parts[0]}
    return _imported(config, step, parts[0], optimizer)


def _shape_of(path: Path, num_parameters: int, shape: ModelConfig | None) -> ModelConfig:
    """Return the given shape, or the published size of so many parameters."""
    known = {config.num_parameters: config for config in (ModelConfig.andrea_12m(), ModelConfig.andrea_120m())}
    if shape is None and num_parameters in known:
        return known[num_parameters]
    if shape is None:
        raise CheckpointError(
            f"{path} has {num_parameters:,} parameters, which is none of the published sizes "
            f"({', '.join(f'{number:,}' for number in known)}); give --config FILE of the run that it is of"
        )
    if shape.num_parameters != num_parameters:
        raise StateMismatchError(
            f"{path} has {num_parameters:,} parameters, but a model of the shape that is given has "
            f"{shape.num_parameters:,}; give the shape that it was trained with"
        )
    return shape


def _named(config: ModelConfig, flat: Tensor) -> dict[str, Tensor]:
    """Return the tensors of a model from all of its numbers in ANDREA's order, [num_parameters]."""
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in Andrea(config).state_dict().items()}
    named = {name: torch.empty(shape) for name, shape in shapes.items()}
    begin = 0
    for tensor in _ordered(config, named):
        tensor.copy_(flat[begin : begin + tensor.numel()].view(tensor.shape))
        begin += tensor.numel()
    return named


def _imported(
    config: ModelConfig, step: int, weights: dict[str, Tensor], optimizer: dict[str, Tensor], **kept: Any
) -> Checkpoint:
    """Return a checkpoint of weights and moments alone: a run can begin with it, but not go on."""
    with torch.device("meta"):
        state = Trainer(Andrea(config), TrainingConfig(), max(step, 1)).settings()
    return Checkpoint({**state, "num_steps": step, "model": weights, "optimizer": optimizer}, **kept)


# --- the layout of transformers


def _huggingface_names(config: ModelConfig) -> dict[str, str]:
    """Return the name of each of our tensors in a GPT-2; those of blocks are transposed there, [inputs, outputs]."""
    names = {"token_table.weight": "transformer.wte.weight", "position_table.weight": "transformer.wpe.weight"}
    names["head.weight"] = "lm_head.weight"
    for i in range(config.num_layers):
        ours, theirs = f"blocks.{i}", f"transformer.h.{i}"
        names |= {
            f"{ours}.attention.query_key_value.weight": f"{theirs}.attn.c_attn.weight",
            f"{ours}.attention.output.weight": f"{theirs}.attn.c_proj.weight",
            f"{ours}.mlp_input.weight": f"{theirs}.mlp.c_fc.weight",
            f"{ours}.mlp_output.weight": f"{theirs}.mlp.c_proj.weight",
        }
    return names


def _constants(config: ModelConfig) -> dict[str, Tensor]:
    """Return what GPT-2 has and ANDREA has not, with the values that make them equal."""
    width = config.width
    zeros = {"attn.c_attn": 3 * width, "attn.c_proj": width, "mlp.c_fc": 4 * width, "mlp.c_proj": width}
    norms = [f"transformer.h.{i}.{name}" for i in range(config.num_layers) for name in ("ln_1", "ln_2")]
    found = {f"{norm}.weight": torch.ones(width) for norm in (*norms, "transformer.ln_f")}
    found |= {f"{norm}.bias": torch.zeros(width) for norm in (*norms, "transformer.ln_f")}
    layers = range(config.num_layers)
    return found | {f"transformer.h.{i}.{name}.bias": torch.zeros(size) for i in layers for name, size in zeros.items()}


def _settings_of(config: ModelConfig) -> dict[str, Any]:
    """Return the entries of ``config.json`` on which the function depends."""
    return {
        "model_type": "gpt2",
        "vocab_size": config.vocab_size,
        "n_positions": config.context,
        "n_embd": config.width,
        "n_layer": config.num_layers,
        "n_head": config.num_heads,
        "n_inner": 4 * config.width,
        "activation_function": "gelu",
        "layer_norm_epsilon": 1e-5,
        "scale_attn_weights": True,
        "tie_word_embeddings": False,
    }


def _write_huggingface(folder: Path, checkpoint: Checkpoint) -> None:
    config, weights = checkpoint.model_config, checkpoint.trainer_state["model"]
    tensors = _constants(config)
    for ours, theirs in _huggingface_names(config).items():
        is_transposed = ours.startswith("blocks.")
        tensors[theirs] = weights[ours].t().contiguous() if is_transposed else weights[ours]
    tokenizer = checkpoint.tokenizer
    separator_id = None if tokenizer is None else tokenizer.separator_id
    settings = {
        "architectures": [ARCHITECTURE],
        **_settings_of(config),
        "attn_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "resid_pdrop": 0.0,
        "bos_token_id": separator_id,
        "eos_token_id": separator_id,
        "dtype": "float32",
        "andrea_step": checkpoint.step,
    }
    (folder / "config.json").write_text(json.dumps(settings, indent=1), encoding="utf-8")
    safetensors.torch.save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    if tokenizer is not None:
        if tokenizer.tokenizers_file is None:
            raise CheckpointError(
                "its tokenizer is no `tokenizers` file, so transformers cannot load it from this folder; convert the "
                "tokenizer with its own tools, and the checkpoint with --to andrea"
            )
        (folder / "tokenizer.json").write_text(tokenizer.tokenizers_file, encoding="utf-8")
        told = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": tokenizer.separator,
            "eos_token": tokenizer.separator,
            "model_max_length": config.context,
            "clean_up_tokenization_spaces": False,
        }
        (folder / "tokenizer_config.json").write_text(json.dumps(told, indent=1), encoding="utf-8")


def _read_huggingface(folder: Path) -> Checkpoint:
    try:
        told = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        tensors = safetensors.torch.load_file(folder / "model.safetensors")
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise CheckpointError(f"{folder} cannot be read as a model of transformers: {error}") from error
    try:
        config = ModelConfig(
            vocab_size=told["vocab_size"],
            width=told["n_embd"],
            num_heads=told["n_head"],
            num_layers=told["n_layer"],
            context=told["n_positions"],
        )
    except (KeyError, TypeError) as error:
        raise StateMismatchError(f"{folder} is no GPT-2, which is what ANDREA is written as: no {error}") from error
    expected = _settings_of(config)
    defaults = {"n_inner": None, "activation_function": "gelu_new", "tie_word_embeddings": True}
    optional = {"layer_norm_epsilon": 1e-5, "scale_attn_weights": True}
    found = defaults | optional | told
    found["n_inner"] = found["n_inner"] or 4 * config.width
    differences = [f"{key} is {found.get(key)}" for key, value in expected.items() if found.get(key) != value]
    differences += [
        f"{name} is not all {float(value[0]):g}"
        for name, value in _constants(config).items()
        if name not in tensors or not torch.equal(tensors[name].float(), value)
    ]
    if differences:
        raise StateMismatchError(
            f"{folder} is a model that no ANDREA is equal to: {'; '.join(differences[:4])}; only what was written from "
            "an ANDREA, and not trained as a GPT-2 since, can be read back"
        )
    weights = {}
    for ours, theirs in _huggingface_names(config).items():
        if theirs not in tensors:
            raise StateMismatchError(f"{folder} has no tensor {theirs}")
        weights[ours] = (tensors[theirs].t() if ours.startswith("blocks.") else tensors[theirs]).float().contiguous()
    tokenizer_file, separator = folder / "tokenizer.json", SEPARATOR
    if not tokenizer_file.exists():
        return _imported(config, int(told.get("andrea_step", 0)), weights, {})
    names = folder / "tokenizer_config.json"
    if names.exists():
        separator = json.loads(names.read_text(encoding="utf-8")).get("eos_token") or SEPARATOR
    tokenizer = read_tokenizer(tokenizer_file, separator)
    return _imported(config, int(told.get("andrea_step", 0)), weights, {}, tokenizer=tokenizer)
