"""Sources of token rows: what one can do, and how a curriculum's are opened and checked.

Importing this costs nothing; `datasets` is imported when a source is opened.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from mixer.config import Curriculum
from mixer.config_errors import suggestion
from mixer.errors import ConfigError, MixerError, UnknownSourceError
from mixer.types import IntArray, RowArray, TokenArray

if TYPE_CHECKING:
    from datasets import IterableDataset

    from mixer.tokenizer import TextTokenizer

__all__ = ["PreparedSource", "Progress", "RowSource", "check_sources", "open_sources"]


@dataclass(frozen=True)
class Progress:
    """How far a source has been read.

    ``rows`` and ``tokens`` are those delivered. ``documents``, over all epochs, and ``epoch``, from 0, are as of the
    end of the group that the last row came from. ``unique_tokens`` is the length of one epoch, separators included,
    and None until an epoch has ended.
    """

    rows: int = 0
    tokens: int = 0
    documents: int = 0
    epoch: int = 0
    unique_tokens: int | None = None


class RowSource(Protocol):
    """One source as the delivery sees it; ``mixer.testing.assert_source_is_exact`` checks one of your own."""

    @property
    def name(self) -> str:
        """The source's name in the curriculum."""

    @property
    def progress(self) -> Progress:
        """How far it has been read; a function of the state."""

    def take(self, num_rows: int) -> TokenArray:
        """Return the next rows, uint32 [num_rows, T + 1]; if it raises, no row is lost."""

    def state_dict(self) -> dict[str, Any]:
        """Return the place after the last row taken, as plain data."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from such a place."""


class PreparedSource(Protocol):
    """One source's rows on disk, all of one epoch; ``prepared.PreparedRows`` is one."""

    @property
    def name(self) -> str:
        """The source's name in the curriculum."""

    @property
    def num_rows(self) -> int:
        """Rows of one epoch, at least 1."""

    @property
    def num_documents(self) -> int:
        """Documents of one epoch."""

    @property
    def row_length(self) -> int:
        """Tokens of a row: T + 1."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """How token ids are stored."""

    def gather(self, positions: IntArray, out: RowArray | None = None) -> RowArray:
        """Return the rows at ``positions``, int64 [n], each below ``num_rows``: [n, T + 1], in ``out`` if given."""


def open_sources(
    curriculum: Curriculum,
    tokenizer: TextTokenizer,
    streams: Mapping[str, IterableDataset] | None = None,
) -> list[RowSource]:
    """Open every source in declared order.

    Args:
        curriculum: the run; its ``sources`` and ``sequence_length`` count here.
        tokenizer: what ``mixer.tokenizer.load_tokenizer`` gave.
        streams: data sets by source name, for sources that the program passes instead of naming files.

    Raises:
        UnknownSourceError: a stream for a source that is not declared.
        ConfigError, SourceError: a source that cannot be opened.
    """
    from mixer.sources.huggingface import open_stream
    from mixer.sources.rows import StreamedRows

    streams = _known_streams(curriculum, streams)
    return [
        StreamedRows(
            open_stream(source, resolve=curriculum.resolve, dataset=streams.get(source.name)),
            tokenizer,
            sequence_length=curriculum.sequence_length,
            on_exhausted=source.on_exhausted,
        )
        for source in curriculum.sources
    ]


def check_sources(curriculum: Curriculum, streams: Mapping[str, IterableDataset] | None = None) -> list[str]:
    """Return a sentence for every source that would not start, in declared order; needs no tokenizer."""
    from mixer.sources.huggingface import open_stream

    streams = _known_streams(curriculum, streams)
    problems: list[str] = []
    for source in curriculum.sources:
        try:
            open_stream(source, resolve=curriculum.resolve, dataset=streams.get(source.name)).check()
        except ConfigError as error:
            problems += error.problems
        except MixerError as error:
            problems.append(str(error))
    return problems


def _known_streams(
    curriculum: Curriculum, streams: Mapping[str, IterableDataset] | None
) -> Mapping[str, IterableDataset]:
    for name in streams or {}:
        if name not in curriculum.names:
            raise UnknownSourceError(f"streams: unknown source {name!r}{suggestion(name, curriculum.names)}")
    return streams or {}
