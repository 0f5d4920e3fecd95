"""What the heads did, against what the model put out."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import special, stats

from andrea.inspection import attention
from andrea.model import Andrea
from mixer.errors import ConfigError

IDS = [3, 1, 4, 1, 5, 9, 2, 6]


def test_the_weights_mix_values_into_what_the_model_itself_mixed(model: Andrea) -> None:
    mixed = []
    for i in range(2):
        output = model.get_submodule(f"blocks.{i}.attention.output")
        output.register_forward_pre_hook(lambda _module, inputs: mixed.append(inputs[0][0]))
    layers = attention.attention_of(model, IDS)
    assert len(layers) == 2
    for layer, expected in zip(layers, mixed, strict=True):
        ours = (layer.weights @ layer.value).transpose(0, 1).flatten(1)  # [T, width], the heads side by side
        torch.testing.assert_close(ours, expected)


def test_looking_leaves_the_model_as_it_was(model: Andrea) -> None:
    before = model(torch.tensor([IDS]))
    attention.attention_of(model, IDS)
    assert torch.equal(model(torch.tensor([IDS])), before)
    assert not any(module._forward_hooks for module in model.modules())


def test_no_weight_reaches_into_the_future_and_each_row_adds_up_to_one(model: Andrea) -> None:
    for layer in attention.attention_of(model, IDS):
        assert layer.weights.shape == (2, 8, 8)
        assert (layer.weights.triu(1) == 0).all()
        torch.testing.assert_close(layer.weights.sum(-1), torch.ones(2, 8))


def test_weights_are_scipys_softmax_of_scores_over_the_root_of_d_k(model: Andrea) -> None:
    layer = attention.attention_of(model, IDS)[1]
    scores = layer.query[1, 5].double() @ layer.key[1, :6].double().T
    assert layer.scores[1, 5, :6].tolist() == pytest.approx(scores.tolist(), rel=1e-5)
    expected = special.softmax(scores.numpy() / 2)  # d_k = 8 / 2 = 4
    assert layer.weights[1, 5, :6].tolist() == pytest.approx(expected.tolist(), rel=1e-5)
    assert layer.weights_at(1)[1, 5, :6].tolist() == pytest.approx(special.softmax(scores.numpy()).tolist(), rel=1e-5)
    length = layer.query[1, 5].norm().item()
    assert layer.projections[1, 5, :6].tolist() == pytest.approx((scores / length).tolist(), rel=1e-5)


def test_entropy_is_scipys_and_evenness_is_one_where_all_weights_are_alike() -> None:
    weights = torch.rand(3, 5, generator=torch.Generator().manual_seed(0)).softmax(-1)
    assert attention.entropy(weights).tolist() == pytest.approx(stats.entropy(weights.numpy(), axis=1).tolist())
    even = attention.causal_softmax(torch.zeros(6, 6))
    assert attention.evenness(even).item() == pytest.approx(1)
    assert attention.evenness(torch.eye(6)).item() == 0  # each token looks at itself alone


def test_a_change_of_the_last_token_reaches_no_earlier_logit(model: Andrea) -> None:
    assert attention.leak(model, IDS) == 0
    first = model.get_submodule("blocks.0.attention")  # a model whose positions see the next token
    first.register_forward_hook(lambda _module, _inputs, output: output + output.roll(-1, 1))
    assert attention.leak(model, IDS) > 0


def test_noise_stays_even_under_scaling_and_grows_sharp_without() -> None:
    scaled = [attention.evenness_of_noise(d_k, scaled=True) for d_k in (4, 16, 64, 256)]
    unscaled = [attention.evenness_of_noise(d_k, scaled=False) for d_k in (4, 16, 64, 256)]
    assert max(scaled) - min(scaled) < 0.03
    assert unscaled == sorted(unscaled, reverse=True)
    assert unscaled[-1] < 0.1 < 0.8 < scaled[-1]


@pytest.mark.parametrize(
    ("ids", "says"),
    [
        ([3], "the sentence has 1 tokens; give one of 2 to 12"),
        ([3] * 13, "the sentence has 13 tokens; give one of 2 to 12"),
        ([3, 23], "token 23 is outside the model's vocabulary of 23"),
        ([3, -1], "token -1 is outside"),
    ],
)
def test_a_row_that_the_model_cannot_read_is_refused(model: Andrea, ids: list[int], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        attention.attention_of(model, ids)
    with pytest.raises(ConfigError, match=says):
        attention.leak(model, ids)


def test_one_query_alone_is_a_softmax_over_what_it_may_see() -> None:
    keys = torch.randn(5, 9, generator=torch.Generator().manual_seed(0))
    weights = attention.attend(keys[0], keys)
    assert weights.tolist() == pytest.approx(special.softmax((keys @ keys[0]).numpy() / math.sqrt(9)).tolist())
