"""Processes that outlive the command that started them: which is ours, has it started, has it gone."""

import contextlib
import os
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path

import click


class StackError(click.ClickException):
    """The local stack cannot do what was asked; the message says why, and what to do."""


def number_in(path: Path) -> int | None:
    """The number that a file begins with: PostgreSQL and the emulator write their process ids so."""
    try:
        return int(path.read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return None


def command_of(pid: int | None) -> list[bytes]:
    """Nothing, when there is no such process."""
    return _proc(pid, "cmdline")


def environment_of(pid: int | None) -> list[bytes]:
    return _proc(pid, "environ")


def end(pid: int, how: signal.Signals, otherwise: str) -> None:
    """Signal a process and wait until it has gone. (The file with its id goes earlier.)"""
    command = command_of(pid)
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, how)
    wait(lambda: command_of(pid) != command, otherwise)


def wait(done: Callable[[], object], otherwise: str, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not done():
        if time.monotonic() > deadline:
            raise StackError(otherwise)
        time.sleep(0.02)


def free_port(host: str, wanted: int) -> int:
    """The port wanted, or the next one that is free; for 0, any."""
    for port in range(wanted, wanted + 100):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections just closed do not count
            probe.bind((host, port))
            return probe.getsockname()[1]
    raise StackError(f"No port from {wanted} to {wanted + 99} is free on {host}.")


def _proc(pid: int | None, name: str) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes().split(b"\0")
    except OSError:
        return []
