"""Metrics for Prometheus: requests by route, counted as they come, and the state of the runs at each scrape."""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

if TYPE_CHECKING:
    from service.runs.engine import Engine

BUCKETS_S = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Metrics:
    """The metrics of one server, in a registry of its own.

    Args:
        engines: returns the open runs.
    """

    def __init__(self, engines: Callable[[], Iterable[Engine]]) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "mixer_requests_total", "Requests answered.", ("route", "method", "status"), registry=self._registry
        )
        self._seconds = Histogram(
            "mixer_request_seconds", "Time to answer.", ("route",), buckets=BUCKETS_S, registry=self._registry
        )
        self._children: dict[tuple[str, str, int], tuple[Counter, Histogram]] = {}
        self._registry.register(_RunCollector(engines))

    def request(self, route: str, method: str, status: int, took_s: float) -> None:
        """Count an answer."""
        key = (route, method, status)
        children = self._children.get(key)
        if children is None:
            counted = self._requests.labels(route, method, str(status))
            children = self._children[key] = (counted, self._seconds.labels(route))
        children[0].inc()
        children[1].observe(took_s)

    def text(self) -> bytes:
        """Return all metrics in Prometheus's text format."""
        return generate_latest(self._registry)


class _RunCollector:
    """Collects the state of the open runs."""

    def __init__(self, engines: Callable[[], Iterable[Engine]]) -> None:
        self._engines = engines

    def collect(self) -> Iterator[Metric]:
        """Yield the metric families."""
        engines = list(self._engines())
        counters = {
            "batches_built": "Global batches built ahead.",
            "batches_rebuilt": "Global batches built again after they had left memory.",
            "batches_served": "Batches handed out.",
            "bytes_served": "Bytes of batches handed out.",
            "tokens_served": "Tokens of batches handed out.",
            "reports": "Reports of losses taken in.",
            "repeated_reports": "Reports that had come before.",
        }
        for name, what in counters.items():
            family = CounterMetricFamily(f"mixer_{name}", what, labels=["run"])
            for engine in engines:
                attribute = "rebuilt" if name == "batches_rebuilt" else name
                family.add_metric([engine.name], getattr(engine.counters, attribute))
            yield family
        gauges: dict[str, tuple[str, Callable[[Engine], float]]] = {
            "queue_depth": ("Batches ahead of the newest step asked for.", lambda e: e.builder.queue_depth),
            "bytes_held": ("Bytes of batches in memory.", lambda e: e.batches.num_bytes),
            "next_step": ("Next step to be built.", lambda e: e.builder.next),
            "frontier": ("First step that no phase covers.", lambda e: e.walk.frontier),
            "phase": (
                "Index of the newest phase.",
                lambda e: e.decisions.records[-1]["index"] if e.decisions.records else -1,
            ),
            "alarm": ("1 while the run cannot go on.", lambda e: e.builder.problem is not None),
            "paused": ("1 while an admin has paused the run.", lambda e: e.builder.is_paused),
        }
        for name, (what, value) in gauges.items():
            gauge = GaugeMetricFamily(f"mixer_{name}", what, labels=["run"])
            for engine in engines:
                gauge.add_metric([engine.name], float(value(engine)))
            yield gauge
        yield _guard_alarms(engines)
        weights = GaugeMetricFamily("mixer_weight", "Weight in the newest phase.", labels=["run", "source"])
        lag = GaugeMetricFamily("mixer_feedback_lag_steps", "Asked less reported.", labels=["run", "rank"])
        for engine in engines:
            if engine.decisions.records:
                for source, weight in zip(engine.walk.names, engine.decisions.records[-1]["weights"], strict=True):
                    weights.add_metric([engine.name, source], weight)
            reported = engine.patience.last_reports()
            for rank, (step, _) in list(engine.counters.last_asked.items()):
                lag.add_metric([engine.name, str(rank)], step - reported.get(rank, -1))
        yield weights
        yield lag


def _guard_alarms(engines: Iterable[Engine]) -> Metric:
    """Return the guard's alarms, counted from the journal, so that those of earlier processes are included."""
    family = CounterMetricFamily(
        "mixer_guard_alarms", "Alarms of the guard: sources learned by heart.", labels=["run", "source", "detector"]
    )
    for engine in engines:
        counted = collections.Counter((alarm["source"], alarm["detector"]) for alarm in engine.alarms)
        for (source, detector), num in sorted(counted.items()):
            family.add_metric([engine.name, source, detector], num)
    return family
