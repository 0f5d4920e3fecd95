"""Streams that several runs share: read once by those who are near, and for each run as if it were alone."""

from __future__ import annotations

import copy
import gc
import itertools
import json
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixer.config.sources import RetriesConfig, SourceConfig
from mixer.errors import SourceUnavailableError
from mixer.sources import text_stream
from mixer.sources.base import EndOfSource
from mixer.sources.faults import NetworkFault
from mixer.sources.huggingface import open_stream
from mixer.sources.rows import StreamedRows
from mixer.sources.shared import Participant, SharedGroups
from mixer.sources.streams import Stream
from mixer.sources.tokenizer import TextTokenizer
from mixer.sources.tokenizer_training import train
from mixer.types import TokenArray

SEPARATOR = "<|endoftext|>"
TEXTS = [f"text {i} " + "ab " * (i * 7 % 23) for i in range(90)]
T = 15
NUM_ROWS = 170  # over two epochs
SOME_BYTES = 2500  # a few groups


class Counting(TextTokenizer):
    """Counts how often it encodes each text."""

    def __init__(self) -> None:
        super().__init__(train(TEXTS, 290, SEPARATOR), SEPARATOR)
        self.texts: Counter[str] = Counter()

    def encode_joined(self, texts: Any) -> TokenArray:
        self.texts.update(texts)
        return super().encode_joined(texts)


@pytest.fixture(scope="module", autouse=True)
def small_groups() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_stream, "GROUP_DOCUMENTS", 9)
        patch.setattr("mixer.sources.tokens.BATCH_ROWS", 13)
        patch.setattr("mixer.sources.tokens.GROUP_TOKENS", 100)
        yield


class Case:
    """A source, its rows and the states between them as one reader alone gives them."""

    def __init__(self, **source: Any) -> None:
        self.tokenizer = Counting()
        retries = RetriesConfig(attempts=1)
        config = SourceConfig(name="web", **source)
        self.stream = open_stream(config, row_length=T + 1, vocab_size=self.tokenizer.vocab_size, retries=retries)
        alone = self.reader()
        self.states = [alone.state_dict()]
        rows = []
        for _ in range(NUM_ROWS):
            rows.append(alone.take(1))
            self.states.append(alone.state_dict())
        self.rows = np.concatenate(rows)

    def reader(self, member: Participant | None = None) -> StreamedRows:
        stream: Stream[Any] = copy.deepcopy(self.stream)  # opening it anew takes long
        return StreamedRows(stream, self.tokenizer, sequence_length=T, member=member)


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Case]:
    folder = tmp_path_factory.mktemp("shared")
    (folder / "web.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    ids = Counting().encode(TEXTS)
    pq.write_table(pa.table({"ids": [list(map(int, each)) for each in ids]}), folder / "ids.parquet", row_group_size=20)
    lines = str(folder / "web.jsonl")
    return {
        "text": Case(data_files=lines),
        "template": Case(data_files=lines, template="> {text}"),
        "token ids": Case(data_files=str(folder / "ids.parquet"), token_ids="ids"),
    }


@pytest.fixture
def case(cases: dict[str, Case]) -> Case:
    """Text, with a count that no reader of another test, which may still be reading ahead, adds to."""
    case = copy.copy(cases["text"])
    case.tokenizer = Counting()
    return case


ACTS = st.tuples(st.integers(0, 2), st.sampled_from(["take", "take", "take", "save", "load"]), st.integers(0, 12))


@pytest.mark.parametrize("kind", ["text", "template", "token ids"])
@settings(deadline=None, max_examples=25)
@given(max_bytes=st.sampled_from([0, SOME_BYTES, 1 << 20]), acts=st.lists(ACTS, min_size=10, max_size=60))
def test_readers_that_share_give_what_each_gives_alone(
    cases: dict[str, Case], kind: str, max_bytes: int, acts: list[tuple[int, str, int]]
) -> None:
    case = cases[kind]
    groups = SharedGroups(max_bytes)
    members = [groups.join() for _ in range(3)]
    readers = [case.reader(member) for member in members]
    at = [0, 0, 0]
    saved = [0]
    for who, act, number in acts:
        reader = readers[who]
        if act == "take" and at[who] + number <= NUM_ROWS:
            np.testing.assert_array_equal(reader.take(number), case.rows[at[who] : at[who] + number])
            at[who] += number
        elif act == "save":
            saved.append(at[who])
        elif act == "load":  # of any reader: a fork begins so
            at[who] = saved[number % len(saved)]
            reader.load_state_dict(json.loads(json.dumps(case.states[at[who]])))
        assert reader.state_dict() == case.states[at[who]]
        assert reader.progress.rows == at[who]
    for member in members:
        member.leave()
    assert groups.num_bytes == 0


def test_rows_are_those_of_one_reader_when_many_threads_read(case: Case) -> None:
    groups = SharedGroups()
    readers = [case.reader(groups.join()) for _ in range(4)]
    given: list[list[TokenArray]] = [[] for _ in readers]

    def work(who: int) -> None:
        rng = np.random.default_rng(who)
        while (num := sum(map(len, given[who]))) < NUM_ROWS:
            given[who].append(readers[who].take(min(NUM_ROWS - num, int(rng.integers(1, 9)))))

    threads = [threading.Thread(target=work, args=(who,)) for who in range(len(readers))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for rows in given:
        np.testing.assert_array_equal(np.concatenate(rows), case.rows)
    assert case.tokenizer.texts == Counter(TEXTS)  # each text once, also of the second epoch


def test_a_reader_far_behind_reads_for_itself(case: Case) -> None:
    groups = SharedGroups(SOME_BYTES)
    first, second = (case.reader(groups.join()) for _ in range(2))
    first.take(80)
    assert 0 < groups.num_bytes <= SOME_BYTES
    np.testing.assert_array_equal(second.take(80), case.rows[:80])
    assert case.tokenizer.texts[TEXTS[0]] >= 2  # more where the next epoch is read ahead
    assert groups.num_bytes <= SOME_BYTES


def test_readers_that_take_turns_at_being_first_open_nothing_again(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mixer.sources.rows.MAX_AHEAD", 1)  # or the first to look would read all there is
    groups = SharedGroups()
    members = [groups.join() for _ in range(3)]
    readers = [case.reader(member) for member in members]
    moves: list[Any] = []
    for reader in readers:
        monkeypatch.setattr(reader._ahead._seat.stream, "load_state_dict", moves.append)
    given = 0
    for reader in itertools.islice(itertools.cycle(readers), 24):
        ahead = given // 3 + 3 - reader.progress.rows
        np.testing.assert_array_equal(
            reader.take(ahead), case.rows[reader.progress.rows - ahead : reader.progress.rows]
        )
        given += ahead
    readers[0].take(45 - readers[0].progress.rows)
    members[0].leave()  # with the stream that was read last
    gone = weakref.ref(readers[0])
    del readers[0], reader
    for _ in range(1000):  # a thread may still be reading for it
        gc.collect()
        if gone() is None:
            break
        time.sleep(0.01)
    for reader in readers:
        reader.take(70 - reader.progress.rows)
        np.testing.assert_array_equal(reader.take(40), case.rows[70:110])
    assert moves == []
    assert case.tokenizer.texts == Counter(TEXTS)


def test_nothing_is_kept_for_a_source_that_no_run_reads_any_more(case: Case) -> None:
    groups = SharedGroups()
    staying, leaving = groups.join(), groups.join()
    one, other = case.reader(staying), case.reader(leaving)
    one.take(10)
    other.take(20)
    leaving.leave()
    assert groups.num_bytes > 0
    staying.leave()
    assert (groups.num_bytes, groups._groups, groups._sources) == (0, {}, {})
    np.testing.assert_array_equal(one.take(60), case.rows[10:70])  # one that is left over goes on
    np.testing.assert_array_equal(case.reader(staying).take(5), case.rows[:5])
    assert (groups.num_bytes, groups._groups, groups._sources) == (0, {}, {})


def test_sources_that_differ_are_not_shared(tmp_path: Path) -> None:
    groups = SharedGroups()
    files = []
    for i in range(2):
        (tmp_path / f"{i}").mkdir()
        files.append(tmp_path / f"{i}" / "web.jsonl")  # of one size: a state takes them for the same
        files[-1].write_text("".join(json.dumps({"text": f"{i} {text}"}) + "\n" for text in TEXTS))
    one, other = Case(data_files=str(files[0])), Case(data_files=str(files[1]))
    whole = Case(data_files=str(files[0]), where={"text": f"0 {TEXTS[5]}"})
    for case in (one, other, whole, other, one):
        np.testing.assert_array_equal(case.reader(groups.join()).take(NUM_ROWS), case.rows)


class Gate:
    """Stands before the streams of readers: an attempt waits until it is opened; the first ends with ``error``, if any."""

    def __init__(self, *readers: StreamedRows, error: BaseException | None = None) -> None:
        self.reached, self.opened = threading.Event(), threading.Event()
        self._errors = iter([error] if error is not None else [])
        for reader in readers:
            stream: Any = reader._ahead._seat.stream
            stream.try_group = partial(self._through, stream.try_group)

    def _through(self, try_group: Callable[[], Any]) -> Any:
        self.reached.set()
        self.opened.wait()
        error = next(self._errors, None)
        if error is not None:
            raise error
        return try_group()


class Noting(dict[Any, Any]):
    """Groups that tell when one is found."""

    def __init__(self) -> None:
        self.found = threading.Event()

    def get(self, key: Any, default: Any = None) -> Any:
        if key in self:
            self.found.set()
        return super().get(key, default)


@pytest.mark.parametrize("error", [None, NetworkFault("gone"), KeyboardInterrupt()])
def test_whoever_waits_for_anothers_attempt_bears_a_fault_of_the_source_and_no_other(
    case: Case, error: BaseException | None
) -> None:
    groups = SharedGroups()
    groups._groups = noting = Noting()
    readers = [case.reader(groups.join()) for _ in range(2)]
    gate = Gate(*readers, error=error)
    ends: list[Any] = [None, None]

    def work(who: int) -> None:
        try:
            ends[who] = readers[who].take(3)
        except BaseException as ended:
            ends[who] = ended

    threads = [threading.Thread(target=work, args=(who,)) for who in range(2)]
    threads[0].start()
    gate.reached.wait()
    threads[1].start()
    noting.found.wait()
    gate.opened.set()
    for thread in threads:
        thread.join()
    kinds = [type(end) for end in ends]
    if isinstance(error, NetworkFault):
        assert kinds == [SourceUnavailableError] * 2  # its only attempt was that one
    else:
        assert kinds == [np.ndarray if error is None else KeyboardInterrupt, np.ndarray]
    for reader in readers:
        rows = reader.take(6 - reader.progress.rows)
        np.testing.assert_array_equal(rows, case.rows[6 - len(rows) : 6])


def test_a_reader_that_is_moved_while_it_reads_lets_others_have_what_it_read(case: Case) -> None:
    groups = SharedGroups()
    groups._groups = noting = Noting()
    one, other = (case.reader(groups.join()) for _ in range(2))
    gate = Gate(one)
    one.begin()
    gate.reached.wait()
    threads = [
        threading.Thread(target=one.load_state_dict, args=(case.states[30],)),
        threading.Thread(target=other.take, args=(1,)),
    ]
    for thread in threads:
        thread.start()
    noting.found.wait()
    gate.opened.set()
    for thread in threads:
        thread.join()
    np.testing.assert_array_equal(other.take(5), case.rows[1:6])
    np.testing.assert_array_equal(one.take(5), case.rows[30:35])
    assert case.tokenizer.texts[TEXTS[0]] == 1


def test_a_stream_that_is_being_read_is_nobody_elses(case: Case) -> None:
    groups = SharedGroups()
    one, other = (case.reader(groups.join()) for _ in range(2))
    stream: Any = one._ahead._seat.stream
    try_group, reached, opened = stream.try_group, threading.Event(), threading.Event()

    def and_wait() -> Any:
        group = try_group()
        if not reached.is_set():
            reached.set()
            opened.wait()
        return group

    stream.try_group = and_wait
    one.begin()
    reached.wait()
    row = next(row for row, state in enumerate(case.states) if state["stream"] == stream.place())  # where it stands now
    other.load_state_dict(case.states[row])
    np.testing.assert_array_equal(other.take(5), case.rows[row : row + 5])
    opened.set()
    np.testing.assert_array_equal(one.take(40), case.rows[:40])


def test_a_failure_to_encode_is_tried_again(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    groups = SharedGroups()
    one, other = (case.reader(groups.join()) for _ in range(2))
    encode, failures = case.tokenizer.encode_joined, iter([MemoryError("too much")])

    def failing(texts: list[str]) -> Any:
        error = next(failures, None)
        if error is not None:
            raise error
        return encode(texts)

    monkeypatch.setattr(case.tokenizer, "encode_joined", failing)
    with pytest.raises(MemoryError):
        one.take(3)
    for reader in (other, one):
        np.testing.assert_array_equal(reader.take(30), case.rows[:30])


def test_each_reader_comes_to_the_end_by_itself(case: Case) -> None:
    groups = SharedGroups()
    repeating = StreamedRows(copy.deepcopy(case.stream), Counting(), sequence_length=T, member=groups.join())
    repeating.take(3)  # what it reads goes on with the next epoch
    for _ in range(2):
        stream = copy.deepcopy(case.stream)
        reader = StreamedRows(stream, case.tokenizer, sequence_length=T, on_exhausted="stop", member=groups.join())
        with pytest.raises(EndOfSource) as caught:
            reader.take(NUM_ROWS)
        left = caught.value.rows_left
        np.testing.assert_array_equal(reader.take(left), case.rows[:left])
    assert case.tokenizer.texts == Counter(TEXTS)
