"""Files that are no sound journal: whatever is in them, the error is ours, says where, and what to do."""

from __future__ import annotations

import contextlib
import json
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixer.errors import JournalError, MixerError
from mixer.journal.file import Journal, read_journal
from mixer.journal.scan import FIRST, chained, ending, find_line
from mixer.replay.replay import Replay
from mixer.replay.verify import audit
from mixer.walk.walk import Walk
from tests.support.curricula import curriculum, drive, ragged
from tests.support.memory import peak_bytes


def recorded(path: Path, steps: int = 60) -> bytes:
    with Journal.create(path, fsync="never") as journal:
        drive(Walk(curriculum(3), journal=journal), steps, late=ragged)
    return path.read_bytes()


def sealed(records: list[dict[str, Any]]) -> bytes:
    """Return a file of these records whose chain is right."""
    digest, lines = FIRST, []
    for number, record in enumerate(records, 1):
        body = orjson.dumps({**record, "number": number})
        digest = chained(digest, body)
        lines.append(body[:-1] + ending(digest))
    return b"".join(lines)


def use(path: Path) -> None:
    """Do all that reads a journal; only our own errors may come of it."""
    uses: list[Callable[[], object]] = [
        lambda: list(read_journal(path)),
        lambda: Journal.open(path).close(),
        lambda: find_line(path, 3),
        lambda: Replay(path),
        lambda: audit(path),
    ]
    for each in uses:
        with contextlib.suppress(MixerError):
            each()


@given(st.binary(max_size=400))
@settings(max_examples=150)
def test_any_bytes_are_read_or_refused_with_our_error(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.mktemp("bytes") / "run.jsonl"
    path.write_bytes(content)
    use(path)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.floats(allow_nan=False) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=4,
)


@given(st.data())
@settings(max_examples=60)
def test_any_change_under_a_right_chain_is_read_or_refused_with_our_error(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("sealed") / "run.jsonl"
    recorded(path, 30)
    records = list(read_journal(path))
    record = data.draw(st.sampled_from(records))
    field = data.draw(st.sampled_from(sorted(record)))
    record[field] = data.draw(json_values)
    path.write_bytes(sealed(records))
    use(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda lines: [], "holds no whole line; no walk was recorded here yet"),
        (lambda lines: [b"\x00\x01\xff\n" * 5], "line 1 is damaged or this is not a journal"),
        (lambda lines: lines[:4] + lines[5:], "line 5 is damaged .* says that it is line 6: lines were lost"),
        (lambda lines: [*lines[:4], lines[5], lines[4], *lines[6:]], "line 5 is damaged .* lost, repeated or moved"),
        (
            lambda lines: [*lines[:4], lines[4].replace(b"0", b"1", 1), *lines[5:]],
            "line 5 .* changed, or belongs to an",
        ),
        (lambda lines: [*lines[:4], b"{}\n", *lines[5:]], "line 5 is damaged .*does not end as lines do"),
        (lambda lines: lines[1:], "line 1 is damaged"),
    ],
)
def test_damage_is_located_and_the_message_says_what_to_do(
    tmp_path: Path, change: Callable[[list[bytes]], list[bytes]], message: str
) -> None:
    path = tmp_path / "run.jsonl"
    lines = recorded(path).splitlines(keepends=True)
    path.write_bytes(b"".join(change(lines)))
    with pytest.raises(JournalError, match=message):
        audit(path)
    with pytest.raises(JournalError, match=message):
        Replay(path)


def test_a_journal_of_another_version_is_refused_naming_it(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    recorded(path)
    records = list(read_journal(path))
    records[0]["version"] = 9
    path.write_bytes(sealed(records))
    with pytest.raises(JournalError, match="a journal of version 9, this release reads 2; read it with the release"):
        audit(path)


def test_a_header_that_was_edited_is_found_by_its_fingerprint(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    recorded(path)
    records = list(read_journal(path))
    records[0]["curriculum"]["seed"] = 5
    path.write_bytes(sealed(records))
    with pytest.raises(JournalError, match="the header says fingerprint .* the header was edited"):
        audit(path)


def test_damage_in_the_middle_of_a_long_journal_is_found_by_reading_and_not_by_opening(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    with Journal.create(path, fsync="never") as journal:
        for i in range(40_000):
            journal.append({"type": "feedback", "step": i, "text": "x" * 40})
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle] ^= 1
    path.write_bytes(content)
    Journal.open(path).close()  # documented: only both ends are checked
    damaged = content[:middle].count(b"\n") + 1
    with pytest.raises(JournalError, match=f"line {damaged} is damaged"):
        list(read_journal(path))


def test_a_long_journal_is_read_in_constant_memory(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    peaks = []
    for num in (2_000, 20_000):
        path.unlink(missing_ok=True)
        with Journal.create(path, fsync="never") as journal:
            for i in range(num):
                journal.append({"type": "feedback", "step": i, "text": "x" * 100})
        assert sum(1 for _ in read_journal(path)) == num
        peaks.append(peak_bytes(lambda: deque(read_journal(path), maxlen=0)))
    assert peaks[1] < peaks[0] + 100_000


def test_feedback_that_never_arrived_is_no_damage(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    with Journal.create(path) as journal:
        walk = Walk(curriculum(3), journal=journal)
        for step in range(200):
            walk.phase_at(step)
    assert audit(path).difference is None
    assert audit(path).reports == 0
    assert all(json.loads(line).get("feedback") is None for line in path.read_text().splitlines())
