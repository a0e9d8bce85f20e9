"""Work for a cluster that writes down where it ran, and fails where a test wants it to."""

from __future__ import annotations

import os
import signal
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch
from attrs import frozen
from ray import cloudpickle
from torch import nn

import advrepair
from advrepair_ray import RayExecutor

FILES = ("certificate.json", "certificate.safetensors", "repaired.safetensors")
SHARDS = 4  # of 64 patches
# Nodes do not have this file.
cloudpickle.register_pickle_by_value(sys.modules[__name__])


@frozen
class Record:
    """One attempt at an item. done: whether it came to its end."""

    place: int
    node: str
    done: bool


@frozen
class Recorded:
    """A function that leaves a file for every attempt, in a folder all nodes see.

    spoilt: called with the place, the node and the folder; it may never return.
    """

    function: Callable[[Any], Any]
    folder: Path
    spoilt: Callable[[int, str, Path], None]

    def __call__(self, numbered: tuple[int, Any]) -> Any:
        place, item = numbered
        node = ray.get_runtime_context().get_node_id()
        begun = self.folder / f"{place}_{node}_{uuid.uuid4().hex}.begun"
        begun.touch()
        self.spoilt(place, node, self.folder)
        found = self.function(item)
        begun.rename(begun.with_suffix(".done"))
        return found


class Odd(Exception):
    """It cannot be pickled back: it takes two arguments and keeps one."""

    def __init__(self, one: str, two: str) -> None:
        super().__init__(one)


def records(folder: Path) -> list[Record]:
    """What was tried so far."""
    names = [(path.stem.split("_"), path.suffix == ".done") for path in folder.iterdir()]
    return [Record(int(place), node, done) for (place, node, _), done in names]


def wait_for_both(place: int, node: str, folder: Path) -> None:
    """Nobody does all of it alone."""
    until(lambda: len({each.node for each in records(folder)}) == 2)


def die_once(place: int, node: str, folder: Path) -> None:
    """The first worker at place 1 is killed."""
    if place == 1 and sum(each.place == place for each in records(folder)) == 1:
        os.kill(os.getpid(), signal.SIGKILL)


def recording(
    monkeypatch: pytest.MonkeyPatch, folder: Path, spoilt: Callable[[int, str, Path], None]
) -> list[int]:
    """Let every repair on Ray leave records; the places whose result came are in the list."""
    came, plain = list[int](), RayExecutor.map

    def noted(self: RayExecutor, function: Any, items: Any) -> Iterator[tuple[int, Any]]:
        for place, found in plain(self, Recorded(function, folder, spoilt), enumerate(items)):
            came.append(place)
            yield place, found

    folder.mkdir()
    monkeypatch.setattr(RayExecutor, "map", noted)
    return came


def repaired(folder: Path, **plan: Any) -> dict[str, bytes]:
    """The files of a repair of 64 patches in a few shards; plan: more settings."""
    torch.manual_seed(3)
    sizes = ((20, 16), (16, 16), (16, 4))
    layers = [nn.Linear(*size) for size in sizes]
    network = nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2])
    x = np.random.default_rng(0).random((1000, 20), dtype=np.float32)
    with torch.no_grad():
        layers[2].bias -= network(torch.tensor(x)).mean(0)  # so that each label occurs
        y = network(torch.tensor(x)).argmax(1).numpy()
    settings = {"patch": {"hidden": [8]}, "evaluation": {"samples": 1}, **plan}
    found = advrepair.repair(network, x, y, epsilon=0.1, count=64, settings=settings)
    found.save(folder)
    return {name: (folder / name).read_bytes() for name in FILES}


def until(what: Callable[[], bool], seconds: float = 60.0) -> None:
    """Wait; a failure if it does not come."""
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)
