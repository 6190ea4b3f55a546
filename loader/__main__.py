"""python -m loader"""

import os
import signal


def end(number: int, _: object) -> None:
    os._exit(128 + number)


# Until there is something to end in good order, and before the imports, which take a moment. By itself, the first
# process of a container would go on, and Python would show a traceback.
for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, end)

from loader.cli import main  # noqa: E402
from loader.errors import run  # noqa: E402

# click would look for completion in _PYTHON _M LOADER_COMPLETE, which no shell can set
run(main, "python -m loader", complete_var="_LOADER_COMPLETE")
