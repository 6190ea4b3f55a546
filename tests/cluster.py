"""A Citus cluster on this machine, made by the steps of deploy/README.md: a coordinator, a stack to tests; workers.

CITUS_BIN names the programs of a PostgreSQL that has Citus.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path

from local.stack import DATABASE, SUPERUSER, Stack
from tests.conftest import Database, temporary_folder
from tests.instructions import block, checkout, follow
from tests.loading import until
from tests.pipeline import query

BIN = Path(os.environ.get("CITUS_BIN", ""))

# Nodes reach one another at ::1, and programs reach the coordinator at 127.0.0.1: so whatever comes from ::1 is a node.
NETWORK = {"10.0.0.0/29": "::1/128"}
SETTINGS = {
    "listen_addresses": "127.0.0.1,::1",
    "max_connections": "300",
    "log_statement": "all",
}


class Coordinator(Stack):
    """With its workers."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.workers: list[Stack] = []
        self.ports: list[int] = []  # at which it reaches them

    @property
    def addresses(self) -> dict[str, str]:
        """What to write instead of the nodes' addresses in deploy/README.md."""
        return {f"'10.0.0.{n}', 5432": f"'::1', {at}" for n, at in enumerate([port(self), *self.ports], 1)}


def port(node: Stack) -> int:
    return int(node.environment(SUPERUSER)["PGPORT"])


def start_node(node: Stack, coordinator: Stack | None) -> None:
    """Its server, with the settings that deploy/README.md asks for, and the coordinator's passwords."""
    if coordinator:
        node._save(node._state() | {"passwords": coordinator._state()["passwords"]})
    wanted = dict(line.split(" = ") for line in block("postgresql.conf of a node").splitlines())
    assert wanted.keys() == {"shared_preload_libraries", "citus.local_hostname"}
    wanted = {name: value.strip("'").replace("10.0.0.1", "::1") for name, value in wanted.items()}
    libraries = (wanted["shared_preload_libraries"], *node.settings.get("shared_preload_libraries", "").split(","))
    wanted["shared_preload_libraries"] = ",".join(dict.fromkeys(filter(None, libraries)))  # Citus has to be the first
    node.settings = SETTINGS | node.settings | wanted
    node.start_postgres()
    trusted = block("pg_hba.conf of a node")
    for network, here in NETWORK.items():
        trusted = trusted.replace(network, here)
    file = node._data / "pg_hba.conf"
    file.write_text(trusted + file.read_text())
    node.restart_postgres()


def temporary_node(
    stack: ExitStack,
    coordinator: Coordinator | None = None,
    name: str = DATABASE,
    settings: Mapping[str, str] | None = None,
) -> Stack:
    """With a database of this name; the coordinator is the one without, and has the settings."""
    folder = stack.enter_context(temporary_folder())
    sort, settings = (Stack, coordinator.settings) if coordinator else (Coordinator, settings)
    node = sort(folder, postgres_bin=BIN, pg_port=0, sqs_port=0, settings=settings)
    stack.callback(node.remove)
    start_node(node, coordinator)
    database = Database(node, name)
    follow("Citus, every node", checkout(folder / "checkout"), database, BIN)
    until(lambda: query(database, "show ssl", login=SUPERUSER) == [("on",)])  # Citus has told the server, which reloads
    return node


@contextmanager
def temporary_cluster(
    settings: Mapping[str, str] | None = None, network: Callable[[int], AbstractContextManager[int]] = nullcontext
) -> Iterator[Coordinator]:
    """Of three nodes, migrated. The coordinator reaches each worker at the port that `network` makes of its own."""
    with ExitStack() as stack:
        coordinator = temporary_node(stack, settings=settings)
        coordinator.workers = [temporary_node(stack, coordinator) for _ in range(2)]
        coordinator.ports = [stack.enter_context(network(port(worker))) for worker in coordinator.workers]
        coordinator.start_sqs()
        database, folder = Database(coordinator, DATABASE), coordinator.folder / "checkout"
        follow("Citus, coordinator", folder, database, BIN, coordinator.addresses)
        yield coordinator
