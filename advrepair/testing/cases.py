"""What a verifier is tried on: boxes and specifications that bring out mistakes."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch
from attrs import frozen
from torch import Tensor

from advrepair.core.box import Box
from advrepair.core.graph import Network
from advrepair.testing.networks import NETWORKS, absorbing, fully_connected, tiny

BOX_KINDS = ("point", "tiny", "small", "touching zero", "unequal", "wide")


@frozen(eq=False)
class Case:
    """A network, B boxes and a specification of each.

    network: float32 weights. box: float64 with faces that float32 holds exactly, so that
    one case serves every arithmetic. C: [B,M,K]. d: [B,M], float64.
    """

    name: str
    network: Network
    box: Box
    C: Tensor
    d: Tensor

    @property
    def params(self) -> dict[str, Tensor]:
        """The weights in float64."""
        return {name: t.double() for name, t in self.network.tensors.items()}

    def rows(self, x: Tensor) -> Tensor:
        """``C f(x) + d`` in float64: [B,N,M] of N points a box, x [B,N,*S]."""
        y = self.network.apply_tensors(self.params, x.double().flatten(0, 1))
        return self.specified(y.unflatten(0, x.shape[:2]))

    def specified(self, y: Tensor) -> Tensor:
        """``C y + d`` in float64: [B,N,M] from outputs [B,N,K]."""
        return y.double() @ self.C.transpose(1, 2) + self.d.unsqueeze(1)


def random_box(kind: str, shape: Sequence[int], generator: torch.Generator) -> Box:
    """One box of a kind of BOX_KINDS, [1,*S], float64 holding float32 numbers."""
    center = 2 * torch.rand(1, *shape, generator=generator) - 1
    share = torch.rand(1, *shape, generator=generator)
    if kind == "touching zero":
        faces = torch.stack([torch.zeros_like(center), center])
        return Box(faces.amin(0).double(), faces.amax(0).double())
    radius = {
        "point": torch.zeros_like(share),
        "tiny": 1e-6 * share,
        "small": 0.05 * share,
        "unequal": 10 ** (-7 * share) * (share > 0.1),  # from 1e-7 to 0.2, and exactly zero
        "wide": 0.3 + share,
    }[kind]
    return Box((center - radius).double(), (center + radius).double())


def random_boxes(kinds: Sequence[str], shape: Sequence[int], seed: int) -> Box:
    """One box for each of kinds, [B,*S]."""
    generator = torch.Generator().manual_seed(seed)
    boxes = [random_box(kind, shape, generator) for kind in kinds]
    return Box(torch.cat([b.lower for b in boxes]), torch.cat([b.upper for b in boxes]))


def random_specification(count: int, rows: int, outputs: int, seed: int) -> tuple[Tensor, Tensor]:
    """C [B,M,K] and d [B,M]: differences of outputs, and dense rows; another one each box."""
    generator = torch.Generator().manual_seed(seed)
    dense = torch.randn(count, rows, outputs, generator=generator)
    order = torch.rand(count, rows, outputs, generator=generator).argsort(-1)
    unit = torch.eye(outputs)
    difference = unit[order[..., 0]] - unit[order[..., -1]]
    mixed = torch.rand(count, rows, 1, generator=generator) < 0.5
    d = torch.randn(count, rows, generator=generator)
    return torch.where(mixed, dense, difference).double(), d.double()


def make_case(name: str, network: Network, kinds: Sequence[str], rows: int, seed: int) -> Case:
    """A case with one box for each of kinds."""
    box = random_boxes(kinds, network.input_shape, seed)
    return Case(name, network, box, *random_specification(len(kinds), rows, network.outputs, seed))


@cache
def standard_cases() -> tuple[Case, ...]:
    """Every kind of network with every kind of box; fixed seeds."""
    kinds = (*BOX_KINDS, "small", "wide", "unequal")
    cases = [
        make_case(name, build(seed), kinds, 4, seed)
        for seed, (name, build) in enumerate(NETWORKS.items(), start=1)
    ]
    deep = fully_connected(11, (2, 7, 7, 7, 7, 3))
    return (*cases, make_case("deep", deep, kinds, 4, 11))


@cache
def tiny_cases() -> tuple[Case, ...]:
    """Networks that the exact oracle can handle; fixed seeds."""
    return tuple(
        make_case(f"tiny {seed}", tiny(seed, inputs), (*BOX_KINDS, "small", "wide"), 3, seed)
        for seed, inputs in enumerate((1, 1, 2, 2, 2, 2), start=1)
    )


@cache
def absorbing_case(unit: float) -> Case:
    """The network whose rounding errors all point the same way, on a point and on a box."""
    network = absorbing(unit)
    lower = torch.stack([torch.ones(network.input_shape), torch.full(network.input_shape, 0.5)])
    box = Box(lower.double(), torch.ones_like(lower).double())
    C = torch.eye(2, dtype=torch.float64).expand(2, 2, 2)
    return Case("absorbing", network, box, C, torch.zeros(2, 2, dtype=torch.float64))
