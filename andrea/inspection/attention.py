"""What each head of a model looks at: queries, keys, scores, the causal mask, and what sqrt(d_k) does.

The queries and keys are read off the model while it runs, so that what is shown is what it computed; the weights are
recomputed from them, because the fused attention never gives them out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from andrea.model import Andrea
from mixer.errors import ConfigError


@dataclass(frozen=True, eq=False)
class LayerAttention:
    """The heads of one layer at work on T tokens.

    Attributes:
        query, key, value: float32 [heads, T, d_k].
    """

    query: Tensor
    key: Tensor
    value: Tensor

    @property
    def scores(self) -> Tensor:
        """Dot products of each query with each key, [heads, T, T], neither scaled nor masked."""
        return self.query @ self.key.transpose(1, 2)

    @property
    def projections(self) -> Tensor:
        """The length of each key along each query's direction, ``q . k / |q|``, [heads, T, T], not masked."""
        lengths: Tensor = torch.linalg.vector_norm(self.query, dim=2, keepdim=True)
        return self.scores / lengths

    @property
    def weights(self) -> Tensor:
        """What the model mixes values with: ``softmax(mask(q k / sqrt(d_k)))``, [heads, T, T]; rows add up to 1."""
        return self.weights_at(1 / math.sqrt(self.query.shape[2]))

    def weights_at(self, scale: float) -> Tensor:
        """The weights if scores were multiplied by ``scale``, [heads, T, T]."""
        return causal_softmax(self.scores * scale)


def causal_softmax(scores: Tensor) -> Tensor:
    """Softmax over each row of [..., T, T] with everything above the diagonal at -infinity."""
    future = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
    return scores.masked_fill(future, -math.inf).softmax(-1)


def attend(query: Tensor, keys: Tensor, *, scaled: bool = True) -> Tensor:
    """The weights that one query [d_k] gives to n keys [n, d_k] that it may see, [n]."""
    scores = keys @ query
    return (scores / math.sqrt(len(query)) if scaled else scores).softmax(0)


def entropy(weights: Tensor) -> Tensor:
    """Entropy of the last axis in nats: 0 looks at one token, ln n at n tokens alike."""
    found: Tensor = torch.special.entr(weights).sum(-1)
    return found


def evenness(weights: Tensor) -> Tensor:
    """Mean entropy of causal weights [..., T, T] as a share of the largest possible, [...]; 1 is an even look back.

    The entropy of row ``t`` is divided by ``ln(t + 1)``. The first row, which can look at itself alone, is left out.
    """
    num_tokens = weights.shape[-1]
    most = torch.arange(2, num_tokens + 1, device=weights.device, dtype=weights.dtype).log()
    return (entropy(weights)[..., 1:] / most).mean(-1)


@torch.no_grad()
def attention_of(model: Andrea, ids: Sequence[int]) -> list[LayerAttention]:
    """Run a model on a row of at least two tokens and return what the heads of each layer did.

    Raises ConfigError if the row is too short or does not fit the context, or holds a token that the model has not.
    """
    check_row(model, ids)
    found: list[Tensor] = []
    hooks = [
        module.register_forward_hook(lambda _module, _inputs, output: found.append(output))
        for name, module in model.named_modules()
        if name.endswith("attention.query_key_value")
    ]
    try:
        model(torch.tensor([list(ids)], device=model.head.weight.device))
    finally:
        for hook in hooks:
            hook.remove()
    num_heads = model.config.num_heads
    layers = []
    for output in found:
        heads = output[0].float().cpu().view(len(ids), 3, num_heads, -1).permute(1, 2, 0, 3)
        layers.append(LayerAttention(*heads))
    return layers


def check_row(model: Andrea, ids: Sequence[int]) -> None:
    """Raise ConfigError unless the row has two tokens or more, fits the context and is of the vocabulary."""
    if not 2 <= len(ids) <= model.config.context:
        raise ConfigError(
            f"the sentence has {len(ids)} tokens; give one of 2 to {model.config.context}, the model's context"
        )
    foreign = [i for i in ids if not 0 <= i < model.config.vocab_size]
    if foreign:
        raise ConfigError(
            f"token {foreign[0]} is outside the model's vocabulary of {model.config.vocab_size}; "
            f"use the tokenizer that the model was trained with"
        )


@torch.no_grad()
def leak(model: Andrea, ids: Sequence[int]) -> float:
    """The largest change of any earlier logit when the last token is replaced: exactly 0 under a causal mask."""
    check_row(model, ids)
    changed = [*ids[:-1], (ids[-1] + 1) % model.config.vocab_size]
    before, after = (model(torch.tensor([row], device=model.head.weight.device)) for row in (list(ids), changed))
    return float((before - after)[:, :-1].abs().max())


def evenness_of_noise(d_k: int, *, scaled: bool, num_keys: int = 64, num_queries: int = 256, seed: int = 0) -> float:
    """Mean entropy, as a share of ``ln num_keys``, of weights between random queries and keys of unit variance.

    A dot product of two such vectors has variance ``d_k``: unscaled, the softmax grows sharper with every dimension;
    divided by sqrt(d_k), its variance is 1 whatever d_k is.
    """
    generator = torch.Generator().manual_seed(seed)
    queries, keys = (torch.randn(count, d_k, generator=generator) for count in (num_queries, num_keys))
    scores = queries @ keys.T / (math.sqrt(d_k) if scaled else 1)
    return float(entropy(scores.softmax(-1)).mean() / math.log(num_keys))
