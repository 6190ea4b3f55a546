"""Starts and stops the two servers, and says how to connect to them."""

import contextlib
import fcntl
import http.client
import json
import logging
import os
import secrets
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psycopg2
from psycopg2.extensions import connection as Connection

from local.postgres import Account, choose_postgres, major
from local.processes import StackError, command_of, end, environment_of, free_port, number_in, wait
from local.settings import DATABASE, SUPERUSER

HOST = "127.0.0.1"
PORTS = {"PostgreSQL": 54320, "SQS": 4566}
LOGINS = (
    *("migrator", "loader_user", "transformer_user", "analyst_user"),
    *("privacy_officer_user", "monitor_user", "retention_user", "backup_user"),
)
BOOTSTRAP = Path(__file__).parents[1] / "deploy" / "bootstrap.sql"

SETTINGS = {
    "listen_addresses": HOST,
    "unix_socket_directories": "",  # a socket's path may have 107 bytes, a clone's is as long as it is
    # fsync is for power cuts, after which `make clean` will do here. A killed server loses nothing without it.
    "fsync": "off",
    "full_page_writes": "off",
}
# For root: SQS can neither become another user nor bypass file permissions (setpriv is part of util-linux).
SETPRIV = ("setpriv", "--no-new-privs", "--inh-caps=-all", "--bounding-set=-all")
NO_CAPABILITIES = SETPRIV if os.getuid() == 0 and shutil.which("setpriv") else ()
ELSEWHERE = ("PG", "AWS_")  # how the variables begin that lead to other servers
OF_ANOTHER = "set LOCAL_STATE to a folder of yours, or act as its owner"
STOP_SIGNALS = {"smart": signal.SIGTERM, "fast": signal.SIGINT, "immediate": signal.SIGQUIT}

log = logging.getLogger("local")


class Stack:
    """PostgreSQL and the SQS emulator, with all their state in one folder."""

    def __init__(
        self,
        folder: Path,
        *,
        postgres_bin: Path | None = None,
        pg_port: int | None = None,
        sqs_port: int | None = None,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        """The ports are for a new stack, and wished for: one that is taken gives way to a free one. 0 is any."""
        self.folder = Path(folder).resolve()
        self.settings = dict(settings or {})
        self._wanted = str(postgres_bin) if postgres_bin else os.environ.get("LOCAL_POSTGRES")
        self._ports = {name: port for name, port in (("PostgreSQL", pg_port), ("SQS", sqs_port)) if port is not None}
        self._account = Account()

    # The two servers together.

    def up(self) -> None:
        """Start what does not run, made first where it is missing."""
        if not Path("/proc/self").exists():
            raise StackError("The local stack needs Linux: elsewhere, use docker compose.")
        with self._alone():
            self.start_postgres()
            self._bootstrap()
            self.start_sqs()

    def down(self) -> None:
        """Stop both. The database is kept; the queues were in memory."""
        if self.folder.exists():
            with self._alone():
                self.stop_sqs()
                self.stop_postgres()

    def remove(self) -> None:
        """Stop both, and leave nothing of them."""
        self.down()
        for folder in (self._cluster, self._sqs):
            shutil.rmtree(folder, ignore_errors=True)
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def running(self) -> bool:
        return bool(self._sqs_pid() and self._postgres_pid())

    def environment(self, login: str, database: str | None = None) -> dict[str, str]:
        """What libpq and boto3 read in order to connect as this login."""
        state = self._state()
        if login not in state["passwords"]:
            raise StackError(f"There is no login {login}; there are {', '.join(LOGINS)}.")
        return {
            "PGHOST": HOST,
            "PGPORT": str(state["ports"]["PostgreSQL"]),
            "PGDATABASE": database or DATABASE,
            "PGUSER": login,
            "PGPASSWORD": state["passwords"][login],
            "AWS_ENDPOINT_URL": f"http://{HOST}:{state['ports']['SQS']}",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": "local",
            "AWS_SECRET_ACCESS_KEY": "local",
        }

    def shell(self, login: str, database: str | None = None) -> dict[str, str]:
        """The same, and what else a shell needs: dbt and Python of .venv, psql, no proxy in between."""
        direct = os.environ.get("no_proxy", os.environ.get("NO_PROXY", "")).split(",")
        return self.environment(login, database) | {
            "PATH": self.path(),
            "no_proxy": ",".join(dict.fromkeys(host for host in (*direct, HOST) if host)),
        }

    def path(self) -> str:
        """The caller's PATH, with dbt and Python of .venv before it, and psql after it where there is one here."""
        path = [str(Path(sys.executable).parent), *os.environ.get("PATH", os.defpath).split(":")]
        with contextlib.suppress(StackError):
            path.append(str(self._programs() if self._data.exists() else choose_postgres(self._wanted, None)))
        return ":".join(dict.fromkeys(path))

    def program(self, login: str, database: str | None = None) -> dict[str, str]:
        """The whole environment of a program that is to work here: the caller's, without what leads elsewhere."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(ELSEWHERE)}
        return kept | self.shell(login, database)

    def connect(self, login: str, database: str | None = None, **options: Any) -> Connection:
        """A connection as this login; whoever asks closes it."""
        env = self.environment(login, database)
        names = {"host": "PGHOST", "port": "PGPORT", "dbname": "PGDATABASE", "user": "PGUSER", "password": "PGPASSWORD"}
        return psycopg2.connect(**{name: env[variable] for name, variable in names.items()}, **options)

    # PostgreSQL.

    def start_postgres(self) -> None:
        if self._postgres_pid():
            return log.info("PostgreSQL runs already.")
        self._account.folder(self.folder / "postgres")
        bin_dir = self._programs()
        if not self._data.exists():
            self._create_cluster(bin_dir)
        if command_of(number_in(self._data / "postmaster.pid")):
            (self._data / "postmaster.pid").unlink()  # another program has that id by now; PostgreSQL would not start
        port = self._take_port("PostgreSQL")
        settings = SETTINGS | {"port": str(port)} | self.settings
        options = shlex.join(part for name, value in settings.items() for part in ("-c", f"{name}={value}"))
        logfile = self._cluster / "server.log"
        self._run(bin_dir / "pg_ctl", "start", "-w", "-D", self._data, "-l", logfile, "-o", options)
        log.info("PostgreSQL %s started on %s:%s.", major(bin_dir), HOST, port)

    def stop_postgres(self, mode: str = "fast") -> None:
        """Stop the server: `smart` and `fast` with a checkpoint, `immediate` like a crash."""
        if pid := self._postgres_pid():
            end(pid, STOP_SIGNALS[mode], f"PostgreSQL (process {pid}) does not stop.")
            log.info("PostgreSQL stopped.")

    def restart_postgres(self, mode: str = "fast") -> None:
        """Stop and start again, with what `settings` says by now."""
        self.stop_postgres(mode)
        self.start_postgres()

    # SQS.

    def start_sqs(self) -> None:
        if self._sqs_pid():
            return log.info("SQS runs already.")
        port = self._take_port("SQS")
        as_whom = self._prepare_sqs()
        settings = {
            "PATH": os.defpath,
            "GATEWAY_PORT": str(port),
            "BIND_HOST": HOST,
            "MINISTACK_HOST": HOST,  # what its queue URLs begin with
            "SERVICES": "sqs",
            "LOG_LEVEL": "WARNING",
            "PYTHONDONTWRITEBYTECODE": "1",
            "TMPDIR": str(self._sqs),  # where it writes its process id
        }
        # Through a shell that ends at once: the server outlives us, and no test is left with a zombie.
        command = [
            "sh",
            "-c",
            '"$@" </dev/null >sqs.log 2>&1 &',
            "sh",
            *NO_CAPABILITIES,
            sys.executable,
            "-m",
            "ministack",
        ]
        subprocess.run(command, cwd=self._sqs, env=settings, start_new_session=True, check=True, **as_whom)
        wait(lambda: self._sqs_pid() and answers(port), f"SQS does not start: {self._sqs / 'sqs.log'} says why.")
        log.info("SQS started on %s:%s.", HOST, port)

    def _prepare_sqs(self) -> dict:
        """Its folder; and the user that it runs as, for subprocess: PostgreSQL's, or root's where only root can read
        this Python."""
        if self._account.run("env", sys.executable, "-c", "import ministack").returncode == 0:
            self._account.folder(self.folder / "sqs")
            return self._account.switch
        (self.folder / "sqs").mkdir(exist_ok=True)
        log.info("SQS runs as root (without capabilities), because other users cannot read %s.", sys.prefix)
        return {}

    def stop_sqs(self) -> None:
        if pid := self._sqs_pid():
            end(pid, signal.SIGTERM, f"SQS (process {pid}) does not stop.")
            log.info("SQS stopped; its queues were in memory and are gone.")

    # What the state folder holds: stack.json (ports, passwords), postgres/ and sqs/ (perhaps links).

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """One `up` or `down` at a time."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.folder.chmod(0o755)  # PostgreSQL's user passes through; what is secret in it is closed by itself
            lock = (self.folder / "lock").open("w")
        except OSError as error:
            raise StackError(f"{self.folder} cannot be used ({error.strerror}): {OF_ANOTHER}.") from None
        with lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _state(self) -> dict:
        file = self.folder / "stack.json"
        try:
            known = json.loads(file.read_text())
        except FileNotFoundError:
            known = {"ports": PORTS | self._ports, "passwords": {}}
        except PermissionError:
            raise StackError(f"{file} is for its owner alone: {OF_ANOTHER}.") from None
        new = {name: password() for name in (SUPERUSER, *LOGINS) if name not in known["passwords"]}
        return known | {"passwords": known["passwords"] | new}

    def _save(self, state: dict) -> None:
        new = self.folder / "stack.json.new"
        new.touch(mode=0o600)
        new.write_text(json.dumps(state, indent=2))
        new.replace(self.folder / "stack.json")

    def _take_port(self, name: str) -> int:
        """The port of last time, or a free one when it is taken; kept, so that the next `up` finds the same."""
        state = self._state()
        wanted = state["ports"][name]
        port = state["ports"][name] = free_port(HOST, wanted)
        self._save(state)
        if wanted not in (0, port):
            log.warning("Port %s is taken by another program: %s uses %s.", wanted, name, port)
        return port

    @property
    def _cluster(self) -> Path:
        return self._account.place(self.folder / "postgres")

    @property
    def _sqs(self) -> Path:
        return (self.folder / "sqs").resolve()

    @property
    def _data(self) -> Path:
        return self._cluster / "data"

    # A process is ours when it says so itself: an id on file may be another program's by now.

    def _postgres_pid(self) -> int | None:
        pid = number_in(self._data / "postmaster.pid")
        return pid if os.fsencode(self._data) in command_of(pid) else None

    def _sqs_pid(self) -> int | None:
        pid = number_in(self._sqs / f"ministack-{self._state()['ports']['SQS']}.pid")
        return pid if os.fsencode(f"TMPDIR={self._sqs}") in environment_of(pid) else None

    # Making the cluster and what is in it.

    def _programs(self) -> Path:
        """The folder with PostgreSQL's programs, copied if the account that runs them cannot reach it."""
        version = number_in(self._data / "PG_VERSION")
        bin_dir = choose_postgres(self._wanted, version)
        if self._account.reaches(bin_dir / "postgres"):
            return bin_dir
        copy = self._cluster / f"postgresql-{major(bin_dir)}"
        if not copy.exists():
            shutil.rmtree(copy.with_suffix(".new"), ignore_errors=True)
            new = Path(shutil.copytree(bin_dir.parent, copy.with_suffix(".new")))
            for path in (new, *new.rglob("*")):
                self._account.own(path)
            new.rename(copy)
        return copy / bin_dir.name

    def _create_cluster(self, bin_dir: Path) -> None:
        state = self._state()
        self._save(state)
        password_file = self._cluster / "password"
        self._account.write(password_file, state["passwords"][SUPERUSER])
        new = self._cluster / "data.new"
        shutil.rmtree(new, ignore_errors=True)
        self._run(
            *(bin_dir / "initdb", "-D", new, "--no-sync", "--encoding=UTF8", "--locale=C.UTF-8"),
            *(f"--username={SUPERUSER}", "--auth=scram-sha-256", f"--pwfile={password_file}"),
        )
        password_file.unlink()
        new.rename(self._data)

    def _bootstrap(self) -> None:
        """Let bootstrap.sql make the database and the logins, with this stack's passwords."""
        passwords = {f"{login.upper()}_PASSWORD": self._state()["passwords"][login] for login in LOGINS}
        result = subprocess.run(
            [self._programs() / "psql", "-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", "postgres", "-f", BOOTSTRAP],
            capture_output=True,
            text=True,
            env={"PATH": os.defpath} | self.environment(SUPERUSER) | passwords,
        )
        if result.returncode:
            raise StackError(f"{BOOTSTRAP.name} failed: {result.stderr.strip()} (`make clean` starts afresh.)")

    def _run(self, program: Path, *arguments: str | Path) -> None:
        try:
            result = self._account.run(program, *arguments)
        except OSError as error:
            raise StackError(f"{program} cannot be run: {error.strerror}.") from None
        if result.returncode:
            said = (result.stderr.strip() or result.stdout.strip()).replace("\n", " ")
            raise StackError(f"{program.name} failed: {said} (log: {self._cluster / 'server.log'})")


def password() -> str:
    return secrets.token_urlsafe(24)


def answers(port: int) -> bool:
    # Not urllib, which would ask the caller's HTTP_PROXY.
    with contextlib.closing(http.client.HTTPConnection(HOST, port, timeout=1)) as connection:
        try:
            connection.request("GET", "/_ministack/health")
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
