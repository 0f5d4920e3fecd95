"""Pages of prepared rows go back to the page cache: the rows stay the same, memory stays flat, and it is not felt."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixer.config.curriculum import Curriculum
from mixer.delivery import batch as batches
from mixer.delivery.batch import Planner, PreparedReader
from mixer.sources.prepared.rows import JointRows, Prepared
from mixer.system import pages as mapped
from mixer.system.pages import MappedPages
from mixer.walk.walk import Walk
from tests.sources.test_prepared import T, a_folder, some_rows

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="nothing is given back")

B, STEPS, MIB = 4, 120, 1 << 20
FULL_PACE_S, TRAINING_S = 20e-6, 0.2  # from batch to batch


def a_curriculum(*, num_sources: int = 2, seed: int = 0, **changes: Any) -> Curriculum:
    fields = {"total_steps": STEPS, "batch_rows": B, "sequence_length": T, "policy": "random"}
    return Curriculum(seed=seed, sources=[{"name": f"s{k}"} for k in range(num_sources)], **(fields | changes))


def a_reader(curriculum: Curriculum, prepared: Prepared) -> PreparedReader:
    sources = [prepared.sources[name] for name in curriculum.names]
    return PreparedReader(curriculum, sources, Planner(curriculum, Walk(curriculum).phase_at))


def starts_of(curriculum: Curriculum) -> list[int]:
    """Return the first step of each phase."""
    walk, starts = Walk(curriculum), [0]
    while (end := walk.phase_at(starts[-1]).end) < STEPS:
        starts.append(end)
    return starts


@pytest.fixture
def prepared(tmp_path: Path) -> Prepared:
    return Prepared.open(a_folder(tmp_path / "rows", {f"s{k}": (some_rows(90, seed=k), [50, 40]) for k in range(2)}))


class Clock:
    """Time that passes by so much whenever it is read, and when it is told to."""

    def __init__(self, patch: pytest.MonkeyPatch, *, tick_s: float = 0.0) -> None:
        self.now_s, self.tick_s = 1e6, tick_s
        patch.setattr(batches, "_now", self)

    def __call__(self) -> float:
        self.now_s += self.tick_s
        return self.now_s


@contextmanager
def counted(patch: pytest.MonkeyPatch) -> Iterator[list[bool]]:
    """Give a list to which each giving back is added."""
    given: list[bool] = []
    give_back = MappedPages.give_back

    def noting(self: MappedPages) -> bool:
        given.append(give_back(self))
        return given[-1]

    patch.setattr(mapped, "KEPT_BYTES", 0)
    patch.setattr(MappedPages, "give_back", noting)
    yield given


@given(
    st.lists(st.lists(st.integers(1, 900), min_size=1, max_size=3), min_size=1, max_size=3),
    st.sampled_from(["uint8", "uint16", "uint32"]),
    st.integers(0, 9),
)
def test_rows_are_the_same_whether_or_not_their_pages_were_given_back(
    shards: list[list[int]], dtype: str, seed: int
) -> None:
    rows = {f"s{k}": (some_rows(sum(sizes), dtype, seed + k), sizes) for k, sizes in enumerate(shards)}
    curriculum = a_curriculum(num_sources=len(shards), seed=seed)

    def delivered(prepared: Prepared) -> list[Any]:
        reader = a_reader(curriculum, prepared)
        read = [[*reader.read_split(step)[2:], reader.read(step).rows] for step in range(STEPS)]
        return [[each.tolist() for each in batch] for batch in read]

    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        prepared = Prepared.open(a_folder(Path(folder) / "rows", rows))
        expected = delivered(prepared)
        Clock(patch, tick_s=10.0)
        with counted(patch) as given_back:
            assert delivered(prepared) == expected
        assert given_back == [True] * (len(starts_of(curriculum)) - 1)


def test_rows_are_the_same_while_another_thread_gives_their_pages_back(
    prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mapped, "KEPT_BYTES", 0)
    joint, is_over = JointRows(list(prepared.sources.values())), threading.Event()

    def give_back() -> None:
        while not is_over.is_set():
            assert joint.give_back_pages()

    thread = threading.Thread(target=give_back)
    thread.start()
    try:
        positions = np.arange(90)
        expected = [some_rows(90, seed=k) for k in range(2)]
        for _ in range(300):
            for k in range(2):
                found = joint.gather(joint.addresses(np.full(90, k), positions))
                np.testing.assert_array_equal(found, expected[k])
    finally:
        is_over.set()
        thread.join()


def test_at_full_pace_no_pages_are_given_back(prepared: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    with counted(monkeypatch) as given_back:
        reader = a_reader(a_curriculum(), prepared)
        for step in range(STEPS):
            reader.read_split(step)
            clock.now_s += FULL_PACE_S
    assert not given_back


@pytest.mark.parametrize("paces_s", [(TRAINING_S, TRAINING_S), (FULL_PACE_S, TRAINING_S), (TRAINING_S, FULL_PACE_S)])
def test_the_pages_of_a_phase_are_given_back_at_its_end_if_it_was_read_at_a_trainers_pace(
    prepared: Prepared, monkeypatch: pytest.MonkeyPatch, paces_s: tuple[float, float]
) -> None:
    clock, starts = Clock(monkeypatch), starts_of(a_curriculum())
    changes_at = starts[len(starts) // 2]
    with counted(monkeypatch) as given_back:
        reader = a_reader(a_curriculum(), prepared)
        for step in range(STEPS):
            so_far = len(given_back)
            reader.read_split(step)
            was_slow = step > 0 and paces_s[step > changes_at] == TRAINING_S  # the pace up to this step
            assert given_back[so_far:] == [True] * (step in starts and was_slow)
            clock.now_s += paces_s[step >= changes_at]


def test_mapping_pages_again_does_not_look_like_a_slow_disk(
    prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(JointRows, "touch", lambda *_: pytest.fail("rows in memory were touched"))
    monkeypatch.setattr(batches, "_num_faults", itertools.count().__next__)  # by something else in the process
    Clock(monkeypatch, tick_s=B * 4.5e-6)  # what a batch takes
    reader = a_reader(a_curriculum(), prepared)
    for step in range(STEPS):
        reader.read_split(step)


def test_files_that_take_little_stay_in_memory(prepared: Prepared) -> None:
    assert not JointRows(list(prepared.sources.values())).give_back_pages()


def test_memory_that_is_not_of_a_file_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mapped, "KEPT_BYTES", 0)
    with pytest.raises(ValueError, match="writeable or not contiguous"):
        MappedPages([np.zeros(5000)])


READING = """
import json, sys
from pathlib import Path
from mixer.delivery import batch as batches
from mixer.sources.prepared.rows import Prepared
from mixer.walk.walk import Walk
from tests.system.test_mapped import a_curriculum, a_reader

def resident_bytes():
    lines = Path("/proc/self/status").read_text().splitlines()
    return sum(int(line.split()[1]) << 10 for line in lines if line.startswith(("RssFile:", "RssShmem:")))

folder, between_s, num_rows = Path(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])
passed_s = 1e6
def now():
    global passed_s
    passed_s += between_s
    return passed_s

batches._now = now
curriculum = a_curriculum(num_sources=1, sequence_length=1024, batch_rows=1, total_steps=num_rows)
reader, walk = a_reader(curriculum, Prepared.open(folder)), Walk(curriculum)
begin, most = resident_bytes(), 0
for step in range(num_rows):
    reader.read_split(step)
    if step == walk.phase_at(step).start:
        most = max(most, resident_bytes() - begin)
print(json.dumps(most))
"""


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """A folder of one source, 66 MB, and its number of rows."""
    rows = np.random.default_rng(0).integers(0, 2**16, (32_000, 1025), dtype=np.uint16)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tests.sources.test_prepared.T", 1024)
        return a_folder(tmp_path_factory.mktemp("large") / "rows", {"s0": (rows, [20_000, 12_000])}), len(rows)


@pytest.mark.parametrize(("between_s", "is_flat"), [(10.0, True), (FULL_PACE_S / 2, False)])
def test_memory_of_a_process_stays_flat_unless_it_reads_at_full_pace(
    large: tuple[Path, int], between_s: float, is_flat: bool
) -> None:
    folder, num_rows = large
    command = [sys.executable, "-c", READING, str(folder), str(between_s), str(num_rows)]
    found = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    grown = json.loads(found.stdout)
    if is_flat:
        assert grown < 8 * MIB  # where a phase begins; its rows come on top
    else:
        assert grown > 0.9 * num_rows * 2050  # all of it: so much would be there without giving back
