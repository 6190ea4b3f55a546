"""A page opened from the disk in headless Chromium, with the network off: what it shows, says and asks for."""

import json
import shutil
import subprocess
import tempfile
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


def screenshot(page: Path, to: Path, *options: str) -> bytes:
    with tempfile.TemporaryDirectory() as profile:
        command = [CHROMIUM, *OPTIONS, f"--user-data-dir={profile}", *options, f"--screenshot={to}", page.as_uri()]
        subprocess.run(command, capture_output=True, timeout=120, check=True)
    return to.read_bytes()
