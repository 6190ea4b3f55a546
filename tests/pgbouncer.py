"""PgBouncer in transaction mode before a PostgreSQL, for one login."""

import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from local.processes import free_port
from local.stack import HOST
from tests.loading import until

PGBOUNCER = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin")
SETTINGS = """
[databases]
* = host={host} port={upstream}
[pgbouncer]
listen_addr = {host}
listen_port = {port}
unix_socket_dir =
auth_type = plain
auth_file = {folder}/users
pool_mode = transaction
default_pool_size = 3
server_round_robin = 1
server_tls_sslmode = disable
server_login_retry = 1
logfile = {folder}/log
"""


@contextlib.contextmanager
def pgbouncer(env: Mapping[str, str]) -> Iterator[int]:
    """The port of a pool of three connections, made as the login and to the server that `env` names by PG*."""
    folder, port = Path(tempfile.mkdtemp(prefix="masked-logins-pgbouncer-")), free_port(HOST, 0)
    (folder / "users").write_text(f'"{env["PGUSER"]}" "{env["PGPASSWORD"]}"\n')
    settings = SETTINGS.format(host=HOST, upstream=env["PGPORT"], port=port, folder=folder)
    (folder / "pgbouncer.ini").write_text(settings)
    as_another = ["-u", "nobody"] if os.geteuid() == 0 else []
    if as_another:
        for path in (folder, *folder.iterdir()):
            shutil.chown(path, "nobody")
    # It ends with this process, and takes its folder along, even where that is killed: its input closes then.
    command = ["sh", "-c", 'folder=$1; shift; "$@" & read _; kill $!; wait; rm -r "$folder"', "sh", folder]
    command += [PGBOUNCER, "-q", *as_another, folder / "pgbouncer.ini"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL):
        until(lambda: answers(port))
        yield port


def answers(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection((HOST, port), 1):
        return True
    return False
