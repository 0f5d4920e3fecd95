"""Lines of a journal as bytes: each says its own number, and marks are found wherever blocks end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixer.errors import JournalError
from mixer.journal import scan as scanning
from mixer.journal.scan import FIRST, chained, ending, line_starts, scan


def written(path: Path, numbers: list[int]) -> Path:
    """Write lines that say these numbers, each with the digest that follows from the line before."""
    digest, text = FIRST, b""
    for number in numbers:
        body = b'{"type":"note","number":%d}' % number
        digest = chained(digest, body)
        text += body[:-1] + ending(digest)
    path.write_bytes(text)
    return path


@given(st.lists(st.integers(1, 12), min_size=1, max_size=6))
def test_a_line_with_a_sound_digest_that_says_another_number_is_named(
    tmp_path_factory: pytest.TempPathFactory, numbers: list[int]
) -> None:
    path = written(tmp_path_factory.mktemp("scan") / "w", numbers)
    wrong = next((i for i, number in enumerate(numbers) if number != i + 1), None)
    if wrong is None:
        assert [line.number for line in scan(path)] == numbers
        return
    with pytest.raises(JournalError, match=rf"line {wrong + 1} is damaged .*says that it is line {numbers[wrong]}:"):
        list(scan(path))


kinds = st.sampled_from(["phase", "alarm", "feedback", "pivot", "phases"])


@given(st.lists(st.tuples(kinds, st.integers(0, 60)), min_size=1, max_size=30), st.integers(0, 80), st.data())
def test_lines_of_a_type_are_found_once_each_whatever_the_size_of_a_block(
    tmp_path_factory: pytest.TempPathFactory, lines: list[tuple[str, int]], more: int, data: st.DataObject
) -> None:
    asked = data.draw(st.lists(kinds, min_size=1, max_size=3, unique=True))
    text, starts = b'{"type":"header"}\n', []
    for kind, length in lines:
        starts += [len(text)] if kind in asked else []
        text += json.dumps({"type": kind, "text": "x" * length}, separators=(",", ":")).encode() + b"\n"
    path = tmp_path_factory.mktemp("scan") / "w"
    path.write_bytes(text)
    longest = max(len(f'\n{{"type":"{kind}"') for kind in asked)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scanning, "BLOCK_BYTES", longest + more)
        assert list(line_starts(path, asked, 0, len(text))) == starts
