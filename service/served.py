"""Which steps ranks were given: no pivot may change one of them, nor after a kill one that may have been given.

A step is claimed before it is handed out, in memory. What is durable is a lease: no step from its end on is handed
out. After a kill all steps of the lease count as given: 16, more where steps are served fast.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable

from service.store import Store

KIND = "served"  # of the snapshots that are leases: their step is the end
LEASE = 16
MAX_LEASE = 8192  # half a second of small batches: each lease is a write of some ms
SOON_S = 0.5  # a lease that is used up sooner is doubled


class Served:
    """The steps of one run that were given, or that a process before this one may have given.

    Args:
        store: where the lease is.
        run: the run's name.
        clock: tells how fast steps are given.
    """

    def __init__(self, store: Store, run: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._store, self._run, self._clock = store, run, clock
        lease = store.newest(run, KIND)
        self._lease = 0 if lease is None else lease[0]
        self._before = self._lease - 1  # the newest step that may have been given before this process began
        self._newest = -1  # given by this process
        self._closed_from = sys.maxsize
        self._lock, self._extending = threading.Lock(), threading.Lock()
        self._size, self._extended_at = LEASE, -SOON_S

    @property
    def given(self) -> int:
        """The first step that nobody has, nor may have."""
        return max(self._newest, self._before) + 1

    def claim(self, step: int) -> bool:
        """Return whether a step may be handed out, from now on for ever as it is now."""
        return self.claim_first(range(step, step + 1)) == 1

    def claim_first(self, steps: range) -> int:
        """Claim the first of ``steps``, as many as may be handed out, and return how many that is."""
        with self._lock:
            claimed = steps[: len(range(steps.start, min(self._lease, self._closed_from), steps.step))]
            if claimed:
                self._newest = max(self._newest, claimed[-1])
            return len(claimed)

    def is_leased(self, step: int) -> bool:
        """Return whether a kill would be followed by a server that takes this step for given."""
        return step < self._lease

    def extend(self, step: int) -> None:
        """Lease ``step`` and some more; durable when it returns."""
        with self._extending:
            if step < self._lease:
                return
            now = self._clock()
            self._size = min(2 * self._size, MAX_LEASE) if now - self._extended_at < SOON_S else LEASE
            self._keep(step + self._size)
            self._extended_at = now

    def extend_early(self) -> None:
        """Lease more if half of a lease is left."""
        near = self._newest + self._size // 2
        if near >= self._lease:
            self.extend(near)

    def close(self) -> int:
        """Hand out no new step until ``open``; return the first one that nobody has."""
        with self._lock:
            self._closed_from = self.given
            return self._closed_from

    def open(self) -> None:
        """Hand out new steps again."""
        with self._lock:
            self._closed_from = sys.maxsize

    def settle(self) -> None:
        """Give the rest of the lease back: this process hands out nothing more."""
        self._keep(self.close())
        self._store.forget(self._run, KIND, from_step=self._lease + 1)

    def _keep(self, lease: int) -> None:
        self._store.save(self._run, KIND, lease, {}, forget_before=lease)
        self._lease = lease
