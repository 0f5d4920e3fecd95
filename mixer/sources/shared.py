"""Groups that several runs of one process stream: read and encoded once for all runs that are near each other.

What a stream gives from a place on depends on that place alone, so a group is known by what is read and by the place
where it begins. The newest groups are kept; whoever needs one that has gone reads it for himself. A stream that stands
where a reader has to read on is exchanged for that reader's own, so that runs of which now one and now another is the
first to read open no file again.
"""

from __future__ import annotations

import json
import threading
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from mixer.system.threads import Task

if TYPE_CHECKING:
    from mixer.sources.groups import Encoded, Read
    from mixer.sources.streams import Stream

SHARED_BYTES = 64 << 20  # of token ids, of all sources together: as much as one run reads ahead

Place = Mapping[str, Any]
Key = tuple[str, str]  # what is read, and from which place on


@dataclass(eq=False)
class StreamSlot:
    """The stream of one reader; if it shares, any reader of the same documents may exchange its own for it."""

    stream: Stream[Any]
    member: Participant | None = None
    identity: str = ""  # the same as that of every stream that gives the same token ids
    is_reading: bool = False

    def read(self, place: Place, read: Callable[[Stream[Any], Place], Read]) -> Read:
        """Return the group that begins at a place: one that is kept, or else what ``read`` gives of a stream."""
        return read(self.stream, place) if self.member is None else self.member.groups.read(self, place, read)


@dataclass(eq=False)
class _Source:
    """Who reads one source."""

    members: set[Participant] = field(default_factory=set)
    seats: weakref.WeakSet[StreamSlot] = field(default_factory=weakref.WeakSet)
    left: set[StreamSlot] = field(default_factory=set)  # of the run that left last: others may need its streams


class SharedGroups:
    """What is kept for the runs of one process.

    Args:
        max_bytes: of token ids that are kept; those that are being encoded come on top.
    """

    def __init__(self, max_bytes: int = SHARED_BYTES) -> None:
        self._max_bytes = max_bytes
        self._sources: dict[str, _Source] = {}
        self._groups: dict[Key, Task[Read]] = {}
        self._sizes: dict[Key, int] = {}  # of those that are encoded, oldest first
        self._num_bytes = 0
        self._lock = threading.Lock()

    @property
    def num_bytes(self) -> int:
        """Bytes of token ids that are kept."""
        with self._lock:
            return self._num_bytes

    def join(self) -> Participant:
        """Return what a run reads with."""
        return Participant(self)

    def enter(self, seat: StreamSlot, member: Participant) -> None:
        """Let a reader of a run share what it reads."""
        with self._lock:
            source = self._sources.setdefault(seat.identity, _Source())
            source.members.add(member)
            source.seats.add(seat)

    def leave(self, member: Participant) -> None:
        """Forget a run, and what no other run reads."""
        with self._lock:
            for identity, source in list(self._sources.items()):
                if member not in source.members:
                    continue
                source.members.remove(member)
                source.left = {seat for seat in source.seats if seat.member is member}
                if not source.members:
                    del self._sources[identity]
            for key in [key for key in self._groups if key[0] not in self._sources]:
                self._drop(key)

    def read(self, seat: StreamSlot, place: Place, read: Callable[[Stream[Any], Place], Read]) -> Read:
        """See ``StreamSlot.read``; a reader that waits for another's attempt gets the fault that it ends with, too."""
        key = (seat.identity, json.dumps(place, sort_keys=True))
        while True:
            with self._lock:
                task = self._groups.get(key)
                is_mine = task is None
                if task is None:
                    task = self._begin(seat, key, place, read)
            try:
                return task.result()
            except BaseException as error:  # Ctrl-C in another thread is no fault of the source
                if is_mine or isinstance(error, Exception) or not task.is_done:
                    raise

    def _begin(
        self, seat: StreamSlot, key: Key, place: Place, read: Callable[[Stream[Any], Place], Read]
    ) -> Task[Read]:
        """Return the task that reads a group, for all who ask for it meanwhile."""
        source = self._sources.get(seat.identity)  # none if all runs have left
        if source is not None and seat.stream.place() != place:
            for other in source.seats:
                if not other.is_reading and other.stream.place() == place:
                    seat.stream, other.stream = other.stream, seat.stream
                    source.left.discard(other)
                    break
        seat.is_reading = True
        task = Task(lambda: self._read(seat, key, place, read))
        if source is not None:
            self._groups[key] = task
        return task

    def _read(self, seat: StreamSlot, key: Key, place: Place, read: Callable[[Stream[Any], Place], Read]) -> Read:
        try:
            found = read(seat.stream, place)
        except BaseException:
            self._forget(key)
            raise
        finally:
            seat.is_reading = False
        return replace(found, encoded=Task(lambda: self._encoded(key, found.encoded)))

    def _encoded(self, key: Key, task: Task[Encoded]) -> Encoded:
        try:
            encoded = task.result()
        except BaseException:
            self._forget(key)
            raise
        with self._lock:
            if key in self._groups and key not in self._sizes:
                self._sizes[key] = encoded.nbytes + len(key[1])
                self._num_bytes += self._sizes[key]
            while self._num_bytes > self._max_bytes:
                self._drop(next(iter(self._sizes)))
        return encoded

    def _forget(self, key: Key) -> None:
        with self._lock:
            self._drop(key)

    def _drop(self, key: Key) -> None:
        self._groups.pop(key, None)
        self._num_bytes -= self._sizes.pop(key, 0)


class Participant:
    """One run's part in it.

    Args:
        groups: what is kept for all.
    """

    def __init__(self, groups: SharedGroups) -> None:
        self.groups = groups
        self._has_left = False

    def seat(self, stream: Stream[Any], use: str) -> StreamSlot:
        """Return the seat of a new reader.

        Args:
            stream: what it reads; not shared if it is not known which data that is.
            use: what makes token ids of the documents, and what follows the last.
        """
        identity = stream.identity
        if identity is None or self._has_left:
            return StreamSlot(stream)
        seat = StreamSlot(stream, self, f"{identity} {use}")
        self.groups.enter(seat, self)
        return seat

    def leave(self) -> None:
        """Stop sharing: readers that are left over read on for themselves."""
        self._has_left = True
        self.groups.leave(self)
