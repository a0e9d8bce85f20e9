"""Networks as lists of operations: what every operation gives."""

from __future__ import annotations

import torch

from advrepair.core.graph import INPUT
from advrepair.testing.networks import fully_connected


def test_what_every_operation_gives_is_known_by_its_name() -> None:
    network, x = fully_connected(0, (3, 5, 2)), torch.randn(4, 3)
    values = network.values(network.tensors, x)
    names = [op.name for op in network.operations]
    assert list(values) == [INPUT, *names] and values[INPUT] is x
    assert torch.equal(values[names[-1]], network(x))
    (relu,) = [op for op in network.operations if op.kind == "relu"]
    assert torch.equal(values[relu.name], values[relu.inputs[0]].clamp(min=0))
    assert [tuple(values[op.name].shape[1:]) for op in network.operations] == [
        op.shape for op in network.operations
    ]
