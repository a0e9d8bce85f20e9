"""The exact minimum of a tiny ReLU network over a box, in rational arithmetic.

A ReLU network is affine on each of finitely many convex polygons. The box is cut along the
kinks of one ReLU after the other; on every polygon that is left the network is affine, so
its minimum lies at a vertex. Only the vertices are kept, with the network's values there:
values at a new vertex follow by interpolation, exactly, because they are affine between.

Limits: one or two input coordinates (polygons have an order of vertices, polytopes do not),
affine operations and ReLU, and about 20 unstable ReLUs: the polygons grow with their square.
Evaluation at a point has no such limits, and knows max pools. Smooth activations are beyond it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fractions import Fraction
from itertools import pairwise

import torch
import torch.nn.functional as F
from attrs import evolve
from torch import Tensor

from advrepair.core.box import Box
from advrepair.core.errors import UsageError
from advrepair.core.graph import INPUT, STEPS, Network, Operation, PoolWindow, size

Vector = list[Fraction]
Vertex = dict[str, Vector]  # the value of every operation so far, at one point
_AFFINE = ("linear", "conv2d", "scale", "avg_pool2d", "pad", "reshape", "permute")
_Row = tuple[list[tuple[int, Fraction]], Fraction]  # its non-zero coefficients, its constant


def can_evaluate(network: Network) -> bool:
    """Whether the values of a network at a point are rational: no smooth activation."""
    return {op.kind for op in network.operations} <= {*_AFFINE, "relu", "add", "max_pool2d"}


def fractions(tensor: Tensor) -> Vector:
    """The numbers of a tensor, exactly."""
    return [Fraction(number) for number in tensor.detach().double().flatten().tolist()]


def exact_minimum(network: Network, box: Box, C: Tensor, d: Tensor) -> list[Vector]:
    """Least value of each row of ``C f(x) + d`` over each box, [B][M].

    network: one or two input coordinates. C: [B,M,K]. d: [B,M].
    Raises UsageError for a network beyond the limits of this oracle.
    """
    if not 1 <= size(network.input_shape) <= 2:
        raise UsageError("oracle: the network must have one or two input coordinates")
    if pool := next((op.name for op in network.operations if op.kind == "max_pool2d"), None):
        raise UsageError(f"oracle: node {pool!r} (max_pool2d) can be evaluated at a point only")
    rules = _rules(network)
    result = []
    for lower, upper, rows, shift in zip(box.lower, box.upper, C, d, strict=True):
        vertices = [
            vertex
            for polygon in _polygons(network, rules, _corners(lower, upper))
            for vertex in polygon
        ]
        values = [_specified(network, vertex, rows, shift) for vertex in vertices]
        result.append([min(column) for column in zip(*values, strict=True)])
    return result


def exact_rows(network: Network, x: Tensor, C: Tensor, d: Tensor) -> Vector:
    """``C f(x) + d`` at one point, exactly. x: [*S]. C: [M,K]. d: [M]."""
    rules = _rules(network)
    vertex: Vertex = {INPUT: fractions(x)}
    for op in network.operations:
        _advance(op, rules, vertex)
    return _specified(network, vertex, C, d)


def _specified(network: Network, vertex: Vertex, C: Tensor, d: Tensor) -> Vector:
    y = vertex[network.operations[-1].name]
    return [
        sum((c * v for c, v in zip(fractions(row), y, strict=True)), shift)
        for row, shift in zip(C, fractions(d), strict=True)
    ]


def _rules(network: Network) -> dict[str, list[_Row]]:
    """The sparse rows of every affine operation."""
    tensors = {name: t.double() for name, t in network.tensors.items()}
    shapes = {INPUT: network.input_shape} | {op.name: op.shape for op in network.operations}
    rules = {}
    for op in network.operations:
        if op.kind in _AFFINE:
            rules[op.name] = _rows(op, tensors, shapes[op.inputs[0]])
        elif op.kind == "max_pool2d":
            rules[op.name] = _windows(op, shapes[op.inputs[0]])
        elif op.kind not in ("relu", "add"):
            raise UsageError(f"oracle: node {op.name!r} ({op.kind}) is neither affine nor a ReLU")
    return rules


def _windows(op: Operation, shape: Sequence[int]) -> list[_Row]:
    """What meets in each window of a max pool, each with the factor 1."""
    pool = PoolWindow.of(op)
    (top, left), numbers = pool.padding, torch.arange(1.0, size(shape) + 1).view(1, *shape)
    around = F.pad(numbers, (left, left, top, top)).transpose(0, 1)
    met = F.unfold(around, pool.kernel, stride=pool.stride).transpose(1, 2).flatten(0, 1)
    return [
        ([(int(i) - 1, Fraction(1)) for i in window if i > 0], Fraction(0))
        for window in met.tolist()
    ]


def _rows(op: Operation, tensors: dict[str, Tensor], shape: Sequence[int]) -> list[_Row]:
    """Read off the operation's matrix by applying it to unit vectors: no sum, no rounding."""
    linear = {role: name for role, name in op.tensors.items() if role != "bias"}
    units = torch.eye(size(shape), dtype=torch.float64).view(-1, *shape)
    columns = STEPS[op.kind](evolve(op, tensors=linear), tensors, [units]).flatten(1)
    shift = STEPS[op.kind](op, tensors, [torch.zeros_like(units[:1])]).flatten()
    rows = []
    for column, constant in zip(columns.T, fractions(shift), strict=True):
        used = column.nonzero()[:, 0].tolist()
        weights = [Fraction(column[i].item()) for i in used]
        if op.kind == "avg_pool2d":  # a third is no float
            weights = [Fraction(1, round(1 / float(w))) for w in weights]
        rows.append((list(zip(used, weights, strict=True)), constant))
    return rows


def _advance(op: Operation, rules: dict[str, list[_Row]], vertex: Vertex) -> None:
    """Add the operation's value at one vertex."""
    if op.kind == "relu":
        vertex[op.name] = [max(value, Fraction(0)) for value in vertex[op.inputs[0]]]
    elif op.kind == "max_pool2d":
        x = vertex[op.inputs[0]]
        vertex[op.name] = [max(x[i] for i, _ in window) for window, _ in rules[op.name]]
    elif op.kind == "add":
        one, other = (vertex[name] for name in op.inputs)
        vertex[op.name] = [a + b for a, b in zip(one, other, strict=True)]
    else:
        x = vertex[op.inputs[0]]
        vertex[op.name] = [
            sum((w * x[i] for i, w in row), constant) for row, constant in rules[op.name]
        ]


def _corners(lower: Tensor, upper: Tensor) -> list[Vertex]:
    """The box's corners in order around it; two for a segment."""
    low, high = fractions(lower), fractions(upper)
    around = [low, [high[0], low[-1]], high, [low[0], high[-1]]]
    points = around if len(low) == 2 else [low, high]
    return [{INPUT: point} for point in points]


def _polygons(
    network: Network, rules: dict[str, list[_Row]], corners: list[Vertex]
) -> Iterable[list[Vertex]]:
    """Polygons that cover the box, on each of which the network is affine."""
    polygons = [corners]
    for op in network.operations:
        if op.kind == "relu":
            for unit in range(size(op.shape)):
                polygons = [p for whole in polygons for p in _cut(whole, op.inputs[0], unit)]
        for polygon in polygons:
            for vertex in polygon:
                if op.name not in vertex:  # vertices are shared between neighbours
                    _advance(op, rules, vertex)
    return polygons


def _cut(polygon: list[Vertex], name: str, unit: int) -> list[list[Vertex]]:
    """The parts of a polygon where a value is <= 0 and >= 0; just itself if it has one sign."""
    signs = [vertex[name][unit] for vertex in polygon]
    if min(signs) >= 0 or max(signs) <= 0:
        return [polygon]
    below: list[Vertex] = []
    above: list[Vertex] = []
    around = [*zip(polygon, signs, strict=True), (polygon[0], signs[0])]
    for (vertex, value), (following, next_value) in pairwise(around):
        if value <= 0:
            below.append(vertex)
        if value >= 0:
            above.append(vertex)
        if value * next_value < 0:
            crossing = _between(vertex, following, value / (value - next_value))
            below.append(crossing)
            above.append(crossing)
    return [below, above]


def _between(start: Vertex, end: Vertex, share: Fraction) -> Vertex:
    return {
        name: [a + share * (b - a) for a, b in zip(values, end[name], strict=True)]
        for name, values in start.items()
    }
