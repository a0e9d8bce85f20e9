"""Repair methods that fail in every way, in a distribution of their own."""

from __future__ import annotations

from pathlib import Path

SOURCE = '''
"""Methods that fail in every way."""

import os
import time
from typing import ClassVar

from attrs import frozen

from advrepair import Method, MethodResult, MethodStatus, Scope, UsageError, hookimpl, option


@frozen
class Hangs(Method):
    """Never ends, and tells nobody."""

    name: ClassVar[str] = "hangs"

    def repair(self, task):
        time.sleep(600)


@frozen
class Hogs(Method):
    """Takes all memory."""

    name: ClassVar[str] = "hogs"

    def repair(self, task):
        held = []
        while True:
            held.append(bytearray(b"x") * 2**26)
            time.sleep(0.01)


@frozen
class Dies(Method):
    """Ends the process, as a library may."""

    name: ClassVar[str] = "dies"

    def repair(self, task):
        os.write(2, b"licence expired\\n")
        os._exit(7)


@frozen
class Errs(Method):
    """Raises what nobody expects, after it has printed something."""

    name: ClassVar[str] = "errs"
    message: str = option("no such key", "what it says")

    def repair(self, task):
        print("solver 1.0")
        raise KeyError(self.message)


@frozen
class Refuses(Method):
    """Takes no task at all."""

    name: ClassVar[str] = "refuses"

    def repair(self, task):
        raise UsageError("refuses takes no task at all")


@frozen
class Infeasible(Method):
    """Says that there is no repair."""

    name: ClassVar[str] = "infeasible"

    def repair(self, task):
        evidence = {"reason": "two points contradict each other", "rows": 12}
        return MethodResult(None, MethodStatus.INFEASIBLE, Scope.NONE, evidence)


@hookimpl
def advrepair_components():
    return (Hangs, Hogs, Dies, Errs, Refuses, Infeasible)
'''


def install(folder: Path) -> None:
    """Put the distribution into a folder that is on the path, or will be."""
    (folder / "advrepair_failing.py").write_text(SOURCE)
    info = folder / "advrepair_failing-0.3.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: advrepair-failing\nVersion: 0.3\n")
    (info / "top_level.txt").write_text("advrepair_failing\n")
    (info / "entry_points.txt").write_text("[advrepair]\nfailing = advrepair_failing\n")
