"""Documents of one source as text, in groups of a bounded size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mixer.config.sources import SourceConfig
from mixer.sources.batches import BadRecord, Batch
from mixer.sources.holdout import text_bytes
from mixer.sources.records import FileRecords
from mixer.sources.streams import Stream

if TYPE_CHECKING:
    import datasets

GROUP_DOCUMENTS = 256
GROUP_CHARACTERS = 128 * 1024  # bounds what one call tokenises, and so what a resume has to tokenise again
BATCH_ROWS = 64  # rows that become Python's at once; they may be long, and most of a group's are short
TABLE_ROWS = 256  # rows of a table that `datasets` gives at once, which costs it 0.25 ms whatever their number


class TextStream(Stream[list[str]]):
    """Documents as text, up to 256 or about 128 KiB of characters in a group."""

    def __init__(
        self,
        source: SourceConfig,
        dataset: datasets.IterableDataset | FileRecords,
        *,
        is_table: bool = False,
        **options: Any,
    ) -> None:
        """Stream text; the other arguments are those of ``Stream``.

        Args:
            source: with ``text``, ``messages`` or ``template``.
            dataset: the rows.
            is_table: whether the data set can be read as Arrow tables and resume exactly: a third faster.
            options: see ``Stream``.
        """
        self._is_table = is_table
        self._batch_size = TABLE_ROWS if is_table else BATCH_ROWS
        self._part: Mapping[str, Sequence[Any]] = {}  # columns of some rows of the batch, from ``_part_from`` on
        self._part_from = self._part_rows = 0
        super().__init__(source, dataset, **options)
        chooses = bool(source.where or self._share.holdout)
        self._plain = None if chooses else self._renderer.text_column  # all of its values are documents

    def __getstate__(self) -> dict[str, Any]:
        """Another process makes its own part of the batch."""
        return {**super().__getstate__(), "_part": {}, "_part_rows": 0}

    def _hold(self, batch: Batch) -> None:
        self._part_rows = 0

    def _place_in_part(self) -> int:
        """Return where the next row lies in the part of the batch that is Python's."""
        place = self._offset - self._part_from
        if 0 <= place < self._part_rows:
            return place
        assert self._records is not None
        self._part = self._records.part(self._offset, BATCH_ROWS)
        self._part_from, self._part_rows = self._offset, min(BATCH_ROWS, self._batch_rows - self._offset)
        return 0

    def _read_group(self) -> list[str]:
        documents: list[str] = []
        num_characters = 0
        while len(documents) < GROUP_DOCUMENTS and num_characters < GROUP_CHARACTERS:
            if self._offset >= self._batch_rows and not self._read_batch():
                break
            place = self._place_in_part()
            texts = self._texts(place, GROUP_DOCUMENTS - len(documents), GROUP_CHARACTERS - num_characters)
            if texts:
                documents += texts
                num_characters += sum(map(len, texts))
                continue
            row = {column: values[place] for column, values in self._part.items()}
            self._offset += 1
            self.num_rows += 1
            text = self._document(row, self._offset - 1)
            if text is not None:
                documents.append(text)
                num_characters += len(text)
        return documents

    def _texts(self, place: int, most: int, most_characters: int) -> list[str]:
        """Take rows of the part that are documents as they are, up to one that is not, or until there are enough.

        One by one, as ``_document`` looks at them, they take 3 us each.
        """
        texts: list[str] = []
        if self._plain is None or self._stride > 1:
            return texts
        for text in self._part[self._plain][place : place + most]:
            if type(text) is not str or not text or text.isspace():
                break
            texts.append(text)
            most_characters -= len(text)
            if most_characters <= 0:
                break
        texts = _encodable(texts)
        self._offset += len(texts)
        self.num_rows += len(texts)
        self.num_documents += len(texts)
        return texts

    def _document(self, row: dict[str, Any], number: int) -> str | None:
        """Return the text of a row, which has a number in its batch, or None if it is not for this stream."""
        assert self._records is not None
        if number in self._records.bad:
            self._refuse(number, self._records.bad[number])
            return None
        try:
            if not self._renderer.matches(row):
                self._remember(row)
                return None
            text = self._renderer.render(row)
            _check_encodable(text)
        except BadRecord as error:
            self._refuse(number, str(error))
            return None
        if not text.strip("\r\n"):
            self.num_empty += 1
        elif self._share.holdout and not self._share.has(text_bytes(text)):
            self.num_other_split += 1
        elif not self._is_mine():
            self.num_other_readers += 1
        else:
            self.num_documents += 1
            return text
        return None


def _encodable(texts: list[str]) -> list[str]:
    """Return the texts up to the first that is not Unicode."""
    try:
        "".join(texts).encode()
    except UnicodeEncodeError:
        for i, text in enumerate(texts):
            try:
                _check_encodable(text)
            except BadRecord:
                return texts[:i]
    return texts


def _check_encodable(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = ord(text[error.start])
        raise BadRecord(f"half a surrogate pair (U+{half:04X}) at character {error.start + 1} of its text") from error
