"""make contract: writes privacy/contract.txt anew, from a database freshly migrated on each PostgreSQL that is here."""

import subprocess
import sys

from local.postgres import find_postgres, major
from local.stack import DATABASE, SUPERUSER
from privacy.attest import CONTRACT
from tests.conftest import ROOT, Database, forget_the_caller, migrate, temporary_stack

HEAD = """\
# What a freshly migrated database has: owners, grants, functions (md5 of the body), triggers, constraints, roles.
# `make attest` compares the live database with it, and tests/test_attest.py a new one, on each version of PostgreSQL.
# After a change of migrations/, `make contract` writes this file: review the difference.
"""


def main() -> None:
    forget_the_caller()
    lines: set[str] = set()
    for programs in find_postgres():
        with temporary_stack(postgres_bin=programs) as server:
            database = migrate(Database(server, DATABASE))
            printed = subprocess.run(
                [sys.executable, "-m", "privacy", "attest", "--print-contract"],
                cwd=ROOT, env=database.env(SUPERUSER), stdout=subprocess.PIPE, text=True, check=True,
            )  # fmt: skip
            lines |= set(printed.stdout.splitlines())
        print(f"PostgreSQL {major(programs)}: {len(printed.stdout.splitlines())} lines", file=sys.stderr)
    CONTRACT.write_text(HEAD + "".join(f"{line}\n" for line in sorted(lines)))


if __name__ == "__main__":
    main()
