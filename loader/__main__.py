"""python -m loader"""

from loader.cli import main
from loader.errors import run

# click would look for completion in _PYTHON _M LOADER_COMPLETE, which no shell can set
run(main, "python -m loader", complete_var="_LOADER_COMPLETE")
