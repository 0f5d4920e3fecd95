"""The second chapter: attention is projection."""

from __future__ import annotations

import html

import torch

from andrea.inspection import figures, lesson
from andrea.inspection.chapters.words import Draw, table, text, vector
from andrea.inspection.measure import Attentions
from andrea.inspection.subject import Subject


def attention_chapter(subject: Subject, found: Attentions | None, draw: Draw) -> str:
    """The query and its keys, the heads of this model, the mask, and sqrt(d_k)."""
    worked = lesson.worked_attention()
    parts = [
        "<h2>2. Attention is projection</h2>",
        text(
            "For each token a head makes a <b>query</b>, a <b>key</b> and a <b>value</b>. The score of a key is its",
            "dot product with the query: the length of the key along the query's direction, times the query's own",
            "length. Scores are divided by sqrt(d_k), a softmax turns them into weights that add up to 1, and the",
            "values are mixed by these weights.",
        ),
        "<h3>By hand</h3>",
        text(
            f"A query q = {vector(lesson.QUERY)} and three keys in four dimensions, so sqrt(d_k) = 2. k1 and k2 lie",
            "along q; k3 is at a right angle to it. Without the division the first two weights are larger and the",
            f"third smaller: the entropy of the weights is {worked.entropies[0]:.4f} with it and",
            f"{worked.entropies[1]:.4f} without; three equal weights would have ln 3 = 1.0986.",
        ),
        table(
            ["key", "q . k", "projection on q", "q . k / 2", "weight", "weight without the division"],
            [
                (
                    f"{name} = {vector(key)}",
                    f"{float(worked.scores[i]):g}",
                    f"{float(worked.projections[i]):.4f}",
                    f"{float(worked.scores[i]) / 2:g}",
                    f"{float(worked.weights[i]):.4f}",
                    f"{float(worked.unscaled[i]):.4f}",
                )
                for i, (name, key) in enumerate(lesson.KEYS.items())
            ],
        ),
    ]
    if found is None:
        return "".join([*parts, text("No sentence and no text were given, so no head of this model is shown.")])
    return "".join([*parts, *_heads(subject, found, draw)])


def _heads(subject: Subject, found: Attentions, draw: Draw) -> list[str]:
    d_k = found.layers[0].query.shape[2]
    even = torch.tensor([[head.evenness, head.unscaled] for head in found.heads]).mean(0).tolist()
    sentence = subject.tokenizer.decode(found.sentence) if subject.tokenizer else " ".join(map(str, found.sentence))
    noise = found.noise[d_k]
    return [
        "<h3>The heads of this model</h3>",
        text(
            "Rows are the tokens that look, from the top down; columns are the tokens looked at. Nothing stands to",
            "the right of the diagonal: the <b>causal mask</b> sets those scores to minus infinity before the",
            "softmax. Replacing the last token of this sentence changed the logits before it by at most",
            f"<b>{found.leak:g}</b>.",
        ),
        f"<blockquote>{html.escape(sentence)}</blockquote>",
        draw(figures.heads_figure(subject, found)),
        text(
            "<b>Evenness</b> is the mean entropy of a head's weights as a share of the largest possible: 1 looks at",
            "all earlier tokens alike, 0 at one alone.",
        ),
        table(
            ["head", "evenness", "without sqrt(d_k)", "to itself", "to the token before", "to the first token"],
            [
                (
                    f"layer {head.layer + 1}, head {head.number + 1}",
                    *(
                        f"{v:.2f}"
                        for v in (head.evenness, head.unscaled, head.to_itself, head.to_previous, head.to_first)
                    ),
                )
                for head in found.heads
            ],
        ),
        "<h3>What sqrt(d_k) does</h3>",
        text(
            "A dot product of two random vectors with entries of variance 1 has variance d_k. The more dimensions a",
            "head has, the larger its scores, until the softmax picks one token and ignores the rest. Divided by",
            f"sqrt(d_k) the variance is 1 whatever d_k is. For random queries and keys of {d_k} dimensions the",
            f"evenness is {noise[0]:.2f} with the division and {noise[1]:.2f} without. This model's heads, which",
            f"were trained with it, have {even[0]:.2f} on average; without it the same queries and keys would have",
            f"{even[1]:.2f}.",
        ),
        draw(figures.scaling_figure(found)),
    ]
