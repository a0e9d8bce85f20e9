"""Caps: patches that see the outputs, and take from each what it has above the label's.

With z the outputs, ``F_k = min(z_k, z_y - m - delta (|z_k| + |z_y|))`` for all k but the label
y, and ``F_y = z_y``. So whatever a network computes, F decides for y, and nothing changes where
the network does so already. It needs no bound of the network but that its outputs are finite.
"""

from __future__ import annotations

from typing import Any

import torch
from attrs import evolve
from torch import Tensor

from advrepair.core.bounding import Bounder
from advrepair.core.box import Box
from advrepair.core.config import Configuration
from advrepair.core.errors import UsageError
from advrepair.core.front import Front
from advrepair.core.graph import INPUT, Network, Operation
from advrepair.core.intrusion import one_label
from advrepair.core.patching import PatchBank, Stack, patch_template
from advrepair.core.refinement import Worklist
from advrepair.core.rounding import Rounding, gamma, round_up
from advrepair.core.sections import Patch
from advrepair.core.training import Trained
from advrepair.core.types import worst_margin

OBJECTIVE = "cap"
LEAST = 1e-3  # of m, so that no product that underflows counts
_LARGEST32, _LARGEST = 2.0**100, 2.0**400  # of outputs, for which nothing overflows
Rows = tuple[Box, Tensor, Tensor]  # of outputs, [B,K]; C, [B,M,K]; d, [B,M]


def capping(plan: Configuration, network: Network) -> Configuration:
    """The plan with where caps sit and what they look like, if it asks for caps.

    Raises UsageError where it asks for something else of them.
    """
    if plan.training.objective != OBJECTIVE:
        return plan
    outputs = network.outputs
    told = Patch(hidden=(2 * outputs, outputs), at=network.operations[-1].name)
    if plan.patch not in (Patch(), told):
        raise UsageError(
            "training.objective is 'cap', whose patches see the outputs and have a shape of "
            "their own: leave out --at, --hidden and patch.boxes"
        )
    return evolve(plan, patch=told)


class Hull(Front):
    """One box around the outputs of all inputs that are asked about together.

    A cap asks only whether outputs are finite, so all balls together cost what one does.
    """

    def box(self, box: Box) -> Box:
        """The same faces [K] for every box, [B,K]. Sound: they are those of a box around all."""
        around = Box(box.lower.amin(0, keepdim=True), box.upper.amax(0, keepdim=True))
        found = super().box(around)
        return Box(found.lower.expand(len(box), -1), found.upper.expand(len(box), -1))


def relative_of(outputs: int, rounding: Rounding) -> float:
    """What a cap's delta must be at least, so that no rounding undoes it: see :func:`capped`."""
    return 4 * gamma(2 * outputs + 8, rounding.unit) if rounding.unit else 0.0


def cap_stack(template: Network, label: Tensor, margin: float, rounding: Rounding) -> Stack:
    """The caps of labels [q]; template: from K outputs, with hidden layers of 2K and K units.

    margin: m. The first layer has the positive and the negative part of every output.
    """
    stack = {n: t.new_zeros(len(label), *t.shape) for n, t in template.tensors.items()}
    first, second, last = _layers(template)
    K, each = template.outputs, torch.arange(len(label))
    eye = torch.eye(K, dtype=torch.float64)
    more = _float_above(1 + 2 * relative_of(K, rounding), template.dtype)
    less = 2 - more  # exact: more is near 1
    stack[first[0]][:] = torch.cat([eye, -eye]).to(template.dtype)
    rows = torch.cat([more * eye, -less * eye], 1).repeat(len(label), 1, 1)
    rows[each, :, label] -= less
    rows[each, :, K + label] += more
    bias = torch.full((len(label), K), margin, dtype=torch.float64)
    rows[each, label], bias[each, label] = 0.0, 0.0
    stack[second[0]][:], stack[second[1]][:] = rows.to(template.dtype), bias.to(template.dtype)
    stack[last[0]][:] = -eye.to(template.dtype)
    stack[last[0]][each, label] = 0.0
    return stack


def capped(
    network: Network, rounding: Rounding, template: Network, stack: Stack, given: Rows
) -> Tensor:
    """Lower bounds of rows of N + P where P is one cap, [B,M]; -inf where nothing is known.

    network: what P sees the input of; only one that changes nothing has bounds here. stack: of
    one patch.

    Sound: a row is ``F_y - F_k`` and no more, and the patch is a cap exactly, with a delta in its
    stored weights that is large enough. Let u be the unit, g = gamma(2K + 8), S = |z_k| + |z_y|,
    both finite and so small that nothing overflows. The first layer is exact. The second
    computes ``p >= z_k - z_y + m + delta S`` of terms whose absolute values sum to at most
    3 S + m, with an error of g (3 S + m) at most, and some subnormals, less than m / 1000
    together. P_k is -relu(p) and P_y is 0, both exactly. So
    ``z_k + P_k <= z_y - m - delta S + g (3 S + m) + m / 1000``. Rounding the deployed sum is
    monotone and raises that by at most u (3 S + 2 m). As ``delta >= 4 g >= 3 g + 3 u`` and
    g < 1/8, ``F_y - F_k >= m / 2``. At level real g = u = 0.
    """
    box, C, d = given
    least = torch.full(C.shape[:2], -torch.inf, dtype=torch.float64)
    found = _cap_of(template, stack, rounding)
    if found is None or any(op.kind != "reshape" for op in network.operations):
        return least
    label, half = found
    eye = torch.eye(template.outputs, dtype=C.dtype)
    other = eye[label] - C  # row k of eye, in a row of F_y - F_k
    which = other.argmax(2)
    plain = (other == eye[which]).all(2) & (which != label) & (d == 0)
    largest = torch.maximum(box.lower.abs(), box.upper.abs()).amax(1, keepdim=True)
    limit = _LARGEST32 if rounding.level == "deployed-float32" else _LARGEST
    return torch.where(plain & (largest <= limit), half[which], least)


def _cap_of(template: Network, stack: Stack, rounding: Rounding) -> tuple[int, Tensor] | None:
    """The label of a patch that is a cap, and what it proves of each output, m / 2: [K].

    None where any of its numbers is another than a cap has.
    """
    K = template.outputs
    if template.structure() != _shape_of(K):
        return None
    layers = _layers(template)
    (first, zero), (second, margin), (last, none) = (
        (stack[w].double(), stack[b].double()) for w, b in layers
    )
    eye = torch.eye(K, dtype=torch.float64)
    silent = (last == 0).all(1).nonzero()[:, 0]
    if len(silent) != 1:
        return None
    label = int(silent[0])
    others = torch.arange(K) != label
    ends = [torch.equal(first, torch.cat([eye, -eye])), torch.equal(last, -eye * others[:, None])]
    if not all(ends) or bool(zero.any()) or bool(none.any()):
        return None
    delta = relative_of(K, rounding)
    up, down = second.split(K, 1)
    more = torch.stack([up.diagonal() - 1, down[:, label] - 1])
    less = torch.stack([1 + down.diagonal(), 1 + up[:, label]])
    known = torch.cat([more, less])[:, others]
    rest = torch.cat([up, down], 1)
    for column in (label, K + label):
        rest[:, column] = 0.0
    rest[torch.arange(K), torch.arange(K)] = rest[torch.arange(K), K + torch.arange(K)] = 0.0
    exact = bool(((known >= delta) & (known <= 1 / 8)).all()) and not bool(rest[others].any())
    still = not bool(second[label].any()) and float(margin[label]) == 0
    large = bool((margin[others] >= LEAST / 2).all() & (margin[others] <= 2.0**60).all())
    return (label, margin / 2) if exact and still and large else None


def propose_caps(
    bank: PatchBank, worklist: Worklist, bounder: Bounder, margin: float, result: Trained
) -> None:
    """Give every patch of one label the cap of it; what is proved is settled, as is the rest.

    Nothing else is tried where a cap is not proved: outputs that may overflow have no bounds.
    margin: that is aimed at.
    """
    patches = torch.arange(len(bank))
    result.settled[:] = True
    label = one_label(worklist, patches)
    patches, label = patches[label >= 0], label[label >= 0]
    if not len(patches):
        return
    m = max(2 * margin, LEAST)
    stack = cap_stack(bounder.template, label, m, bounder.rounding)
    bank.put(patches, stack)
    for i, pieces in enumerate(worklist.pieces_of(patches)):
        owner = worklist.owner[pieces]
        asked = (worklist.box[pieces], worklist.properties.C[owner], worklist.properties.d[owner])
        one = {name: t[i] for name, t in stack.items()}
        rows = capped(bounder.network, bounder.rounding, bounder.template, one, asked)
        worst = worst_margin(rows, worklist.properties.group[owner])
        slope = torch.zeros(len(pieces), bounder.template.units, dtype=torch.uint8)
        result.proofs.append((worklist.node[pieces], worst, slope))


def _shape_of(outputs: int) -> dict[str, Any]:
    """The structure of a cap of K outputs, whatever its numbers."""
    same = Network([Operation("z", "reshape", (INPUT,), (outputs,))], {}, (outputs,))
    return patch_template(same, (2 * outputs, outputs)).structure()


def _layers(template: Network) -> list[tuple[str, str]]:
    """Names of weight and bias of every layer."""
    linear = (op.tensors for op in template.operations if op.kind == "linear")
    return [(roles["weight"], roles["bias"]) for roles in linear]


def _float_above(value: float, dtype: torch.dtype) -> float:
    """The least number of a dtype that is at least value."""
    return float(round_up(torch.tensor(value, dtype=torch.float64), dtype))
