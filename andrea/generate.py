"""Continuing a prompt, one sampled token at a time: what a run's samples, and so its coherence gate, are made of.

There is no cache of keys and values: every token costs a pass over the window, which is fine for the few hundred tokens
of a sample and keeps the model one function of its input.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from andrea.model import Andrea
from mixer.errors import ConfigError, TokenizerError


@torch.inference_mode()
def generate(
    model: Andrea, prompt_ids: Sequence[int], num_tokens: int, temperature: float = 1.0, seed: int = 0
) -> list[int]:
    """Return ``num_tokens`` token ids that continue the prompt (the prompt itself is not among them).

    The same arguments give the same ids, whatever else uses torch's random numbers. Once prompt and continuation are
    longer than the model's context, the model sees the last ``context`` tokens.

    Args:
        model: stays as it is.
        prompt_ids: at least one token id, [T]; for an unprompted sample, the separator that starts a document.
        num_tokens: how many ids to add.
        temperature: logits are divided by it; 0 takes the likeliest token each time.
        seed: of the draws.

    Raises:
        ConfigError: the prompt is empty, or temperature or num_tokens is out of range.
        TokenizerError: a prompt id outside the model's vocabulary.
    """
    ids = [int(token) for token in prompt_ids]
    _check_request(model, ids, num_tokens, temperature)
    device = next(model.parameters()).device
    generator = torch.Generator(device="cpu").manual_seed(seed)
    for _ in range(num_tokens):
        window = torch.tensor([ids[-model.config.context :]], device=device)
        logits = model.head(model.hidden(window)[0, -1])
        ids.append(_sampled(logits.float().cpu(), temperature, generator))
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
