"""Which certified properties hold for the relu form too, shells included.

In a shell a patch is partly on: of every output a number between 0 and what the patch adds. A
property whose box no foreign shell reaches keeps its proof. Where shells of its own regions reach
pieces that were proved for N alone, these are proved once more, for every such number.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from attrs import frozen
from torch import Tensor

from advrepair.core.bounding import Bounder
from advrepair.core.box import Box
from advrepair.core.patching import RepairedNetwork
from advrepair.core.relu_form import Shells
from advrepair.core.types import PropertySet, worst_margin


@frozen(eq=False)
class Proved:
    """What a certificate says. certified: bool [P].

    box: the W pieces. owner, patch: of each, [W]; patch is -1 where N alone was proved.
    """

    properties: PropertySet
    certified: Tensor
    box: Box
    owner: Tensor
    patch: Tensor


def carried_over(
    repaired: RepairedNetwork, shells: Shells, proved: Proved, bounder: Bounder
) -> Tensor:
    """Certified properties that hold for the relu form on the whole of their boxes: bool [P].

    Sound: let x lie in box i. If no region with a patch comes nearer to x's piece than w, but
    for the region of the piece itself, the relu form is F there. Else, if the piece is proved
    for N alone and all regions that near have one patch, the form is N + s with s between 0 and
    p(x) in every output; a lower bound of N's rows and one of C s over all these s add up, less
    the rounding of that sum. Any other case counts as not proved.
    """
    holds = proved.certified.clone()
    regions = (repaired.patch >= 0).nonzero()[:, 0]
    wide = _widened(repaired.box[regions], shells.width)
    piece, near = wide.meets(proved.box).T
    met = repaired.patch[regions[near]]
    foreign = met != proved.patch[piece]
    piece, met = piece[foreign], met[foreign]
    # A piece with a patch of its own must meet no other shell.
    holds[proved.owner[piece[proved.patch[piece] >= 0]]] = False
    alone = proved.patch[piece] < 0
    pairs = torch.stack([piece[alone], met[alone]], 1).unique(dim=0)
    several = torch.bincount(pairs[:, 0], minlength=len(proved.owner)) > 1
    holds[proved.owner[several]] = False
    for patch in pairs[:, 1].unique().tolist():
        index = pairs[pairs[:, 1] == patch, 0]
        good = _with_part_of(repaired, patch, proved, index, bounder)
        holds[proved.owner[index[~good]]] = False
    return holds


def _widened(box: Box, width: float) -> Box:
    """Boxes with their shells, and a little more, as faces are rounded."""
    low, high = box.lower.double() - 2 * width, box.upper.double() + 2 * width
    return Box(low.to(box.lower.dtype), high.to(box.lower.dtype))


def _with_part_of(
    repaired: RepairedNetwork, patch: int, proved: Proved, index: Tensor, bounder: Bounder
) -> Tensor:
    """Pieces, [n], on which ``C (N + s) + d`` is proved for every s between 0 and the patch."""
    box, owner = proved.box[index], proved.owner[index]
    C, d = proved.properties.C[owner].double(), proved.properties.d[owner].double()
    rows = bounder.base(box, C, d, rigorous=True)
    low, high, most = patch_range(repaired, patch, box, bounder)
    low, high = low.clamp(max=0).unsqueeze(1), high.clamp(min=0).unsqueeze(1)
    part = torch.minimum(C * low, C * high).sum(2)
    if rows.magnitude is None:
        return torch.zeros(len(index), dtype=torch.bool)
    # N + s is rounded a few times, as are these sums of ours.
    total = bounder.rounding.overflowing(rows.magnitude + most)
    error = 4 * bounder.rounding.relative(4, 2 * C.shape[2] + 8) * total
    lost = (C.abs() * error.unsqueeze(1)).sum(2)
    least = rows.minimum_rigorous(box) + part - lost
    return worst_margin(least, proved.properties.group[owner]) > 0


def patch_range(
    repaired: RepairedNetwork, patch: int, box: Box, bounder: Bounder
) -> tuple[Tensor, Tensor, Tensor]:
    """Least, largest and absolutely largest output of a patch on boxes: [n,K] each.

    Sound: rigorous bounds of every output and of its negation.
    """
    outputs = repaired.base.outputs
    weights: Mapping[str, Tensor] = {n: t[patch] for n, t in repaired.bank.stack.items()}
    both = torch.cat([torch.eye(outputs), -torch.eye(outputs)]).double()
    bound = bounder.certifier.prepare(bounder.template, bounder.rounding)
    wide = {name: t.double() for name, t in weights.items()}
    C = both.expand(len(box), -1, -1)
    with torch.no_grad():
        rows = bound(wide, box.to(torch.float64), C, C.new_zeros(C.shape[:2]))
        ends = rows.minimum_rigorous(box)
    low, high = ends[:, :outputs], -ends[:, outputs:]
    return low, high, torch.maximum(low.abs(), high.abs())


def read_proved(
    arrays: Mapping[str, Tensor], certified: Tensor, properties: PropertySet, patch: Tensor
) -> Proved:
    """Pieces and their patches from the arrays of a certificate; patch: of the regions, [R]."""
    parent, dim = arrays["tree.parent"].tolist(), arrays["tree.dim"].tolist()
    cut, owner = arrays["tree.cut"].tolist(), arrays["tree.owner"].tolist()
    inputs = properties.box.lower[:1].numel()
    low, high = (face.flatten(1).double() for face in _faces(properties.box))
    region = {node: i for i, node in enumerate(arrays["region.node"].tolist())}
    shared = dict(
        zip(arrays["shared.node"].tolist(), arrays["shared.region"].tolist(), strict=True)
    )
    first: dict[int, bool] = {}
    lower: list[Tensor] = []
    upper: list[Tensor] = []
    home: list[int] = []
    for node, above in enumerate(parent):
        if above < 0:
            place = shared.get(node, region.get(node, -1))
            faces = (low[owner[node]], high[owner[node]])
        else:
            place = region.get(node, home[above])
            faces = (lower[above], upper[above])
            if dim[above] < inputs:
                faces = _half(faces, dim[above], cut[above], above not in first)
            first[above] = True
        lower.append(faces[0])
        upper.append(faces[1])
        home.append(place)
    leaf = arrays["piece.node"]
    shape = properties.box.lower.shape[1:]
    dtype = properties.box.lower.dtype
    both = [torch.stack(ends)[leaf].view(-1, *shape).to(dtype) for ends in (lower, upper)]
    homes = torch.tensor(home)[leaf]
    box = Box(both[0], both[1])
    return Proved(properties, certified, box, arrays["tree.owner"][leaf], patch[homes])


def _half(faces: tuple[Tensor, Tensor], dim: int, cut: float, lower: bool) -> tuple[Tensor, Tensor]:
    low, high = faces[0].clone(), faces[1].clone()
    (high if lower else low)[dim] = cut
    return low, high


def _faces(box: Box) -> tuple[Tensor, Tensor]:
    return box.lower, box.upper
