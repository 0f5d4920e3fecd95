"""The first chapter: a token is a point."""

from __future__ import annotations

from andrea.inspection import figures, lesson
from andrea.inspection.chapters.words import Draw, table, text, vector
from andrea.inspection.embedding import chance_of_cosine, participation_at_random
from andrea.inspection.measure import Embeddings
from andrea.inspection.subject import Subject
from andrea.model import ModelConfig


def embedding_chapter(subject: Subject, found: Embeddings, draw: Draw) -> str:
    """Distances, neighbours, arithmetic, dimensions, travel."""
    config = subject.model.config
    parts = [
        "<h2>1. A token is a point</h2>",
        text(
            f"The token table has a row for each of the {config.vocab_size:,} tokens: a point in a space of",
            f"{config.width} dimensions. Points can be added and stretched, and two numbers say how far two of them",
            "are apart. The <b>cosine</b> compares directions: 1 is the same direction, 0 a right angle, -1 the",
            "opposite. The <b>Euclidean distance</b> compares places, so it also sees how long the two vectors are.",
        ),
        "<h3>By hand</h3>",
        text(
            "Three made-up embeddings in three dimensions:",
            "; ".join(f"{name} = {vector(values)}" for name, values in lesson.EMBEDDINGS.items()) + ".",
            "Parakeet and monkey nearly point the same way and lie 0.3 apart. Fourier stands at a right angle to",
            "parakeet.",
        ),
        table(
            ["pair", "cosine", "distance"],
            [(" and ".join(pair.names), f"{pair.cosine:.4f}", f"{pair.distance:.4f}") for pair in lesson.pairs()],
        ),
        "<h3>Neighbours in this model</h3>",
        _neighbours(subject, found),
        draw(figures.pairs_figure(found)),
        _analogies(subject, found),
        _dimensions(subject, found, draw),
        _travel(subject, found),
    ]
    return "".join(parts)


def _neighbours(subject: Subject, found: Embeddings) -> str:
    spread = float(found.pairs.std())
    high = float(found.pairs.quantile(0.99))
    words = text(
        "A cosine means nothing alone: it has to be compared with that of tokens picked at random. Of 2,000 random",
        f"pairs the mean is {float(found.pairs.mean()):.3f}, the standard deviation {spread:.3f}, and one in a",
        f"hundred is above {high:.2f}. (Random directions would have a deviation of 1/sqrt({found.dimension.width})",
        f"= {found.dimension.width**-0.5:.3f}.) A neighbour below {high:.2f} may be one by chance.",
    )
    if not found.neighbours:
        return words
    rows = [
        (
            subject.spelled(token),
            ",  ".join(f"{subject.spelled(n.token)} {n.cosine:.2f}" for n in near),
            f"{near[0].distance:.2f}" if near else "",
        )
        for token, near in found.neighbours.items()
    ]
    return words + table(["token", "nearest tokens, by cosine", "distance of the first"], rows, text=(0, 1))


def _analogies(subject: Subject, found: Embeddings) -> str:
    parts = [
        "<h3>Arithmetic</h3>",
        text(
            "If the step from <i>file</i> to <i>files</i> were the same as that from <i>string</i> to",
            "<i>strings</i>, then files - file + string would land on strings. The three tokens put in are left out",
            "of the answer, as is the custom. The last column shows why: without that rule the answer is often one",
            "of them.",
        ),
    ]
    if not found.analogies:
        return "".join([*parts, text("None of the examples can be tried: their words are not single tokens here.")])
    first = sum(answer.expected_rank == 1 for _, answer in found.analogies)
    rows = [
        (
            f"{b} - {a} + {c}",
            ", ".join(subject.spelled(near.token) for near in answer.neighbours[:3]),
            f"{d}: place {answer.expected_rank:,}",
            subject.spelled(answer.nearest_of_all.token),
        )
        for (a, b, c, d), answer in found.analogies
    ]
    parts.append(table(["sum", "nearest", "expected", "nearest of all"], rows, text=(0, 1, 2, 3)))
    parts.append(text(f"The expected token came first in {first} of {len(rows)}."))
    return "".join(parts)


def _dimensions(subject: Subject, found: Embeddings, draw: Draw) -> str:
    here, large, small = subject.model.config, ModelConfig.andrea_120m(), ModelConfig.andrea_12m()
    rows = [
        (
            name,
            f"{config.vocab_size:,}",
            config.width,
            f"{participation_at_random(config.vocab_size, config.width):.0f}",
            f"{config.width**-0.5:.3f}",
            f"{chance_of_cosine(config.width, 0.1):.2%}",
        )
        for name, config in (("this model", here), ("ANDREA-12M", small), ("ANDREA-120M", large))
    ]
    before = found.untrained_dimension
    return "".join(
        [
            "<h3>How many dimensions are used</h3>",
            text(
                "A space of more dimensions has room for more directions that do not disturb one another. The table",
                "says what chance alone does. In 384 dimensions one pair of random directions in 20 has a cosine",
                "beyond 0.1; in 768 only one in 180. A word with two meanings finds a direction for each more",
                "easily.",
            ),
            table(
                [
                    "table",
                    "tokens",
                    "width",
                    "dimensions that noise fills",
                    "deviation of a random cosine",
                    "pairs beyond 0.1",
                ],
                rows,
            ),
            text(
                "The <b>effective dimension</b> of a table is the participation ratio of the variances along its",
                "principal axes: as many equal axes would spread alike. This table fills",
                f"<b>{found.dimension.participation:.1f}</b> of its {found.dimension.width} dimensions",
                f"(by the entropy of the variances {found.dimension.entropy_rank:.1f})"
                + (f"; before training it filled {before.participation:.1f}." if before else "."),
                f"Noise of this shape would fill {found.dimension.at_random:.1f}. What is missing is structure:",
                "directions that many tokens share.",
            ),
            draw(figures.dimension_figure(found)),
        ]
    )


def _travel(subject: Subject, found: Embeddings) -> str:
    travel = found.travel
    if travel is None:
        return text("There is no earlier checkpoint to compare with, so how far the tokens travelled is not known.")
    still = int((~travel.moved).sum())
    away = travel.distances[travel.moved]
    parts = [
        "<h3>How far the tokens travelled</h3>",
        text(
            "Each step of training moves the tokens of its batch a little. A token that no batch holds does not",
            f"move at all. Between step {found.travel_from:,} and step {subject.step:,}, {int(travel.moved.sum()):,}",
            "tokens moved and",
            f"{still:,} stood still." if still else "none stood still.",
        ),
    ]
    if not len(away):
        return "".join(parts)
    order = travel.distances.argsort(descending=True)[:6].tolist()
    slow = [int(i) for i in travel.distances.masked_fill(~travel.moved, float("inf")).argsort()[:6] if travel.moved[i]]
    parts.append(
        text(
            f"Those that moved went {float(away.mean()):.2f} on average, between {float(away.min()):.3f} and",
            f"{float(away.max()):.2f}. The cosine between where one was and where it is now averages",
            f"{float(travel.cosines[travel.moved].mean()):.2f}.",
        )
    )
    rows = [
        (what, ",  ".join(f"{subject.spelled(i)} {float(travel.distances[i]):.2f}" for i in tokens))
        for what, tokens in (("farthest", order), ("least", slow))
    ]
    return "".join([*parts, table(["travelled", "tokens and distances"], rows, text=(0, 1))])
