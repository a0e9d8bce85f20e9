"""Networks as lists of operations: what every operation gives."""

from __future__ import annotations

import torch

from advrepair.core import graph
from advrepair.core.graph import INPUT, Network
from advrepair.testing.networks import fully_connected, residual


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


def test_a_large_network_runs_in_parts_of_bounded_memory(monkeypatch) -> None:
    network = residual(4)
    x = torch.randn(37, *network.input_shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        whole = network(x)
        sizes = []
        inner = Network.apply_tensors
        monkeypatch.setattr(
            Network, "apply_tensors", lambda self, t, x: sizes.append(len(x)) or inner(self, t, x)
        )
        monkeypatch.setattr(graph, "_BYTES", 5 * network._bytes)
        assert torch.allclose(network(x), whole, rtol=1e-6, atol=1e-6)
    assert sizes == [5] * 7 + [2]
    assert network.at_once(100) == 5 and network.at_once(3) == 3 and network.at_once(9, held=2) == 2


def test_values_are_forgotten_after_their_last_use() -> None:
    network = residual(4)
    kept = {name for done in network._done for name in done}
    read = {name for op in network.operations for name in op.inputs}
    assert kept == read  # all but the output
    assert set(network.values(network.tensors, torch.zeros(1, *network.input_shape))) >= read
