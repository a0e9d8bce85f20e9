"""Decoupled networks (PRDNN): the model, its LP, and how it writes itself."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from advrepair import MethodResult, Network, Scope, Task
from advrepair_baselines.layerwise import Tried, best_of, chosen_layers, looked_at, solved
from advrepair_baselines.linearised import Demanded, Effects, Place, gates, held
from advrepair_baselines.lp import refuse_if_too_large
from advrepair_baselines.writing import Writer

if TYPE_CHECKING:
    from advrepair_baselines.prdnn import Prdnn


class Decoupled(nn.Module):
    """A network whose ReLUs are on where those of another one are: D(x), [N,K] of [N,*S].

    active: says which are on; value: the one that computes, with other tensors. Both have the
    operations of one network. A ReLU whose input is 0 there is off.
    """

    def __init__(self, active: Network, changed: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.active = active
        tensors = active.tensors | {name: t.to(active.dtype) for name, t in changed.items()}
        self.value = Network(active.operations, tensors, active.input_shape)
        self.held = held(self.value)

    def forward(self, x: Tensor) -> Tensor:
        """D(x); differentiable in x wherever D is."""
        known = gates(self.active, self.active.values(self.active.tensors, x))
        return self.held.apply_tensors(self.held.tensors | known, x)

    def write(self, to: Any, x: str) -> str:
        """Both channels as operators; the name of [N,K]."""
        writer = Writer(to, self.active.input_shape)
        active = writer.network(self.active, x, "active")
        masks = {}
        for op in self.active.operations:
            if op.kind in ("relu", "leaky_relu"):
                masks[op.name] = writer.mask(op, active[op.inputs[0]], self.active.dtype)
        value = writer.network(self.value, x, "value", masks)
        return value[self.value.operations[-1].name]


def decouple(options: Prdnn, task: Task) -> MethodResult:
    """Change one layer after the other, and keep the best."""
    network = task.network
    layers = {op.name: op for op in chosen_layers("prdnn", task, options.layer)}
    held(network)
    with torch.no_grad():
        outputs = network(task.x_adv)
    demanded = Demanded.nearest(task.properties[task.owner], outputs)
    inside = len(task.x_adv) * sum(math.prod(op.shape) for op in network.operations)

    def attempt(layer: str, task: Task) -> Tried:
        begin, free = time.perf_counter(), tuple(layers[layer].tensors.values())
        refuse_if_too_large(sum(network.tensors[n].numel() for n in free), inside, task.memory)
        place = Place.at(network, layer, free, task.x_adv, task.x_adv)
        effects = Effects(place, demanded, {})
        stage = f"prdnn: {layer}"
        change = solved(task, stage, effects, options.margin, options.limit, options.gap)
        model = None
        if change.value is not None:
            parts = place.split(change.value).items()
            model = Decoupled(network, {n: network.tensors[n].double() + v for n, v in parts})
        seconds = time.perf_counter() - begin
        return looked_at(task, layer, effects, change, model, seconds)

    return best_of(task, layers, attempt, Scope.POINTS, {"margin": options.margin})
