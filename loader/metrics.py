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
        report, queue = self.run.report, [self.run.report.queue]
        gauges = {
            "in_flight": (
                "Messages held: received, not yet landed and deleted.",
                sum(len(batch.messages) for batch in list(self.run.batches)),
            ),
            "backlog": ("Messages on the queue, about, in flight or not.", report.backlog),
            "oldest_message_seconds": ("Age of the oldest message landed last; 0 without a backlog.", report.oldest),
            "last_success_timestamp_seconds": ("When messages were last landed.", report.last_success),
            "database_up": ("Whether the database takes messages.", int(self.run.database.there.is_set())),
        }
        families: list[Metric] = []
        for name, help_text in COUNTS.items():
            families.append(counter := CounterMetricFamily(f"loader_{name}", help_text, labels=["queue"]))
            counter.add_metric(queue, report.counts[name])
        for name, (help_text, value) in gauges.items():
            families.append(gauge := GaugeMetricFamily(f"loader_{name}", help_text, labels=["queue"]))
            gauge.add_metric(queue, value)
        counted = [sum(report.flushes[: i + 1]) for i in range(len(report.flushes))]
        bounds = [*map(str, FLUSH_BOUNDS), "+Inf"]
        histogram = HistogramMetricFamily(
            "loader_flush_seconds", "Time to land a batch, retries included.", labels=["queue"]
        )
        histogram.add_metric(queue, list(zip(bounds, counted, strict=True)), report.flush_seconds)
        yield from [*families, histogram]


def serve(run, host: str, port: int) -> None:
    registry = CollectorRegistry()
    registry.register(Metrics(run))
    try:
        start_http_server(port, host, registry)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", "that is no name of a host")
        raise BadSetting(
            problem=f"No metrics on port {port} of {host}: {reason}. Choose another --metrics-port, or host."
        ) from None
