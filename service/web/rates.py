"""Where the limiter counts: in memory, by a clock that does not jump.

The library's own storage in memory goes by the wall clock, so that a clock set back by a day would refuse everybody for
a day; and it starts a thread for every hundredth of a second in which it is asked.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from limits.storage import Storage

SWEEP_AT = 10_000  # keys: those whose window is over are dropped then


class SteadyStorage(Storage):
    """Counts by key, each until its window is over; all times are of ``clock``."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._counts: dict[str, tuple[int, float]] = {}  # count, end of the window

    @property
    def base_exceptions(self) -> type[Exception]:
        """What the library would wrap; nothing here fails."""
        return ValueError

    def incr(self, key: str, expiry: float, amount: int = 1) -> int:
        """Count ``amount`` more, in a window of ``expiry`` seconds from its first count on."""
        now = self._clock()
        count, end = self._counts.get(key, (0, 0.0))
        if end <= now:
            if len(self._counts) >= SWEEP_AT:
                self._counts = {key: entry for key, entry in self._counts.items() if entry[1] > now}
            count, end = 0, now + expiry
        self._counts[key] = (count + amount, end)
        return count + amount

    def get(self, key: str) -> int:
        """Return the count in the window that is open."""
        count, end = self._counts.get(key, (0, 0.0))
        return count if end > self._clock() else 0

    def get_expiry(self, key: str) -> float:
        """Return when the window ends."""
        return self._counts[key][1] if key in self._counts else self._clock()

    def check(self) -> bool:
        """Return that it works."""
        return True

    def reset(self) -> int:
        """Forget everything, and return how many keys there were."""
        number = len(self._counts)
        self._counts.clear()
        return number

    def clear(self, key: str) -> None:
        """Forget a key."""
        self._counts.pop(key, None)
