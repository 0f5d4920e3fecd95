"""A source that cannot be reached for a while, in this process."""

from __future__ import annotations

from typing import Any

import pytest

from mixer.sources import streams
from mixer.sources.faults import NetworkFault


class Outage:
    """Stands before one source of a reader while ``is_down``; rows that were read already are there all the same."""

    def __init__(self, reader: Any, source: int, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(streams, "GROUP_DOCUMENTS", 2)
        stream = reader._sources[source]._ahead._seat.stream
        self._try_group = stream.try_group
        self.is_down = False
        monkeypatch.setattr(stream, "try_group", self._through)

    def _through(self) -> Any:
        if self.is_down:
            raise NetworkFault("cannot be reached: gone")
        return self._try_group()
