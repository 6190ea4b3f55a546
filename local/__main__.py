"""python -m local"""

import contextlib
import logging
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

import click

from loader.errors import run as run_program
from local import demo, settings
from local.events import generate
from local.processes import StackError
from local.queues import client, ensure_queue, send
from local.stack import BOOTSTRAP, ELSEWHERE, LOGINS, SUPERUSER, Stack, password

QUEUE = "login-queue"
# What a person needs in order to connect.
CONNECTION = ("PGHOST", "PGHOSTADDR", "PGPORT", "PGDATABASE", "PGSSLMODE", "PGSSLROOTCERT")

env_file = Path(os.environ["ENV_FILE"]) if os.environ.get("ENV_FILE") else None
stack = Stack(Path(os.environ.get("LOCAL_STATE") or Path(__file__).parents[1] / ".local"))


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """A real PostgreSQL and an SQS emulator on this machine, without Docker or root; or the servers of ENV_FILE.

    ENV_FILE names a file with servers of your own and the passwords of their logins (.env.example). `env`, `run` and
    `login` then work there.

    LOCAL_POSTGRES chooses the server: a major version, or the folder of its programs. Without it, the newest that is
    installed (15 or newer, with pgcrypto) is used, or else the one in .venv. LOCAL_STATE is the folder of everything
    that is kept; without it, .local/ in this project.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("botocore").setLevel(logging.WARNING)


@main.command()
def up() -> None:
    """Start both servers, and create what is missing."""
    _stay_here()
    stack.up()
    ensure_queue(client(stack.environment("loader_user")), QUEUE)
    click.echo("`make migrate` prepares the database; `make -s env AS=analyst_user` prints how to connect.", err=True)


@main.command()
def down() -> None:
    """Stop both servers. The database is kept; the queues, in memory, are not."""
    stack.down()


@main.command()
def remove() -> None:
    """Stop both servers and delete their data."""
    stack.remove()


@main.command()
@click.option("--as", "login", type=click.Choice(LOGINS), default="analyst_user", show_default=True)
def env(login: str) -> None:
    """Print what a shell has to set to work as a login."""
    if env_file:
        variables = _on_own_servers(login, {})
    else:
        _must_run()
        variables = stack.shell(login)
    for name, value in variables.items():
        click.echo(f"export {name}={shlex.quote(value)}")


@main.command(context_settings={"ignore_unknown_options": True})
@click.option("--as", "login", type=click.Choice([*LOGINS, SUPERUSER]), required=True)
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def run(login: str, command: tuple[str, ...]) -> None:
    """Run a command as a login.

    With ENV_FILE, it runs on the servers of that file. Otherwise, if PGHOST names a server of yours, the command runs
    there, with the variables of the shell as they are. Otherwise it runs on the local stack.
    """
    environment = _environment(login)
    try:
        os.execvpe(command[0], command, environment)
    except OSError as error:
        raise StackError(f"{command[0]} cannot be run: {error.strerror}.") from None


@main.command("login")
@click.argument("name")
@click.option("--role", type=click.Choice(["analyst", "privacy_officer", "monitor"]), default="analyst")
def create_login(name: str, role: str) -> None:
    """Create a login for a person, or give it a new password, and write NAME.env with its settings."""
    if not re.fullmatch(r"\w[\w.@-]{,62}", name):
        raise StackError("A login needs a name of letters, digits and . @ - _ (make login NAME=ada).")
    file, secret = Path(f"{name}.env"), password()
    if file.exists():
        raise StackError(f"{file} exists: move it away first.")
    environment = {name: value for name, value in _environment(SUPERUSER).items() if not name.endswith("_PASSWORD")}
    connection = {each: environment[each] for each in CONNECTION if each in environment}
    psql = ["psql", "-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", "postgres", "-f", BOOTSTRAP]
    one_login = {"LOGIN_NAME": name, "LOGIN_ROLE": role, "LOGIN_PASSWORD": secret}
    settings.write(file, connection | {"PGUSER": name, "PGPASSWORD": secret})
    problem: str | int = "psql is not on this machine: apt install postgresql-client"
    try:
        with contextlib.suppress(OSError):
            status = subprocess.run(psql, env=environment | one_login, stdout=sys.stderr).returncode
            problem = status and f"{name} was not created; PostgreSQL's reason is above."
    finally:
        if problem:  # or interrupted: the next one writes the file with a new password
            file.unlink()
    if problem:
        raise StackError(str(problem))
    click.echo(f"Login {name} is in the role {role}. Its settings are in {file}: hand it over safely.")


@main.command("send")
@click.option("--count", type=click.IntRange(0), default=1000, show_default=True, help="How many messages to generate.")
@click.option("--seed", type=int, default=1, show_default=True, help="The same seed makes the same messages.")
@click.option("--file", type=click.File("rb"), help="Send the lines of this file instead, each as it is.")
@click.option("--queue-name", default=QUEUE, show_default=True)
def send_messages(count: int, seed: int, file: BinaryIO | None, queue_name: str) -> None:
    """Send messages to a queue.

    A missing queue is created, with a dead-letter queue. The messages go to the local stack's SQS, or to the emulator
    that AWS_ENDPOINT_URL names, and never to AWS.
    """
    given = _on_own_servers("loader_user", os.environ) if env_file else os.environ
    if "AWS_ENDPOINT_URL" in given:
        sqs = client(given)
    elif env_file:
        raise StackError(f"{env_file} does not set AWS_ENDPOINT_URL, and made-up logins do not belong in AWS.")
    else:
        _must_run()
        _stay_here()
        sqs = client(stack.environment("loader_user"))
    bodies = _lines(file) if file else (event.body for event in generate(count, seed))
    sent = send(sqs, ensure_queue(sqs, queue_name), bodies)
    click.echo(f"Sent {sent:,} messages to {queue_name}.")


@main.command("demo")
@click.option("--count", type=click.IntRange(1), default=1000, show_default=True, help="How many messages to generate.")
def run_demo(count: int) -> None:
    """Run generated logins through the whole pipeline."""
    _stay_here()
    demo.run(stack, QUEUE, count)


def _environment(login: str) -> dict[str, str]:
    """The servers of ENV_FILE, or those that PG* name, or else the local ones as this login."""
    try:
        local = stack.environment(login)
    except StackError:  # another user's, so that nothing in this shell leads to it
        if not (env_file or _names_a_server()):
            raise
        local = {}
    if env_file:
        # What a shell has kept of `make env` leads to the local stack.
        return _on_own_servers(login, {name: value for name, value in os.environ.items() if local.get(name) != value})
    is_local = local and all(os.environ.get(name) == local[name] for name in ("PGHOST", "PGPORT"))
    if _names_a_server() and not is_local:
        return dict(os.environ)
    _must_run()
    return stack.program(login)


def _names_a_server() -> bool:
    """Whether the shell names a PostgreSQL of the caller's own."""
    return any(os.environ.get(name) for name in ("PGHOST", "PGHOSTADDR", "PGSERVICE"))


def _on_own_servers(login: str, shell: Mapping[str, str]) -> dict[str, str]:
    return settings.environment(env_file, login, shell) | {"PATH": stack.path()}


def _stay_here() -> None:
    """Forget the caller's own servers and profiles: libpq and boto3 would read them in this process too."""
    for name in [name for name in os.environ if name.startswith(ELSEWHERE)]:
        del os.environ[name]


def _must_run() -> None:
    if not stack.running:
        raise StackError(
            "The local stack is not running: `make up` starts it."
            + (" For servers of your own, set ENV_FILE (`make prod.env`)." if _names_a_server() else "")
        )


def _lines(file: BinaryIO) -> Iterator[str]:
    for number, line in enumerate(file, 1):
        if not line.rstrip(b"\r\n"):  # SQS takes no empty message
            continue
        try:
            yield line.rstrip(b"\n").decode()
        except UnicodeDecodeError:
            raise StackError(f"{file.name}, line {number}: not UTF-8, which SQS requires.") from None


if __name__ == "__main__":
    run_program(main, "python -m local")
