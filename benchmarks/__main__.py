"""python -m benchmarks"""

from benchmarks.loader import main

main(prog_name="python -m benchmarks")
