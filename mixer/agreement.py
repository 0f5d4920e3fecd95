"""How ranks agree on each step before any of them gives it to its trainer: what one cannot compose, none gives away.

They meet in a key-value store (``ranks.agreement`` opens it), not in collectives: DataLoader workers are answered by
threads beside a trainer that has collectives of its own, and what a loop that was left has begun must meet nothing
later. A step costs a rank one call of the store, and one more whenever it looks whether the others are there.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import threading
import time
import weakref
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeVar

from mixer.errors import SourceUnavailableError, TopologyError

BEAT_S = 5.0  # a rank that lives says so as often
SILENT_S = 45.0  # who said nothing for so long is gone: a busy trainer may keep the thread that says so waiting
SHORTEST_PAUSE_S, LONGEST_PAUSE_S = 1e-4, 0.05  # between two looks of a rank that waits
LEAVING_S = 10.0  # rank 0 keeps the store for others that are about to end
CLEANED_EVERY = 64  # places; what the store holds stays small over weeks

_SPOKEN = 1 << 32  # counted beside 1 for a rank that has more to say than that it is ready

Result = TypeVar("Result")
Left = tuple[str, int, int]  # a place, the number of its loop, and its step


class Store(Protocol):
    """What is used of ``torch.distributed.TCPStore``; its errors are RuntimeErrors."""

    def add(self, key: str, amount: int, /) -> int:
        """Add to a number, 0 at first, and return what it is then."""

    def append(self, key: str, text: str, /) -> None:
        """Add to the end of a text."""

    def get(self, key: str, /) -> bytes:
        """Return what a key has."""

    def set(self, key: str, text: str, /) -> None:
        """Replace what a key has."""

    def multi_get(self, keys: list[str], /) -> list[bytes]:
        """Return what several keys have."""

    def multi_set(self, keys: list[str], texts: list[str], /) -> None:
        """Replace what several keys have."""

    def delete_key(self, key: str, /) -> bool:
        """Forget a key."""


@dataclass(frozen=True)
class Verdict:
    """What all ranks have said of a step, the same on each.

    Attributes:
        loop: number of the loop that it was said in.
        step: of which step.
        is_late: whether that loop was left before this rank heard of it.
        problem: what keeps one of them from composing it; None if every rank has composed its part.
        readable: by rank, of the suspended sources those that all its readers can read; of the ranks that said so now.
    """

    loop: int
    step: int
    problem: SourceUnavailableError | None = None
    readable: Mapping[int, Collection[str]] = field(default_factory=dict)
    is_late: bool = False


@dataclass(eq=False)
class Loop:
    """An iteration over the data set: every rank begins as many, and counts the cuts of each."""

    number: int
    num_cuts: int = 0
    is_open: bool = False  # whether all ranks have begun it, and know what was agreed on in the one before


def readable_by_all(told: dict[int, Collection[str]], num: int) -> set[str] | None:
    """Return the sources that all of ``num`` readers, or ranks, can read; None until each has told.

    Args:
        told: by reader, or by rank, what it can read; emptied once it is whole.
        num: how many tell.
    """
    if len(told) < num:
        return None
    readable = set.intersection(*map(set, told.values()))
    told.clear()
    return readable


class Alone:
    """The only rank agrees with itself."""

    world_size = 1

    def begin(self) -> Loop:
        """Return the loop that begins."""
        return Loop(0)

    def agree(
        self,
        loop: Loop,
        step: int,
        follow: Callable[[Verdict], Result],
        *,
        problem: SourceUnavailableError | None,
        readable: Collection[str] | None,
        check: Callable[[], None] | None = None,
    ) -> Result:
        """Follow what was said."""
        return follow(Verdict(loop.number, step, problem, {} if readable is None else {0: readable}))

    def give_up(self, loop: Loop, step: int) -> None:
        """Nobody waits."""

    def forget(self) -> None:
        """Nothing is left to follow."""


class Agreement:
    """One rank's part in what all ranks agree on, step by step. Every rank makes one at the same time.

    A place is a loop, a step, and how many cuts the loop had: each rank that is ready there adds to the place's number,
    after it has appended what else it has to say. The number says when all have. Ranks leave a loop at different
    moments, so one may have left before it heard what others followed already: it does so as the next loop begins.

    Args:
        store: shared by the ranks.
        beats: the same store by a connection of its own, on which this rank says that it lives.
        rank, world_size: which rank of how many this is.
    """

    def __init__(self, store: Store, beats: Store, *, rank: int, world_size: int) -> None:
        self.rank, self.world_size = rank, world_size
        self._store = store
        self._turn = threading.Lock()  # a thread at a time: of a loop that was left one may still be here
        self._loop = Loop(0)  # the newest
        self._place = ""  # where this rank was ready last
        self._left: Left | None = None  # whose verdict was not followed yet
        self._over: list[str] = []  # on rank 0, which removes them: places that were before that
        self._heard: dict[int, tuple[bytes, float]] = {}  # what each rank said last of itself, and since when
        self._gone: set[int] = set()
        self._is_closed = threading.Event()
        self._beats = threading.Thread(target=_beat, args=(beats, rank, self._is_closed), daemon=True)
        self._beats.start()
        self._pid = os.getpid()
        weakref.finalize(self, self._is_closed.set).atexit = False
        _all.add(self)

    @staticmethod
    def prepare(store: Store, world_size: int) -> None:
        """Write what every rank may read from the beginning, before any of them comes."""
        keys = [name(rank) for rank in range(world_size) for name in (_alive, _at)]
        store.multi_set(keys, ["0 -1"] * len(keys))

    def begin(self) -> Loop:
        """Note that this rank begins to iterate, and return the loop."""
        self._loop = Loop(self._loop.number + 1)
        return self._loop

    def agree(
        self,
        loop: Loop,
        step: int,
        follow: Callable[[Verdict], Result],
        *,
        problem: SourceUnavailableError | None,
        readable: Collection[str] | None,
        check: Callable[[], None] | None = None,
    ) -> Result:
        """Say how this rank fares with a step, wait for the others, and follow what all say.

        Args:
            loop: as ``begin`` gave it.
            step: all steps below it were agreed on.
            follow: given what all say. If that is late, of the loop before, nothing was said of this step yet.
            problem: what keeps this rank from composing it.
            readable: of the suspended sources those that all readers of this rank can read; None to say nothing.
            check: called now and then while it waits; what it raises ends the waiting.

        Returns:
            What ``follow`` gives.

        Raises:
            TopologyError: the others will not come: a rank has ended, is gone or stands elsewhere; says which.
        """
        said = {
            "problem": None if problem is None else [problem.name, str(problem)],
            "readable": None if readable is None else sorted(readable),
        }
        with self._turn, _told_of_the_store():
            if not loop.is_open:
                left = self._open(loop, step, check)
                late = None if left is None else self._late(*left)
                if left is not None and late is not None:
                    return self._followed(late, follow, left)
            place = self._ready(loop, step, {} if problem is None and readable is None else said)
            self._left = here = (place, loop.number, step)
            has_more = self._wait(place, step, check)
            self._forget_old()
            verdict = self._verdict(place, loop.number, step) if has_more else Verdict(loop.number, step)
            loop.num_cuts += verdict.problem is not None
            return self._followed(verdict, follow, here)

    def give_up(self, loop: Loop, step: int) -> None:
        """Say that this rank will never be ready for a step, without waiting for anybody."""
        with contextlib.suppress(TopologyError), self._turn, _told_of_the_store():
            if self._place != self._name(loop, step):
                self._ready(loop, step, {"is_lost": True})

    def forget(self) -> None:
        """Let nothing of a loop before be followed: the run goes on from a state."""
        with self._turn:
            self._left = None

    def close(self) -> None:
        """Tell the others that this process ends; rank 0, which has the store, waits a little for them to end, too."""
        if self._pid != os.getpid():
            return
        self._is_closed.set()
        self._beats.join(BEAT_S)
        if not self._turn.acquire(timeout=BEAT_S):  # or a thread would come back from the store to an end
            return
        deadline = time.monotonic() + LEAVING_S
        keys = [_alive(rank) for rank in range(self.world_size) if rank not in self._gone]
        with contextlib.suppress(RuntimeError):
            while self.rank == 0 and time.monotonic() < deadline:
                if set(self._store.multi_get(keys)) == {_ENDED}:
                    break
                time.sleep(LONGEST_PAUSE_S)

    def _open(self, loop: Loop, step: int, check: Callable[[], None] | None) -> Left | None:
        """Wait until all ranks have begun a loop; return the place in the one before that this rank did not follow."""
        self._wait(self._ready(loop, -1, {}), step, check)
        loop.is_open, left, self._left = True, self._left, None
        return left

    def _late(self, place: str, loop: int, step: int) -> Verdict | None:
        """Return what was agreed on in a loop that all have left, if all were ready: none can be any more."""
        is_full, has_more = self._heard_at(place)
        if not is_full or not has_more:
            return None
        with contextlib.suppress(TopologyError):  # some rank had given it up: nobody follows
            return replace(self._verdict(place, loop, step), is_late=True)
        return None

    def _followed(self, verdict: Verdict, follow: Callable[[Verdict], Result], left: Left) -> Result:
        try:
            self._left = None
            return follow(verdict)
        except TopologyError:  # the loop was left meanwhile: the next begins with this
            self._left = left
            raise

    @staticmethod
    def _name(loop: Loop, step: int) -> str:
        return f"{loop.number}/{step}/{loop.num_cuts}"

    def _ready(self, loop: Loop, step: int, said: Mapping[str, Any]) -> str:
        """Say that this rank is ready, and what else there is to say; return the place."""
        if loop is not self._loop:
            raise TopologyError(f"step {step} is of a loop that was left; take batches from the newest iteration alone")
        if self._place and self.rank == 0:
            self._over.append(self._place)
        self._place = place = self._name(loop, step)
        if said:
            self._store.append(_said(place), json.dumps({"rank": self.rank, **said}) + "\n")
        self._store.add(_ready(place), 1 + (_SPOKEN if said else 0))
        return place

    def _wait(self, place: str, step: int, check: Callable[[], None] | None) -> bool:
        """Wait until all ranks are ready, and return whether one has said more."""
        begun = looked = time.monotonic()
        while True:
            is_full, has_more = self._heard_at(place)
            if is_full:
                return has_more
            if check is not None:
                check()
            if time.monotonic() - looked > BEAT_S:
                self._look_for_others(place, step)
                looked = time.monotonic()
            # looking costs those who keep the store: the longer it takes, the more seldom
            pause = min(LONGEST_PAUSE_S, max(SHORTEST_PAUSE_S, (time.monotonic() - begun) / 8))
            if self._is_closed.wait(pause):
                raise TopologyError(f"step {step} was not composed by all ranks: this process ends")

    def _heard_at(self, place: str) -> tuple[bool, bool]:
        """Return whether all ranks are ready at a place, and whether one has said more than that."""
        ready = self._store.add(_ready(place), 0)
        return ready % _SPOKEN >= self.world_size, ready >= _SPOKEN

    def _forget_old(self) -> None:
        """Remove the places before this step's: now that all ranks are here, none looks at them."""
        if len(self._over) >= CLEANED_EVERY:
            for place in self._over:
                self._store.delete_key(_ready(place))
                self._store.delete_key(_said(place))
            self._over.clear()

    def _verdict(self, place: str, loop: int, step: int) -> Verdict:
        """Return what all have said, of several problems that of the lowest rank."""
        all_said = sorted(map(json.loads, self._store.get(_said(place)).splitlines()), key=lambda said: said["rank"])
        lost = [said["rank"] for said in all_said if said.get("is_lost")]
        if lost:
            raise TopologyError(
                f"rank {lost[0]} will not compose step {step}: the worker that was to is gone, or its loop was left; "
                "its own error says why: start the run again from its last checkpoint"
            )
        problems = [(said["rank"], *said["problem"]) for said in all_said if said["problem"] is not None]
        if not problems:
            return Verdict(loop, step, None, {said["rank"]: said["readable"] for said in all_said})
        rank, name, text = problems[0]
        where = "" if rank == self.rank else f" (on rank {rank})"
        return Verdict(loop, step, SourceUnavailableError(f"{text}{where}", name=name))

    def _look_for_others(self, place: str, step: int) -> None:
        """Raise TopologyError if one of the other ranks will not come."""
        self._store.set(_at(self.rank), f"{self._loop.number} {step}")
        others = [rank for rank in range(self.world_size) if rank != self.rank]
        told = self._store.multi_get([name(rank) for rank in others for name in (_alive, _at)])
        if self._heard_at(place)[0]:
            return  # meanwhile they came, and may have gone on
        again = "start the run again from its last checkpoint"
        for i, rank in enumerate(others):
            alive, (its_iteration, its_step) = told[2 * i], map(int, told[2 * i + 1].split())
            last, since = self._heard.get(rank, (b"", 0.0))
            if alive != last:
                since = time.monotonic()
                self._heard[rank] = (alive, since)
            if alive == _ENDED:
                raise TopologyError(f"rank {rank} has ended, and did not compose step {step}: {again}")
            if time.monotonic() - since > SILENT_S:
                self._gone.add(rank)
                raise TopologyError(
                    f"rank {rank} is gone: nothing was heard of it for {SILENT_S:.0f} s, and step {step} waits for it: "
                    f"{again}"
                )
            if its_iteration > self._loop.number:
                raise TopologyError(
                    f"rank {rank} has begun to iterate the data set anew ({its_iteration} times so far), and this rank "
                    f"({self._loop.number} times) still waits for it at step {step}: begin and leave loops on every "
                    "rank alike"
                )
            if (its_iteration, its_step) > (self._loop.number, step):
                raise TopologyError(
                    f"rank {rank} stands at step {its_step} and this rank at step {step}: load the state of one step "
                    "on every rank"
                )


_ENDED = b"ended"
_all: weakref.WeakSet[Agreement] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    for agreement in list(_all):
        agreement.close()


def _beat(store: Store, rank: int, is_closed: threading.Event) -> None:
    """Say that this rank lives, and at last that it has ended."""
    with contextlib.suppress(RuntimeError):  # rank 0 is gone, which others find who wait
        num_beats = 0
        while not is_closed.wait(BEAT_S if num_beats else 0.0):
            num_beats += 1
            store.set(_alive(rank), f"{num_beats} 0")
        store.set(_alive(rank), _ENDED.decode())


@contextlib.contextmanager
def _told_of_the_store() -> Any:
    try:
        yield
    except RuntimeError as error:  # torch's own; ours are no RuntimeErrors
        raise TopologyError(
            "rank 0, which keeps what ranks agree on, is gone or out of reach: start the run again from its last "
            f"checkpoint ({error})"
        ) from error


def _alive(rank: int) -> str:
    return f"alive/{rank}"


def _at(rank: int) -> str:
    return f"at/{rank}"


def _ready(place: str) -> str:
    return f"ready/{place}"


def _said(place: str) -> str:
    return f"said/{place}"
