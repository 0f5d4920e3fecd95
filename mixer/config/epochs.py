"""Whether a run can keep its limits by epochs, as far as that is known before it starts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from mixer.types import Array

if TYPE_CHECKING:
    from mixer.config.curriculum import Curriculum

MAX_LISTED = 20  # sources that a message names


def allowed_tokens(
    curriculum: Curriculum, unique_tokens: Array, limits: tuple[float | None, ...] | None = None
) -> Array:
    """Return the tokens that each source may give in the run, [K]: its limit times its distinct tokens.

    Its ``max_tokens`` is a limit too. It is inf without a limit, or where that by epochs is of a number of distinct
    tokens that is unknown (0 in ``unique_tokens``, [K]). By default ``limits`` are those of the run.
    """
    most = np.array([np.inf if limit is None else limit for limit in limits or curriculum.epoch_limits])
    is_limited = np.isfinite(most) & (unique_tokens > 0)
    return np.minimum(np.where(is_limited, np.where(is_limited, most, 0.0) * unique_tokens, np.inf), _most(curriculum))


def _most(curriculum: Curriculum) -> Array:
    """Return the ``max_tokens`` of each source, [K]; inf without."""
    return np.array([np.inf if source.max_tokens is None else source.max_tokens for source in curriculum.sources])


def declared_tokens(curriculum: Curriculum) -> Array:
    """Return the distinct tokens of each source as the file says them, [K]; 0 where it does not."""
    return np.array([source.tokens or 0 for source in curriculum.sources], dtype=np.float64)


def epoch_problems(curriculum: Curriculum) -> Iterator[str]:
    """Yield a sentence with numbers for a run that no weights within floors, caps and limits can fill.

    Every stretch of regimes that follow each other must be filled by what the sources may give in it: at most
    their limit less what bounds make them give elsewhere, at least what floors make them give there. That is a cut of
    the flow from sources to regimes (Gale 1957). Sources of unknown size may give anything, and so may those that
    only ``max_epochs: auto`` limits: it gives way where the run needs more.
    """
    if not curriculum.has_epoch_limits:
        return
    total = curriculum.total_steps
    regimes = [regime for regime in curriculum.regimes if regime.start < total]
    ends = [*(regime.start for regime in regimes[1:]), total]
    tokens = [(end - regime.start) * curriculum.batch_tokens for regime, end in zip(regimes, ends, strict=True)]
    least = np.array([regime.region.lower * n for regime, n in zip(regimes, tokens, strict=True)])
    most = np.array([regime.region.upper * n for regime, n in zip(regimes, tokens, strict=True)])
    floors = np.array([regime.region.floors * n for regime, n in zip(regimes, tokens, strict=True)])
    allowed = allowed_tokens(curriculum, declared_tokens(curriculum))
    if curriculum.max_epochs == "auto":
        is_inherited = [source.max_epochs == "inherit" for source in curriculum.sources]
        allowed = np.where(is_inherited, _most(curriculum), allowed)
    spans = [(first, last) for first in range(len(regimes)) for last in range(first + 1, len(regimes) + 1)]
    for first, last in sorted(spans, key=lambda span: span[1] - span[0]):  # the shortest says most
        here = slice(first, last)
        elsewhere = least.sum(axis=0) - least[here].sum(axis=0)
        given = np.maximum(allowed - elsewhere, floors[here].sum(axis=0))  # floors win over epochs
        supply = np.minimum(most[here].sum(axis=0), given)
        needed = sum(tokens[here])
        if supply.sum() < needed * (1 - 1e-9):
            yield _too_few(curriculum, regimes[first].start, ends[last - 1], supply, needed)
            return


def _too_few(curriculum: Curriculum, start: int, end: int, supply: Array, needed: int) -> str:
    given = [(name, tokens) for name, tokens in zip(curriculum.names, supply, strict=True) if tokens > 0]
    listing = ", ".join(f"{name} {tokens:,.0f}" for name, tokens in given[:MAX_LISTED])
    more = f" and {len(given) - MAX_LISTED} more" if len(given) > MAX_LISTED else ""
    total = float(supply.sum())
    factor, steps = needed / max(total, 1.0), -(-(needed - total) // curriculum.batch_tokens)
    return (
        f"max_epochs: steps {start} to {end - 1} need {needed:,} tokens, but within their epochs, floors and caps the "
        f"sources have only {total:,.0f}: {listing}{more}; allow {factor:.3g} times the epochs "
        f"or more, make it {steps:,.0f} steps shorter, or add text"
    )
