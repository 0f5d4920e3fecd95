"""Layouts of others: what is written comes back bit for bit, and computes the same."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from andrea.checkpoint import Checkpoint, load_checkpoint, load_model, save_checkpoint
from andrea.cli import app
from andrea.convert import layout_of, read_any, write_any
from andrea.generate import generate_text
from andrea.model import Andrea, ModelConfig
from andrea.train import Trainer, TrainingConfig
from mixer.errors import CheckpointError, ConfigError, StateMismatchError, TokenizerError
from mixer.sources.tokenizer import TextTokenizer
from tests.andrea.test_checkpoint import SEPARATOR, SMALL, checkpoint_of, files_limited_to, train_tokenizer

DEEP = ModelConfig(vocab_size=300, width=12, num_heads=3, num_layers=2, context=8)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


@pytest.fixture(scope="module")
def tokenizer() -> TextTokenizer:
    return TextTokenizer(train_tokenizer(["some text, some more text"], 262, SEPARATOR), SEPARATOR)


def trained(config: ModelConfig, steps: int = 3, tokenizer: TextTokenizer | None = None) -> Checkpoint:
    trainer = Trainer(Andrea(config, seed=1), TrainingConfig(warmup_steps=1, peak_lr=1e-2), 10)
    rows = torch.arange(2 * (config.context + 1)).view(2, -1)
    for _ in range(steps):
        trainer.step({"input_ids": rows[:, :-1], "labels": rows[:, 1:]})
    return Checkpoint(trainer.state_dict(), [], tokenizer)


def assert_same_tensors(left: Checkpoint, right: Checkpoint, *parts: str) -> None:
    for part in parts:
        one, other = left.trainer_state[part], right.trainer_state[part]
        assert one.keys() == other.keys()
        assert [name for name in one if not torch.equal(one[name], other[name])] == []


# --- ANDREA's layout


@settings(deadline=None, max_examples=15)
@given(
    heads=st.integers(1, 3),
    size=st.integers(1, 4),
    layers=st.integers(1, 3),
    context=st.integers(1, 9),
    step=st.integers(1, 3),
)
def test_andreas_layout_comes_back_bit_for_bit_and_trains_on(
    heads: int, size: int, layers: int, context: int, step: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    config = ModelConfig(vocab_size=40, width=heads * size, num_heads=heads, num_layers=layers, context=context)
    saved = trained(config, step)
    path = write_any(tmp_path_factory.mktemp("run") / "step.bin", saved, "andrea")
    read = read_any(path, shape=config)
    assert read.step == step
    assert_same_tensors(saved, read, "model", "optimizer")


def test_andreas_layout_is_a_header_and_three_times_the_parameters_in_the_order_that_is_documented(
    tmp_path: Path,
) -> None:
    saved = trained(DEEP)
    raw = write_any(tmp_path / "a.bin", saved, "andrea").read_bytes()
    number = DEEP.num_parameters
    assert struct.unpack("<ii", raw[:8]) == (3, number)
    assert len(raw) == 8 + 3 * 4 * number
    values = np.frombuffer(raw, "<f4", offset=8).reshape(3, number)
    weights = saved.trainer_state["model"]
    expected = [weights["token_table.weight"], weights["position_table.weight"], weights["head.weight"]]
    for block in ("blocks.0", "blocks.1"):
        fused = weights[f"{block}.attention.query_key_value.weight"]
        expected += [fused[:12], fused[12:24], fused[24:]]
        expected += [weights[f"{block}.{name}.weight"] for name in ("attention.output", "mlp_input", "mlp_output")]
    np.testing.assert_array_equal(values[0], torch.cat([tensor.flatten() for tensor in expected]).numpy())
    first = saved.trainer_state["optimizer"]["token_table.weight.exp_avg"].flatten().numpy()
    np.testing.assert_array_equal(values[1][: first.size], first)


def test_a_published_size_needs_no_config(tmp_path: Path) -> None:
    config = ModelConfig.andrea_12m()
    path = tmp_path / "ANDREA-12M.bin"
    with path.open("wb") as file:
        file.write(struct.pack("<ii", 43_587, config.num_parameters))
        file.truncate(8 + 12 * config.num_parameters)
    read = read_any(path)
    assert (read.step, read.model_config) == (43_587, config)


@pytest.mark.parametrize("change", ["cut", "longer", "header", "empty"])
def test_a_torn_file_is_refused(change: str, tmp_path: Path) -> None:
    path = write_any(tmp_path / "a.bin", trained(SMALL), "andrea")
    raw = path.read_bytes()
    changed = {"cut": raw[:-1], "longer": raw + b"\0", "header": raw[:4] + b"\xff\xff\xff\xff" + raw[8:], "empty": b""}
    path.write_bytes(changed[change])
    with pytest.raises(CheckpointError, match=r"a\.bin is (torn, or )?no checkpoint of ANDREA"):
        read_any(path, shape=SMALL)


def test_weights_that_are_not_finite_or_of_another_shape_are_refused(tmp_path: Path) -> None:
    saved = trained(SMALL)
    saved.trainer_state["model"]["head.weight"][0, 0] = math.nan
    path = write_any(tmp_path / "a.bin", saved, "andrea")
    with pytest.raises(
        CheckpointError, match=r"1 of the weights head\.weight are not finite, the first at \[0, 0\]: nan"
    ):
        read_any(path, shape=SMALL)
    with pytest.raises(StateMismatchError, match=r"has [\d,]+ parameters, but a model of the shape that is given"):
        read_any(path, shape=replace(SMALL, context=9))
    with pytest.raises(CheckpointError, match=r"none of the published sizes \(12,780,288, 98,698,752\); give --config"):
        read_any(path)


# --- the layout of transformers


@pytest.mark.parametrize("config", [SMALL, DEEP])
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_transformers_loads_it_with_equal_logits_tokens_and_text(
    config: ModelConfig, tmp_path: Path, tokenizer: TextTokenizer
) -> None:
    transformers = pytest.importorskip("transformers")
    saved = trained(config, tokenizer=tokenizer)
    path = write_any(tmp_path / "hf", saved, "huggingface")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(path).eval()
    ours = Andrea(config)
    ours.load_state_dict(saved.trainer_state["model"])
    ids = torch.randint(0, config.vocab_size, (3, config.context), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(theirs(ids).logits, ours(ids), atol=2e-6, rtol=1e-5)
    encoder = transformers.AutoTokenizer.from_pretrained(path)
    text = "some more text, é\n"
    assert encoder(text)["input_ids"] == tokenizer.encode([text])[0].tolist()
    assert encoder.decode(encoder(text)["input_ids"]) == text
    assert encoder.eos_token_id == theirs.config.eos_token_id == tokenizer.separator_id


def test_the_layout_of_transformers_comes_back_bit_for_bit(tmp_path: Path, tokenizer: TextTokenizer) -> None:
    saved = trained(DEEP, tokenizer=tokenizer)
    read = read_any(write_any(tmp_path / "hf", saved, "huggingface"))
    assert_same_tensors(saved, read, "model")
    assert (read.step, read.model_config) == (3, DEEP)
    assert read.tokenizer is not None
    assert read.tokenizer.fingerprint == tokenizer.fingerprint
    place = write_any(tmp_path / "ours", read, "checkpoint")
    assert load_model(place).step == 3


def changed_settings(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"activation_function": "gelu_new"}, r"activation_function is gelu_new"),
        ({"tie_word_embeddings": True}, r"tie_word_embeddings is True"),
        ({"n_inner": 7}, r"n_inner is 7"),
        ({"layer_norm_epsilon": 1e-6}, r"layer_norm_epsilon is 1e-06"),
        ({"model_type": "llama"}, r"model_type is llama"),
    ],
)
def test_a_gpt2_that_computes_something_else_is_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = write_any(tmp_path / "hf", trained(SMALL), "huggingface")
    changed_settings(path, **changes)
    with pytest.raises(StateMismatchError, match=message):
        read_any(path)


def test_gains_and_biases_that_were_trained_are_refused(tmp_path: Path) -> None:
    path = write_any(tmp_path / "hf", trained(SMALL), "huggingface")
    tensors = safetensors.torch.load_file(path / "model.safetensors")
    tensors["transformer.ln_f.weight"][3] = 1.5
    tensors["transformer.h.0.mlp.c_fc.bias"][0] = 0.25
    safetensors.torch.save_file(tensors, path / "model.safetensors")
    with pytest.raises(
        StateMismatchError, match=r"ln_f\.weight is not all 1; .*c_fc\.bias is not all 0; only what was"
    ):
        read_any(path)


# --- what is common


def test_every_layout_is_told_from_the_others_and_a_place_without_one_is_refused(tmp_path: Path) -> None:
    saved = trained(SMALL)
    for layout, place in (("checkpoint", "run"), ("andrea", "a.bin"), ("huggingface", "hf")):
        assert layout_of(tmp_path / place if write_any(tmp_path / place, saved, layout) else tmp_path) == layout  # type: ignore[arg-type]
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"empty: there is no checkpoint; give a run's folder"):
        layout_of(tmp_path / "empty")


@pytest.mark.parametrize(("layout", "name"), [("andrea", "a.bin"), ("huggingface", "hf")])
def test_a_full_disk_and_a_place_that_is_taken_lose_nothing(layout: Any, name: str, tmp_path: Path) -> None:
    saved = trained(SMALL)
    with files_limited_to(2000), pytest.raises(CheckpointError, match=rf"{name} could not be written .*too large"):
        write_any(tmp_path / name, saved, layout)
    assert list(tmp_path.iterdir()) == []
    write_any(tmp_path / name, saved, layout)
    with pytest.raises(CheckpointError, match=rf"{name} is there already; name another place"):
        write_any(tmp_path / name, checkpoint_of(9), layout)
    assert read_any(tmp_path / name, shape=SMALL).step == 3


def test_a_tokenizer_that_does_not_fit_is_refused(tmp_path: Path, tokenizer: TextTokenizer) -> None:
    config = replace(SMALL, vocab_size=200)
    path = write_any(tmp_path / "a.bin", trained(config), "andrea")
    with pytest.raises(TokenizerError, match=r"tokenizer has 262 tokens, but the model's vocabulary is 200"):
        read_any(path, shape=config, tokenizer=tokenizer)


def test_a_run_can_begin_with_a_converted_checkpoint(tmp_path: Path) -> None:
    saved = trained(SMALL)
    place = write_any(
        tmp_path / "ours", read_any(write_any(tmp_path / "a.bin", saved, "andrea"), shape=SMALL), "checkpoint"
    )
    trainer = Trainer(Andrea(SMALL), TrainingConfig(), 10)
    trainer.begin_with(load_checkpoint(place).trainer_state)
    assert_same_tensors(saved, Checkpoint(trainer.state_dict()), "model", "optimizer")
    assert trainer.num_steps == 0


# --- text


def test_text_continues_a_prompt_and_a_prompt_that_is_too_long_is_refused(
    tmp_path: Path, tokenizer: TextTokenizer
) -> None:
    loaded = load_model(save_checkpoint(tmp_path, trained(SMALL, tokenizer=tokenizer)))
    text = generate_text(loaded, "some", 5, temperature=1.0, seed=3)
    assert text == generate_text(loaded, "some", 5, temperature=1.0, seed=3)
    assert generate_text(loaded, "", 0) == ""
    with pytest.raises(ConfigError, match=r"the prompt has \d+ tokens, but the model's context is 8"):
        generate_text(loaded, "x" * 8, 1)
    with pytest.raises(CheckpointError, match=r"has no tokenizer, so that text cannot become tokens"):
        generate_text(loaded._replace(tokenizer=None), "some", 1)


# --- the commands


def test_the_commands_convert_and_generate(tmp_path: Path, tokenizer: TextTokenizer) -> None:
    save_checkpoint(tmp_path / "run" / "checkpoints", trained(SMALL, tokenizer=tokenizer))
    (tmp_path / "tokenizer.json").write_text(tokenizer.to_json())
    (tmp_path / "run.yaml").write_text(
        "{total_steps: 10, batch_rows: 2, sequence_length: 8, vocab_size: 300, tokenizer: tokenizer.json,\n"
        "sources: [{name: a, data_files: a.jsonl}], andrea: {model: {width: 8, num_heads: 2, num_layers: 1}}}\n"
    )
    for arguments in (
        ["convert", "run", "a.bin", "--to", "andrea"],
        ["convert", "a.bin", "ours", "--to", "checkpoint", "--config", "run.yaml", "--tokenizer", "tokenizer.json"],
        ["convert", "ours", "hf", "--to", "huggingface"],
        ["convert", "hf", "back", "--to", "checkpoint"],
    ):
        paths = [str(tmp_path / word) if Path(word).suffix or word in PLACES else word for word in arguments]
        done = CliRunner().invoke(app, paths)
        assert done.exit_code == 0, done.output + repr(done.exception)
    texts = [
        CliRunner().invoke(app, ["generate", str(tmp_path / place), "--prompt", "so", "--tokens", "4"]).stdout
        for place in ("run", "ours", "back")
    ]
    assert texts[0].startswith("so")
    assert len(set(texts)) == 1


PLACES = ("run", "ours", "hf", "back")
