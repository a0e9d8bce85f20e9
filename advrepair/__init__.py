"""Certified repair of neural networks.

:func:`repair` does in Python what ``advrepair run`` does on the command line, :func:`load`
gives the deployed function of a run folder, :func:`certify` proves what it does near an input. The
rest is for plugin authors.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

# MKL's products may differ in the last bit by where in memory a row lies: seen on an AMD EPYC with
# AVX-512. So they do not, as fast there. It is read at the first product; whoever has set it knows
# better.
os.environ.setdefault("MKL_CBWR", "AUTO")

if TYPE_CHECKING:
    from advrepair.api import certify, load, repair
    from advrepair.core.box import Box
    from advrepair.core.branches import Branch, BranchBound
    from advrepair.core.errors import (
        AdvrepairError,
        PluginError,
        SoundnessError,
        UnsupportedNetworkError,
        UsageError,
    )
    from advrepair.core.graph import Network, Operation
    from advrepair.core.hookspecs import hookimpl
    from advrepair.core.interfaces import (
        Allocator,
        Attack,
        BoundFn,
        BranchBoundFn,
        CompleteVerifier,
        Component,
        Executor,
        Indicator,
        Method,
        Refiner,
        SmoothAllocator,
        StagedBoundFn,
        Verifier,
    )
    from advrepair.core.network import load_network
    from advrepair.core.onnx_writer import write_network
    from advrepair.core.options import option
    from advrepair.core.patching import RepairedNetwork
    from advrepair.core.pipeline import Repair
    from advrepair.core.properties import demands
    from advrepair.core.rounding import Rounding
    from advrepair.core.tasks import Labelled, MethodResult, MethodStatus, Scope, Task
    from advrepair.core.types import (
        Assignment,
        Centres,
        LinearBound,
        Points,
        PropertySet,
        SplitPlan,
        Status,
    )

__version__ = "0.1.0"

_HOMES = {
    "api": ("certify", "load", "repair"),
    "core.errors": (
        "AdvrepairError",
        "PluginError",
        "SoundnessError",
        "UnsupportedNetworkError",
        "UsageError",
    ),
    "core.graph": ("Network", "Operation"),
    "core.hookspecs": ("hookimpl",),
    "core.interfaces": (
        "Allocator",
        "Attack",
        "BoundFn",
        "BranchBoundFn",
        "CompleteVerifier",
        "Component",
        "Executor",
        "Indicator",
        "Method",
        "Refiner",
        "SmoothAllocator",
        "StagedBoundFn",
        "Verifier",
    ),
    "core.network": ("load_network",),
    "core.properties": ("demands",),
    "core.onnx_writer": ("write_network",),
    "core.options": ("option",),
    "core.patching": ("RepairedNetwork",),
    "core.pipeline": ("Repair",),
    "core.rounding": ("Rounding",),
    "core.tasks": ("Labelled", "MethodResult", "MethodStatus", "Scope", "Task"),
    "core.box": ("Box",),
    "core.branches": ("Branch", "BranchBound"),
    "core.types": (
        "Assignment",
        "Centres",
        "LinearBound",
        "Points",
        "PropertySet",
        "SplitPlan",
        "Status",
    ),
}

__all__ = [
    "AdvrepairError",
    "Allocator",
    "Assignment",
    "Attack",
    "BoundFn",
    "Box",
    "Branch",
    "BranchBound",
    "BranchBoundFn",
    "Centres",
    "CompleteVerifier",
    "Component",
    "Executor",
    "Indicator",
    "Labelled",
    "LinearBound",
    "Method",
    "MethodResult",
    "MethodStatus",
    "Network",
    "Operation",
    "PluginError",
    "Points",
    "PropertySet",
    "Refiner",
    "Repair",
    "RepairedNetwork",
    "Rounding",
    "Scope",
    "SmoothAllocator",
    "SoundnessError",
    "SplitPlan",
    "StagedBoundFn",
    "Status",
    "Task",
    "UnsupportedNetworkError",
    "UsageError",
    "Verifier",
    "certify",
    "demands",
    "hookimpl",
    "load",
    "load_network",
    "option",
    "repair",
    "write_network",
]


def __getattr__(name: str) -> Any:
    """Import on first use: torch takes seconds, and ``--help`` does not need it."""
    for home, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(f"advrepair.{home}"), name)
    raise AttributeError(f"module 'advrepair' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
