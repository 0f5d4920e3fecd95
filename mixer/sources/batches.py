"""Records of one file as its reader gives them: columns, and where in the file each record is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

Position = dict[str, Any]  # where a file is read on, as plain data; an empty one is the beginning
Place = Callable[[int], str]  # of a record of a batch, by its number in it, such as "words.jsonl, line 7"


class BadRecord(Exception):  # noqa: N818  # a signal that never leaves this package
    """One record that cannot be read; the message says why, and who catches it knows which it is."""


class UnreadableFile(Exception):  # noqa: N818  # a signal that never leaves this package
    """A file, or all that follows in it, cannot be read; the message begins with the file and the place in it."""


@dataclass(eq=False)
class Batch:
    """Some records in order, all of one file.

    Args:
        columns: the needed columns, as lists of Python's values or as a table.
        num_rows: how many records.
        place: says where a record is.
        file: the one that they are of; "" if it is not known.
        names: the columns that there are, if a needed one may be missing.
        is_open: whether other records may have columns that these lack, as in JSON.
        bad: why a record cannot be read, by its number in the batch; its values do not count.
        digest: returns the digest of all that was read of the file before a record; None if that is not known.
    """

    columns: pa.Table | Mapping[str, Sequence[Any]]
    num_rows: int
    place: Place
    file: str = ""
    names: Sequence[str] | None = None
    is_open: bool = False
    bad: dict[int, str] = field(default_factory=dict)
    digest: Callable[[int], str | None] = lambda row: None
    start: Position | None = None  # where it begins among the files; None if only its data set knows

    @property
    def is_table(self) -> bool:
        """Whether the columns are Arrow's."""
        return isinstance(self.columns, pa.Table)

    def part(self, start: int, num_rows: int) -> Mapping[str, Sequence[Any]]:
        """Return the columns of some of the records as lists; text that is not UTF-8 makes a record bad."""
        columns = self.columns
        if not isinstance(columns, pa.Table):
            return {name: values[start : start + num_rows] for name, values in columns.items()}
        table = columns.slice(start, num_rows)
        try:
            lists: dict[str, list[Any]] = table.to_pydict()
        except UnicodeDecodeError:
            lists = {name: [self._value(column, i, start) for i in range(len(column))] for name, column in
                     zip(table.column_names, table.columns, strict=True)}  # fmt: skip
        return lists

    def _value(self, column: pa.ChunkedArray, i: int, start: int) -> Any:
        try:
            return column[i].as_py()
        except UnicodeDecodeError as error:
            self.bad[start + i] = f"not UTF-8 ({error.reason} at byte {error.start})"
            return None
