"""Everything that can be known before a run starts: files, columns, tokenizer, feasibility of every regime."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mixer.config import Curriculum
from mixer.errors import ConfigError, MissingDataError, MixerError, PreparedMismatchError
from mixer.policies import make_policy
from mixer.region import MAX_VERTEX_SOURCES
from mixer.sources import check_sources
from mixer.sources.prepared import Prepared
from mixer.tokenizer import load_tokenizer


@dataclass(frozen=True)
class Report:
    """What ``mixer check`` found: every problem, and the regimes with their regions."""

    problems: tuple[str, ...]
    regimes: tuple[dict[str, Any], ...]


def check(curriculum: Curriculum) -> Report:
    """Return what can be said of a run before it starts; sources are opened and their first documents read.

    Sources of a run from prepared rows are not: the rows are all that it reads.
    """
    problems: list[str] = []
    try:
        make_policy(curriculum)
    except ConfigError as error:
        problems += error.problems
    reads_text, prepared_problems = _prepared_problems(curriculum)
    problems += prepared_problems
    source_problems = check_sources(curriculum) if reads_text else []
    problems += source_problems
    needs_sources = curriculum.tokenizer is not None and curriculum.tokenizer.train_vocab_size is not None
    if reads_text and not (source_problems and needs_sources):  # none can be trained on sources that cannot be read
        try:
            load_tokenizer(curriculum)
        except ConfigError as error:
            problems += error.problems
        except MixerError as error:
            problems.append(str(error))
    return Report(tuple(problems), tuple(_regime_facts(curriculum)))


def _prepared_problems(curriculum: Curriculum) -> tuple[bool, list[str]]:
    """Return whether text has to be read, now or by ``mixer prepare``, and what is wrong with the prepared rows."""
    if curriculum.prepared is None:
        return True, []
    try:
        Prepared.open(curriculum.resolve(curriculum.prepared)).check_against(curriculum)
    except PreparedMismatchError as error:
        return True, list(error.differences)
    except MissingDataError as error:
        return True, [f"prepared: {error}"]
    except MixerError as error:
        return False, [f"prepared: {error}"]
    return False, []


def _regime_facts(curriculum: Curriculum) -> list[dict[str, Any]]:
    facts = []
    for regime, following in zip(curriculum.regimes, [*curriculum.regimes[1:], None], strict=True):
        region = regime.region
        is_listable = region.dimension < MAX_VERTEX_SOURCES
        facts.append(
            {
                "name": regime.name,
                "start": regime.start,
                "end": following.start if following else curriculum.total_steps,
                "dimension": region.dimension,
                "log_volume": region.log_volume(),
                "num_vertices": len(region.vertices()) if is_listable else None,
                "bounds": {
                    name: [float(low), float(high)]
                    for name, low, high in zip(region.names, region.lower, region.upper, strict=True)
                },
            }
        )
    return facts
