"""The kernel allocator as standard operators."""

from __future__ import annotations

import torch

from advrepair.core.interfaces import OperatorList
from advrepair.plugins.allocators.density import Density, Fitted


def write_outputs(
    to: OperatorList, x: str, logits: str, trust: float, fitted: Fitted, dtype: torch.dtype
) -> str:
    """F outside the boxes, [N,K]: the same products and sums as torch does, per class."""
    density = Density.of(fitted, dtype)

    def number(value: float) -> str:
        return to.constant(torch.tensor([value], dtype=dtype))

    shifted = to.call("Sub", to.call("Flatten", x, axis=1), number(density.low))
    r = to.call("Mul", shifted, number(density.scale))
    r = to.call("Min", to.call("Max", r, number(0.0)), number(1.0))
    phi, sums = to.call("MatMul", r, to.constant(density.map)), []
    stored = zip(density.points.split(density.counts), density.blocks(), strict=True)
    for half, (_, square) in stored:
        points = to.call("Cast", to.constant(half.T.contiguous()), to=dtype)
        product = to.call("Mul", to.call("MatMul", phi, points), number(2 / density.temperature))
        offset = to.constant(square[None] / density.temperature)
        sums.append(_log_sum(to, to.call("Sub", product, offset)))
    sums_of_all = to.call("Concat", *sums, axis=1)
    known = to.call("Sub", sums_of_all, _log_sum(to, sums_of_all))
    probability = to.call("Add", _softmax(to, logits), number(trust))
    weighed = to.call("Mul", known, number(density.weight))
    return to.call("Add", to.call("Log", probability), weighed)


def _log_sum(to: OperatorList, scores: str) -> str:
    """log sum exp of each row, [N,1]."""
    most = to.call("ReduceMax", scores, axes=(1,), keepdims=1)
    parts = to.call("Exp", to.call("Sub", scores, most))
    return to.call("Add", to.call("Log", to.call("ReduceSum", parts, axes=(1,), keepdims=1)), most)


def _softmax(to: OperatorList, logits: str) -> str:
    most = to.call("ReduceMax", logits, axes=(1,), keepdims=1)
    parts = to.call("Exp", to.call("Sub", logits, most))
    return to.call("Div", parts, to.call("ReduceSum", parts, axes=(1,), keepdims=1))
