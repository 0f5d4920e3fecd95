"""Which steps ranks were given: no pivot may change one of them, nor after a kill one that may have been given.

A step is claimed before it is handed out, in memory. What is durable is a lease: no step from its end on is handed
out. After a kill all steps of the lease count as given: 16, more where steps are served fast.

Where another process may take the run over (the database is a server), a lease is written by the run's writer alone, in
one transaction with the check that it still is the writer, and nothing is handed out unless that was checked within the
last ``GOOD_S``: a process that was stopped and goes on has to ask first.
"""

from __future__ import annotations

import math
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future

from service.storage.store import SERVED, Store

LEASE = 16
MAX_LEASE = 8192  # half a second of small batches: each lease is a write of some ms
SOON_S = 0.5  # a lease that is used up sooner is doubled
GOOD_S = 5.0  # that it was written, or confirmed, at most
RENEW_S = 1.0  # after which it is confirmed again, so that nobody waits for that


class StepLeases:
    """The steps of one run that were given, or that a process before this one may have given.

    Args:
        store: where the lease is.
        run: the run's name.
        writer: who this process is among the run's writers; None: there are no others.
        decided: the first step that no phase covers, which counts if the database does not know what was given.
        clock: tells how fast steps are given, and the age of a lease.

    Attributes:
        problem: why the newest attempt to lease, or to confirm, failed; None if it did not.
    """

    def __init__(
        self,
        store: Store,
        run: str,
        *,
        writer: str | None = None,
        decided: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store, self._run, self._writer, self._clock = store, run, writer, clock
        self._is_shared = writer is not None and store.is_server
        lease = store.newest(run, SERVED)
        self._before = (decided if lease is None else lease[0]) - 1  # the newest step that may have been given before
        self._newest = -1  # given by this process
        self._lease = 0  # written by this process: one that it read another may have written since
        self._good_until = -math.inf
        self._closed_from = sys.maxsize
        self._lock, self._extending = threading.Lock(), threading.Lock()
        self._size, self._extended_at = LEASE, -SOON_S
        self._attempt: Future[None] | None = None
        self.problem: Exception | None = None

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
            if self._clock() > self._good_until:
                return 0
            claimed = steps[: len(range(steps.start, min(self._lease, self._closed_from), steps.step))]
            if claimed:
                self._newest = max(self._newest, claimed[-1])
            return len(claimed)

    def is_leased(self, step: int) -> bool:
        """Return whether a kill would be followed by a server that takes this step for given, and none came already."""
        return step < self._lease and self._clock() <= self._good_until

    def extend(self, step: int) -> None:
        """Lease ``step`` and some more, durable when it returns; confirm the lease if it has the step.

        Raises:
            StoreError: the database does not answer.
            JournalError: another process has taken the run over.
        """
        with self._extending:
            now = self._clock()
            try:
                if step >= self._lease:
                    soon = now - self._extended_at < SOON_S
                    self._size = min(2 * self._size, MAX_LEASE) if soon else LEASE
                    self._keep(self._before + 1 if step <= self._before else step + self._size)
                    self._extended_at = now
                elif self._is_old(now):
                    assert self._writer is not None, "only what is shared grows old"
                    self._store.confirm(self._run, self._writer)
                    self._good_until = now + GOOD_S
            except Exception as error:
                self.problem = error
                raise
            self.problem = None

    def extending(self, step: int) -> Future[None]:
        """Have the lease extended in a thread; all who ask meanwhile wait for the same attempt, and hear its end."""
        with self._lock:
            if self._attempt is None or self._attempt.done():
                self._attempt = Future()
                threading.Thread(target=self._try, args=(step, self._attempt), daemon=True).start()
            return self._attempt

    def _try(self, step: int, attempt: Future[None]) -> None:
        try:
            self.extend(step)
        except BaseException as error:
            attempt.set_exception(error)
        else:
            attempt.set_result(None)

    def extend_early(self) -> None:
        """Have more leased if half of a lease is left, and an old one confirmed; wait for neither."""
        near = self._newest + self._size // 2
        if near >= self._lease or self.problem is not None or self._is_old(self._clock()):
            self.extending(near)

    def _is_old(self, now: float) -> bool:
        return now > self._good_until - GOOD_S + RENEW_S

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
        with self._extending:
            self._keep(self.close())
            self._store.forget(self._run, SERVED, from_step=self._lease + 1, writer=self._writer)

    def _keep(self, lease: int) -> None:
        begin = self._clock()
        self._store.save(self._run, SERVED, lease, {}, forget_before=lease, writer=self._writer)
        with self._lock:
            self._lease, self._good_until = lease, begin + GOOD_S if self._is_shared else math.inf
