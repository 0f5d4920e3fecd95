"""Everything that can be known before a run starts: files, columns, tokenizer, feasibility of every regime."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from mixer.config.curriculum import Curriculum
from mixer.config.epochs import declared_tokens
from mixer.config.policy import UnimaxConfig, WaterFillingConfig
from mixer.config.probes import probe_notes
from mixer.config.rules import Rule, policies_of
from mixer.config.token_files import beside_token_files, streamed_beside_token_files
from mixer.errors import ConfigError, MissingDataError, MixerError, PreparedMismatchError
from mixer.policies import make_policy
from mixer.policies.fixed import FixedPolicy
from mixer.region.region import MAX_VERTEX_SOURCES, Region
from mixer.sources.opening import bad_records, check_sources
from mixer.sources.prepared.rows import Prepared
from mixer.sources.token_files.opening import token_file_problems
from mixer.sources.tokenizer_training import load_tokenizer


@dataclass(frozen=True)
class Report:
    """What ``mixer check`` found: every problem, the regimes with their regions, and records that cannot be read.

    ``notes`` say what stops no run and yet is not what its author may expect.
    """

    problems: tuple[str, ...]
    regimes: tuple[dict[str, Any], ...]
    bad_records: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def check(curriculum: Curriculum, *, reads_all: bool = False) -> Report:
    """Return what can be said of a run before it starts; sources are opened and their first documents read.

    With ``reads_all`` every source is read to its end, and every record that cannot be read is listed; of token files
    the first id that is outside the vocabulary.

    Sources of a run from prepared rows are not: the rows are all that it reads.
    """
    problems: list[str] = []
    try:
        for policy in policies_of(curriculum):
            make_policy(curriculum, policy)
    except ConfigError as error:
        problems += error.problems
    reads_text, prepared_problems = _prepared_problems(curriculum)
    problems += prepared_problems
    if streamed := streamed_beside_token_files(curriculum):
        problems.append(beside_token_files(streamed))
    source_problems = check_sources(curriculum) if reads_text else []
    problems += source_problems
    needs_sources = curriculum.tokenizer is not None and curriculum.tokenizer.train_vocab_size is not None
    tokenizer = None
    if reads_text and not (source_problems and needs_sources):  # none can be trained on sources that cannot be read
        try:
            tokenizer = load_tokenizer(curriculum)
        except ConfigError as error:
            problems += error.problems
        except MixerError as error:
            problems.append(str(error))
    elif not reads_text and not prepared_problems and curriculum.prepared is not None:
        tokenizer = Prepared.open(curriculum.resolve(curriculum.prepared)).tokenizer()
    if tokenizer is not None:
        sizes = {"vocab_size": tokenizer.vocab_size, "separator_id": tokenizer.separator_id}
        problems += token_file_problems(curriculum, **sizes, reads_all=reads_all)
    listed: list[str] = []
    if reads_all and reads_text:
        found, more = bad_records(curriculum)
        problems = [*dict.fromkeys([*_without(problems, found), *more, *_too_many(curriculum, found)])]
        listed = [record for records in found.values() for record in records]
    notes = (*_idle_policy(curriculum), *_epoch_notes(curriculum), *probe_notes(curriculum))
    return Report(tuple(problems), tuple(_regime_facts(curriculum)), tuple(listed), notes)


def _idle_policy(curriculum: Curriculum) -> Iterator[str]:
    """Yield a sentence if the run's own policy is named but never decides."""
    if curriculum.policy != WaterFillingConfig() and all(rule.policy is None for rule in curriculum.rules):
        yield (
            f"policy {curriculum.policy.name} never decides: `weights` hold in every regime; hand over to it at a "
            f"pivot with `policy: {curriculum.policy.name}`, or leave one of the two out"
        )


def _epoch_notes(curriculum: Curriculum) -> Iterator[str]:
    """Yield a sentence on what ``max_epochs`` allows of each source, and on those of which it cannot say yet."""
    if curriculum.max_epochs not in (None, "auto") and isinstance(curriculum.policy, UnimaxConfig):
        yield "max_epochs has no effect: policy unimax has its own"
    of_rules = [curriculum.limits_under(rule.policy) for rule in curriculum.rules]
    has_limit = [any(limits[i] is not None for limits in of_rules) for i in range(len(curriculum.sources))]
    own = [limit if has else None for limit, has in zip(curriculum.epoch_limits, has_limit, strict=True)]
    limits = zip(curriculum.sources, own, strict=True)
    for source, limit in ((source, limit) for source, limit in limits if limit is not None):
        if source.tokens is None:
            yield (
                f"source {source.name}: max_epochs {limit:g} has no effect until it was read through once, as its "
                "number of tokens is not known; give `tokens:`, or prepare its rows"
            )
        else:
            share = limit * source.tokens / (curriculum.total_steps * curriculum.batch_tokens)
            yield (
                f"source {source.name}: max_epochs {limit:g} of {source.tokens:,} tokens allows {share:.4g} of the "
                "run's tokens at most"
            )


def _without(problems: list[str], found: dict[str, list[str]]) -> list[str]:
    """Return the problems that are not one of the records found, which are listed by themselves."""
    records = tuple(record for records in found.values() for record in records)
    return [problem for problem in problems if not problem.startswith(records)]


def _too_many(curriculum: Curriculum, found: dict[str, list[str]]) -> Iterator[str]:
    """Yield a sentence for each source whose bad records would stop a run."""
    for source in curriculum.sources:
        num = len(found.get(source.name, ()))
        if not num:
            continue
        if source.on_bad_record == "stop":
            yield (
                f"source {source.name}: {num} bad record{'s' * (num > 1)} would stop a run; mend what is listed, or "
                "set on_bad_record: skip"
            )
        elif num > source.max_bad_records:
            yield (
                f"source {source.name}: {num} bad records, but max_bad_records is {source.max_bad_records}; mend what "
                "is listed, or raise it"
            )


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
    ends = [*curriculum.regimes[1:], None]
    for regime, rule, following in zip(curriculum.regimes, curriculum.rules, ends, strict=True):
        region = regime.region
        fixed = _fixed_weights(curriculum, rule, region)
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
                "policy": None if rule.policy is None else rule.policy.name,
                "weights": fixed,
                "ramp_end": rule.ramp_end if regime.start < rule.ramp_end else None,
            }
        )
    return facts


def _fixed_weights(curriculum: Curriculum, rule: Rule, region: Region) -> dict[str, float] | None:
    """Return the weights of a regime, where no loss moves them: written by hand, or of a policy that is a rule."""
    if rule.policy is None:
        written = rule.weights or {}
        return {name: written.get(name, 0.0) for name in region.names}
    try:
        policy = make_policy(curriculum, rule.policy)
    except ConfigError:  # stands among the problems
        return None
    if not isinstance(policy, FixedPolicy):
        return None
    tokens = declared_tokens(curriculum)
    weights = policy.choose(
        {}, region, region.project(np.full(len(region.names), 1 / len(region.names))), tokens
    ).weights
    return dict(zip(region.names, weights.tolist(), strict=True))
