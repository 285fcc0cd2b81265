"""What ``/metrics`` shows, in Prometheus' format."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
IMAGES = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """Counts of one server; with its memory, CPU time and open files."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.requests = Counter(
            "fcos_fast_requests", "Requests to /detect, by HTTP status", ["status"], registry=self.registry
        )
        self.seconds = Histogram(
            "fcos_fast_request_seconds", "Time to answer /detect", buckets=SECONDS, registry=self.registry
        )
        self.batches = Histogram(
            "fcos_fast_batch_images", "Images per batch", buckets=IMAGES, registry=self.registry
        )
        self.images = Counter("fcos_fast_images", "Images that were processed", registry=self.registry)
        self.queue = Gauge("fcos_fast_queue_images", "Images that wait for a batch", registry=self.registry)


class MeasureRequests:
    """ASGI middleware that measures every request to ``/detect``."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app = app
        self.metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http" or scope["path"] != "/detect":
            return await self.app(scope, receive, send)
        start, status = time.perf_counter(), 500  # of an exception that nobody handled

        async def watch(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        try:
            await self.app(scope, receive, watch)
        finally:
            self.metrics.requests.labels(status).inc()
            self.metrics.seconds.observe(time.perf_counter() - start)
