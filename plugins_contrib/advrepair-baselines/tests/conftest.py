"""Problems that can be checked by hand."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from advrepair import Box, Labelled, Network, Operation, PropertySet, Task, demands, load_network

os.environ.setdefault("OMP_NUM_THREADS", "1")
DATA = os.environ.get("ADVREPAIR_DATA")
ACAS_LOWER = [0.6, -0.5, -0.5, 0.45, -0.5]  # the box of property 2, as the networks take it
ACAS_UPPER = [0.6798577687, 0.5, 0.5, 0.5, -0.45]


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


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Without data the tests on ACAS Xu are left out, and pytest says how many."""
    without = [item for item in items if not DATA and "acas" in item.name]
    items[:] = [item for item in items if item not in without]
    config.hook.pytest_deselected(items=without)


def acas_task(count: int = 50) -> Task:
    """ACAS Xu N2,1 and property 2: in one box output 0 is not the largest; the least decides."""
    network = load_network(Path(str(DATA)) / "acasxu/onnx/ACASXU_run2a_2_1_batch_2000.onnx")
    others = torch.eye(5)[1:] - torch.eye(5)[:1]
    shape = network.input_shape
    lower, upper = (torch.tensor(face).view(1, *shape) for face in (ACAS_LOWER, ACAS_UPPER))
    properties = demands(
        lower, upper, others[None], torch.zeros(1, 4), torch.zeros(1, 4, dtype=torch.long)
    )
    noise = torch.Generator().manual_seed(0)
    x = lower + (upper - lower) * torch.rand((40_000, *shape), generator=noise)
    with torch.no_grad():
        outputs = torch.cat([network(part) for part in x.split(4000)])
    wrong = properties[torch.zeros(len(x), dtype=torch.long)].violated(outputs)
    right = ~wrong
    clean, held = (
        Labelled(x[right][part], outputs[right][part].argmin(1))
        for part in (slice(0, 2000), slice(2000, 3000))
    )
    x_adv = x[wrong][:count]
    owner = torch.zeros(len(x_adv), dtype=torch.long)
    unused: dict[str, Any] = {"attack": None, "prepare": None}
    return Task(network, properties, x_adv, owner, clean, held, decision="argmin", **unused)


def kinked() -> Network:
    """Hidden relu(x - 0.3), relu(x - 0.6); outputs 1 + a - 2 b and 1.1."""
    return network_of(
        ([[1.0], [1.0]], [-0.3, -0.6]),
        ([[1.0, -2.0], [0.0, 0.0]], [1.0, 1.1]),
    )
