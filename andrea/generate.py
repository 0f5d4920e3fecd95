"""Continuing a prompt, one sampled token at a time: what a run's samples, and so its coherence gate, are made of.

Keys and values are kept (``KeyValueCache``), so that a token costs one token's work. Once prompt and continuation are
longer than the model's context, its window moves with every token, and with it the position of each token in it: then
nothing can be kept, and every token costs a pass over the window.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from andrea.checkpoint import LoadedModel
from andrea.model import Andrea, KeyValueCache
from mixer.errors import CheckpointError, ConfigError, TokenizerError


@torch.inference_mode()
def generate(
    model: Andrea,
    prompt_ids: Sequence[int],
    num_tokens: int,
    temperature: float = 1.0,
    seed: int = 0,
    *,
    is_cached: bool = True,
) -> list[int]:
    """Return ``num_tokens`` token ids that continue the prompt (the prompt itself is not among them).

    The same arguments give the same ids, whatever else uses torch's random numbers. Once prompt and continuation are
    longer than the model's context, the model sees the last ``context`` tokens.

    Args:
        model: stays as it is.
        prompt_ids: at least one token id and at most ``context``, [T]; for an unprompted sample, the separator that
            starts a document.
        num_tokens: how many ids to add.
        temperature: logits are divided by it; 0 takes the likeliest token each time.
        seed: of the draws.
        is_cached: keep keys and values; False computes every token from the whole window, with the same result.

    Raises:
        ConfigError: the prompt is empty or longer than the context, or temperature or num_tokens is out of range.
        TokenizerError: a prompt id outside the model's vocabulary.
    """
    ids = [int(token) for token in prompt_ids]
    _check_request(model, ids, num_tokens, temperature)
    device = next(model.parameters()).device
    generator = torch.Generator(device="cpu").manual_seed(seed)
    cache = KeyValueCache(model) if is_cached else None
    for _ in range(num_tokens):
        if cache is not None and len(ids) <= model.config.context:
            hidden = model.hidden(torch.tensor([ids[cache.length :]], device=device), cache)
        else:
            hidden = model.hidden(torch.tensor([ids[-model.config.context :]], device=device))
        ids.append(_sampled(model.head(hidden[0, -1]).float().cpu(), temperature, generator))
    return ids[len(ids) - num_tokens :]


def _sampled(logits: Tensor, temperature: float, generator: torch.Generator) -> int:
    """One token id from logits [V]."""
    if temperature == 0:
        return int(logits.argmax())
    # in float64 and with the likeliest token at 0, so that the smallest temperature overflows to -inf and never to nan
    probabilities = ((logits - logits.max()).double() / temperature).softmax(-1)
    return int(torch.multinomial(probabilities, 1, generator=generator))


def _check_request(model: Andrea, ids: list[int], num_tokens: int, temperature: float) -> None:
    if not ids:
        raise ConfigError("the prompt has no tokens; start from the tokenizer's separator for an unprompted sample")
    if len(ids) > model.config.context:
        raise ConfigError(
            f"the prompt has {len(ids)} tokens, but the model's context is {model.config.context}; shorten it to its "
            f"last {model.config.context} tokens"
        )
    if num_tokens < 0:
        raise ConfigError(f"num_tokens is {num_tokens}; it must be at least 0")
    if not 0 <= temperature < math.inf:
        raise ConfigError(f"temperature is {temperature}; it must be finite and at least 0")
    vocab_size = model.config.vocab_size
    foreign = next((token for token in ids if not 0 <= token < vocab_size), None)
    if foreign is not None:
        raise TokenizerError(
            f"prompt token {foreign} is outside the model's vocabulary of {vocab_size}; "
            f"encode the prompt with the tokenizer that the model was trained with"
        )


def generate_text(loaded: LoadedModel, prompt: str, num_tokens: int, *, temperature: float = 1.0, seed: int = 0) -> str:
    """Return the text that continues a prompt, which begins a document.

    Raises:
        CheckpointError: the checkpoint has no tokenizer.
        ConfigError: as ``generate``.
    """
    tokenizer = loaded.tokenizer
    if tokenizer is None:
        raise CheckpointError(
            "the checkpoint has no tokenizer, so that text cannot become tokens; convert it again with --tokenizer FILE"
        )
    ids = [tokenizer.separator_id, *tokenizer.encode([prompt])[0].tolist()]
    return tokenizer.decode(generate(loaded.model, ids, num_tokens, temperature, seed))
