"""Figures for Prometheus, in a registry of their own."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from fassd.serve.engine import Choice, Engine

SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)


class Metrics:
    """Counters and histograms of one server; times are in seconds.

    Labels are the server's own words: routes, statuses, networks. Nothing of a client's is stored.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "fassd_requests", "Requests answered.", ["route", "status"], registry=self.registry
        )
        self.in_progress = Gauge(
            "fassd_requests_in_progress", "Requests being served.", registry=self.registry
        )
        self.rejected = Counter(
            "fassd_rejected",
            "Pictures not labelled: uploads or queue full, timeout, client gone, stopping.",
            ["reason"],
            registry=self.registry,
        )
        self.total = self._histogram("fassd_request_seconds", "From head to answer.", ["route"])
        self.waited = self._histogram("fassd_queue_seconds", "In line, before the network.", [])
        self.network = self._histogram(
            "fassd_network_seconds", "One batch in the network.", ["model", "backend", "dtype"]
        )
        self.batch = Histogram(
            "fassd_batch_pictures",
            "Pictures in a batch.",
            buckets=(1, 2, 3, 4, 6, 8, 12, 16, 32, 64),
            registry=self.registry,
        )

    def _histogram(self, name: str, text: str, labels: list[str]) -> Histogram:
        return Histogram(name, text, labels, buckets=SECONDS, registry=self.registry)

    def watch(self, engine: Engine) -> None:
        """Also show the engine's state at the time of each request for metrics."""
        depth = Gauge("fassd_queue_depth", "Pictures in line.", registry=self.registry)
        depth.set_function(lambda: engine.waiting)
        loaded = Gauge("fassd_networks_loaded", "Networks in memory.", registry=self.registry)
        loaded.set_function(lambda: engine.networks.cache_info().currsize)

    def count_batch(self, choice: Choice, pictures: int, seconds: float) -> None:
        """Count a batch of a network."""
        self.network.labels(*choice).observe(seconds)
        self.batch.observe(pictures)

    def text(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self.registry)
