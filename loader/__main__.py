"""python -m loader"""

from loader.cli import main

# click would look for completion in _PYTHON _M LOADER_COMPLETE, which no shell can set
main(prog_name="python -m loader", complete_var="_LOADER_COMPLETE")
