"""Files of plain text: by paragraphs, the pieces between blank lines, by lines, or whole."""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable, Iterator
from functools import partial

from mixer.config.sources import SampleBy
from mixer.sources.batches import Position
from mixer.sources.blocks import Mark, Read, TextFile, batch_of, has_mark, skip, whole_records

ENDS = {  # of records: where no line ends with \r, and where some do, which is found thirty times as slowly
    "paragraph": (re.compile(rb"\n\n"), re.compile(rb"(?:\r\n|\n|\r(?!\n)){2}")),
    "line": (re.compile(rb"\n"), re.compile(rb"\r\n|\n|\r")),
    "document": (re.compile(rb"(?!)"),) * 2,  # no end but that of the file
}


def read_text(file: TextFile, position: Position) -> Iterator[Read]:
    """Yield the paragraphs, the lines or the whole of a file of plain text as records of one column.

    Line breaks of any form become line feeds. Pieces of line breaks alone are no records.
    """
    mark = Mark.of(position)
    skip(file.stream, mark.byte)
    ends_of = partial(_ends, file.sample_by)
    for block in whole_records(file.stream, partial(_end_of_records, ends_of)):
        starts, pieces, start = [], [], len(codecs.BOM_UTF8) if not mark.byte and has_mark(block) else 0
        for end in [*ends_of(block), None]:
            piece = block[start : end.start() if end else len(block)]
            if b"\r" in piece:
                piece = piece.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
            if piece.strip(b"\n"):
                starts.append(start)
                pieces.append(piece)
            start = end.end() if end else len(block)
        bad: dict[int, str] = {}
        texts = [_decoded(piece, file.sample_by, i, bad) for i, piece in enumerate(pieces)]
        columns = {"text": texts} if "text" in file.columns else {}
        yield (
            batch_of(file, mark, block, starts, columns, bad=bad, names=["text"]),
            (mark := mark.after(block)).position(),
        )


def _ends(sample_by: SampleBy, data: bytes) -> Iterator[re.Match[bytes]]:
    unix, any_break = ENDS[sample_by]
    return (any_break if b"\r" in data else unix).finditer(data)


def _end_of_records(ends_of: Callable[[bytes], Iterator[re.Match[bytes]]], data: bytes) -> int:
    """Return where the last record that has surely ended ends: a line break may be the first half of one."""
    ends = [match.end() for match in ends_of(data) if match.end() < len(data)]
    return ends[-1] if ends else 0


def _decoded(piece: bytes, unit: SampleBy, i: int, bad: dict[int, str]) -> str:
    try:
        return piece.decode()
    except UnicodeDecodeError as error:
        bad[i] = f"not UTF-8 ({error.reason} at byte {error.start} of the {unit})"
        return ""
