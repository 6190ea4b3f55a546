"""The command line."""

import gc
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
from loader.sqs import Queue
from loader.status import Status, screen, to_json

# A fixed width, because the README shows this text.
SETTINGS = {
    "terminal_width": 100,
    "max_content_width": 100,
    "help_option_names": ["-h", "--help"],
    "show_default": True,
    "auto_envvar_prefix": "LOADER",
}


def setting(*names: str, **kwargs):
    """An option that shows the variable it can also be set by."""
    return click.option(*names, show_envvar=True, **kwargs)


@click.group(context_settings=SETTINGS, epilog=errors.exit_statuses())
@click.pass_context
def main(ctx):
    """Moves messages from an SQS queue into PostgreSQL: nothing lost, nothing doubled.

    The database is the one of PG* (PGHOST, PGPORT, PGDATABASE, PGUSER, PGPASSWORD, PGSSLMODE, ...), AWS that of AWS_*
    and ~/.aws (AWS_ENDPOINT_URL for an emulator), as their own libraries read them.
    """
    if os.environ.get("NO_COLOR"):
        ctx.color = False


def queue_options(command):
    """Which queue, for every command that has to do with one."""
    command = setting("--queue-url", help="The queue, by URL, where its name does not say enough.")(command)
    return setting("--queue-name", default="login-queue", help="The queue, by name.")(command)


@main.command(context_settings=SETTINGS, epilog=errors.exit_statuses())
@queue_options
@setting("--follow", is_flag=True, help="Do not end when the queue is drained; wait for more.")
@setting("--max-messages", type=click.IntRange(1), help="End after receiving so many.")
@setting("--max-seconds", type=click.FloatRange(0, min_open=True), help="End after so long.")
@setting("--workers", default=16, type=click.IntRange(1, 64), help="How many calls to SQS are made at a time.")
@setting("--flush", default=500, type=click.IntRange(1, 10_000), help="How many messages a transaction has at most.")
@setting("--give-up-after", default=300.0, type=click.FloatRange(0), help="Seconds that a fault may last.")
@setting(
    "--client", default="lean", type=click.Choice(["lean", "boto3"]), help="lean: the same with a third of the CPU."
)
@setting("--log-format", default="text", type=click.Choice(["text", "json"]), help="Of the log, on stderr.")
@setting("--metrics-port", type=click.IntRange(1, 65535), help="Serve Prometheus metrics here.")
@setting("--metrics-host", default="127.0.0.1", help="The address for that; 0.0.0.0 or :: for other machines.")
def load(queue_name, queue_url, give_up_after, client, log_format, metrics_port, metrics_host, **bounds):
    """Receives messages, lands them in raw.sqs_messages, commits, deletes them. Ends when the queue is drained.

    Prints one line: received = landed + duplicates + refused + returned. Ctrl-C or SIGTERM ends it in good order; a
    second one at once, and nothing is lost by that either. On a terminal, a line shows how far it is.
    """
    end_on_signals()
    shown = (queue_url or queue_name).strip().rstrip("/").rpartition("/")[2]
    report = Report(log_format, progress=sys.stderr.isatty() and log_format == "text", queue=shown)
    report.show_progress()
    database = Database(give_up_after)
    database.open()
    queue = Queue(connect(bounds["workers"] * 2, client == "lean", queue_url), queue_name, queue_url, give_up_after)
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
    if run.drained:
        run.say_what_is_left()
    if report.counts["refused"]:
        raise errors.MessagesRefused(refused=report.counts["refused"])


def end_on_signals() -> None:
    """Until there is something to end in good order. By itself, the first process of a container would go on."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, frame: os._exit(128 + number))


def stop_on_signals(run: Run) -> None:
    def stop(number, frame):
        if run.stopping.is_set():
            os._exit(128 + number)
        run.stopping.set()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)


@main.command(context_settings=SETTINGS, epilog=errors.exit_statuses())
@queue_options
def redrive(queue_name, queue_url):
    """Moves the messages of the dead-letter queue back to the queue, by SQS's own StartMessageMoveTask."""
    queue = Queue(connect(1, queue_url=queue_url), queue_name, queue_url)
    for task in queue.redrive():
        moved, total = task.get("ApproximateNumberOfMessagesMoved", 0), task.get("ApproximateNumberOfMessagesToMove", 0)
    if task["Status"] != "COMPLETED":
        raise errors.CannotRedrive(reason=f"the task ended as {task['Status']} after {moved} of {total} messages")
    click.echo(f"moved {moved} of {total} messages back to {queue.name}")


@main.command(context_settings=SETTINGS, epilog=errors.exit_statuses())
@queue_options
@setting("--max-lag", default=3600.0, type=click.FloatRange(0), help="Seconds that a message may wait, for each step.")
@setting("--json", is_flag=True, help="For a machine: ages in seconds, null for what could not be seen.")
@click.pass_context
def status(ctx, queue_name, queue_url, max_lag, json):
    """Shows how the whole pipeline does: what waits, what became of the last day's messages, what needs a person.

    Sees what the role monitor does, so that whoever is on call needs no more: counts and ages, from the database by a
    login in that role (or analyst), from AWS by sqs:GetQueueUrl, sqs:GetQueueAttributes and, for the age of the oldest
    message, cloudwatch:GetMetricStatistics. Says so where it may not look, and shows the rest.
    """
    seen = Status(queue_name, queue_url, timedelta(seconds=min(10**9, max_lag)))  # "inf" is never
    click.echo(to_json(seen) if json else screen(seen))
    ctx.exit(seen.exit_status)


@main.command(context_settings=SETTINGS, epilog=errors.exit_statuses())
@queue_options
@setting("--flush", default=500, type=click.IntRange(1, 10_000), help="How many messages a transaction is to have.")
def doctor(queue_name, queue_url, flush):
    """Checks all that a load depends on, one line each, with the remedy. Lands a made-up batch, and rolls it back."""
    failed = 0
    for check in examine(lambda: Queue(connect(1, queue_url=queue_url), queue_name, queue_url), Database(), flush):
        click.echo(str(check))
        failed += not check.well
    if failed:
        raise errors.NotWell(failed=failed)
