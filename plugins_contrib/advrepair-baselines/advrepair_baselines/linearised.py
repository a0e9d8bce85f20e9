"""A network whose ReLUs are held: affine in one layer's weights, and what a change of them does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from attrs import frozen
from torch import Tensor

from advrepair import Network, Operation, PropertySet, UsageError
from advrepair_baselines.cutting import INPUT, behind, upto

_HELD = ("relu", "leaky_relu")
_BENT = (*_HELD, "sigmoid", "tanh", "max_pool2d")  # operations that are not affine


def gate(name: str) -> str:
    """Name of the tensor that a ReLU's input is multiplied by."""
    return f"{name}/gate"


def held(network: Network) -> Network:
    """The same with products in place of ReLUs; whoever runs it gives the gates, [N,*shape] each.

    Raises UsageError for what has no gates.
    """
    operations: list[Operation] = []
    tensors = dict(network.tensors)
    for op in network.operations:
        if op.kind in _BENT and op.kind not in _HELD:
            raise UsageError(
                f"network: node {op.name!r} ({op.kind}): this method takes networks that bend at "
                "ReLUs only; leave it out with --methods"
            )
        if op.kind in _HELD:
            tensors[gate(op.name)] = torch.ones(1, dtype=network.dtype)
            op = Operation(op.name, "scale", op.inputs, op.shape, {"weight": gate(op.name)})
        operations.append(op)
    return Network(operations, tensors, network.input_shape)


def shut(relu: Operation) -> float:
    """What a ReLU multiplies inputs by that are not > 0."""
    return float(relu.settings.get("slope", 0.0))  # type: ignore[arg-type]


def gates(network: Network, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What the ReLUs of a network do where its operations give values: 1 where the input is > 0."""
    found = {}
    for op in network.operations:
        if op.kind in _HELD:
            slope, z = shut(op), values[op.inputs[0]]
            found[gate(op.name)] = torch.where(z > 0, 1.0, slope).to(z.dtype)
    return found


@frozen(eq=False)
class Demanded:
    """Rows, [r]: of input[i] the outputs y are to have ``C[i] y + d[i] >= margin``. C: [r,K].

    chosen: whether some were chosen among several, one of which must hold.
    """

    input: Tensor
    C: Tensor
    d: Tensor
    chosen: bool

    @classmethod
    def nearest(cls, properties: PropertySet, outputs: Tensor) -> Demanded:
        """One row of every group: the one that is broken least. outputs: [P,K], one a property."""
        C, d, group = properties.C.double(), properties.d.double(), properties.group
        value = torch.einsum("pmk,pk->pm", C, outputs.double()) + d
        inputs, rows, chosen = [], [], False
        for number in range(int(group.max()) + 1):
            mine = group == number
            some = mine.any(1).nonzero()[:, 0]
            inputs.append(some)
            rows.append(value.masked_fill(~mine, -torch.inf)[some].argmax(1))
            chosen = chosen or bool((mine.sum(1) > 1).any())
        at, row = torch.cat(inputs), torch.cat(rows)
        return cls(at, C[at, row], d[at, row], chosen)

    def values(self, outputs: Tensor) -> Tensor:
        """Of outputs [n,K]: [r], float64."""
        return (self.C * outputs.double()[self.input]).sum(1) + self.d


@frozen(eq=False)
class Place:
    """What may change, and what is behind it, for n inputs.

    rest: the part from the layer on, ReLUs held; begin: what goes in, [n,*]; tensors: its weights
    and gates; float64 all. free: names of the tensors that change.
    """

    rest: Network
    begin: Tensor
    tensors: Mapping[str, Tensor]
    free: tuple[str, ...]

    @classmethod
    def at(
        cls, network: Network, layer: str, free: Sequence[str], x: Tensor, like: Tensor
    ) -> Place:
        """Where a layer begins, for inputs x with the gates that inputs like have, [n,*S] each.

        The gates, and what comes before the layer, are as the network computes them.
        """
        source = next(op for op in network.operations if op.name == layer).inputs[0]
        after = None if source == INPUT else behind(network, source)
        with torch.no_grad():
            known = gates(network, network.values(network.tensors, like))
            begin = x if after is None else upto(network, source)(x)
        rest = held(network if after is None else after)
        tensors = {name: known.get(name, t).double() for name, t in rest.tensors.items()}
        return cls(rest, begin.double(), tensors, tuple(free))

    @property
    def parameters(self) -> int:
        """p."""
        return sum(self.tensors[name].numel() for name in self.free)

    def split(self, change: Tensor) -> dict[str, Tensor]:
        """A change, [p], as those of the tensors."""
        sizes = [self.tensors[name].numel() for name in self.free]
        parts = zip(self.free, change.split(sizes), strict=True)
        return {name: part.view(self.tensors[name].shape) for name, part in parts}

    def values(self, change: Tensor) -> dict[str, Tensor]:
        """What every operation gives after a change of one layer and biases: affine in it."""
        moved = {name: self.tensors[name] + part for name, part in self.split(change).items()}
        return self.rest.values({**self.tensors, **moved}, self.begin)


class Effects:
    """The rows of an LP: what a change does to demands and to signs.

    signs: of operations the values z of which must keep ``sign z >= 0``, [n,*shape] each.
    """

    def __init__(self, place: Place, demanded: Demanded, signs: Mapping[str, Tensor]) -> None:
        self.place, self.demanded, self.signs = place, demanded, signs
        self._zero = torch.zeros(place.parameters, dtype=torch.float64, requires_grad=True)
        self._graph = self.at(self._zero)  # affine, so its gradient is the same everywhere
        self.start = self._graph.detach()

    @property
    def parameters(self) -> int:
        """p."""
        return len(self._zero)

    def need(self, margin: float) -> Tensor:
        """What a change must add to each row, [R], so that demands have a margin."""
        need = -self.start
        need[: len(self.demanded.input)] += margin
        return need

    def inputs(self, rows: Tensor) -> list[int]:
        """Numbers of the inputs that rows are about."""
        every = [self.demanded.input]
        for sign in self.signs.values():
            each = torch.arange(len(sign)).repeat_interleave(sign[0].numel())
            every.append(each)
        return torch.cat(every)[rows].unique().tolist()

    def at(self, change: Tensor) -> Tensor:
        """All rows after a change, [R]: demands, then signs."""
        values = self.place.values(change)
        outputs = values[self.place.rest.operations[-1].name]
        kept = [(sign * values[name]).flatten() for name, sign in self.signs.items()]
        return torch.cat([self.demanded.values(outputs), *kept])

    def forward(self, change: Tensor) -> Tensor:
        """What a change adds, [R]."""
        with torch.no_grad():
            return self.at(change) - self.start

    def backward(self, weights: Tensor) -> Tensor:
        """The transpose of :meth:`forward`: [p] of [R]."""
        (found,) = torch.autograd.grad(self._graph, self._zero, weights, retain_graph=True)
        return found
