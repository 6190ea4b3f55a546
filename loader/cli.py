"""The command line."""

import gc
import math
import os
import signal
import sys
from datetime import timedelta

import click

from loader import errors
from loader.aws import connect
from loader.doctor import examine
from loader.land import Database
from loader.load import Run
from loader.report import Report
from loader.sqs import DEFAULT_NAME, Queue, name_in_raw
from loader.status import Status, screen, to_json

# A fixed width, because the README shows this text.
SETTINGS = {
    "terminal_width": 100,
    "max_content_width": 100,
    "help_option_names": ["-h", "--help"],
    "show_default": True,
    "auto_envvar_prefix": "LOADER",
}
EXIT_STATUSES = "Exit statuses are listed by python -m loader --help."


class Seconds(click.FloatRange):
    """`inf` is one: for ever."""

    def convert(self, value, param, ctx):
        if math.isnan(seconds := super().convert(value, param, ctx)):
            self.fail(f"{value} is not a number of seconds.", param, ctx)
        return seconds


def setting(*names: str, **kwargs):
    """An option that shows the variable it can also be set by."""
    return click.option(*names, show_envvar=True, **kwargs)


@click.group(context_settings=SETTINGS, epilog=errors.exit_statuses())
@click.pass_context
def main(ctx):
    """Move messages from an SQS queue into PostgreSQL, each exactly once.

    Connections are configured as usual: PostgreSQL by PGHOST, PGPORT, PGDATABASE, PGUSER, PGPASSWORD, PGSSLMODE, ...;
    AWS by AWS_* and ~/.aws (AWS_ENDPOINT_URL for an emulator).
    """
    if os.environ.get("NO_COLOR"):
        ctx.color = False


def queue_options(command):
    """Which queue, for every command that has to do with one."""
    command = setting("--queue-url", help="URL of the queue, if AWS has it under another name.")(command)
    name = "Name of the queue, as dbt_project.yml declares it."
    return setting("--queue-name", show_default=f"{DEFAULT_NAME}, or that in --queue-url", help=name)(command)


def run_options(command):
    """How messages are carried, from the queue as from its dead-letter queue."""
    for option in (
        setting(
            "--log-format", default="text", type=click.Choice(["text", "json"]), help="Format of the log (stderr)."
        ),
        setting(
            "--client", default="lean", type=click.Choice(["lean", "boto3"]), help="lean uses a third of boto3's CPU."
        ),
        setting("--give-up-after", default=300.0, type=Seconds(0), help="Seconds to retry SQS or the database."),
        setting("--flush", default=500, type=click.IntRange(1, 10_000), help="Messages per transaction, at most."),
        setting("--workers", default=32, type=click.IntRange(1, 64), help="Concurrent calls to SQS."),
        setting("--max-seconds", type=Seconds(0, min_open=True), help="Stop after this time."),
        setting("--max-messages", type=click.IntRange(1), help="Stop after this many messages."),
    ):
        command = option(command)
    return command


@main.command(context_settings=SETTINGS, epilog=EXIT_STATUSES)
@queue_options
@setting("--follow", is_flag=True, help="Keep running and wait for more messages.")
@run_options
@setting("--metrics-port", type=click.IntRange(1, 65535), help="Serve Prometheus metrics on this port.")
@setting("--metrics-host", default="127.0.0.1", help="Address for metrics; 0.0.0.0 or :: for other hosts.")
def load(**options):
    """Receive messages, insert them into raw.sqs_messages, commit, then delete them. Exits when the queue is empty.

    Idempotent: a message that is delivered again is deduplicated. Prints received = landed + duplicates + refused +
    returned. SIGTERM or Ctrl-C shuts down gracefully, a second one immediately; no message is lost either way.
    """
    carry(**options)


@main.command(context_settings=SETTINGS, epilog=EXIT_STATUSES)
@queue_options
@run_options
def redrive(**options):
    """Load the messages of the dead-letter queue, after what stopped them is fixed.

    They land with the name of the queue that they came from; what came from other queues stays. SQS's own redrive
    (StartMessageMoveTask) gives messages new ids: one that had landed, but was never deleted, would land again. Here it
    counts as a duplicate.
    """
    carry(**options, dead_letters=True)


def carry(
    queue_name: str | None,
    queue_url: str | None,
    give_up_after: float,
    client: str,
    log_format: str,
    dead_letters: bool = False,
    metrics_port: int | None = None,
    metrics_host: str = "",
    **bounds,
) -> None:
    """Loads from the queue, or from its dead-letter queue, until one of the bounds; prints what became of it all."""
    report = Report(
        log_format, progress=sys.stderr.isatty() and log_format == "text", queue=name_in_raw(queue_name, queue_url)
    )
    report.show_progress()
    database = Database(give_up_after)
    database.open()
    source = Queue(connect(bounds["workers"] * 2, client == "lean", queue_url), queue_name, queue_url, give_up_after)
    queue = source.dead_letters(source.attributes())[0] if dead_letters else source
    if not queue:
        raise errors.NoDeadLetterQueue(queue=source.name)
    queue.say = database.say = report.say
    run = Run(queue, database, report, **bounds, watched=report.progress or metrics_port is not None)
    if metrics_port:
        from loader import metrics

        metrics.serve(run, metrics_host, metrics_port)
    stop_on_signals(run)
    gc.freeze()  # what is there by now stays; and messages are in no cycles,
    gc.set_threshold(50_000)  # so that looking for some is not worth a tenth of the time
    run.start()
    try:
        run.wait()
    finally:
        report.end_progress()
        click.echo(report.result())
    if queue.others:
        report.say("left in the dead-letter queue, because they came from other queues", messages=len(queue.others))
    if run.drained:
        run.say_what_is_left()
    if report.counts["refused"]:
        raise errors.MessagesRefused(refused=report.counts["refused"])


def stop_on_signals(run: Run) -> None:
    def stop(number, frame):
        if run.stopping.is_set():
            os._exit(128 + number)
        run.stopping.set()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)


@main.command(context_settings=SETTINGS, epilog=EXIT_STATUSES)
@queue_options
@setting("--max-lag", default=3600.0, type=Seconds(0), help="Seconds that a message may wait.")
@setting("--json", is_flag=True, help="JSON: ages in seconds, null for what is unknown.")
@click.pass_context
def status(ctx, queue_name, queue_url, max_lag, json):
    """Show the state of the pipeline, and what needs attention.

    That is the backlog, the dead-letter queue and the last 24 hours. Needs a database login in the role monitor or
    analyst and, in AWS, sqs:GetQueueUrl, sqs:GetQueueAttributes and (for the age of the oldest message)
    cloudwatch:GetMetricStatistics. Without a permission, the rest is still shown.
    """
    seen = Status(queue_name, queue_url, timedelta(seconds=min(10**9, max_lag)))  # "inf" is never
    click.echo(to_json(seen) if json else screen(seen))
    ctx.exit(seen.exit_status)


@main.command(context_settings=SETTINGS, epilog=EXIT_STATUSES)
@queue_options
@setting("--flush", default=500, type=click.IntRange(1, 10_000), help="Messages per transaction.")
def doctor(queue_name, queue_url, flush):
    """Check everything that a load depends on, and print a remedy for each failure. Inserts a batch and rolls back."""
    failed = 0
    for check in examine(lambda: Queue(connect(1, queue_url=queue_url), queue_name, queue_url), Database(), flush):
        click.echo(str(check))
        failed += not check.well
    if failed:
        raise errors.NotWell(failed=failed)
