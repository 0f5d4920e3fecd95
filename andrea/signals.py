"""Signals as requests that a training loop looks at between steps."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Requests:
    """What signals have asked for so far."""

    def __init__(self) -> None:
        self.stopped_by: int | None = None
        """The signal that asked for an end."""
        self._is_save_asked = False

    def should_stop(self) -> bool:
        """Return whether Ctrl-C or SIGTERM came."""
        return self.stopped_by is not None

    def take_save(self) -> bool:
        """Return whether SIGUSR1 came since this was asked last."""
        asked, self._is_save_asked = self._is_save_asked, False
        return asked

    def note_stop(self, number: int) -> None:
        """Note that a signal asks for an end."""
        self.stopped_by = number

    def note_save(self) -> None:
        """Note that a checkpoint is asked for."""
        self._is_save_asked = True


@contextmanager
def requests_by_signal() -> Iterator[Requests]:
    """Give what signals ask for: Ctrl-C and SIGTERM to stop, SIGUSR1 to save; a second Ctrl-C stops at once."""
    requests = Requests()
    stopping = (signal.SIGINT, signal.SIGTERM)
    before: dict[int, Any] = {number: signal.getsignal(number) for number in (*stopping, signal.SIGUSR1)}

    def on_signal(number: int, _frame: object) -> None:
        if number == signal.SIGUSR1:
            requests.note_save()
            return
        requests.note_stop(number)
        signal.signal(number, before[number])

    for number in before:
        signal.signal(number, on_signal)
    try:
        yield requests
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
