"""Files of plain text by paragraphs, the pieces between blank lines."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator

from mixer.sources.batches import Position
from mixer.sources.blocks import Mark, Read, TextFile, batch_of, has_mark, skip, whole_records

UNIX_PARAGRAPH_END = re.compile(rb"\n\n")  # which is found thirty times as fast
PARAGRAPH_END = re.compile(rb"(?:\r\n|\n|\r(?!\n)){2}")


def read_text(file: TextFile, position: Position) -> Iterator[Read]:
    """Yield the paragraphs of a file of plain text, the pieces between blank lines, as records of one column."""
    mark = Mark.of(position)
    skip(file.stream, mark.byte)
    for block in whole_records(file.stream, _end_of_paragraphs):
        starts, pieces, start = [], [], len(codecs.BOM_UTF8) if not mark.byte and has_mark(block) else 0
        for end in [*_paragraph_ends(block), None]:
            piece = block[start : end.start() if end else len(block)]
            if b"\r" in piece:
                piece = piece.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
            if piece.strip(b"\n"):
                starts.append(start)
                pieces.append(piece)
            start = end.end() if end else len(block)
        bad: dict[int, str] = {}
        texts = [_decoded(piece, i, bad) for i, piece in enumerate(pieces)]
        columns = {"text": texts} if "text" in file.columns else {}
        yield (
            batch_of(file, mark, block, starts, columns, bad=bad, names=["text"]),
            (mark := mark.after(block)).position(),
        )


def _paragraph_ends(data: bytes) -> Iterator[re.Match[bytes]]:
    return (PARAGRAPH_END if b"\r" in data else UNIX_PARAGRAPH_END).finditer(data)


def _end_of_paragraphs(data: bytes) -> int:
    """Return where the last paragraph that has surely ended ends: a line break may be the first half of one."""
    ends = [match.end() for match in _paragraph_ends(data) if match.end() < len(data)]
    return ends[-1] if ends else 0


def _decoded(piece: bytes, i: int, bad: dict[int, str]) -> str:
    try:
        return piece.decode()
    except UnicodeDecodeError as error:
        bad[i] = f"not UTF-8 ({error.reason} at byte {error.start} of the paragraph)"
        return ""
