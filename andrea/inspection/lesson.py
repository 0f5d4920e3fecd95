"""The worked numbers of the lesson on the geometry of ANDREA: small enough to check by hand.

Three embeddings in R^3, one query with three keys in R^4, and a region of three sources; computed with the functions
that measure a real checkpoint.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor

from andrea.inspection.attention import attend, entropy
from andrea.inspection.embedding import cosines, distances
from mixer.region.region import Region
from mixer.types import Array

EMBEDDINGS = {"parakeet": (1.0, 0.5, 0.0), "monkey": (1.2, 0.3, 0.1), "Fourier": (0.0, 0.0, 1.5)}
QUERY = (1.0, 0.0, 1.0, 0.0)
KEYS = {"k1": (1.0, 0.0, 0.0, 0.0), "k2": (0.0, 0.0, 1.0, 0.0), "k3": (0.0, 1.0, 0.0, 1.0)}
SOURCES = ("H", "G", "D")  # hermes3-general, gutenberg, dictionary


@dataclass(frozen=True)
class Pair:
    """Two embeddings and how far they are apart."""

    names: tuple[str, str]
    cosine: float
    distance: float


@dataclass(frozen=True, eq=False)
class WorkedAttention:
    """One query and its keys, [3] each.

    Attributes:
        scores: the dot products.
        projections: the length of each key along the query.
        weights: of the softmax with scores divided by sqrt(d_k) = 2.
        unscaled: of the softmax without that.
        entropies: of both, in nats.
    """

    scores: Tensor
    projections: Tensor
    weights: Tensor
    unscaled: Tensor
    entropies: tuple[float, float]


def pairs() -> list[Pair]:
    """Cosine and distance of each pair of the lesson's embeddings."""
    vectors = {name: torch.tensor(vector, dtype=torch.float64) for name, vector in EMBEDDINGS.items()}
    return [
        Pair((a, b), float(cosines(vectors[a][None], vectors[b])), float(distances(vectors[a][None], vectors[b])))
        for a, b in combinations(vectors, 2)
    ]


def worked_attention() -> WorkedAttention:
    """The lesson's query and keys."""
    query = torch.tensor(QUERY, dtype=torch.float64)
    keys = torch.tensor(list(KEYS.values()), dtype=torch.float64)
    weights, unscaled = attend(query, keys), attend(query, keys, scaled=False)
    return WorkedAttention(
        scores=keys @ query,
        projections=keys @ query / torch.linalg.vector_norm(query),
        weights=weights,
        unscaled=unscaled,
        entropies=(float(entropy(weights)), float(entropy(unscaled))),
    )


def region() -> Region:
    """The region of the sources H, G and D with a floor of 0.5 under H and a cap of 0.25 on D."""
    return Region(list(SOURCES), floors={"H": 0.5}, caps={"D": 0.25})


def corners() -> Array:
    """The corners of that region, [4, 3]."""
    return region().vertices()
