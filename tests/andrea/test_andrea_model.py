"""The reference model: its published sizes, causality, its start, and what it generates."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from andrea.generate import generate
from andrea.model import Andrea, KeyValueCache, ModelConfig
from mixer.errors import ConfigError, TokenizerError

SMALL = ModelConfig(vocab_size=50, width=16, num_heads=2, num_layers=2, context=12)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Models this small are not worth sharing out: on busy cores two threads wait 20 times longer than one works."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


def random_ids(num_rows: int, num_tokens: int, vocab_size: int = 50, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, vocab_size, (num_rows, num_tokens), generator=generator)


def peaked(model: Andrea) -> Andrea:
    """The model with a head 8 times as large: logits vary by 4 or so, and guesses differ clearly from uniform."""
    with torch.no_grad():
        model.head.weight.mul_(8)
    return model


# --- sizes


@pytest.mark.parametrize(
    ("config", "num_parameters"),
    [
        (ModelConfig.andrea_120m(), 98_698_752),
        (ModelConfig.andrea_12m(), 12_780_288),
        (ModelConfig.tiny(vocab_size=2048, context=128), 933_888),
        (SMALL, 2 * 50 * 16 + 12 * 16 + 2 * 12 * 16**2),
    ],
)
def test_parameter_counts_are_exactly_those_published(config: ModelConfig, num_parameters: int) -> None:
    with torch.device("meta"):  # shapes without memory
        model = Andrea(config)
    assert sum(parameter.numel() for parameter in model.parameters()) == num_parameters
    assert config.num_parameters == num_parameters


def test_named_sizes_have_the_published_shape() -> None:
    large, small = ModelConfig.andrea_120m(), ModelConfig.andrea_12m()
    assert (large.vocab_size, large.width, large.num_heads, large.num_layers, large.context) == (
        8449,
        768,
        12,
        12,
        1024,
    )
    assert (small.vocab_size, small.width, small.num_heads, small.num_layers, small.context) == (2305, 384, 12, 6, 1024)


def test_every_parameter_is_a_matrix_and_the_head_is_its_own() -> None:
    model = Andrea(SMALL)
    assert all(parameter.ndim == 2 for parameter in model.parameters())
    assert model.head.weight.data_ptr() != model.token_table.weight.data_ptr()


def test_heads_that_do_not_divide_the_width_are_refused_with_a_width_that_would_do() -> None:
    with pytest.raises(ConfigError, match=r"width 100 cannot be split over 12 heads.*96 would do"):
        ModelConfig(vocab_size=50, width=100, num_heads=12, num_layers=1, context=8)
    with pytest.raises(ConfigError, match=r"width 3 cannot be split over 4 heads.*4 would do"):
        ModelConfig(vocab_size=50, width=3, num_heads=4, num_layers=1, context=8)


def test_every_size_that_is_not_positive_is_named_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        ModelConfig(vocab_size=0, width=8, num_heads=0, num_layers=1, context=-3)
    assert [problem.split(";")[0] for problem in caught.value.problems] == [
        "model vocab_size is 0",
        "model num_heads is 0",
        "model context is -3",
    ]


# --- the function


@settings(max_examples=30, deadline=None)  # the first example pays for torch's start
@given(changed=st.integers(0, 11), replacement=st.integers(0, 49), seed=st.integers(0, 100))
def test_changing_a_token_changes_no_earlier_logit_and_every_later_one(
    changed: int, replacement: int, seed: int
) -> None:
    model = peaked(Andrea(SMALL, seed=seed))
    before = random_ids(2, 12, seed=seed)
    after = before.clone()
    after[0, changed] = (before[0, changed] + 1 + replacement % 49) % 50  # never the token that was there
    with torch.no_grad():
        moved = (model(before) - model(after)).abs().amax(-1)  # [B, T]
    assert (moved[0, :changed] == 0).all()
    assert (moved[0, changed:] > 0).all()
    assert (moved[1] == 0).all()  # rows do not see one another


def test_the_order_of_earlier_tokens_matters() -> None:
    model = peaked(Andrea(SMALL))
    with torch.no_grad():
        straight, swapped = model(torch.tensor([[1, 2, 3]])), model(torch.tensor([[2, 1, 3]]))
    assert not torch.allclose(straight[0, -1], swapped[0, -1])


def test_a_position_matters_even_where_every_token_is_the_same() -> None:
    with torch.no_grad():
        logits = peaked(Andrea(SMALL))(torch.full((1, 12), 7))[0]
    assert all(not torch.allclose(logits[0], later) for later in logits[1:])


def test_a_shorter_row_gives_the_logits_of_the_longer_ones_beginning() -> None:
    model, ids = peaked(Andrea(SMALL)), random_ids(3, 12)
    with torch.no_grad():
        torch.testing.assert_close(model(ids[:, :5]), model(ids)[:, :5])


@pytest.mark.parametrize("vocab_size", [50, 2048])
def test_the_first_loss_is_an_eighth_of_a_nat_above_that_of_a_uniform_guess(vocab_size: int) -> None:
    ids = random_ids(4, 65, vocab_size)
    model = Andrea(ModelConfig.tiny(vocab_size, context=64))
    with torch.no_grad():
        losses = model.token_losses(ids[:, :-1], ids[:, 1:])
    assert losses.mean().item() == pytest.approx(math.log(vocab_size) + 1 / 8, abs=0.05)


def test_token_losses_are_minus_the_log_probability_of_each_label() -> None:
    model, ids, labels = peaked(Andrea(SMALL)), random_ids(3, 7), random_ids(3, 7, seed=1)
    with torch.no_grad():
        losses = model.token_losses(ids, labels)
        expected = -model(ids).softmax(-1).gather(-1, labels[..., None])[..., 0].log()
    assert losses.shape == (3, 7)
    assert losses.dtype == torch.float32
    torch.testing.assert_close(losses, expected)


def test_token_losses_are_float32_even_where_the_matrices_are_bfloat16() -> None:
    model, ids = Andrea(SMALL), random_ids(2, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert model(ids).dtype == torch.bfloat16
        assert model.token_losses(ids, ids).dtype == torch.float32
    assert model.bfloat16().token_losses(ids, ids).dtype == torch.float32


def test_a_row_longer_than_the_context_is_refused_and_one_as_long_is_not() -> None:
    model = Andrea(SMALL)
    assert model(random_ids(1, 12)).shape == (1, 12, 50)
    with pytest.raises(ConfigError, match=r"rows of 13 tokens do not fit the model's context of 12; lower"):
        model(random_ids(1, 13))


# --- where training starts


def test_parameters_follow_from_the_seed_alone() -> None:
    torch.manual_seed(1)
    first = Andrea(SMALL, seed=7).state_dict()
    torch.manual_seed(2)
    again, other = Andrea(SMALL, seed=7).state_dict(), Andrea(SMALL, seed=8).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first)


def test_parameters_start_at_the_stated_scales() -> None:
    config = ModelConfig(vocab_size=400, width=128, num_heads=2, num_layers=8, context=400)
    parameters = dict(Andrea(config).named_parameters())
    table = 128**-0.5
    expected = {
        "token_table.weight": table,
        "position_table.weight": table / 2,
        "head.weight": table / 2,
        "blocks.3.attention.query_key_value.weight": table / 2,
        "blocks.3.attention.output.weight": table / 2 / 16**0.5,
        "blocks.3.mlp_input.weight": table / 2,
        "blocks.3.mlp_output.weight": 512**-0.5 / 2 / 16**0.5,
    }
    for name, scale in expected.items():
        assert parameters[name].std().item() == pytest.approx(scale, rel=0.05), name
        assert parameters[name].mean().item() == pytest.approx(0, abs=0.05 * scale), name


def test_a_model_learns_one_batch_by_heart() -> None:
    ids = random_ids(4, 13)
    model = Andrea(SMALL)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-2, weight_decay=0)
    for _ in range(60):
        optimizer.zero_grad()
        model.token_losses(ids[:, :-1], ids[:, 1:]).mean().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    losses = model.token_losses(ids[:, :-1], ids[:, 1:])
    assert losses[:, 1:].mean().item() < 0.1
    row = ids[0].tolist()
    assert generate(model, row[:3], num_tokens=9, temperature=0) == row[3:12]


# --- generating


def test_the_same_seed_gives_the_same_text_whatever_torch_draws_elsewhere() -> None:
    model = Andrea(SMALL)
    torch.manual_seed(1)
    first = generate(model, [3], num_tokens=30, temperature=1.0, seed=5)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    assert generate(model, [3], num_tokens=30, temperature=1.0, seed=5) == first
    assert torch.equal(torch.get_rng_state(), state)
    assert generate(model, [3], num_tokens=30, temperature=1.0, seed=6) != first


def test_only_the_new_tokens_are_returned_and_all_are_of_the_vocabulary() -> None:
    ids = generate(Andrea(SMALL), [3, 4, 5], num_tokens=40, temperature=1.0, seed=0)
    assert len(ids) == 40  # more than three times the context
    assert all(type(token) is int and 0 <= token < 50 for token in ids)
    assert generate(Andrea(SMALL), [3], num_tokens=0) == []


def test_a_prompt_longer_than_the_context_is_refused_and_one_as_long_is_not() -> None:
    model, prompt = Andrea(SMALL), random_ids(1, 13)[0].tolist()
    assert len(generate(model, prompt[:12], num_tokens=3)) == 3
    with pytest.raises(ConfigError, match=r"prompt has 13 tokens, but the model's context is 12; shorten it"):
        generate(model, prompt, num_tokens=3)


def test_only_the_last_context_tokens_matter_once_the_text_is_longer() -> None:
    model, tail = peaked(Andrea(SMALL)), random_ids(1, 12)[0].tolist()
    expected = generate(model, tail, num_tokens=8, temperature=0)
    for n in range(1, 8):  # begun anew from the window of each token
        assert generate(model, (tail + expected)[n : n + 12], num_tokens=8 - n, temperature=0) == expected[n:]


@settings(max_examples=40, deadline=None)
@given(
    length=st.integers(1, 12),
    num_tokens=st.integers(0, 20),
    temperature=st.sampled_from([0.0, 0.7, 1.5]),
    seed=st.integers(0, 99),
)
def test_a_cache_changes_no_token(length: int, num_tokens: int, temperature: float, seed: int) -> None:
    model, prompt = peaked(Andrea(SMALL, seed=seed)), random_ids(1, length, seed=seed)[0].tolist()
    options: dict[str, Any] = {"num_tokens": num_tokens, "temperature": temperature, "seed": seed}
    assert generate(model, prompt, **options) == generate(model, prompt, **options, is_cached=False)


def test_with_a_cache_the_model_reads_the_prompt_once_and_then_a_token_at_a_time() -> None:
    model, lengths = Andrea(SMALL), list[int]()
    model.token_table.register_forward_hook(lambda _module, inputs, _output: lengths.append(inputs[0].shape[1]))
    generate(model, [1] * 10, num_tokens=5)
    assert lengths == [10, 1, 1, 12, 12]  # then its window moves


def test_a_cache_gives_the_logits_of_the_whole_row_and_takes_no_more_than_the_context() -> None:
    model, ids = peaked(Andrea(SMALL)), random_ids(2, 12)
    cache = KeyValueCache(model)
    with torch.no_grad():
        parts = [model.hidden(ids[:, :5], cache), *(model.hidden(ids[:, t : t + 1], cache) for t in range(5, 12))]
        torch.testing.assert_close(torch.cat(parts, dim=1), model.hidden(ids))
        with pytest.raises(ConfigError, match=r"13 tokens do not fit the model's context of 12; begin a new cache"):
            model.hidden(ids[:, :1], cache)
        other = KeyValueCache(model)
        model.hidden(ids[:, :5], other)
        with pytest.raises(ConfigError, match=r"2 tokens at once; after the prompt a cache takes one"):
            model.hidden(ids[:, 5:7], other)


def test_sampled_tokens_follow_the_models_probabilities_at_the_temperature() -> None:
    model, prompt = peaked(Andrea(SMALL)), [1, 2, 3]
    with torch.no_grad():
        expected = (model(torch.tensor([prompt]))[0, -1] / 2).softmax(-1)
    tokens = [generate(model, prompt, num_tokens=1, temperature=2.0, seed=seed)[0] for seed in range(300)]
    drawn = torch.bincount(torch.tensor(tokens), minlength=50) / 300
    # half the summed difference: its expectation is below sqrt(50 / 300) / 2 = 0.2
    assert (drawn - expected).abs().sum().item() / 2 < 0.2
    uniform = torch.full((50,), 1 / 50)
    assert (drawn - uniform).abs().sum().item() / 2 > 0.4  # so that a sampler that ignores the model fails


@pytest.mark.parametrize("temperature", [0.0, 1e-30, 5e-324])
def test_no_temperature_or_hardly_any_takes_the_likeliest_token(temperature: float) -> None:
    model, prompt = peaked(Andrea(SMALL)), [1, 2, 3]
    with torch.no_grad():
        likeliest = int(model(torch.tensor([prompt]))[0, -1].argmax())
    assert generate(model, prompt, num_tokens=1, temperature=temperature) == [likeliest]


@pytest.mark.parametrize(
    ("prompt", "num_tokens", "temperature", "error", "message"),
    [
        ([], 3, 1.0, ConfigError, r"the prompt has no tokens"),
        ([1], -1, 1.0, ConfigError, r"num_tokens is -1"),
        ([1], 3, -0.5, ConfigError, r"temperature is -0\.5"),
        ([1], 3, math.nan, ConfigError, r"temperature is nan"),
        ([1], 3, math.inf, ConfigError, r"temperature is inf"),
        ([1, 50], 3, 1.0, TokenizerError, r"prompt token 50 is outside the model's vocabulary of 50"),
        ([-1], 3, 1.0, TokenizerError, r"prompt token -1 is outside"),
    ],
)
def test_requests_that_cannot_be_met_say_why(
    prompt: list[int], num_tokens: int, temperature: float, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        generate(Andrea(SMALL), prompt, num_tokens=num_tokens, temperature=temperature)
