"""A page opened from the disk in headless Chromium, with the network off: what it shows, says and asks for."""

import base64
import itertools
import json
import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chromium-browser"))), None)

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


class Browser:
    """Chromium with a page from the disk in it, asked by its DevTools protocol over a pipe."""

    def __init__(self, page: Path, width: int = 1200, height: int = 800, **media: str):
        """`media`: the page's medium ("print"), and features of it (prefers_color_scheme="dark")."""
        self.page, self.size, self.media = page, {"width": width, "height": height}, media
        self.numbers = itertools.count(1)
        self.requests: list[str] = []  # all, the page's own file included
        self.console: list[str] = []

    def __enter__(self) -> "Browser":
        self.profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        theirs, self.to = os.pipe()
        self.answers, theirs_too = os.pipe()
        pipes = f'exec "$@" 3<&{theirs} 4>&{theirs_too}'  # where Chromium looks for them
        command = [CHROMIUM, *OPTIONS, f"--user-data-dir={self.profile.name}"]
        command += ["--remote-debugging-pipe", "--hide-scrollbars"]
        self.process = subprocess.Popen(
            ["bash", "-c", pipes, "bash", *command], pass_fds=(theirs, theirs_too), stderr=subprocess.DEVNULL
        )
        os.close(theirs)
        os.close(theirs_too)
        self.unread = b""
        self.session = None
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.ask(f"{domain}.enable")
        self.ask(
            "Emulation.setDeviceMetricsOverride", **self.size, deviceScaleFactor=1, mobile=self.size["width"] < 600
        )
        medium = self.media.pop("medium", "")
        features = [{"name": name.replace("_", "-"), "value": value} for name, value in self.media.items()]
        self.ask("Emulation.setEmulatedMedia", media=medium, features=features)
        self.ask("Page.navigate", url=self.page.as_uri())
        while self.event()["method"] != "Page.loadEventFired":
            pass
        return self

    def __exit__(self, *_: object) -> None:
        self.session = None
        self.ask("Browser.close")
        self.process.wait(30)
        os.close(self.to)
        os.close(self.answers)
        self.profile.cleanup()

    def ask(self, method: str, **parameters: object) -> dict:
        number = next(self.numbers)
        question = {"id": number, "method": method, "params": parameters}
        if self.session:
            question["sessionId"] = self.session
        os.write(self.to, json.dumps(question).encode() + b"\0")
        while True:
            said = self.event()
            if said.get("id") == number:
                assert "error" not in said, said
                return said["result"]

    def event(self) -> dict:
        while b"\0" not in self.unread:
            part = os.read(self.answers, 1 << 20)
            assert part, "Chromium has ended"
            self.unread += part
        one, _, self.unread = self.unread.partition(b"\0")
        said = json.loads(one)
        about = said.get("params", {})
        if said.get("method") == "Network.requestWillBeSent":
            self.requests.append(about["request"]["url"])
        elif said.get("method") in ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded"):
            self.console.append(json.dumps(about))
        return {"method": None} | said

    def evaluate(self, expression: str) -> Any:
        """What a JavaScript expression gives, outside of the page's Content-Security-Policy."""
        answer = self.ask("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def click(self, selector: str) -> None:
        """A click of the mouse in the middle of the first such element."""
        place = self.evaluate(
            f"(e => {{ e.scrollIntoView({{block: 'center'}}); const r = e.getBoundingClientRect();"
            f" return [r.x + r.width / 2, r.y + r.height / 2] }})(document.querySelector({selector!r}))"
        )
        for kind in ("mousePressed", "mouseReleased"):
            where = {"x": place[0], "y": place[1], "button": "left", "clickCount": 1}
            self.ask("Input.dispatchMouseEvent", type=kind, **where)

    def screenshot(self) -> bytes:
        return base64.b64decode(self.ask("Page.captureScreenshot", captureBeyondViewport=False)["data"])
