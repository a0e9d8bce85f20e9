"""The weights of a network that a method may change, and networks with others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from torch import Tensor

from advrepair import Network, Operation

_LAYERS = ("linear", "conv2d")


def changeable(network: Network) -> list[Operation]:
    """Layers whose weights belong to them alone, in order."""
    owners = Counter(name for op in network.operations for name in set(op.tensors.values()))
    return [
        op
        for op in network.operations
        if op.kind in _LAYERS and all(owners[name] == 1 for name in op.tensors.values())
    ]


def trainable(network: Network) -> dict[str, Tensor]:
    """Copies of the weights and biases of linear layers and convolutions, by name.

    Constants of normalisation stay: they belong to the inputs or were measured.
    """
    names = [
        name for op in network.operations if op.kind in _LAYERS for name in op.tensors.values()
    ]
    return {name: network.tensors[name].clone() for name in dict.fromkeys(names)}


def with_weights(network: Network, changed: Mapping[str, Tensor]) -> Network:
    """The same operations with some other tensors."""
    tensors = network.tensors | {name: t.detach() for name, t in changed.items()}
    return Network(network.operations, tensors, network.input_shape)
