"""A network in two parts: a front, whose outputs patches see, and the tail behind it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from attrs import evolve, frozen

from advrepair.core.errors import UsageError
from advrepair.core.graph import INPUT, Network, Operation, size

AUTO = "auto"
_FORMAT = "format"  # an empty tensor
_NAMED = 12  # places that an error lists
# What a fully connected tail is made of.
_CONNECTED = frozenset({"linear", "relu", "leaky_relu", "sigmoid", "tanh", "scale", "reshape"})


@frozen(eq=False)
class Parts:
    """``tail(front(x))`` is the network, operation by operation. at: where it was parted.

    The front's outputs are D features; the tail's input is [D].
    """

    at: str
    front: Network
    tail: Network


def parted(network: Network, at: str) -> Parts:
    """The network in two parts behind the operation called at, or before its linear tail.

    at: a name, or ``auto`` for the last place before the fully connected layers.
    Raises UsageError where there is no such place, naming some that there are.
    """
    known = places(network)
    if at == AUTO and AUTO not in known:
        at = _before_the_tail(network, known)
    if at not in known:
        raise UsageError(
            f"patch.at is {at!r}: the network cannot be parted there; " + _choices(network, known)
        )
    names = [op.name for op in network.operations]
    end = names.index(at) + 1
    before, behind = network.operations[:end], network.operations[end:]
    shape = before[-1].shape
    # The last operation of the front, its result as one row; and the first of the tail.
    row, inner = _fresh(f"{at} as a row", names), _fresh(f"{at} in shape", names)
    if not behind:
        first = [Operation(inner, "reshape", (INPUT,), shape)]
    elif len(shape) == 1:
        first = [evolve(op, inputs=_renamed(op.inputs, at, INPUT)) for op in behind]
    else:
        before = (*before, Operation(row, "reshape", (at,), (size(shape),)))
        again = [evolve(op, inputs=_renamed(op.inputs, at, inner)) for op in behind]
        first = [Operation(inner, "reshape", (INPUT,), shape), *again]
    width = size(shape)
    return Parts(at, _part(network, before, network.input_shape), _part(network, first, (width,)))


def places(network: Network) -> list[str]:
    """Operations that all later ones read the input through, in order; the last is the outputs."""
    found = []
    operations = network.operations
    for end in range(1, len(operations) + 1):
        later = {name for op in operations[end:] for name in op.inputs}
        earlier = {INPUT, *(op.name for op in operations[: end - 1])}
        if not later & earlier:
            found.append(operations[end - 1].name)
    return found


def _before_the_tail(network: Network, known: list[str]) -> str:
    """The last place from which on there are only fully connected layers, and at least one."""
    operations = network.operations
    end = len(operations)
    while end and operations[end - 1].kind in _CONNECTED:
        end -= 1
    first = next((i for i in range(end, len(operations)) if operations[i].kind == "linear"), 0)
    if not end or not first or operations[first - 1].name not in known:
        raise UsageError(
            "patch.at is 'auto': the network has no layers before its fully connected ones; "
            + _choices(network, known)
        )
    return operations[first - 1].name


def _choices(network: Network, known: list[str]) -> str:
    shown = known if len(known) <= _NAMED else ["...", *known[-_NAMED:]]
    return "choose one of " + ", ".join(shown)


def _fresh(name: str, names: Sequence[str]) -> str:
    return _fresh(name + "'", names) if name in names else name


def _renamed(inputs: tuple[str, ...], old: str, new: str) -> tuple[str, ...]:
    return tuple(new if name == old else name for name in inputs)


def _part(network: Network, operations: Sequence[Operation], shape: tuple[int, ...]) -> Network:
    used = {name for op in operations for name in op.tensors.values()}
    tensors = {n: t for n, t in network.tensors.items() if n in used}
    if not tensors:  # none of its own says in which format it computes
        tensors = {_FORMAT: torch.zeros(0, dtype=network.dtype, device=network.device)}
    return Network(operations, tensors, shape)
