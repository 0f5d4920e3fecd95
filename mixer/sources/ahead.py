"""Groups of documents of one stream as token ids, read and encoded ahead by the threads of the process.

Reading the next group begins as soon as one is read, while that one is encoded, so that parsing a file, encoding and
the trainer overlap. Only what has been taken with ``pop`` counts: the place, errors and the end of the epoch are those
that reading without threads would give, whatever has been read beyond, by this reader or by others of the same source.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from mixer.sources.faults import NetworkFault
from mixer.sources.groups import Encoded, Read
from mixer.sources.shared import StreamSlot
from mixer.sources.streams import Documents, Stream
from mixer.system.threads import POOL, Task


class ReadAhead:
    """The groups of a stream in order.

    Args:
        seat: has the stream that is read; from now on by nobody else, unless it is shared.
        encode: makes token ids of a group's documents.
        repeat: whether the beginning is read after the end.
    """

    def __init__(self, seat: StreamSlot, encode: Callable[[Documents], Encoded], *, repeat: bool) -> None:
        self._seat = seat
        self._encode = encode
        self._repeat = repeat
        self._lock = threading.Lock()
        self._queue: deque[Read] = deque()
        self._reader: Task[None] | None = None  # reads the next group, now or soon, or has failed to
        self._num_wanted = 0
        self._begin(seat.stream.place())

    @property
    def place(self) -> dict[str, Any]:
        """The stream's state after the last group that was taken; not to be changed."""
        return self._place

    def peek(self, *, persist: bool = True) -> Read:
        """Return the next group, encoded; raise what reading or encoding it raises, which loses nothing.

        Args:
            persist: retry after faults of a network; else the first NetworkFault is raised.
        """
        self._check_process()
        while True:
            with self._lock:
                read = self._queue[0] if self._queue else None
                if read is None and self._reader is None:
                    self._reader = Task(self._read)
                reader = self._reader
            if read is not None:
                return self._encoded(read)
            assert reader is not None
            try:
                reader.result()
            except NetworkFault as fault:
                self._reader = None
                if not persist:
                    raise
                self._read(after=fault)
            except BaseException:
                if reader.is_done:  # else Ctrl-C came while a thread of the pool was reading, which goes on
                    self._reader = None
                raise

    def at_hand(self) -> Encoded | None:
        """Return the documents that ``peek`` would return at once; None if it would wait, raise or end an epoch."""
        with self._lock:
            read = self._queue[0] if self._queue and self._process == os.getpid() else None
        return read.encoded.value if read is not None and read.num_documents else None

    def pop(self) -> None:
        """Take the group that ``peek`` returned."""
        with self._lock:
            self._place = self._queue.popleft().end

    def want(self, num_groups: int) -> None:
        """Let up to ``num_groups`` be read ahead; at once, in the background."""
        self._check_process()
        with self._lock:
            self._num_wanted = num_groups
            if self._reader is None and self._wants_more():
                self._reader = POOL.submit(self._read)

    def move(self, place: Mapping[str, Any]) -> None:
        """Go on from a state of the stream; forget what has been read ahead."""
        self._check_process()
        with self._lock:
            self._num_wanted = 0  # a reader that is under way starts no other
            reader = self._reader
        if reader is not None:
            reader.cancel()
        if self._seat.member is None:
            self._seat.stream.load_state_dict(place)
            self._begin(self._seat.stream.place())
        else:  # it stays where others may want to read on, until a group is needed that is not kept
            self._seat.stream.check_state(place)
            self._begin(dict(place))

    def __getstate__(self) -> dict[str, Any]:
        """Another process reads on after what was taken here."""
        self.move(self._place)
        kept = {key: self.__dict__[key] for key in ("_encode", "_repeat", "_place")}
        return {**kept, "_seat": StreamSlot(self._seat.stream)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state
        self._begin(self._place)

    def _begin(self, place: dict[str, Any]) -> None:
        self._place = self._last_end = place
        self._queue = deque()
        self._reader = None
        self._num_wanted = 0
        self._lock = threading.Lock()
        self._process = os.getpid()

    def _check_process(self) -> None:
        """In a forked process nobody will finish what is under way, and the open file's place is not ours alone."""
        if self._process != os.getpid():
            self._seat = StreamSlot(self._seat.stream)
            self._seat.stream.abandon()
            self._seat.stream.load_state_dict(self._place)
            self._begin(self._place)

    def _wants_more(self) -> bool:
        has_ended = bool(self._queue) and not self._queue[-1].num_documents and not self._repeat
        return len(self._queue) < self._num_wanted and not has_ended

    def _read(self, after: NetworkFault | None = None) -> None:
        """Read a group and let the next one be read while it is encoded."""
        start = self._last_end
        attempt = partial(self._seat.read, start, self._group)
        read = attempt() if after is None else self._seat.stream.persist(attempt, start, after)
        with self._lock:
            self._last_end = read.end
            self._queue.append(read)
            self._reader = POOL.submit(self._read) if self._wants_more() else None
        read.encoded.run()

    def _group(self, stream: Stream[Any], start: Mapping[str, Any]) -> Read:
        """Return the group that begins at a place, in one attempt; if it raises, the stream stands there."""
        if stream.place() != start:
            stream.load_state_dict(start)
        try:
            stream.skipped.clear()
            documents = stream.try_group()
            skipped = tuple(stream.skipped)
            if not len(documents) and self._repeat:
                stream.restart()
            return Read(len(documents), Task(partial(self._encode, documents)), stream.place(), skipped)
        except BaseException:
            stream.load_state_dict(start)
            raise

    def _encoded(self, read: Read) -> Read:
        try:
            read.encoded.result()
        except BaseException:
            if read.encoded.is_done:
                self.move(self._place)
            raise
        return read
