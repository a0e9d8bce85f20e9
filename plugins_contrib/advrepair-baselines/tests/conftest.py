"""Problems that can be checked by hand."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from torch import Tensor

from advrepair import Box, Network, Operation, PropertySet, Task

os.environ.setdefault("OMP_NUM_THREADS", "1")


def network_of(*layers: tuple[list[list[float]], list[float]]) -> Network:
    """Linear layers, (weight, bias) each, with ReLU between, on a row of numbers."""
    operations: list[Operation] = []
    tensors: dict[str, Tensor] = {}
    last, width = "input", len(layers[0][0][0])
    for i, (weight, bias) in enumerate(layers):
        if i:
            operations.append(Operation(f"relu{i}", "relu", (last,), operations[-1].shape))
            last = f"relu{i}"
        name = f"linear{i}"
        tensors |= {f"{name}.weight": torch.tensor(weight), f"{name}.bias": torch.tensor(bias)}
        roles = {"weight": f"{name}.weight", "bias": f"{name}.bias"}
        operations.append(Operation(name, "linear", (last,), (len(bias),), roles))
        last = name
    return Network(operations, tensors, (width,))


def task_of(
    network: Network, centers: Tensor, labels: list[int], radius: float, x_adv: Tensor, **more: Any
) -> Task:
    """Balls around centers, [P,S], that are to keep their labels; x_adv[i] breaks ball i."""
    outputs, label = network.outputs, torch.tensor(labels)
    others = [[k for k in range(outputs) if k != y] for y in labels]
    eye = torch.eye(outputs)
    C = torch.stack([eye[y] - eye[ks] for y, ks in zip(labels, others, strict=True)])
    properties = PropertySet(
        box=Box.around(centers, radius, clip=more.get("clip")),
        C=C,
        d=torch.zeros(C.shape[:2]),
        group=torch.arange(outputs - 1).expand(len(labels), -1),
        label=label,
        target=torch.full_like(label, -1),
        center=centers,
        names=tuple(f"ball {i}" for i in range(len(labels))),
    )
    known: dict[str, Any] = {"clean": None, "held": None, "attack": None, "prepare": None}
    return Task(network, properties, x_adv, torch.arange(len(x_adv)), **(known | more))


@pytest.fixture
def threshold() -> Task:
    """One number, two outputs 2x - 1 and 0: class 0 above 0.5. The ball around 0.45 breaks."""
    network = network_of(([[2.0], [0.0]], [-1.0, 0.0]))
    return task_of(network, torch.tensor([[0.45]]), [1], 0.1, torch.tensor([[0.54]]))
