"""Claim: Harris's segments, ANDREA's kind of vocabulary, are made and used about as fast as a byte-level BPE.

What they cost in tokens and in bits per byte of held-out text is measured, not claimed: under each a tiny ANDREA learns
as many tokens of the same documents, which are fewer bytes where a token is shorter. Every tenth document is held out
from the tokenizers too.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import statistics
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Tokenizer

from andrea.model import Andrea, ModelConfig
from benchmarks.common import head, medians, say
from mixer.sources.harris import train_harris
from mixer.sources.local import gather
from mixer.sources.tokenizer import TextTokenizer
from mixer.sources.tokenizer_training import train
from mixer.types import TokenArray

COLLECTIONS = ("docstrings", "topics", "dialogues", "readmes", "comments", "glossary", "code")
DOCUMENTS = 4_000  # of each collection
SIZES = (2305, 8449)  # ANDREA-12M's and ANDREA-120M's
BATCH, T = 16, 128
PEAK_LR, WARMUP_STEPS = 3e-3, 20
SEPARATOR = "<|endoftext|>"
KINDS: dict[str, Callable[[Sequence[str], int, str], Tokenizer]] = {"bpe": train, "harris": train_harris}


def documents() -> tuple[list[str], list[str]]:
    """Return the documents to learn from, and every tenth one, which is held out."""
    lines = itertools.chain.from_iterable(gather(name).read_bytes().splitlines()[:DOCUMENTS] for name in COLLECTIONS)
    texts = [json.loads(line)["text"] for line in lines]
    return [text for i, text in enumerate(texts) if i % 10], texts[::10]


def rows(tokenizer: TextTokenizer, texts: Sequence[str]) -> TokenArray:
    """Return the texts as packed rows, [N, T + 1]; what does not fill a row is left out."""
    ids = tokenizer.encode_joined(texts)
    return ids[: len(ids) // (T + 1) * (T + 1)].reshape(-1, T + 1)


def token_bytes(tokenizer: TextTokenizer) -> npt.NDArray[np.int64]:
    """Return how many bytes of text each token is, [V]; a token is written with a character for each."""
    lengths = np.zeros(tokenizer.vocab_size, dtype=np.int64)
    for token, i in Tokenizer.from_str(tokenizer.to_json()).get_vocab().items():
        lengths[i] = 0 if token == tokenizer.separator else len(token)
    return lengths


def bits_per_byte(tokenizer: TextTokenizer, seen: TokenArray, held_out: TokenArray, *, steps: int, seed: int) -> float:
    """Train a tiny ANDREA and return what a byte of the held-out text costs it, separators included."""
    model = Andrea(ModelConfig.tiny(tokenizer.vocab_size, T), seed=seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_LR, weight_decay=0.1)

    def factor(step: int) -> float:
        return min(1.0, (step + 1) / WARMUP_STEPS) * (0.1 + 0.9 * (1 + math.cos(math.pi * step / steps)) / 2)

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    rng = np.random.default_rng([seed, 0])
    for _ in range(steps):
        batch = torch.from_numpy(seen[rng.integers(len(seen), size=BATCH)].astype(np.int64))
        optimizer.zero_grad(set_to_none=True)
        model.token_losses(batch[:, :-1], batch[:, 1:]).mean().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    lengths = token_bytes(tokenizer)
    nats, num_bytes = 0.0, 0
    with torch.no_grad():
        for part in np.array_split(held_out, max(1, len(held_out) // 64)):
            batch = torch.from_numpy(part.astype(np.int64))
            nats += float(model.token_losses(batch[:, :-1], batch[:, 1:]).sum())
            num_bytes += int(lengths[part[:, 1:]].sum())
    return nats / math.log(2) / num_bytes


def compared(size: int, seen: Sequence[str], held_out: Sequence[str], *, steps: int, seeds: int) -> list[list[object]]:
    """Return a row for each kind of vocabulary of one size."""
    made: dict[str, TextTokenizer] = {}

    def making(kind: str) -> Callable[[], None]:
        def make() -> None:
            made[kind] = TextTokenizer(KINDS[kind](seen, size, SEPARATOR), SEPARATOR)

        return make

    training = medians({kind: making(kind) for kind in KINDS}, rounds=3)
    encoding = medians({kind: partial(made[kind].encode_joined, held_out) for kind in KINDS}, rounds=5)
    num_bytes = sum(len(text.encode()) for text in held_out)
    table: list[list[object]] = []
    for kind, tokenizer in made.items():
        parts = rows(tokenizer, seen), rows(tokenizer, held_out)
        bits = [bits_per_byte(tokenizer, *parts, steps=steps, seed=seed) for seed in range(seeds)]
        spread = f"{min(bits):.4f} to {max(bits):.4f}"
        tokens = len(tokenizer.encode_joined(held_out)) - len(held_out)
        speed = num_bytes / 1e6 / encoding[kind]
        figures = (num_bytes / tokens, statistics.mean(bits))
        table.append([kind, tokenizer.vocab_size, *(f"{x:.4f}" for x in figures), spread, training[kind], speed])
    return table


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    head()
    seen, held_out = documents()
    columns = ["kind", "tokens", "bytes per token", "bits per byte", "of the seeds", "trained in s", "encodes MB/s"]
    found = [
        row for size in asked.sizes for row in compared(size, seen, held_out, steps=asked.steps, seeds=asked.seeds)
    ]
    megabytes = sum(len(text.encode()) for text in seen) / 1e6
    say(f"{megabytes:.1f} MB of text, {asked.steps} steps of {BATCH} x {T} tokens", columns, found)


if __name__ == "__main__":
    main()
