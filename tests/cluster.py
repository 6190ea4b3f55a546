"""A Citus cluster on this machine, made as deploy/README.md says: a coordinator, a stack to tests, and its workers.

CITUS_BIN names the programs of a PostgreSQL that has the extension.
"""

import os

from local.stack import Stack

CITUS_BIN = os.environ.get("CITUS_BIN")
NEEDED = "CITUS_BIN names no PostgreSQL with the extension citus (deploy/README.md, Citus)"

# Nodes know one another as ::1, and programs come to 127.0.0.1: so who comes from ::1 is a node.
NODE = "::1"
SETTINGS = {
    "listen_addresses": f"127.0.0.1,{NODE}",
    "shared_preload_libraries": "citus",
    "citus.local_hostname": NODE,
    "max_prepared_transactions": "100",
    "max_connections": "200",
    "citus.shard_count": "8",  # 32 show nothing more, and take longer
}


class Cluster(Stack):
    """The coordinator."""

    workers: list[Stack]

    @property
    def nodes(self) -> list[Stack]:
        return [self, *self.workers]
