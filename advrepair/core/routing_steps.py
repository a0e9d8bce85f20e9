"""The routing of a repaired network, and its patches, as standard operators.

The same as :meth:`~advrepair.core.patching.RepairedNetwork.route` and
:meth:`~advrepair.core.patching.PatchBank.add_to`, without a branch on the values of tensors.
The first region that holds an input is found by exact comparison, in two steps. All regions
are compared in the few coordinates that tell them apart. How many can agree with one input
there is known when this is written; so many candidates are compared in full, one after the
other.
"""

from __future__ import annotations

import torch
from torch import Tensor

from advrepair.core.box import Box
from advrepair.core.graph import size
from advrepair.core.interfaces import SmoothAllocator
from advrepair.core.operators import Steps, choose, every, first_of, one_hot
from advrepair.core.patching import PatchBank, RepairedNetwork

LOGITS = "base.logits"  # of the base network
SEEN = "base.seen"  # what patches and allocators see, where it is not the input
ROUTE, GATES = "route/", "gates"
_PROBES = 32  # coordinates that are compared of every region, at first
_CANDIDATES = 12  # regions compared in full, at most; else more coordinates are compared
_NUMBERS = 2**16  # comparisons in flight, for each input
_SLOTS = 16  # patches summed one after the other; with more, all are evaluated on every input


def write_deployed(to: Steps, repaired: RepairedNetwork, x: str, seen: str, logits: str) -> str:
    """Outputs of F, [N,K]: routing, patches, and a smooth allocator outside the regions.

    x: inputs [N,*S]. seen: what patches see of them. logits: of the base network, [N,K].
    Raises UsageError, naming the allocator, if it cannot be written as operators.
    """
    gates, inside = _write_routing(to, repaired, x, seen, logits)
    total = _write_sum(to, repaired, seen, logits, gates)
    if not isinstance(repaired.allocator, SmoothAllocator):
        return total
    smooth = repaired.allocator.write_outputs(to, seen, logits, repaired.centres)
    return to.call("Where", inside, total, smooth)


def _write_routing(
    to: Steps, repaired: RepairedNetwork, x: str, seen: str, logits: str
) -> tuple[str, str]:
    """Patches of each query, bool [N,Q], called :data:`GATES`; and whether it is in a region."""
    flat = to.call("Flatten", x, axis=1)
    home = _first_region(to, flat, repaired.box)
    least = to.constant(torch.zeros(1, dtype=torch.int64))
    inside = to.call("GreaterOrEqual", home, least)
    # Whoever is in no region gets region 0's patch here, and loses it again below.
    patch = to.call("Gather", to.constant(repaired.patch), to.call("Max", home, least), axis=0)
    here = one_hot(to, patch, len(repaired.bank))
    given = repaired.allocator.write(to, seen, logits, repaired.centres)
    column = to.call("Unsqueeze", inside, axes=(1,))
    return to.call("Identity", choose(to, column, here, given), name=GATES), column


def _write_sum(to: Steps, repaired: RepairedNetwork, x: str, logits: str, gates: str) -> str:
    """``logits + sum of the patches that are on``, [N,K]."""
    bank = repaired.bank
    weights = _weights(to, bank)
    most = repaired.allocator.most(repaired.centres)
    slots = min(len(bank), max(most, int(bool((repaired.patch >= 0).any()))))
    if slots > _SLOTS:
        return to.call("Add", logits, _all_at_once(to, bank, weights, x, gates))
    total, left = logits, gates
    shape = (-1, 1, size(bank.template.input_shape))
    rows = to.call("Reshape", x, shape=shape) if slots else x
    for slot in range(slots):
        patch, some = first_of(to, left)
        own = {name: to.call("Gather", w, patch, axis=0) for name, w in weights.items()}
        value = _evaluate(to, bank, own, rows)  # [N,1,K]
        value = to.call("Reshape", value, shape=(-1, bank.template.outputs))
        more = to.call("Add", total, value)
        total = to.call("Where", to.call("Unsqueeze", some, axes=(1,)), more, total)
        if slot + 1 < slots:
            used = one_hot(to, patch, len(bank))
            left = to.call("And", left, to.call("Not", used))
    return total


def _first_region(to: Steps, x: str, box: Box) -> str:
    """The first region that holds each input: int64 [N], -1 where there is none. x: [N,S]."""
    lower, upper = box.lower.flatten(1), box.upper.flatten(1)
    spread = lower.double().var(0, correction=0)
    order, count = spread.argsort(descending=True, stable=True), _PROBES
    candidates = _agreeing(lower, upper, order[:count])
    while count < len(order) and candidates > _CANDIDATES:
        count *= 2
        candidates = _agreeing(lower, upper, order[:count]) if count < len(order) else 0
    if count >= len(order):
        return _none_is_minus_one(to, *first_of(to, _held(to, x, lower, upper)))
    probes = order[:count]
    some = to.call("Gather", x, to.constant(probes), axis=1)
    left = _held(to, some, lower[:, probes], upper[:, probes])
    low, high = to.constant(lower, "region.lower"), to.constant(upper, "region.upper")
    home = ""
    for candidate in range(candidates):
        region, there = first_of(to, left)
        below = to.call("GreaterOrEqual", x, to.call("Gather", low, region, axis=0))
        above = to.call("LessOrEqual", x, to.call("Gather", high, region, axis=0))
        inside = to.call("And", there, every(to, to.call("And", below, above)))
        found = _none_is_minus_one(to, region, inside)
        # An earlier candidate wins: it is the earlier region.
        home = found if not home else _keep(to, home, found)
        if candidate + 1 < candidates:
            left = to.call("And", left, to.call("Not", one_hot(to, region, len(lower))))
    return home


def _agreeing(lower: Tensor, upper: Tensor, probes: Tensor) -> int:
    """How many regions can agree with one input in some coordinates, at most.

    Those that do meet one another there. Among so many, each has all others as neighbours; so
    taking away regions with few neighbours, again and again, shows how many there can be.
    """
    box = Box(lower[:, probes].contiguous(), upper[:, probes].contiguous())
    pairs = box.meets(box)
    pairs, most = pairs[pairs[:, 0] != pairs[:, 1]], 0
    while len(pairs):
        neighbours = torch.bincount(pairs[:, 0], minlength=len(box))
        most = max(most, int(neighbours[neighbours > 0].min()))
        pairs = pairs[(neighbours[pairs] > most).all(1)]
    return most + 1


def _held(to: Steps, x: str, lower: Tensor, upper: Tensor) -> str:
    """Which regions hold which input: bool [N,R]. x: [N,S]. lower, upper: [R,S]."""
    block = max(1, _NUMBERS // max(1, lower.shape[1]))
    row, found = to.call("Unsqueeze", x, axes=(1,)), []
    for low, high in zip(lower.split(block), upper.split(block), strict=True):
        below = to.call("GreaterOrEqual", row, to.constant(low))
        above = to.call("LessOrEqual", row, to.constant(high))
        found.append(every(to, to.call("And", below, above)))
    return found[0] if len(found) == 1 else to.call("Concat", *found, axis=1)


def _none_is_minus_one(to: Steps, index: str, there: str) -> str:
    none = to.constant(torch.full((1,), -1))
    return to.call("Where", there, index, none)


def _keep(to: Steps, first: str, second: str) -> str:
    """The first index, or the second where the first is -1."""
    known = to.call("GreaterOrEqual", first, to.constant(torch.zeros(1, dtype=torch.int64)))
    return to.call("Where", known, first, second)


def _weights(to: Steps, bank: PatchBank) -> dict[str, str]:
    """The weights of all patches, by name: matrices [Q,in,out], biases [Q,1,out]."""
    ready = {}
    for op in bank.template.operations:
        if op.kind == "linear":
            weight, bias = op.tensors["weight"], op.tensors["bias"]
            matrix = bank.stack[weight].transpose(1, 2)
            ready[weight] = to.constant(matrix, f"patch.{weight}")
            ready[bias] = to.constant(bank.stack[bias][:, None], f"patch.{bias}")
    return ready


def _evaluate(to: Steps, bank: PatchBank, weights: dict[str, str], x: str) -> str:
    """Patches with weights [B,in,out] on inputs [B or 1, N, S]: [B,N,K]."""
    value = x
    for op in bank.template.operations:
        if op.kind == "linear":
            product = to.call("MatMul", value, weights[op.tensors["weight"]])
            value = to.call("Add", product, weights[op.tensors["bias"]])
        elif op.kind == "relu":
            value = to.call("Relu", value)
    return value


def _all_at_once(to: Steps, bank: PatchBank, weights: dict[str, str], x: str, gates: str) -> str:
    """The sum of the patches that are on, each evaluated on every input: [N,K]."""
    rows = to.call("Reshape", x, shape=(1, -1, size(bank.template.input_shape)))
    values = _evaluate(to, bank, weights, rows)  # [Q,N,K]
    on = to.call("Unsqueeze", to.call("Transpose", gates, perm=(1, 0)), axes=(2,))
    zero = to.constant(torch.zeros(1, dtype=bank.template.dtype))
    return to.call("ReduceSum", to.call("Where", on, values, zero), axes=(0,), keepdims=0)
