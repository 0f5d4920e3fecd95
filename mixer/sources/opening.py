"""Sources of token rows: what one can do, and how a curriculum's are opened and checked.

Importing this costs nothing; `datasets` is imported when a source is opened.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from mixer.config.curriculum import Curriculum
from mixer.config.problems import suggestion
from mixer.config.sources import SourceConfig
from mixer.errors import ConfigError, MixerError, UnknownSourceError
from mixer.sources.base import RowSource

if TYPE_CHECKING:
    from datasets import IterableDataset

    from mixer.sources.shared import Participant
    from mixer.sources.streams import Stream
    from mixer.sources.tokenizer import TextTokenizer

__all__ = ["check_sources", "open_sources"]


def open_sources(
    curriculum: Curriculum,
    tokenizer: TextTokenizer,
    streams: Mapping[str, IterableDataset] | None = None,
    *,
    reader: int = 0,
    num_readers: int = 1,
    held_out: bool = False,
    member: Participant | None = None,
) -> list[RowSource]:
    """Open every source in declared order.

    Several readers divide each source: by its files if their number divides by that of the readers and nothing looks
    across files, as ``take``, ``map`` and ``interleave_datasets`` of a data set passed in may; else document by
    document, so that every reader parses all and tokenises its own. No two give the same document and together they
    give what one reader gives; a reader's ``progress`` counts its own. Its state fits the same ``reader`` of the same
    ``num_readers``.

    Args:
        curriculum: the run; its ``sources``, ``sequence_length``, ``holdout`` and ``retries`` count here.
        tokenizer: what ``mixer.sources.tokenizer_training.load_tokenizer`` gave.
        streams: data sets by source name, for sources that the program passes instead of naming files.
        reader: which of the readers this is, from 0.
        num_readers: how many there are.
        held_out: give only the documents that ``holdout`` keeps from the training stream, to evaluate on.
        member: the run's part in what the runs of this process stream together (``SharedGroups.join``).

    Raises:
        UnknownSourceError: a stream for a source that is not declared.
        ConfigError, SourceError: a source that cannot be opened.
    """
    from mixer.sources.rows import AHEAD_BYTES, StreamedRows

    if not 0 <= reader < num_readers:
        raise ConfigError(f"reader {reader} of {num_readers}: readers are numbered from 0 to num_readers - 1")
    if held_out and not curriculum.holdout:
        raise ConfigError("held_out: the curriculum holds nothing out; set holdout, as in `holdout: 0.01`")
    streams = _known_streams(curriculum, streams)
    opened = partial(_opened, curriculum, streams, tokenizer=tokenizer, vocab_size=tokenizer.vocab_size)
    return [
        StreamedRows(
            opened(source, holdout=curriculum.holdout, held_out=held_out, reader=reader, num_readers=num_readers),
            tokenizer,
            sequence_length=curriculum.sequence_length,
            on_exhausted=source.on_exhausted,
            ahead_bytes=AHEAD_BYTES // len(curriculum.sources),
            member=member,
        )
        for source in curriculum.sources
    ]


def check_sources(curriculum: Curriculum, streams: Mapping[str, IterableDataset] | None = None) -> list[str]:
    """Return a sentence for every source that would not start, in declared order.

    Sources of conversations alone need the tokenizer, which has their template.
    """
    streams = _known_streams(curriculum, streams)
    try:
        tokenizer = _for_chat(curriculum)
    except ConfigError as error:
        return [*error.problems]
    except MixerError as error:
        return [str(error)]
    problems: list[str] = []
    for source in curriculum.read_sources:
        try:
            stream = _opened(
                curriculum,
                streams,
                source,
                tokenizer=tokenizer,
                vocab_size=curriculum.vocab_size,
                holdout=curriculum.holdout,
            )
            stream.check()
        except ConfigError as error:
            problems += error.problems
        except MixerError as error:
            problems.append(str(error))
    return problems


def bad_records(
    curriculum: Curriculum, streams: Mapping[str, IterableDataset] | None = None
) -> tuple[dict[str, list[str]], list[str]]:
    """Read every source to its end.

    Returns:
        The records that cannot be read, by source, each with its file and line, and a sentence for every source that
        cannot be read on. Sources without either are not among them.
    """
    streams = _known_streams(curriculum, streams)
    tokenizer = _for_chat(curriculum)
    found: dict[str, list[str]] = {}
    problems: list[str] = []
    for source in curriculum.read_sources:
        bad: list[str] = []
        try:
            stream = _opened(curriculum, streams, source, tokenizer=tokenizer, vocab_size=curriculum.vocab_size)
            stream.on_bad = bad.append
            while len(stream.next_group()):
                pass
        except MixerError as error:
            problems.append(str(error))
        if bad:
            found[source.name] = bad
    return found, problems


def _for_chat(curriculum: Curriculum) -> TextTokenizer | None:
    """Return the run's tokenizer if sources of conversations need it to be read."""
    from mixer.sources.tokenizer_training import load_tokenizer

    return load_tokenizer(curriculum) if curriculum.has_masks else None


def _opened(
    curriculum: Curriculum,
    streams: Mapping[str, IterableDataset],
    source: SourceConfig,
    *,
    tokenizer: TextTokenizer | None,
    vocab_size: int | None,
    **share: Any,
) -> Stream[Any]:
    from mixer.sources.chat import chat_of
    from mixer.sources.huggingface import open_stream
    from mixer.sources.share import Share

    return open_stream(
        source,
        resolve=curriculum.resolve,
        dataset=streams.get(source.name),
        retries=curriculum.retries,
        share=Share(**share),
        row_length=curriculum.sequence_length + 1,
        vocab_size=vocab_size,
        chat=None if tokenizer is None else chat_of(source, tokenizer, curriculum.resolve),
    )


def _known_streams(
    curriculum: Curriculum, streams: Mapping[str, IterableDataset] | None
) -> Mapping[str, IterableDataset]:
    for name in streams or {}:
        if name not in curriculum.probed_names:
            raise UnknownSourceError(f"streams: unknown source {name!r}{suggestion(name, curriculum.probed_names)}")
    return streams or {}
