"""What a source of token rows is: its interface, its progress, and how it ends."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from mixer.types import TokenArray


class EndOfSource(Exception):  # noqa: N818  # a signal, like StopIteration
    """A source whose ``on_exhausted`` is ``stop`` has fewer rows left than asked for; ``rows_left`` may still be taken.

    A signal to the delivery, not an error of the user's: the run ends here as planned.
    """

    def __init__(self, name: str, rows_left: int) -> None:
        super().__init__(f"source {name} has ended with {rows_left} rows left")
        self.name = name
        self.rows_left = rows_left


@dataclass(frozen=True)
class Progress:
    """How far a source has been read.

    ``rows`` and ``tokens`` are those delivered. ``documents``, over all epochs, and ``epoch``, from 0, are as of the
    end of the group that the last row came from. ``unique_tokens`` is the length of one epoch, separators included,
    and None until an epoch has ended. ``bad_records`` were skipped, over all epochs, as ``on_bad_record`` says.
    """

    rows: int = 0
    tokens: int = 0
    documents: int = 0
    epoch: int = 0
    unique_tokens: int | None = None
    bad_records: int = 0


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
