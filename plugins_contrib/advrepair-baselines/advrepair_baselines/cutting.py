"""Parts of a network: up to an operation, behind it, and with something done to what it gives."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from attrs import evolve

from advrepair import Network, Operation

INPUT = "input"


def upto(network: Network, name: str) -> Network:
    """The part that ends with an operation, whose values it gives in one row."""
    place = _place(network, name)
    last = network.operations[place]
    flat = Operation(f"{name}/flat", "reshape", (name,), (math.prod(last.shape),))
    return _part(network, [*network.operations[: place + 1], flat], network.input_shape)


def behind(network: Network, name: str) -> Network | None:
    """The part that goes on from an operation's values, in one row; they keep their name.

    None if it reads something from before them, too, as a residual connection does.
    """
    place = _place(network, name)
    last, after = network.operations[place], network.operations[place + 1 :]
    known = {name, *(op.name for op in after)}
    if not after or any(each not in known for op in after for each in op.inputs):
        return None
    begin = Operation(name, "reshape", (INPUT,), last.shape)
    return _part(network, [begin, *after], (math.prod(last.shape),))


def probed(network: Network, names: Iterable[str]) -> Network:
    """The same with ``value * factor + shift`` behind some operations.

    Whoever runs it gives these tensors: their names are :func:`factor` and :func:`shift`.
    """
    chosen, renamed = set(names), dict[str, str]()
    operations: list[Operation] = []
    tensors = dict(network.tensors)
    some = next(iter(tensors.values()))
    for op in network.operations:
        operations.append(evolve(op, inputs=tuple(renamed.get(each, each) for each in op.inputs)))
        if op.name in chosen:
            roles = {"weight": factor(op.name), "bias": shift(op.name)}
            tensors |= {roles["weight"]: some.new_ones(1), roles["bias"]: some.new_zeros(1)}
            renamed[op.name] = f"{op.name}/probed"
            operations.append(Operation(renamed[op.name], "scale", (op.name,), op.shape, roles))
    return Network(operations, tensors, network.input_shape)


def factor(name: str) -> str:
    """Name of the tensor that an operation's values are multiplied by."""
    return f"{name}/factor"


def shift(name: str) -> str:
    """Name of the tensor that is added to them then."""
    return f"{name}/shift"


def _place(network: Network, name: str) -> int:
    return next(i for i, op in enumerate(network.operations) if op.name == name)


def _part(network: Network, operations: Sequence[Operation], shape: Sequence[int]) -> Network:
    used = {name for op in operations for name in op.tensors.values()}
    return Network(operations, {n: t for n, t in network.tensors.items() if n in used}, shape)
