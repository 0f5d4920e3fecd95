"""A source that cannot be reached for a while, in this process."""

from __future__ import annotations

from typing import Any

import pytest

from mixer.sources import streams, text_stream
from mixer.sources.faults import NetworkFault
from mixer.sources.rows import StreamedRows


class Outage:
    """Stands before one source of a reader while ``is_down``; rows that were read already are there all the same."""

    def __init__(self, reader: Any, source: int, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(text_stream, "GROUP_DOCUMENTS", 2)
        stream = reader._sources[source]._ahead._seat.stream
        self._try_group = stream.try_group
        self.is_down = False
        monkeypatch.setattr(stream, "try_group", self._through)

    def _through(self) -> Any:
        if self.is_down:
            raise NetworkFault("cannot be reached: gone")
        return self._try_group()


class PlannedOutage:
    """Sources that are down from a known document on, until they were probed so often: in each process that reads them.

    Args:
        places: of each such source, the first document out of reach and how many probes fail.
        monkeypatch: patches the classes, so that readers which forked workers open are met too.
    """

    def __init__(self, places: dict[str, tuple[int, int]], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(text_stream, "GROUP_DOCUMENTS", 2)
        self._places = dict(places)
        self._try_group, self._probe = streams.Stream.try_group, StreamedRows.probe
        monkeypatch.setattr(streams.Stream, "try_group", lambda stream: self._through(stream))
        monkeypatch.setattr(StreamedRows, "probe", lambda rows: self._probed(rows))

    def _through(self, stream: Any) -> Any:
        place = self._places.get(stream.name)
        if place is not None and stream.num_documents >= place[0]:
            raise NetworkFault("cannot be reached: gone")
        return self._try_group(stream)

    def _probed(self, rows: StreamedRows) -> bool:
        place = self._places.get(rows.name)
        if place is not None and place[1] > 0:
            self._places[rows.name] = (place[0], place[1] - 1)
            return False
        self._places.pop(rows.name, None)
        return self._probe(rows)
