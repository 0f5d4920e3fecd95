"""Reading ahead: invisible but for speed, through errors, Ctrl-C, forks, pickles and the end of the interpreter."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mixer.config.curriculum import Curriculum
from mixer.errors import ConfigError, EmptySourceError, StateMismatchError
from mixer.sources import ahead, text_stream
from mixer.sources.holdout import is_held_out, text_bytes
from mixer.sources.opening import open_sources
from mixer.sources.rows import MAX_AHEAD, StreamedRows
from mixer.sources.tokenizer import TextTokenizer
from mixer.sources.tokenizer_training import train
from mixer.system import threads as background
from mixer.system.threads import ReaderThreads, Task

SEPARATOR = "<|endoftext|>"
TEXTS = [f"text {i} " + "ab " * (i * 7 % 23) for i in range(120)]
TOKENIZER = TextTokenizer(train(TEXTS, 290, SEPARATOR), SEPARATOR)
T = 15


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(text_stream, "GROUP_DOCUMENTS", 9)
    path = tmp_path / "web.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    return path


def source_of(file: Path, *, curriculum: dict[str, Any] | None = None, **options: Any) -> StreamedRows:
    run = Curriculum(
        total_steps=9,
        batch_rows=2,
        sequence_length=T,
        sources=[{"name": "web", "data_files": str(file)}],
        **(curriculum or {}),
    )
    [source] = open_sources(run, TOKENIZER, **options)
    assert isinstance(source, StreamedRows)
    return source


def settle(source: StreamedRows) -> None:
    """Wait until everything that is read ahead now has been read and encoded."""
    deadline = time.monotonic() + 100
    while not is_settled(source._ahead):
        assert time.monotonic() < deadline
        time.sleep(0.001)


def is_settled(reading: ahead.ReadAhead) -> bool:
    with reading._lock:
        has_read = reading._reader is None or reading._reader.is_done
        return has_read and all(read.encoded.is_done for read in reading._queue)


def test_groups_are_read_in_the_background_and_their_number_is_bounded(file: Path) -> None:
    source = source_of(file)
    source.take(1)
    for _ in range(30):
        source.take(2)
        settle(source)
        assert len(source._ahead._queue) <= 4
    assert any(thread.name.startswith("mixer-read-ahead") for thread in threading.enumerate())


def test_states_are_of_the_rows_taken_whatever_has_been_read_beyond(file: Path) -> None:
    source = source_of(file)
    plain = source_of(file)
    plain._ahead.want = lambda num_groups: None  # type: ignore[method-assign]
    for _ in range(80):
        np.testing.assert_array_equal(source.take(3), plain.take(3))
        settle(source)
        assert source.state_dict() == plain.state_dict()
        assert source.progress == plain.progress


class Idle:
    """A pool whose threads never find the time, so that whoever needs a group reads it himself, too late each time."""

    def submit(self, call: Callable[[], Any]) -> Task[Any]:
        return Task(call)


def wanted(source: StreamedRows) -> list[tuple[int, int]]:
    """Note how many groups each call asks to be read ahead, and how many rows it takes a group to have."""
    asked: list[tuple[int, int]] = []
    want = source._ahead.want

    def noted(num_groups: int) -> None:
        asked.append((num_groups, source._group_rows))
        want(num_groups)

    source._ahead.want = noted  # type: ignore[method-assign]
    return asked


def test_twice_as_many_groups_are_read_ahead_each_time_that_they_come_too_late(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ahead, "POOL", Idle())
    source = source_of(file)
    asked = wanted(source)
    for _ in range(200):
        source.take(1)
    assert [num_groups for num_groups, _ in asked][:4] == [1, 2, 4, 8]
    assert {num_groups for num_groups, _ in asked[4:]} == {MAX_AHEAD}


def test_groups_that_come_in_time_are_read_no_deeper(file: Path) -> None:
    source = source_of(file)
    for _ in range(90):
        source.take(1)
        settle(source)
    assert source.progress.documents > 50
    assert source.progress.unique_tokens is None  # the end of an epoch is never at hand, and counts as too late
    assert source._depth == 1


@pytest.mark.parametrize("ahead_rows", [1, 8, 20, 40])
def test_reading_deeper_keeps_within_the_memory_it_is_given(
    file: Path, monkeypatch: pytest.MonkeyPatch, ahead_rows: int
) -> None:
    monkeypatch.setattr(ahead, "POOL", Idle())
    source = source_of(file)
    source._ahead_bytes = ahead_rows * 4 * source.row_length
    asked = wanted(source)
    for _ in range(200):
        source.take(1)
    assert all(num_groups * num_rows <= ahead_rows or num_groups == 1 for num_groups, num_rows in asked)
    deep = asked[4:]
    assert all((num_groups + 1) * num_rows > ahead_rows or num_groups == MAX_AHEAD for num_groups, num_rows in deep)


def test_what_is_loaded_looks_ahead_again_from_its_first_group(file: Path) -> None:
    source = source_of(file)
    beginning = source.state_dict()
    source.take(1)
    while not source._looks_ahead:
        source.take(1)
    source.load_state_dict(beginning)
    source.begin()
    settle(source)
    assert source.at_hand(1) == 1


def test_an_error_read_ahead_is_raised_by_the_take_that_needs_its_rows(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = source_of(file).take(120)
    source = source_of(file)
    read = text_stream.TextStream._read_group
    is_broken = True

    def broken(self: Any) -> Any:
        if is_broken and self.num_documents >= 60:
            raise OSError("unplugged")
        return read(self)

    monkeypatch.setattr(text_stream.TextStream, "_read_group", broken)
    rows = []

    def take_all() -> None:
        while True:
            rows.append(source.take(1))
            settle(source)

    with pytest.raises(OSError, match="unplugged"):
        take_all()
    assert len(rows) > 10
    with pytest.raises(OSError, match="unplugged"):
        source.take(1)
    is_broken = False
    rows.append(source.take(120 - len(rows)))
    np.testing.assert_array_equal(np.concatenate(rows), expected)


@pytest.mark.parametrize("where", ["_read_group", "encode_joined"])
def test_ctrl_c_anywhere_loses_nothing(file: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    expected = source_of(file).take(150)
    source = source_of(file)
    owner: Any = text_stream.TextStream if where == "_read_group" else TextTokenizer
    call = getattr(owner, where)
    calls = iter(range(10_000))

    def interrupted(self: Any, *arguments: Any) -> Any:
        result = call(self, *arguments)
        if next(calls) % 3 == 1:
            raise KeyboardInterrupt
        return result

    monkeypatch.setattr(owner, where, interrupted)
    rows: list[Any] = []
    interruptions = 0
    while sum(map(len, rows)) < 150:
        try:
            rows.append(source.take(2))
        except KeyboardInterrupt:
            interruptions += 1
    assert interruptions > 2
    np.testing.assert_array_equal(np.concatenate(rows)[:150], expected)


def test_a_pickled_source_goes_on_where_it_was(file: Path) -> None:
    source = source_of(file)
    source.take(11)
    other = pickle.loads(pickle.dumps(source))
    assert other.progress == source.progress
    assert other.state_dict() == source.state_dict()
    np.testing.assert_array_equal(other.take(60), source.take(60))


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_forked_process_reads_on_by_itself(file: Path) -> None:
    expected = source_of(file).take(90)
    source = source_of(file)
    source.take(10)
    child = os.fork()
    if not child:
        code = 1
        try:
            signal.alarm(100)
            code = int(not np.array_equal(source.take(80), expected[10:]))
        finally:
            os._exit(code)
    np.testing.assert_array_equal(source.take(80), expected[10:])
    assert os.waitpid(child, 0)[1] == 0


def test_the_interpreter_ends_at_once_and_in_silence_while_groups_are_read(file: Path) -> None:
    code = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
from pathlib import Path
from tests.sources.test_read_ahead import source_of
from mixer.sources import text_stream
import time
read = text_stream.TextStream._read_group
def slow(self):
    time.sleep(0.3)
    return read(self)
source = source_of(Path({str(file)!r}))
source.take(1)
text_stream.TextStream._read_group = slow
for _ in range(20):
    source.take(1)
source._ahead.want(4)
print(time.time())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=150, check=False)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    assert time.time() - float(done.stdout) < background.EXIT_WAIT_S


def test_who_needs_a_result_does_not_wait_for_a_busy_pool() -> None:
    pool = ReaderThreads(1)
    release = threading.Event()
    busy: Task[bool] = pool.submit(release.wait)
    assert pool.submit(lambda: 7).result() == 7
    assert not busy.is_done
    release.set()
    assert busy.result()


# -- shares of text --------------------------------------------------------------------------------------------------


def test_held_out_text_is_never_in_the_training_stream_and_the_rest_always(file: Path) -> None:
    run = {"holdout": 0.3}
    kept = [text for text in TEXTS if not is_held_out(text_bytes(text), 0.3)]
    held_out = [text for text in TEXTS if is_held_out(text_bytes(text), 0.3)]
    for texts, source in (
        (kept, source_of(file, curriculum=run)),
        (held_out, source_of(file, curriculum=run, held_out=True)),
    ):
        tokens = np.concatenate([[*ids, TOKENIZER.separator_id] for ids in TOKENIZER.encode(texts)])
        num_rows = 2 * len(tokens) // (T + 1)
        np.testing.assert_array_equal(source.take(num_rows).ravel(), np.tile(tokens, 2)[: num_rows * (T + 1)])
    with pytest.raises(ConfigError, match="held_out: the curriculum holds nothing out"):
        source_of(file, held_out=True)


def test_a_split_or_reader_without_documents_is_an_error_that_says_why(tmp_path: Path) -> None:
    path = tmp_path / "web.jsonl"
    out = [text for text in TEXTS if is_held_out(text_bytes(text), 0.4)][:3]
    kept = [text for text in TEXTS if not is_held_out(text_bytes(text), 0.4)][:3]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in out))
    with pytest.raises(
        EmptySourceError, match="source web: none of 3 documents is left to train on with holdout 0.4; lower"
    ):
        source_of(path, curriculum={"holdout": 0.4}).take(1)
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in kept))
    with pytest.raises(EmptySourceError, match="source web: none of 3 documents is held out with holdout 0.4; raise"):
        source_of(path, curriculum={"holdout": 0.4}, held_out=True).take(1)
    with pytest.raises(
        EmptySourceError, match="source web: reader 4 of 5 gets no document: .*fewer ranks .*mixer prepare"
    ):
        source_of(path, reader=4, num_readers=5).take(1)


def test_a_state_of_another_reader_is_refused_with_what_to_do(file: Path) -> None:
    state = source_of(file, reader=1, num_readers=2).state_dict()
    again = source_of(file, reader=1, num_readers=2)
    again.load_state_dict(state)
    shares: list[dict[str, Any]] = [{}, {"reader": 0, "num_readers": 2}, {"reader": 1, "num_readers": 3}]
    for options in shares:
        with pytest.raises(
            StateMismatchError, match=r"reader \[1, 2\].*the same world size and num_workers, or `mixer prep"
        ):
            source_of(file, **options).load_state_dict(state)
    with pytest.raises(StateMismatchError, match="split 'all', but this is 'all but held out at 0.1'"):
        source_of(file, curriculum={"holdout": 0.1}, reader=1, num_readers=2).load_state_dict(state)
    with pytest.raises(ConfigError, match="reader 2 of 2: readers are numbered from 0"):
        source_of(file, reader=2, num_readers=2)


def test_readers_of_text_resume_exactly(file: Path) -> None:
    from mixer.testing import assert_source_is_exact

    assert_source_is_exact(lambda: source_of(file, curriculum={"holdout": 0.1}, reader=1, num_readers=3), 40)


def test_the_interpreter_waits_for_calls_from_the_threads_of_a_library() -> None:
    """In a process of its own: here pytest-xdist has such a thread, for which it would wait to the end."""
    code = """
import ctypes, threading, time
from mixer.system import threads as background
begun, may_end, ended = threading.Event(), threading.Event(), threading.Event()
def read(argument):
    begun.set()
    may_end.wait()
    ended.set()
call = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(read)
libc, thread = ctypes.CDLL(None), ctypes.c_ulong()
assert libc.pthread_create(ctypes.byref(thread), None, call, None) == 0  # as Arrow starts its own
assert begun.wait(60)
background._await_foreign_threads(time.monotonic() + 0.02)
assert not ended.is_set()  # nor does it wait for ever
threading.Timer(0.1, may_end.set).start()
until = time.monotonic() + 100
background._await_foreign_threads(until)
assert ended.is_set()
assert time.monotonic() < until
assert libc.pthread_join(thread, None) == 0
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr


def test_what_is_open_is_closed_at_exit_after_the_threads(capfd: pytest.CaptureFixture[str]) -> None:
    code = """
import threading, time, weakref
from mixer.system.threads import POOL
class File: pass
begun = threading.Event()
def read():
    begun.set()
    time.sleep(0.3)
    print("read", flush=True)
file = File()
POOL.close_at_exit(weakref.finalize(file, print, "closed"))
POOL.submit(read)
begun.wait()
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert capfd.readouterr() == ("read\nclosed\n", "")
