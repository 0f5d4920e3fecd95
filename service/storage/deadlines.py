"""The deadline of the transaction that a thread is in: after it, ``postgresql`` gives the database up."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_deadline: ContextVar[float] = ContextVar("deadline", default=float("inf"))


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Bound all waits of this thread for the database by so many seconds from now."""
    token = _deadline.set(time.monotonic() + seconds)
    try:
        yield
    finally:
        _deadline.reset(token)


def seconds_left() -> float:
    """Return how long this thread may still wait; infinite outside of ``within``."""
    return _deadline.get() - time.monotonic()
