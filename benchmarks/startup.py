"""How long the command line takes to answer, beside its targets.

``python -m benchmarks.startup [--starts 9]``

Prints the median wall time of whole processes, started one after the other, and that of
``import torch`` for comparison. The first start of each is not counted: it may compile and
read what the others find ready. ``plugins`` lists what is installed, so a plugin of a third
party that imports torch at its top is in its time.
"""

import argparse
import platform
import statistics
import subprocess
import sys
import time

# What is given to the interpreter, and the target in seconds.
COMMANDS: dict[str, tuple[list[str], float | None]] = {
    "advrepair --help": (["-m", "advrepair", "--help"], 0.5),
    "advrepair plugins": (["-m", "advrepair", "plugins"], 1.0),
    "advrepair run --help": (["-m", "advrepair", "run", "--help"], 0.5),
    'python -c "import torch"': (["-c", "import torch"], None),
}


def seconds(arguments: list[str], starts: int) -> list[float]:
    """Wall times of so many starts of the interpreter."""
    found = []
    for _ in range(starts + 1):
        begin = time.perf_counter()
        subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
        found.append(time.perf_counter() - begin)
    return found[1:]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--starts", type=int, default=9, help="of each command")
    given = parser.parse_args()
    print(f"Python {platform.python_version()}, {platform.machine()}, {given.starts} starts each")
    for command, (arguments, target) in COMMANDS.items():
        median = statistics.median(seconds(arguments, given.starts))
        beside = "" if target is None else f", target {target:.1f} s"
        print(f"{command:25} {median:5.2f} s{beside}")


if __name__ == "__main__":
    main()
