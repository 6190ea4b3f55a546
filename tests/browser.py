"""A page opened from the disk in headless Chromium, with the network off: what it shows, says and asks for."""

import json
import shutil
import struct
import subprocess
import tempfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chromium-browser"))), None)
needs_chromium = pytest.mark.skipif(not CHROMIUM, reason="there is no Chromium here: apt install chromium")

OPTIONS = [
    "--headless",
    "--no-sandbox",  # root cannot have one
    "--disable-gpu",
    "--disable-quic",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--host-resolver-rules=MAP * ~NOTFOUND",
    "--enable-logging=stderr",
]
BY_THE_BROWSER = "not an origin"  # its own requests, which no flag stops and the resolver above does


@dataclass(frozen=True)
class Opened:
    dom: str
    console: list[str]  # messages and errors
    requests: list[str]  # of the page, beyond its own file


def open_page(page: Path, fragment: str = "", *options: str) -> Opened:
    with tempfile.TemporaryDirectory() as profile:
        log = Path(profile) / "net.json"
        run = subprocess.run(
            [
                CHROMIUM, *OPTIONS, f"--user-data-dir={profile}", f"--log-net-log={log}",
                "--virtual-time-budget=20000", *options, "--dump-dom", page.as_uri() + fragment,
            ],
            capture_output=True, text=True, timeout=120, check=True,
        )  # fmt: skip
        events = [event.get("params", {}) for event in json.loads(log.read_text())["events"]]
    return Opened(
        dom=run.stdout,
        console=[line.partition("] ")[2] for line in run.stderr.splitlines() if "CONSOLE" in line],
        requests=[each["url"] for each in events if each.get("initiator", BY_THE_BROWSER) != BY_THE_BROWSER],
    )


def background(page: Path, *options: str) -> tuple[int, ...]:
    """The colour of the page's upper left corner, in red, green and blue."""
    with tempfile.TemporaryDirectory() as folder:
        shot = Path(folder) / "shot.png"
        command = [CHROMIUM, *OPTIONS, f"--user-data-dir={folder}/profile", *options, f"--screenshot={shot}"]
        subprocess.run([*command, page.as_uri()], capture_output=True, timeout=120, check=True)
        png = shot.read_bytes()
    pixels = b""
    at = 8
    while at < len(png):
        size, kind = struct.unpack(">I4s", png[at : at + 8])
        pixels += png[at + 8 : at + 8 + size] if kind == b"IDAT" else b""
        at += size + 12
    return tuple(zlib.decompress(pixels)[1:4])  # after the first line's filter, which leaves its first pixel alone
