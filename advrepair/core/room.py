"""Whether a run fits this machine; and if it does not, what would."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

from attrs import evolve

from advrepair.core.bounding import bytes_per_box, bytes_per_patch, chunks
from advrepair.core.config import Configuration
from advrepair.core.errors import UsageError
from advrepair.core.estimate import Estimate, in_bytes, of_setting
from advrepair.core.graph import Network, size
from advrepair.core.memory import available_memory, resident_memory
from advrepair.core.workload import Setting, shapes

_SPARE = 0.05  # of the memory or the disk that is left


def refuse_flight(network: Network, plan: Configuration, rows: int) -> None:
    """Raises UsageError if run.memory does not hold what is in flight. rows: M."""
    memory = plan.run.memory * 2**30
    # Counted before any weight is made: the sizes may be absurd.
    sizes = [size(network.input_shape), *plan.patch.hidden, network.outputs]
    need: float = 4 * 12 * sum((a + 1) * b for a, b in pairwise(sizes))
    if need <= memory:
        each = bytes_per_box(network, rows)
        box = len(chunks(plan.problem.count, each, 2**62)[0]) * each
        need = max(box, bytes_per_patch(shapes(network, plan.patch.hidden), rows, 1))
    if need > memory:
        enough, left = math.ceil(need / 2**30 * 100) / 100, available_memory()
        smaller = plan.patch.hidden and left is not None and need > left
        raise UsageError(
            f"run.memory is {plan.run.memory:.3g} GiB: this network needs {need / 2**30:.3g} GiB "
            f"at a time; raise it: --set run.memory={enough:g}"
            + (f", of which {in_bytes(left or 0)} are left; or make patch.hidden smaller")
            * bool(smaller)
        )


def refuse(found: Estimate, folder: Path) -> None:
    """Raises UsageError for a run that needs more memory or disk than there is.

    folder: where the run will be kept while it goes on. Files that are mapped into memory need
    no room there.
    """
    left, now = available_memory(), resident_memory()
    if left is not None:
        _refuse("memory", found, found.memory - found.mapped - now, left)
    _refuse("disk", found, found.disk, free_disk(folder))


def free_disk(folder: Path) -> int:
    """Bytes that are free where a folder is, or will be."""
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free


def _refuse(what: str, found: Estimate, need: float, left: float) -> None:
    if need <= (1 - _SPARE) * left:
        return

    def fits(setting: Setting) -> bool:
        other = of_setting(setting, timed=False)
        saved = found.disk - other.disk
        if what == "memory":
            saved = (found.memory - found.mapped) - (other.memory - other.mapped)
        return need - saved <= (1 - _SPARE) * left

    ways = [way for way in (_fewer(found.setting, fits), _smaller(found.setting, fits)) if way]
    raise UsageError(
        f"this run needs about {in_bytes(need)} of {what}, and {in_bytes(left)} are left; "
        + (" or ".join(ways) + " would fit" if ways else f"free some {what}")
    )


def _fewer(setting: Setting, fits: Callable[[Setting], bool]) -> str:
    """The largest --count that fits, in words; empty if there is none."""
    asked = setting.plan.problem.count
    if not setting.balls:
        return ""
    low, high = 0, min(asked, setting.properties)
    share = setting.patches / max(1, setting.properties)
    while low < high - 1:
        middle = (low + high) // 2
        patches = max(1, round(share * middle))
        small = evolve(setting, properties=middle, patches=patches)
        low, high = (middle, high) if fits(small) else (low, middle)
    return f"--count {low}" if low else ""


def _smaller(setting: Setting, fits: Callable[[Setting], bool]) -> str:
    """Smaller hidden layers that fit, in words; empty if none do."""
    hidden = setting.plan.patch.hidden
    while hidden:
        hidden = tuple(n // 2 for n in hidden) if min(hidden) > 1 else ()
        small = evolve(setting, template=shapes(setting.network, hidden))
        if fits(small):
            return "--set patch.hidden=" + str(list(hidden)).replace(" ", "")
    return ""
