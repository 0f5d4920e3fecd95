"""Connections to PostgreSQL that give up on a server which keeps silent, however alive its network looks.

A server that is stopped, or waits for its disk, still acknowledges packets: neither its own time limits nor those of
TCP end the wait. The deadline is that of the transaction that the thread is in.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import psycopg

MIN_CONNECT_S = 2  # psycopg waits no shorter
_deadline: ContextVar[float] = ContextVar("deadline", default=float("inf"))


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Have every wait of this thread for a database end after so many seconds."""
    token = _deadline.set(time.monotonic() + seconds)
    try:
        yield
    finally:
        _deadline.reset(token)


class DeadlineConnection(psycopg.Connection[Any]):
    """A connection whose waits end at the deadline, with psycopg.OperationalError; it is closed then."""

    @classmethod
    def connect(cls, *arguments: Any, **keywords: Any) -> DeadlineConnection:
        """Connect, if time is left for it."""
        if _deadline.get() - time.monotonic() < MIN_CONNECT_S:
            raise psycopg.OperationalError("the database server does not answer in time")
        return super().connect(*arguments, **{**keywords, "connect_timeout": MIN_CONNECT_S})

    def wait(self, gen: Any, *arguments: Any, **keywords: Any) -> Any:
        """Consume a generator that operates on the connection, as far as the deadline allows."""
        return super().wait(self._until_deadline(gen), *arguments, **keywords)

    def _until_deadline(self, gen: Generator[Any, Any, Any]) -> Generator[Any, Any, Any]:
        try:
            wanted = next(gen)
            while True:
                ready = yield wanted
                if not ready and time.monotonic() > _deadline.get():  # psycopg looks up ten times a second
                    self.close()
                    raise psycopg.OperationalError("the database server does not answer in time")
                wanted = gen.send(ready)
        except StopIteration as end:
            return end.value
