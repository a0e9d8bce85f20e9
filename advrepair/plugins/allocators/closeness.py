"""The repaired inputs that are near and similar in what patches see.

Sums over many features depend on their order, which a matrix product changes with the size of
the batch. So features are cut to whole multiples of a unit, so few that every sum of their
products is an integer below 2^53: exact in float64, in any order. What follows are single
operations that IEEE 754 rounds correctly. So the choice is the same whatever the batch, the
number of threads and the program, given the same features.
"""

from __future__ import annotations

import math

import torch
from attrs import frozen
from torch import Tensor

from advrepair.core.interfaces import OperatorList
from advrepair.core.types import Centres
from advrepair.plugins.allocators.labels import write_argmax, write_equal, write_to_patches
from advrepair.plugins.allocators.similarity import largest_of_label, write_largest

_BITS = 53  # of an integer that float64 holds
_SINGLE = 23  # of a multiple that float32 holds, and a sign
_LEAST = -1000  # exponent of a unit whose inverse is finite
_ODD, _LOST = -2, -3  # labels of repaired inputs and of queries with a NaN: nobody else has them


@frozen(eq=False)
class _Grid:
    """Features as whole multiples of a unit, a power of two: between -most and most.

    With D features ``D (2 most)^2 <= 2^53``, and that is more than any sum of products, or of
    squared differences, of D multiples. The largest feature of a repaired input, if all of its
    are finite, is at most half of ``most``; larger ones of a query are cut off beyond ``most``.
    """

    inverse: float
    most: float

    @classmethod
    def of(cls, known: Tensor) -> _Grid:
        """Of the features of repaired inputs, [P,D]."""
        bits = min(_SINGLE, (_BITS - 2 - math.ceil(math.log2(max(1, known.shape[1])))) // 2)
        sizes = _sizes(known)
        largest = float(sizes.where(sizes.isfinite(), 0.0).max())
        exponent = max(math.frexp(largest)[1], _LEAST)
        return cls(math.ldexp(1.0, bits - 1 - exponent), math.ldexp(1.0, bits))

    def multiples(self, features: Tensor) -> Tensor:
        """Of features [N,D], as float64: cut towards 0; of a NaN, 0."""
        scaled = features.double().nan_to_num(0.0, torch.inf, -torch.inf) * self.inverse
        return scaled.clamp(-self.most, self.most).trunc()

    def write(self, to: OperatorList, features: str) -> str:
        """The same as operators."""

        def number(value: float) -> str:
            return to.constant(torch.tensor([value], dtype=torch.float64))

        double = to.call("Cast", features, to=torch.float64)
        value = to.call("Where", to.call("IsNaN", features), number(0.0), double)
        value = to.call("Mul", value, number(self.inverse))
        value = to.call("Min", to.call("Max", value, number(-self.most)), number(self.most))
        return to.call("Cast", to.call("Cast", value, to=torch.int64), to=torch.float64)


def closest(x: Tensor, logits: Tensor, centres: Centres, top: int) -> Tensor:
    """The top repaired inputs of the same label: bool [N,P]; the first of equals.

    x: [N,*S]; one with a NaN is near nothing, and so is a repaired input with one.
    """
    features, known = x.flatten(1), centres.x.flatten(1)
    label = logits.argmax(1).masked_fill(features.isnan().any(1), _LOST)
    grid = _Grid.of(known)

    def scores(queries: Tensor, candidates: Tensor) -> Tensor:
        return _closeness(grid.multiples(features[queries]), grid.multiples(known[candidates]))

    return largest_of_label(label, _labels(centres), top, known.shape[1], scores)


def _labels(centres: Centres) -> Tensor:
    """Labels of the repaired inputs, [P], but of those with a NaN."""
    return centres.label.masked_fill(_sizes(centres.x.flatten(1)).isnan(), _ODD)


def _sizes(features: Tensor) -> Tensor:
    """The largest feature of each row, [N]; NaN where there is one."""
    return torch.maximum(features.amax(1), -features.amin(1))


def _closeness(query: Tensor, known: Tensor) -> Tensor:
    """``|f - f_i| (cos(f, f_i) - 2)``, [N,P], of multiples [N,D] and [P,D]; the most is closest.

    The cosine of what has no length counts as 0.
    """
    product = query @ known.T
    own, square = query.square().sum(1, keepdim=True), known.square().sum(1)[None]
    apart = (own + square) - (product + product)
    cosine = product / (own.sqrt() * square.sqrt()).clamp(min=1.0)
    return apart.sqrt() * (cosine - 2)


def write_closest(to: OperatorList, x: str, logits: str, centres: Centres, top: int) -> str:
    """Their patches as operators: bool [N,Q]; the same integers, and the same roundings.

    top: no more than there are repaired inputs.
    """
    features = to.call("Flatten", x, axis=1)
    grid = _Grid.of(centres.x.flatten(1))
    known = grid.multiples(centres.x.flatten(1))
    square = known.square().sum(1)[None]
    query = grid.write(to, features)
    # Whole numbers below 2^24 are float32 as well, which halves the file.
    stored = to.call("Cast", to.constant(known.T.float().contiguous()), to=torch.float64)
    product = to.call("MatMul", query, stored)
    own = to.call("ReduceSum", to.call("Mul", query, query), axes=(1,), keepdims=1)
    sizes = to.call("Add", own, to.constant(square))
    apart = to.call("Sub", sizes, to.call("Add", product, product))
    lengths = to.call("Mul", to.call("Sqrt", own), to.constant(square.sqrt()))
    one, two = (to.constant(torch.tensor([e], dtype=torch.float64)) for e in (1.0, 2.0))
    cosine = to.call("Div", product, to.call("Max", lengths, one))
    score = to.call("Mul", to.call("Sqrt", apart), to.call("Sub", cosine, two))
    odd = to.call("Cast", to.call("IsNaN", features), to=torch.int32)
    odd = to.call("Cast", to.call("ReduceMax", odd, axes=(1,), keepdims=1), to=torch.bool)
    same = write_equal(to, write_argmax(to, logits), _labels(centres))
    candidate = to.call("And", same, to.call("Not", odd))
    return write_to_patches(to, write_largest(to, score, candidate, top), centres)
