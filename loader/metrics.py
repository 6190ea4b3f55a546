"""Prometheus metrics of a loader that runs, read from its report when they are asked for."""

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric

from loader.errors import BadSetting
from loader.report import COUNTS, FLUSH_BOUNDS


class Metrics:
    """A collector, as prometheus_client calls it."""

    def __init__(self, run):
        self.run = run

    def collect(self) -> Iterator[Metric]:
        report = self.run.report
        for name, help_text in COUNTS.items():
            yield CounterMetricFamily(f"loader_{name}", help_text, report.counts[name])
        in_flight = sum(len(batch.messages) for batch in list(self.run.batches))
        yield GaugeMetricFamily("loader_in_flight", "Messages held: received, not yet landed and deleted.", in_flight)
        yield GaugeMetricFamily("loader_backlog", "Messages on the queue, about, in flight or not.", report.backlog)
        yield GaugeMetricFamily(
            "loader_oldest_message_seconds",
            "Age of the oldest message landed last; 0 without a backlog.",
            report.oldest,
        )
        yield GaugeMetricFamily(
            "loader_last_success_timestamp_seconds", "When messages were last landed.", report.last_success
        )
        yield GaugeMetricFamily(
            "loader_database_up", "Whether the database takes messages.", int(self.run.database.there.is_set())
        )
        counted = [sum(report.flushes[: i + 1]) for i in range(len(report.flushes))]
        bounds = [*map(str, FLUSH_BOUNDS), "+Inf"]
        yield HistogramMetricFamily(
            "loader_flush_seconds",
            "Time to land a batch, retries included.",
            buckets=list(zip(bounds, counted, strict=True)),
            sum_value=report.flush_seconds,
        )


def serve(run, port: int) -> None:
    registry = CollectorRegistry()
    registry.register(Metrics(run))
    try:
        start_http_server(port, registry=registry)
    except OSError as error:
        raise BadSetting(
            problem=f"No metrics on port {port}: {error.strerror}. Choose another --metrics-port."
        ) from None
