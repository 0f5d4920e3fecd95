"""Connections to PostgreSQL that give up on a server which does not answer in time.

A server process that is stopped, or waits for its disk, still acknowledges packets: neither its own timeouts nor those
of TCP end the wait. This module is imported for PostgreSQL alone.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import psycopg

from service.storage.deadlines import seconds_left

MIN_CONNECT_S = 2  # the shortest timeout that psycopg accepts


class DeadlineConnection(psycopg.Connection[Any]):
    """A connection whose waits end at the deadline, with psycopg.OperationalError; it is closed then."""

    @classmethod
    def connect(cls, *arguments: Any, **keywords: Any) -> DeadlineConnection:
        """Connect, if the deadline leaves time for it."""
        if seconds_left() < MIN_CONNECT_S:
            raise psycopg.OperationalError("the database server does not answer in time")
        return super().connect(*arguments, **{**keywords, "connect_timeout": MIN_CONNECT_S})

    def wait(self, gen: Any, *arguments: Any, **keywords: Any) -> Any:
        """Run a generator that waits for the connection, until the deadline."""
        return super().wait(self._until_deadline(gen), *arguments, **keywords)

    def _until_deadline(self, gen: Generator[Any, Any, Any]) -> Generator[Any, Any, Any]:
        try:
            wanted = next(gen)
            while True:
                ready = yield wanted
                if not ready and seconds_left() < 0:  # psycopg wakes ten times a second
                    self.close()
                    raise psycopg.OperationalError("the database server does not answer in time")
                wanted = gen.send(ready)
        except StopIteration as end:
            return end.value
