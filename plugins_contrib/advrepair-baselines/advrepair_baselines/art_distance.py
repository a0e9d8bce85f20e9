"""How far cells are from being proved, with gradients for weights and for faces."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from attrs import frozen
from torch import Tensor

from advrepair import BoundFn, Box, Network, Task, UsageError
from advrepair_baselines.art_cells import Cells

_AT_ONCE = 2**28  # bytes of bounds that are differentiated at once
_NEVER = 1e30  # the distance where nothing is known
Weights = Mapping[str, Tensor]


def worst(values: Tensor, group: Tensor) -> Tensor:
    """Of rows [n,M] the best of each group, and of these the worst: [n]. group: -1 pads."""
    best = []
    for number in range(int(group.max()) + 1):
        mine = group == number
        most = values.masked_fill(~mine, -torch.inf).amax(1)
        best.append(most.masked_fill(~mine.any(1), torch.inf))
    return torch.stack(best).amin(0)


@frozen(eq=False)
class Distances:
    """How far cells are from being proved. at_once: cells that are differentiated together."""

    task: Task
    margin: float
    at_once: int
    bound: BoundFn

    @classmethod
    def of(cls, task: Task, margin: float) -> Distances:
        """Raises UsageError if the bounds of one cell need more memory than there is."""
        each = bytes_per_cell(task.network, task.properties.C.shape[1])
        if each > task.memory:
            raise UsageError(
                f"art differentiates bounds, of one cell {each / 2**30:.3g} GiB, and there are "
                f"{task.memory / 2**30:.3g} GiB: raise --memory, or take a smaller network"
            )
        return cls(task, margin, max(1, _AT_ONCE // each), task.prepare(task.network))

    def of_cells(self, weights: Weights, cells: Cells, index: Tensor) -> Tensor:
        """dist of some cells, [n]; 0 only if all that a cell owes is proved with the margin."""
        return self.of_boxes(weights, cells.box[index], *cells.pairs(index))

    def of_boxes(self, weights: Weights, box: Box, place: Tensor, owed: Tensor) -> Tensor:
        """The same of boxes, [n]: box place[i] owes property owed[i]."""
        asked, params = self.task.properties, self.task.network.tensors | dict(weights)
        some = Box(box.lower[place], box.upper[place])
        C, d = (each[owed].to(some.lower.dtype) for each in (asked.C, asked.d))
        rows = self.bound(params, some, C, d).minimum(some)
        margin = worst(rows, asked.group[owed])
        margin = torch.where(margin.isfinite(), margin, -_NEVER)
        each = (self.margin - margin).clamp(min=0)
        return each.new_zeros(len(box)).index_add(0, place, each)

    def shares(self, weights: Weights, cells: Cells, index: Tensor) -> Tensor:
        """What each input's width has in the distance of some cells, [n,S].

        ``(|min(d dist / d lower, 0)| + max(d dist / d upper, 0)) width``: what a narrower cell
        may gain, in the first order.
        """
        parts = []
        for part in index.split(self.at_once):
            lower, upper = (each[part].clone().requires_grad_() for each in
                            (cells.box.lower, cells.box.upper))  # fmt: skip
            dist = self.of_boxes(weights, Box(lower, upper), *cells.pairs(part))
            low, high = torch.autograd.grad(dist.sum(), (lower, upper))
            gain = -low.clamp(max=0) + high.clamp(min=0)
            parts.append((gain * (upper - lower).detach()).flatten(1).nan_to_num(0.0))
        return torch.cat(parts)


def bytes_per_cell(network: Network, rows: int) -> int:
    """Memory of bounding a cell by back-substitution with gradients, in bytes (an estimate).

    Every ReLU that is not the first sends two rows a unit back, which are kept at each step.
    """
    kept = math.prod(network.input_shape)
    total, relus = 0, 0
    for op in network.operations:
        if op.kind == "relu":
            total += (2 * math.prod(op.shape) if relus else 0) * kept
            relus += 1
        kept += math.prod(op.shape)
    return 2 * 4 * (total + rows * kept)
