"""Everything that the report shows of a checkpoint, measured once: the same numbers for the page, for JSON, for Python.

``look`` takes a ``Subject``. What a subject lacks (text, an earlier checkpoint, a journal) is left out of the answer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from andrea.inspection import attention, embedding
from andrea.inspection.attention import LayerAttention
from andrea.inspection.curvature import Eigenvalue, sharpness
from andrea.inspection.early import Cliff, Moment, cliff, early_sharpness
from andrea.inspection.embedding import Answer, Dimension, Neighbour, Travel
from andrea.inspection.simplex import Regime, regimes
from andrea.inspection.subject import Effort, Subject
from andrea.inspection.terrain import (
    Basin,
    Comparison,
    Line,
    Plane,
    basin,
    check_same_shapes,
    compare,
    line,
    loss_of,
    parameters_of,
    plane,
)
from andrea.model import Andrea
from andrea.train import TrainingConfig
from mixer.errors import ConfigError

ANALOGIES = (  # a is to b as c is to d: b - a + c should lie near d
    ("is", "are", "was", "were"),
    ("file", "files", "string", "strings"),
    ("method", "methods", "object", "objects"),
    ("return", "returns", "raise", "raises"),
    ("he", "his", "she", "her"),
    ("man", "king", "woman", "queen"),
    ("one", "first", "two", "second"),
    ("import", "imported", "call", "called"),
)
SMALL_MODEL = 5_000_000  # parameters: `tiny`, and not 12M
SHOWN_WORDS, SHOWN_NEIGHBOURS = 8, 6


@dataclass(frozen=True, eq=False)
class Embeddings:
    """What was found of the token table.

    Attributes:
        dimension, untrained_dimension: of the table now, and of the one that training began with.
        pairs: cosines of random pairs of tokens, [2000].
        neighbours: of each word shown.
        analogies: (a, b, c, d) and where ``b - a + c`` led.
        travel: from the earlier table that is farthest back, or None; and the step that it is of.
    """

    dimension: Dimension
    untrained_dimension: Dimension | None
    pairs: Tensor
    neighbours: dict[int, list[Neighbour]]
    analogies: list[tuple[tuple[str, str, str, str], Answer]]
    travel: Travel | None
    travel_from: int | None


@dataclass(frozen=True)
class Head:
    """One head on one sentence.

    Attributes:
        layer, number: which head, from 0.
        evenness, unscaled: mean entropy of its weights as a share of the largest, with scores divided by sqrt(d_k) and
            not divided.
        to_itself, to_previous, to_first: mean weight of the token itself, the one before, and the first of the row,
            over the tokens from the third on.
    """

    layer: int
    number: int
    evenness: float
    unscaled: float
    to_itself: float
    to_previous: float
    to_first: float


@dataclass(frozen=True, eq=False)
class Attentions:
    """What was found of the heads.

    Attributes:
        sentence: its token ids.
        layers: what the heads did on it.
        heads: summed up.
        leak: the largest change of an earlier logit when the last token is replaced.
        noise: d_k to the evenness of random queries and keys, (scaled, unscaled).
    """

    sentence: list[int]
    layers: list[LayerAttention]
    heads: list[Head]
    leak: float
    noise: dict[int, tuple[float, float]]


@dataclass(frozen=True, eq=False)
class Terrain:
    """What was found of the loss around the checkpoint.

    Attributes:
        rows, row_tokens: the text that losses are means over.
        loss: of the checkpoint on it.
        plane: through the checkpoint.
        basin: around it.
        line, earlier_basin, comparison: from the earlier checkpoint to this one, and of both basins; or None.
        sharpness: by step of the untrained, the earlier and this model, as far as they are known.
        early: the first steps, with LR warmup and without.
        cliff: a row learned by heart.
    """

    rows: int
    row_tokens: int
    loss: float
    plane: Plane
    basin: Basin
    line: Line | None
    earlier_basin: Basin | None
    comparison: Comparison | None
    sharpness: dict[int, Eigenvalue]
    early: dict[Literal["with", "without"], list[Moment]]
    cliff: Cliff


@dataclass(frozen=True, eq=False)
class Findings:
    """All that was found, and of what."""

    subject: Subject
    embeddings: Embeddings
    attentions: Attentions | None
    terrain: Terrain | None
    regimes: list[Regime]


def look(subject: Subject, effort: Effort | None = None, *, say: Callable[[str], None] = lambda _: None) -> Findings:
    """Measure everything that the subject allows.

    Args:
        subject: its models stay as they are.
        effort: how much; all of it by default.
        say: told what is measured next.

    Raises:
        ConfigError: the models have different shapes, or a row or the sentence does not fit the model.
    """
    with _few_threads(subject.model):
        return _found(subject, effort or Effort(), say)


@contextmanager
def _few_threads(model: Andrea) -> Iterator[None]:
    """One thread for a small model: on busy cores two wait for each other longer than one works."""
    before = torch.get_num_threads()
    if model.config.num_parameters < SMALL_MODEL:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _found(subject: Subject, effort: Effort, say: Callable[[str], None]) -> Findings:
    for other in (subject.untrained, subject.before and subject.before[0]):
        if other is not None:
            check_same_shapes(parameters_of(other), parameters_of(subject.model))
    say("distances between tokens")
    embeddings = _embeddings(subject)
    say("attention")
    attentions = _attentions(subject)
    terrain = _terrain(subject, effort, say)
    return Findings(subject, embeddings, attentions, terrain, [] if subject.story is None else regimes(subject.story))


# --- the token table


def _table(model: Andrea) -> Tensor:
    return model.token_table.weight.detach().float().cpu()


def _embeddings(subject: Subject) -> Embeddings:
    table, origin, step = _table(subject.model), None, None
    if subject.untrained is not None:
        origin, step = _table(subject.untrained), 0
    elif subject.before is not None:
        origin, step = _table(subject.before[0]), subject.before[1]
    travel = None if origin is None else embedding.travel(origin, table)
    moved = None if travel is None or travel.moved.sum() < 2 else travel.moved
    words = _words(subject, moved)
    return Embeddings(
        dimension=embedding.dimension(table),
        untrained_dimension=None if subject.untrained is None else embedding.dimension(_table(subject.untrained)),
        pairs=embedding.random_pairs(table, among=moved),
        neighbours={word: embedding.neighbours_of(table, word, SHOWN_NEIGHBOURS, among=moved) for word in words},
        analogies=_analogies(subject, table, moved),
        travel=travel,
        travel_from=step,
    )


def _words(subject: Subject, moved: Tensor | None) -> list[int]:
    """The words asked for; else the most frequent ones of the text that have three letters or more."""
    if subject.words:
        found = {word: subject.token_of(word) for word in subject.words}
        split = [word for word, token in found.items() if token is None]
        if split:
            raise ConfigError(f"{split[0]!r} is not one token; distances are between tokens, so give words that are")
        return [token for token in found.values() if token is not None]
    if subject.rows is None:
        return []
    counts = torch.bincount(subject.rows.flatten(), minlength=subject.model.config.vocab_size)
    if moved is not None:
        counts = counts * moved
    frequent = [int(token) for token in counts.argsort(descending=True, stable=True)[:400] if counts[token] > 0]
    if subject.tokenizer is None:
        return frequent[:SHOWN_WORDS]
    texts = {token: subject.tokenizer.decode([token]).strip() for token in frequent}
    return [token for token, text in texts.items() if text.isalpha() and len(text) >= 3][:SHOWN_WORDS]


def _analogies(subject: Subject, table: Tensor, moved: Tensor | None) -> list[tuple[tuple[str, str, str, str], Answer]]:
    found = []
    for words in ANALOGIES:
        tokens = [subject.token_of(word) for word in words]
        known = [token for token in tokens if token is not None and (moved is None or bool(moved[token]))]
        if len(set(known)) == 4:
            a, b, c, d = known
            found.append((words, embedding.solve(table, plus=[b, c], minus=[a], expected=d, among=moved)))
    return found


# --- attention


def _attentions(subject: Subject) -> Attentions | None:
    sentence = subject.shown_sentence()
    if not sentence:
        return None
    layers = attention.attention_of(subject.model, sentence)
    d_ks = sorted({4, 16, 32, 64, 128, 256} | {layers[0].query.shape[2]})
    return Attentions(
        sentence=sentence,
        layers=layers,
        heads=[head for number, layer in enumerate(layers) for head in _heads(number, layer)],
        leak=attention.leak(subject.model, sentence),
        noise={
            d_k: (attention.evenness_of_noise(d_k, scaled=True), attention.evenness_of_noise(d_k, scaled=False))
            for d_k in d_ks
        },
    )


def _heads(number: int, layer: LayerAttention) -> list[Head]:
    weights = layer.weights
    even, unscaled = attention.evenness(weights), attention.evenness(layer.weights_at(1.0))
    start = min(2, weights.shape[1] - 1)

    def mean(values: Tensor) -> list[float]:
        return [float(value) for value in values.mean(-1)]

    itself = mean(weights.diagonal(0, 1, 2)[:, start:])
    previous = mean(weights.diagonal(-1, 1, 2)[:, start - 1 :])
    first = mean(weights[:, start:, 0])
    return [
        Head(number, i, float(even[i]), float(unscaled[i]), itself[i], previous[i], first[i])
        for i in range(len(weights))
    ]


# --- terrain


def _terrain(subject: Subject, effort: Effort, say: Callable[[str], None]) -> Terrain | None:
    if subject.rows is None:
        return None
    measured, trained = _split(subject.rows, subject.model.config.context, effort)
    loss, here = loss_of(subject.model, measured), parameters_of(subject.model)
    say("a plane through the loss")
    surface = plane(loss, here, num_points=effort.plane_points)
    say("the basin")
    seeds = range(effort.seeds)
    around = basin(loss, here, scales=effort.scales, seeds=seeds)
    path, earlier, comparison = None, None, None
    known: dict[int, Andrea] = {} if subject.untrained is None else {0: subject.untrained}
    if subject.before is not None:
        there = parameters_of(subject.before[0])
        path = line(loss, there, here)
        earlier = basin(loss, there, scales=effort.scales, seeds=seeds)
        comparison = compare(earlier, around)
        known[subject.before[1]] = subject.before[0]
    known[subject.step] = subject.model
    say("curvature")
    sharp = {
        step: sharpness(loss, parameters_of(model), tolerance=effort.tolerance, max_products=effort.max_products)
        for step, model in known.items()
    }
    say("the first steps, with LR warmup and without")
    early = _early(subject, measured, trained, effort)
    say("a row learned by heart")
    without_warmup = TrainingConfig(peak_lr=subject.training.peak_lr, warmup_steps=0, weight_decay=0.0)
    heart = cliff(
        subject.model, trained[0], measured, without_warmup,
        num_steps=effort.heart_steps, scales=effort.scales, seeds=range(min(4, effort.seeds)),
        tolerance=effort.tolerance,
    )  # fmt: skip
    return Terrain(
        rows=len(measured["input_ids"]), row_tokens=measured["input_ids"].shape[1], loss=around.loss, plane=surface,
        basin=around, line=path, earlier_basin=earlier, comparison=comparison, sharpness=sharp, early=early,
        cliff=heart,
    )  # fmt: skip


def _split(rows: Tensor, context: int, effort: Effort) -> tuple[Mapping[str, Tensor], list[Mapping[str, Tensor]]]:
    """The rows to measure on, as one batch, and the others: first one alone, then batches of as many."""
    length = min(effort.row_tokens, context, rows.shape[1] - 1)
    count = min(effort.rows, max(len(rows) // 2, 1))
    if len(rows) < 2 or length < 1:
        raise ConfigError(
            f"the text makes {len(rows)} rows of {rows.shape[1]} tokens; the terrain needs two of 2 tokens at least"
        )

    def batch(part: Tensor) -> Mapping[str, Tensor]:
        return {"input_ids": part[:, :length].long(), "labels": part[:, 1 : length + 1].long()}

    others = rows[count:]
    return batch(rows[:count]), [batch(others[:1]), *(batch(part) for part in torch.split(others, count))]


def _early(
    subject: Subject, measured: Mapping[str, Tensor], trained: Sequence[Mapping[str, Tensor]], effort: Effort
) -> dict[Literal["with", "without"], list[Moment]]:
    """The first steps of two models that differ in the warmup alone."""
    warmup = max(effort.early_steps) * 2 // 3

    def first_steps(warmup_steps: int, at: Sequence[int]) -> list[Moment]:
        fresh = Andrea(subject.model.config).to(subject.model.head.weight.device)
        if subject.untrained is not None:
            fresh.load_state_dict(subject.untrained.state_dict())
        settings = TrainingConfig(peak_lr=subject.training.peak_lr, warmup_steps=warmup_steps)
        return early_sharpness(fresh, trained[1:], measured, settings, at=at, tolerance=effort.tolerance)

    with_warmup = first_steps(warmup, sorted({0, *effort.early_steps}))
    start = replace(with_warmup[0], learning_rate=subject.training.peak_lr)  # both start at the same place
    return {"with": with_warmup, "without": [start, *first_steps(0, sorted(set(effort.early_steps) - {0}))]}
