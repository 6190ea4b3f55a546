"""python -m local"""

import logging
import os
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import click

from local import demo
from local.events import generate
from local.processes import StackError
from local.queues import client, ensure_queue, send
from local.stack import ELSEWHERE, LOGINS, Stack

QUEUE = "login-queue"

stack = Stack(Path(os.environ.get("LOCAL_STATE") or Path(__file__).parents[1] / ".local"))


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """A real PostgreSQL and an SQS emulator on this machine, without Docker or root.

    LOCAL_POSTGRES chooses the server: a major version, or the folder of its programs. Without it, the newest that is
    installed (15 or newer, with pgcrypto) is used, or else the one in .venv. LOCAL_STATE is the folder of everything
    that is kept; without it, .local/ in this project.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("botocore").setLevel(logging.WARNING)


@main.command()
def up() -> None:
    """Start both, and make what is missing."""
    _stay_here()
    stack.up()
    ensure_queue(client(stack.environment("loader_user")), QUEUE)
    click.echo("`make migrate` prepares the database; `make -s env AS=analyst_user` prints how to connect.", err=True)


@main.command()
def down() -> None:
    """Stop both. The database is kept; the queues are in memory, and go."""
    stack.down()


@main.command()
def remove() -> None:
    """Stop both, and keep nothing."""
    stack.remove()


@main.command()
@click.option("--as", "login", type=click.Choice(LOGINS), default="analyst_user", show_default=True)
def env(login: str) -> None:
    """Print what a shell sets to work as a login."""
    _must_run()
    for name, value in stack.shell(login).items():
        click.echo(f"export {name}={shlex.quote(value)}")


@main.command(context_settings={"ignore_unknown_options": True})
@click.option("--as", "login", type=click.Choice(LOGINS), required=True)
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def run(login: str, command: tuple[str, ...]) -> None:
    """Run a command as a login.

    Where PGHOST names a server of yours, the command runs as it is, on that.
    """
    environment = _environment(login)
    try:
        os.execvpe(command[0], command, environment)
    except OSError as error:
        raise StackError(f"{command[0]} cannot be run: {error.strerror}.") from None


@main.command("send")
@click.option("--count", type=click.IntRange(0), default=1000, show_default=True, help="How many messages to make.")
@click.option("--seed", type=int, default=1, show_default=True, help="The same seed makes the same messages.")
@click.option("--file", type=click.File("rb"), help="Send the lines of this file instead, each as it is.")
@click.option("--queue-name", default=QUEUE, show_default=True)
def send_messages(count: int, seed: int, file: BinaryIO | None, queue_name: str) -> None:
    """Put messages on a queue.

    A missing queue is made, with a dead-letter queue. It is the local stack's SQS that gets them, or that of
    AWS_ENDPOINT_URL where it is set: made-up logins do not belong in AWS.
    """
    if "AWS_ENDPOINT_URL" in os.environ:
        sqs = client(os.environ)
    else:
        _must_run()
        _stay_here()
        sqs = client(stack.environment("loader_user"))
    bodies = _lines(file) if file else (event.body for event in generate(count, seed))
    sent = send(sqs, ensure_queue(sqs, queue_name), bodies)
    click.echo(f"Sent {sent:,} messages to {queue_name}.")


@main.command("demo")
@click.option("--count", type=click.IntRange(1), default=1000, show_default=True, help="How many messages to make.")
def run_demo(count: int) -> None:
    """Take made-up logins through the whole pipeline."""
    _stay_here()
    demo.run(stack, QUEUE, count)


def _environment(login: str) -> dict[str, str]:
    """The caller's own servers when PGHOST names some, or else the local ones as this login."""
    local = stack.environment(login)
    names = ("PGHOST", "PGPORT")
    if os.environ.get("PGHOST") and not all(os.environ.get(name) == local[name] for name in names):
        return dict(os.environ)
    _must_run()
    return stack.program(login)


def _stay_here() -> None:
    """Forget the caller's own servers and profiles: libpq and boto3 would read them in this process too."""
    for name in [name for name in os.environ if name.startswith(ELSEWHERE)]:
        del os.environ[name]


def _must_run() -> None:
    if not stack.running:
        raise StackError("The local stack is not running: `make up` starts it.")


def _lines(file: BinaryIO) -> Iterator[str]:
    for number, line in enumerate(file, 1):
        if not line.rstrip(b"\r\n"):  # SQS takes no empty message
            continue
        try:
            yield line.rstrip(b"\n").decode()
        except UnicodeDecodeError:
            raise StackError(f"{file.name}, line {number}: not UTF-8, which SQS wants.") from None


if __name__ == "__main__":
    main(prog_name="python -m local")
