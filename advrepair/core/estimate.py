"""What a run will take, said before it begins: parameters, bytes, seconds; and if it fits."""

from __future__ import annotations

from typing import Any

from attrs import field, frozen

from advrepair.core.attacking import at_once
from advrepair.core.config import Configuration
from advrepair.core.counting import Count, Machine, machine, pace
from advrepair.core.inputs import Inputs
from advrepair.core.memory import resident_memory
from advrepair.core.workload import (
    Setting,
    array_bytes,
    counts,
    flight_bytes,
    kept_bytes,
    setting_of,
)

# Measured seconds over the larger of the two limits (core/counting.py), and seconds of Python
# beside that for each call: a step of an attack on a chunk, an epoch of a shard, a test input.
# Where a stage runs the network, the limit is multiplied by the network's own pace.
FACTORS = {
    "attack": (1.2, 2e-3),
    "bounds": (3.8, 2e-3),
    "training": (4.6, 5e-3),
    "proof": (2.3, 3e-3),
    "certification": (1.5, 4e-3),
    "evaluation": (1.0, 40e-6),
}
_RUNNING = ("attack", "certification", "evaluation")
STAGES = ("attack", "patches", "certification", "evaluation")
_PATCHES = ("bounds", "training", "proof")  # what the stage of that name consists of


@frozen
class Estimate:
    """Of one run. seconds: of each stage; None where nothing can be said before.

    patch_bytes, memory, mapped, disk: bytes; memory at its peak, mapped what of it is files that
    can be read again, disk while the run goes on. kept: bytes on disk when it is over.
    """

    setting: Setting = field(repr=False)
    parameters: int
    patch_bytes: int
    memory: int
    mapped: int
    disk: int
    kept: int
    seconds: dict[str, float] | None

    def as_json(self) -> dict[str, Any]:
        """For report.json."""
        seconds = self.seconds and self.seconds | {"total": sum(self.seconds.values())}
        return {
            "patches": self.setting.patches,
            "parameters": self.parameters,
            "patch_bytes": self.patch_bytes,
            "memory_bytes": self.memory,
            "disk_bytes": self.disk,
            "kept_bytes": self.kept,
            "seconds": seconds,
        }

    def lines(self) -> list[str]:
        """One line for people, before a run; a second for one of more than an hour."""
        each = self.parameters // max(1, self.setting.patches)
        start = "up to " if self.setting.files else ""
        took = "its time depends on the pieces"
        if self.seconds is not None:
            took = in_seconds(sum(self.seconds.values()))
        line = (
            f"estimate: {start}{self.setting.patches:,} patches of {each:,} parameters, "
            f"{in_bytes(self.patch_bytes)}; about {in_bytes(self.memory)} of memory, "
            f"{in_bytes(self.disk)} on disk, {took}"
        )
        if self.seconds is None or sum(self.seconds.values()) < 3600:
            return [line]
        return [line, "estimate: more than an hour; advrepair run --resume goes on after a break"]

    def table(self) -> list[tuple[str, str, str]]:
        """Everything, a row each: what, how much, and the work that a stage consists of."""
        found = [
            ("properties", f"{self.setting.properties:,}", ""),
            ("patches", f"{self.setting.patches:,}", ""),
            ("parameters", f"{self.parameters:,}", ""),
            ("their bytes", in_bytes(self.patch_bytes), ""),
            ("peak memory", in_bytes(self.memory), ""),
            ("disk, during the run", in_bytes(self.disk), ""),
            ("disk, after it", in_bytes(self.kept), ""),
        ]
        if self.seconds is None:
            return [*found, ("time", "depends on the pieces", "")]
        work = {step: count for step, (count, _) in counts(self.setting).items()}
        work["patches"] = sum((work.pop(step) for step in _PATCHES), Count())
        for stage, seconds in self.seconds.items():
            flop = (work[stage].single + work[stage].double) / 1e9
            detail = f"{flop:,.1f} Gflop, {work[stage].moved / 1e9:,.1f} GB"
            found.append((stage, in_seconds(seconds), detail))
        return [*found, ("total", in_seconds(sum(self.seconds.values())), "")]


def estimate(inputs: Inputs, plan: Configuration) -> Estimate:
    """Predict a run from its inputs and its settings; no weight is made."""
    return of_setting(setting_of(inputs, plan))


def of_setting(setting: Setting, timed: bool = True) -> Estimate:
    """Predict the repair of a setting; timed: its seconds too."""
    parameters = setting.patches * setting.template.parameters_count
    held = parameters * setting.width
    kept = kept_bytes(setting)
    counterexamples = setting.properties * (setting.inputs * setting.width + 8)
    return Estimate(
        setting,
        parameters,
        held,
        resident_memory() + held + array_bytes(setting) + flight_bytes(setting),
        held,
        kept + 2 * held + counterexamples,
        kept,
        None if setting.files or not timed else _seconds(setting, machine()),
    )


def _seconds(setting: Setting, known: Machine) -> dict[str, float]:
    spent, measured = {}, pace(setting.network, at_once(setting.network))
    for step, (count, calls) in counts(setting).items():
        factor, each = FACTORS[step]
        factor *= measured if step in _RUNNING else 1.0
        spent[step] = factor * count.limit(known) + each * calls
    patches = sum(spent.pop(step) for step in _PATCHES) / setting.workers
    spent["patches"] = patches
    return {stage: spent[stage] for stage in STAGES}


def in_bytes(value: float) -> str:
    """A size for people: ``6.3 MiB``, ``12 GiB``."""
    for unit in ("bytes", "KiB", "MiB"):
        if value < 1000:
            return _digits(value, unit)
        value /= 1024
    return _digits(value, "GiB")


def in_seconds(value: float) -> str:
    """A time for people, to the precision that an estimate has."""
    if value < 100:
        return _digits(value, "s")
    return _digits(value / 60, "min") if value < 3600 else _digits(value / 3600, "h")


def _digits(value: float, unit: str) -> str:
    return f"{value:.1f} {unit}" if value < 10 and unit != "bytes" else f"{value:,.0f} {unit}"
