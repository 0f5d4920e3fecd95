"""The samples of a run: texts that its model wrote, as its trainer posts them, to be shown; they decide nothing."""

from __future__ import annotations

import threading
from typing import Any

from service.storage.store import Store

KIND = "sample"  # of the snapshots
KEPT = 100  # the newest of a run


class PostedSamples:
    """The newest samples of a run that is served, durable.

    Args:
        store: where they are kept.
        run: its name.
        writer: as ``Store.take_over`` gave it.
    """

    def __init__(self, store: Store, run: str, *, writer: str) -> None:
        self._store, self._run, self._writer = store, run, writer
        self._by_step = dict(store.all_of(run, KIND, limit=KEPT))
        self._lock = threading.Lock()

    def add(self, step: int, sample: dict[str, Any]) -> None:
        """Keep a sample, in place of one of the same step; the oldest of more than ``KEPT`` goes.

        Raises:
            StoreError: nothing was kept.
        """
        with self._lock:
            by_step = {**self._by_step, step: sample}
            steps = sorted(by_step)[-KEPT:]
            self._store.save(self._run, KIND, step, sample, forget_before=steps[0], writer=self._writer)
            self._by_step = {number: by_step[number] for number in steps}

    def newest(self, limit: int) -> list[dict[str, Any]]:
        """Return the newest, the newest first."""
        return [sample for _, sample in sorted(self._by_step.items(), key=lambda item: -item[0])[:limit]]


class KeptSamples:
    """The samples of a run that goes on no more; without a store there are none."""

    def __init__(self, store: Store | None = None, run: str = "") -> None:
        self._found = [] if store is None else [sample for _, sample in store.all_of(run, KIND, limit=KEPT)]

    def newest(self, limit: int) -> list[dict[str, Any]]:
        """Return the newest, the newest first."""
        return self._found[::-1][:limit]
