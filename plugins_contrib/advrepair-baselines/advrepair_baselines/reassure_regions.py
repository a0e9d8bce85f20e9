"""Linear regions of a network: the affine function at an input, and how far it reaches."""

from __future__ import annotations

import math

import torch
from attrs import evolve, frozen
from torch import Tensor

from advrepair import Network, Operation, UsageError
from advrepair_baselines.cutting import upto

_AFFINE = {"linear", "conv2d", "scale", "avg_pool2d", "pad", "reshape", "permute", "add"}
_FLAT = 1e-12  # rows shorter than this say nothing about the input
_EDGE = 1e-9  # by which faces of a region give way, so that rounding leaves its points inside


@frozen(eq=False)
class Piece:
    """N around an input, in float64: as affine functions of the flat input, [S].

    unit, offset: what the U ReLUs see, [U,S] and [U]. on: bool [U], which of them are positive.
    F, f: the outputs, [K,S] and [K].
    """

    unit: Tensor
    offset: Tensor
    on: Tensor
    F: Tensor
    f: Tensor

    def faces(self) -> tuple[Tensor, Tensor]:
        """Rows of length 1 and right sides of where no sign changes, ``A x <= b``: [m,S], [m]."""
        sign = torch.where(self.on, -1.0, 1.0).to(self.unit.dtype)
        A, b = sign[:, None] * self.unit, -sign * self.offset
        length = A.norm(dim=1)
        keep = length > _FLAT
        return A[keep] / length[keep, None], b[keep] / length[keep] + _EDGE


class Pieces:
    """A network made ready to give the piece around any input."""

    def __init__(self, network: Network) -> None:
        """Raises UsageError for an operation that is neither affine nor a ReLU."""
        self.network = network
        self.relus = [op for op in network.operations if op.kind == "relu"]
        for op in network.operations:
            if op.kind not in {*_AFFINE, "relu"}:
                raise UsageError(
                    f"reassure needs linear regions of ReLUs: node {op.name!r} is {op.kind}"
                )
        tensors = {name: t.double() for name, t in network.tensors.items()}
        gates = {_gate(op): torch.ones(op.shape, dtype=torch.float64) for op in self.relus}
        gated = [_gated(op) if op.kind == "relu" else op for op in network.operations]
        self.gated = Network(gated, tensors | gates, network.input_shape)
        self.before = [_part(self.gated, op.inputs[0], network) for op in self.relus]
        self.whole = _part(self.gated, network.operations[-1].name, network)

    def around(self, x: Tensor) -> Piece:
        """The piece that holds an input, [*S]; a ReLU at exactly 0 counts as off."""
        flat = x.double().flatten()
        gates: dict[str, Tensor] = {}
        units, offsets, signs = [], [], []
        for op, part in zip(self.relus, self.before, strict=True):
            unit, offset = self._affine(part, gates, len(flat))
            on = unit @ flat + offset > 0
            gates[_gate(op)] = on.double().view(op.shape)
            units.append(unit)
            offsets.append(offset)
            signs.append(on)
        F, f = self._affine(self.whole, gates, len(flat))
        none = F[:0], f[:0], torch.zeros(0, dtype=torch.bool)
        unit, offset, on = (
            torch.cat([each, *found])
            for each, found in zip(none, (units, offsets, signs), strict=True)
        )
        return Piece(unit, offset, on, F, f)

    @property
    def units(self) -> int:
        """U."""
        return sum(math.prod(op.shape) for op in self.relus)

    def _affine(
        self, part: Network | None, gates: dict[str, Tensor], size: int
    ) -> tuple[Tensor, Tensor]:
        """Rows and offsets of a part whose gates are set: its values at 0 and at unit vectors."""
        eye = torch.eye(size, dtype=torch.float64)
        if part is None:  # the input itself
            return eye, eye.new_zeros(size)
        probes = torch.cat([eye.new_zeros(1, size), eye]).view(-1, *self.network.input_shape)
        tensors = part.tensors | {n: t for n, t in gates.items() if n in part.tensors}
        with torch.no_grad():
            values = part.apply_tensors(tensors, probes)
        return (values[1:] - values[0]).T.contiguous(), values[0]


def _gate(op: Operation) -> str:
    return f"{op.name}/gate"


def _gated(op: Operation) -> Operation:
    """A ReLU as the product with numbers that say which unit is on."""
    return evolve(op, kind="scale", tensors={"weight": _gate(op)})


def _part(gated: Network, name: str, network: Network) -> Network | None:
    return None if name == "input" else upto(gated, name)


@frozen(eq=False)
class Region:
    """The inputs of a box where ``A x <= b``: A [m,S] with rows of length 1, b [m].

    lower, upper: faces of the box, [S]. All float64.
    """

    A: Tensor
    b: Tensor
    lower: Tensor
    upper: Tensor

    @classmethod
    def of(cls, A: Tensor, b: Tensor, lower: Tensor, upper: Tensor) -> Region:
        """Without the rows that hold everywhere in the box."""
        most = A.clamp(min=0) @ upper + A.clamp(max=0) @ lower
        cuts = most > b + _EDGE
        return cls(A[cuts], b[cuts], lower, upper)

    def excess(self, x: Tensor) -> Tensor:
        """Sum of the violations of all rows and faces, [n], of inputs [n,S]; 0 only inside."""
        outside = (self.lower - x).clamp(min=0) + (x - self.upper).clamp(min=0)
        return outside.sum(1) + (x @ self.A.T - self.b).clamp(min=0).sum(1)
