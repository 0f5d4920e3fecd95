"""In-memory storage of the rate limiter, by a monotonic clock.

The storage that ``limits`` brings uses the wall clock: if that is set back by a day, everybody is refused for a day. It
also starts a thread for every hundredth of a second in which it is used.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from limits.storage import Storage

SWEEP_AT = 10_000  # keys; at this number those whose window is over are dropped


class SteadyStorage(Storage):
    """Counts by key, in windows of fixed length; all times are of ``clock``."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._counts: dict[str, tuple[int, float]] = {}  # count, end of the window

    @property
    def base_exceptions(self) -> type[Exception]:
        """The exceptions that the library would wrap; none is raised here."""
        return ValueError

    def incr(self, key: str, expiry: float, amount: int = 1) -> int:
        """Add ``amount`` to the count of a window of ``expiry`` seconds, which starts with its first count."""
        now = self._clock()
        count, end = self._counts.get(key, (0, 0.0))
        if end <= now:
            if len(self._counts) >= SWEEP_AT:
                self._counts = {key: entry for key, entry in self._counts.items() if entry[1] > now}
            count, end = 0, now + expiry
        self._counts[key] = (count + amount, end)
        return count + amount

    def get(self, key: str) -> int:
        """Return the count in the current window."""
        count, end = self._counts.get(key, (0, 0.0))
        return count if end > self._clock() else 0

    def get_expiry(self, key: str) -> float:
        """Return when the window ends."""
        return self._counts[key][1] if key in self._counts else self._clock()

    def check(self) -> bool:
        """Return True: the storage works."""
        return True

    def reset(self) -> int:
        """Forget everything, and return how many keys there were."""
        number = len(self._counts)
        self._counts.clear()
        return number

    def clear(self, key: str) -> None:
        """Forget a key."""
        self._counts.pop(key, None)
