"""Property files verified one after the other, for a network or for a finished repair."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from attrs import frozen

from advrepair.core.artefacts import check_digest, read_repaired
from advrepair.core.config import Configuration
from advrepair.core.devices import device_of
from advrepair.core.finding import make_bounder
from advrepair.core.graph import Network
from advrepair.core.inputs import clip_of, network_file, read_properties, refuse_outside
from advrepair.core.network import load_network
from advrepair.core.patching import RepairedNetwork
from advrepair.core.properties import in_words
from advrepair.core.registry import Registry
from advrepair.core.types import PropertySet
from advrepair.core.verifying import SHARES, Answer, Verification
from advrepair.core.work import Progress, silent

_STORED = "repaired.safetensors"


@frozen(eq=False)
class Verified:
    """One region of a file, and what is known about it. asked: the property, P = 1."""

    file: str
    asked: PropertySet
    answer: Answer

    @property
    def demand(self) -> str:
        """What is asked, in words."""
        return in_words(self.asked, 0)

    @property
    def as_json(self) -> dict[str, Any]:
        """Plain numbers; null where nothing is known."""
        found = self.answer
        refuted = found.x is not None and found.y is not None
        return {
            "file": self.file,
            "name": self.asked.names[0],
            "demand": self.demand,
            "answer": found.outcome.value,
            "reason": None if found.reason is None else found.reason.name.lower(),
            "margin": found.margin,
            "share": found.share,
            "pieces": found.pieces,
            "seconds": round(found.seconds, 3),
            "x": found.x.flatten().tolist() if refuted and found.x is not None else None,
            "y": found.y.tolist() if refuted and found.y is not None else None,
        }


@frozen(eq=False)
class Files:
    """Everything read and checked. asked: of each file its regions, and notes about them."""

    verification: Verification
    asked: dict[str, tuple[PropertySet, tuple[str, ...]]]

    @classmethod
    def read(cls, plan: Configuration, registry: Registry, pieces: int) -> Files:
        """What a configuration names. pieces: of one region, at most.

        Raises UsageError, UnsupportedNetworkError for what cannot be read, does not fit, or
        cannot be bounded.
        """
        plan.attack.require()
        function = read_function(plan, registry)
        base = function if isinstance(function, Network) else function.base
        for part in (function, base):
            part.compute_on(device_of(plan.run.device))
        repaired = function if isinstance(function, RepairedNetwork) else None
        bounder = make_bounder(base, plan, repaired)
        clip = clip_of(plan.problem)
        asked = {path: read_properties([path], base, clip) for path in plan.problem.property}
        for demanded, _ in asked.values():
            refuse_outside(demanded, Path(plan.problem.network))
        job = Verification(function, bounder, plan.attack, pieces, plan.run.seed)
        return cls(job, asked)

    def answers(
        self, timeout: float | None = None, progress: Progress = silent
    ) -> Iterator[Verified]:
        """Each region of each file, in order. timeout: of each file, in seconds."""
        for path, (demanded, _) in self.asked.items():
            deadline = None if timeout is None else time.perf_counter() + timeout
            for i in range(len(demanded)):
                one = demanded[torch.tensor([i])]
                told = _Told(progress, one.names[0])
                yield Verified(path, one, self.verification.answer(one, deadline, told))


class _Told:
    """Tells how much of a box is proved."""

    def __init__(self, progress: Progress, name: str) -> None:
        self.progress, self.done = progress, 0
        self.stage = f"{name}: thousandths of the volume proved"
        self(0)

    def __call__(self, more: int) -> None:
        """So many more."""
        self.done += more
        self.progress(self.stage, self.done, SHARES)


def read_function(plan: Configuration, registry: Registry) -> Network | RepairedNetwork:
    """The network that a configuration names; of a run folder, the deployed function."""
    path = network_file(plan.problem)
    if path.name == _STORED and not plan.problem.factory:
        path = path.parent
    if not path.is_dir():
        return load_network(path, plan.problem.factory)
    check_digest(Path(path))
    return read_repaired(path / _STORED, registry).eval()
