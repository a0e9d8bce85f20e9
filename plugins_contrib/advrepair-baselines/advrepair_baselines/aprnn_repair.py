"""The LP of APRNN: inputs or corners of boxes, and ReLUs that keep the side they are on."""

from __future__ import annotations

import math
import time
from itertools import product
from typing import TYPE_CHECKING, Any

import torch
from attrs import frozen
from torch import Tensor

from advrepair import MethodResult, Network, Operation, PropertySet, Scope, Task, UsageError
from advrepair_baselines.layerwise import Tried, best_of, chosen_layers, looked_at, solved
from advrepair_baselines.linearised import Demanded, Effects, Place, gate, held
from advrepair_baselines.lp import refuse_if_too_large
from advrepair_baselines.weights import changeable, with_weights

if TYPE_CHECKING:
    from advrepair_baselines.aprnn import Aprnn

_SIDES, _CORNERS = 12, 2**16  # of a box, of all boxes; at most


@frozen(eq=False)
class Asked:
    """Inputs x, [n,*S], to be held as inputs like, [n,*S], and what is demanded of x."""

    x: Tensor
    like: Tensor
    demanded: Demanded


def repair(options: Aprnn, task: Task) -> MethodResult:
    """Change one layer after the other, and keep the best."""
    network, boxes = task.network, options.region == "boxes"
    layers = {op.name: op for op in chosen_layers("aprnn", task, options.layer)}
    held(network)
    asked = at_corners(options, task) if boxes else at_points(task)
    if boxes:
        first = first_layer(network)
        if first not in layers:
            raise UsageError("aprnn.region is boxes: only the first layer can change, layer 1")
        layers = {first: layers[first]}
    inside = len(asked.x) * sum(math.prod(op.shape) for op in network.operations)

    def attempt(layer: str, task: Task) -> Tried:
        begin, free = time.perf_counter(), changing(network, layers[layer])
        refuse_if_too_large(sum(network.tensors[n].numel() for n in free), inside, task.memory)
        place = Place.at(network, layer, free, asked.x, asked.like)
        effects = Effects(place, asked.demanded, sides(place))
        stage = f"aprnn: {layer}"
        change = solved(task, stage, effects, options.margin, options.limit, options.gap)
        model = None
        if change.value is not None:
            parts = place.split(change.value).items()
            moved = {n: (network.tensors[n].double() + v).to(network.dtype) for n, v in parts}
            model = with_weights(network, moved)
        return looked_at(task, layer, effects, change, model, time.perf_counter() - begin)

    more: dict[str, Any] = {"margin": options.margin, "inputs": len(asked.x)}
    if boxes:
        more |= {"regions": list(task.properties.names), "pieces": 2**options.cuts}
    return best_of(task, layers, attempt, Scope.REGION if boxes else Scope.POINTS, more)


def changing(network: Network, layer: Operation) -> tuple[str, ...]:
    """Tensors of a layer, and the biases of later ones."""
    every = changeable(network)
    later = every[[op.name for op in every].index(layer.name) + 1 :]
    biases = [op.tensors["bias"] for op in later if "bias" in op.tensors]
    return (*layer.tensors.values(), *biases)


def sides(place: Place) -> dict[str, Tensor]:
    """Of each ReLU's input 1 where it is held on, -1 where it is held off, by its name."""
    return {
        op.inputs[0]: torch.where(place.tensors[gate(op.name)] == 1, 1.0, -1.0).double()
        for op in place.rest.operations
        if gate(op.name) in place.tensors
    }


def at_points(task: Task) -> Asked:
    """The counterexamples, held as they are."""
    with torch.no_grad():
        outputs = task.network(task.x_adv)
    demanded = Demanded.nearest(task.properties[task.owner], outputs)
    return Asked(task.x_adv, task.x_adv, demanded)


# Boxes ---------------------------------------------------------------------------------


def first_layer(network: Network) -> str:
    """The name of the first layer with weights; raises UsageError if a ReLU comes before it."""
    layer = changeable(network)[0].name
    for op in network.operations:
        if op.name == layer:
            return layer
        if op.kind in ("relu", "leaky_relu"):
            raise UsageError(
                f"aprnn.region is boxes: a ReLU comes before the first layer, {layer!r}"
            )
    return layer


def at_corners(options: Aprnn, task: Task) -> Asked:
    """The corners of all pieces of all boxes, each held as the centre of its piece."""
    corners, centres, owner = [], [], []
    for i in range(len(task.properties)):
        lower, upper = task.properties.box.lower[i], task.properties.box.upper[i]
        wide = int((upper > lower).sum())
        count = len(task.properties) * 2**options.cuts * 2**wide if wide <= _SIDES else 0
        if not 0 < count <= _CORNERS:
            raise UsageError(
                f"aprnn.region is boxes: {task.properties.names[i]} has {wide} sides, so each of "
                f"its {2**options.cuts} pieces has 2^{wide} corners; {_CORNERS} are the most, of "
                "all pieces: take points, or fewer cuts"
            )
        for low, high in pieces(lower, upper, options.cuts):
            found = corners_of(low, high)
            corners.append(found)
            centres.append(((low + high) / 2)[None].expand_as(found))
            owner += [i] * len(found)
    like, index = torch.cat(centres), torch.tensor(owner)
    with torch.no_grad():
        outputs = task.network(like)
    asked: PropertySet = task.properties[index]
    return Asked(torch.cat(corners), like, Demanded.nearest(asked, outputs))


def pieces(lower: Tensor, upper: Tensor, cuts: int) -> list[tuple[Tensor, Tensor]]:
    """A box, halved along its widest side so many times: 2^cuts boxes that cover it."""
    if not cuts:
        return [(lower, upper)]
    side = int((upper - lower).argmax())
    middle = (lower.flatten()[side] + upper.flatten()[side]) / 2
    left, right = upper.clone(), lower.clone()
    left.view(-1)[side] = right.view(-1)[side] = middle
    return [*pieces(lower, left, cuts - 1), *pieces(right, upper, cuts - 1)]


def corners_of(lower: Tensor, upper: Tensor) -> Tensor:
    """All corners of a box, [2^sides,*S]; a side of width 0 is none."""
    low, high = lower.flatten(), upper.flatten()
    wide = (high > low).nonzero()[:, 0]
    bits = torch.tensor(list(product((False, True), repeat=len(wide))), dtype=torch.bool)
    found = low.repeat(len(bits), 1)
    found[:, wide] = torch.where(bits, high[wide], low[wide])
    return found.view(-1, *lower.shape)
