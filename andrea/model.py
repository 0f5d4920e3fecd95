"""ANDREA, the model that the demo and the reference runs train: a decoder-only transformer with nothing optional in it.

The layer norms have no parameters, nothing has a bias and the head is not tied to the token table: that is the only
reading under which the published sizes come out, 98.7 M for 120M and 12.8 M for 12M, and it makes a checkpoint of
matrices only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn

from mixer.errors import ConfigError

_MLP_RATIO = 4  # width of the hidden layer of an MLP, in widths of the residual stream


@dataclass(frozen=True)
class ModelConfig:
    """The shape of an ANDREA.

    Raises ConfigError, listing every problem, if a size is not positive or ``num_heads`` does not divide ``width``.
    """

    vocab_size: int
    width: int
    num_heads: int
    num_layers: int
    context: int
    """The longest row that the model can read, in tokens."""

    def __post_init__(self) -> None:
        problems = [f"model {name} is {size}; it must be at least 1" for name, size in vars(self).items() if size < 1]
        if not problems and self.width % self.num_heads:
            nearest = self.width - self.width % self.num_heads or self.num_heads
            problems.append(
                f"model width {self.width} cannot be split over {self.num_heads} heads; "
                f"num_heads must divide width: with these heads, {nearest} would do"
            )
        if problems:
            raise ConfigError(problems)

    @classmethod
    def andrea_120m(cls) -> Self:
        """ANDREA-120M as published, 98,698,752 parameters: 8,192 segments, 256 bytes and 1 beginning-of-text."""
        return cls(vocab_size=8449, width=768, num_heads=12, num_layers=12, context=1024)

    @classmethod
    def andrea_12m(cls) -> Self:
        """ANDREA-12M as published, 12,780,288 parameters: 2,048 segments, 256 bytes and 1 beginning-of-text."""
        return cls(vocab_size=2305, width=384, num_heads=12, num_layers=6, context=1024)

    @classmethod
    def tiny(cls, vocab_size: int, context: int) -> Self:
        """A model of about a million parameters (0.93 M at 2,048 tokens and a context of 128), quick on two cores."""
        return cls(vocab_size=vocab_size, width=128, num_heads=4, num_layers=2, context=context)

    @property
    def num_parameters(self) -> int:
        """The parameters of the model: two tables of the vocabulary, one of positions, ``12 width^2`` a block."""
        attention, mlp = 4 * self.width**2, 2 * _MLP_RATIO * self.width**2
        return (2 * self.vocab_size + self.context) * self.width + self.num_layers * (attention + mlp)


class KeyValueCache:
    """Keys and values of the tokens that a model has read, so that the next token costs one token's work.

    Give it to ``Andrea.hidden`` first with the whole prompt, then with one token at a time, ``context`` in all.
    """

    def __init__(self, model: Andrea) -> None:
        self._layers: list[tuple[Tensor, Tensor] | None] = [None] * model.config.num_layers
        self._room = model.config.context
        self.length = 0
        """Tokens read so far."""

    def check(self, num_tokens: int) -> None:
        """Raise ConfigError unless so many tokens may be read next."""
        if self.length and num_tokens != 1:
            raise ConfigError(f"{num_tokens} tokens at once; after the prompt a cache takes one token at a time")
        if self.length + num_tokens > self._room:
            raise ConfigError(
                f"{self.length + num_tokens} tokens do not fit the model's context of {self._room}; begin a new cache "
                "with the last of them"
            )

    def extended(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys and values of a layer with those of the newest tokens, [B, heads, tokens, width / heads] both."""
        before = self._layers[layer]
        if before is None:
            shape = (*key.shape[:2], self._room, key.shape[3])
            before = self._layers[layer] = (key.new_empty(shape), value.new_empty(shape))
        end = self.length + key.shape[2]
        before[0][:, :, self.length : end], before[1][:, :, self.length : end] = key, value
        return before[0][:, :, :end], before[1][:, :, :end]


class _Attention(nn.Module):
    """Causal self-attention, ``[B, T, width] -> [B, T, width]``; with a cache T is the newest tokens."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.query_key_value = nn.Linear(config.width, 3 * config.width, bias=False)
        self.output = nn.Linear(config.width, config.width, bias=False)

    def forward(self, x: Tensor, cache: KeyValueCache | None = None, layer: int = 0) -> Tensor:
        num_rows, num_tokens, width = x.shape
        heads = self.query_key_value(x).view(num_rows, num_tokens, 3, self.num_heads, width // self.num_heads)
        query, key, value = heads.permute(2, 0, 3, 1, 4)  # each [B, heads, T, width / heads]
        if cache is not None:
            key, value = cache.extended(layer, key, value)
        # the one newest token sees all that a cache has
        is_causal = cache is None or num_tokens > 1
        mixed = nn.functional.scaled_dot_product_attention(query, key, value, is_causal=is_causal)
        projected: Tensor = self.output(mixed.transpose(1, 2).reshape(num_rows, num_tokens, width))
        return projected


class _Block(nn.Module):
    """Pre-norm: ``x + attention(norm(x))``, then ``x + mlp(norm(x))``."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.attention = _Attention(config)
        self.mlp_input = nn.Linear(config.width, _MLP_RATIO * config.width, bias=False)
        self.mlp_output = nn.Linear(_MLP_RATIO * config.width, config.width, bias=False)

    def forward(self, x: Tensor, cache: KeyValueCache | None = None, layer: int = 0) -> Tensor:
        x = x + self.attention(_normalised(x), cache, layer)
        updated: Tensor = x + self.mlp_output(nn.functional.gelu(self.mlp_input(_normalised(x))))
        return updated


class Andrea(nn.Module):
    """A decoder-only transformer: ``input_ids [B, T] -> logits [B, T, V]``.

    The parameters follow from ``seed`` alone, whatever the device and wherever torch's global generator stands. Built
    under ``torch.device("meta")`` the model has shapes only and costs no memory.
    """

    def __init__(self, config: ModelConfig, *, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        self.token_table = nn.Embedding(config.vocab_size, config.width)
        self.position_table = nn.Embedding(config.context, config.width)
        self.blocks = nn.ModuleList(_Block(config) for _ in range(config.num_layers))
        self.head = nn.Linear(config.width, config.vocab_size, bias=False)
        self._initialise(seed)

    @torch.no_grad()
    def _initialise(self, seed: int) -> None:
        """Draw every parameter from a normal distribution, in the order of ``named_parameters``.

        The scale of the token table is 1/sqrt(width), as published; of everything else it is half of 1/sqrt(inputs),
        and what is added to the residual stream is scaled down by sqrt(2 num_layers), so that its 2 num_layers
        additions together weigh as much as one. Why half: a token must outweigh its position and the blocks' first,
        random additions, or training idles at the loss of word frequencies. ``tiny`` on documentation, 300 steps: 4.1
        nats with the halves, 4.9 without. The head's half leaves the first loss 1/8 above a uniform guess, ln V.
        """
        generator = torch.Generator(device="cpu").manual_seed(seed)
        for name, parameter in self.named_parameters():
            if parameter.is_meta:
                continue
            scale = parameter.shape[-1] ** -0.5
            if name != "token_table.weight":
                scale /= 2
            if name.endswith(("attention.output.weight", "mlp_output.weight")):
                scale *= (2 * self.config.num_layers) ** -0.5
            # drawn on the processor first: a GPU's generator would give other numbers for the same seed
            parameter.copy_(torch.empty(parameter.shape, device="cpu").normal_(std=scale, generator=generator))

    def hidden(self, input_ids: Tensor, cache: KeyValueCache | None = None) -> Tensor:
        """The normalised output of the last block, [B, T, width]; the head makes logits of it.

        With a cache the tokens follow those that it has.

        Raises ConfigError if the rows, with what a cache has, are longer than the model's context.
        """
        num_tokens = input_ids.shape[1]
        if num_tokens > self.config.context:
            raise ConfigError(
                f"rows of {num_tokens} tokens do not fit the model's context of {self.config.context}; "
                f"lower sequence_length to {self.config.context}, or build the model with a longer context"
            )
        begin = 0
        if cache is not None:
            cache.check(num_tokens)
            begin = cache.length
        positions = torch.arange(begin, begin + num_tokens, device=input_ids.device)
        x = self.token_table(input_ids) + self.position_table(positions)
        for layer, block in enumerate(self.blocks):
            x = block(x, cache, layer)
        if cache is not None:
            cache.length += num_tokens
        return _normalised(x)

    def forward(self, input_ids: Tensor) -> Tensor:
        """Logits of the next token at every position, [B, T, V]; position ``t`` sees tokens ``0..t`` only."""
        logits: Tensor = self.head(self.hidden(input_ids))
        return logits

    def token_losses(self, input_ids: Tensor, labels: Tensor) -> Tensor:
        """Cross entropy of each label in nats, float32 [B, T]; ``labels[:, t]`` follows ``input_ids[:, t]``."""
        logits = self(input_ids).float()  # a log-sum-exp over the vocabulary loses digits in half precision
        return nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view(labels.shape)


def _normalised(x: Tensor) -> Tensor:
    """Layer norm over the last axis, without gain or shift."""
    return nn.functional.layer_norm(x, x.shape[-1:])
