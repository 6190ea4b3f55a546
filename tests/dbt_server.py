"""python -m tests.dbt_server PROJECT: dbt without its start, which takes longer than a run.

Reads the project once. Then each line of standard input is a command, run in a process of its own that a test may
freeze or kill like any other: {"arguments": [...], "environment": {...}, "output": file}. Answers with its process id.
The process leaves its exit status in a file beside its output.
"""

import json
import os
import signal
import sys
from pathlib import Path

from dbt.cli.main import dbtRunner


def main(project: str) -> None:
    folders = ["--project-dir", project, "--profiles-dir", project]
    parsed = dbtRunner().invoke(["--quiet", "parse", *folders])
    if not parsed.success:
        sys.exit("The dbt project cannot be read.")
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # a process that ended is gone
    print("ready", flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        pid = os.fork()
        if not pid:
            run(dbtRunner(manifest=parsed.result), [*order["arguments"], *folders], order)
        print(pid, flush=True)


def run(dbt: dbtRunner, arguments: list[str], order: dict) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.environ |= order["environment"]
    output = os.open(order["output"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for number in (1, 2):
        os.dup2(output, number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    result = dbt.invoke(arguments)
    sys.stdout.flush()
    Path(f"{order['output']}.status").write_text(str(0 if result.success else 2 if result.exception else 1))
    os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
