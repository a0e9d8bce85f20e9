"""What rows carry on their way back: their constant, and every error made so far."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from attrs import define, frozen
from torch import Tensor

from advrepair.core.box import Box
from advrepair.core.graph import Network, Operation, size
from advrepair.core.rounding import UNDERFLOW, UNIT64, Rounding, above, gamma
from advrepair.core.types import LinearBound
from advrepair.plugins.verifiers.affine import PULL, fan_in, without_bias
from advrepair.plugins.verifiers.pools import scattered
from advrepair.plugins.verifiers.relaxations import Relaxation


@frozen(eq=False)
class Shallow:
    """A value that is affine in the input: exactly center ± radius, [B,*shape].

    error: what the deployed value and our numbers may be off by. mixed: whether some sum
    was taken on the way; interval arithmetic is exact through one, and no more.
    """

    center: Tensor
    radius: Tensor
    error: Tensor
    mixed: bool


@define(eq=False)
class Account:
    """Constant b and error of rows, [B,M]; with rounding None no error is counted.

    sums: of the absolute terms of every value; sizes: of the absolute values, [B,*shape].
    """

    network: Network
    params: Mapping[str, Tensor]
    rounding: Rounding | None
    sums: Mapping[str, Tensor]
    sizes: Mapping[str, Tensor]
    b: Tensor
    error: Tensor

    def through_lines(self, A: Tensor, op: Operation, lines: Relaxation) -> Tensor:
        """Replace a function by its lower line where A >= 0 and its upper line where A < 0."""
        positive = A.relu()
        negative = A - positive
        lifted = dot(negative, lines.offset)
        absolute = -lifted  # of a ReLU, whose offset is not negative
        if lines.lower_offset is not None:
            lifted = lifted + dot(positive, lines.lower_offset)
            largest = torch.maximum(lines.offset.abs(), lines.lower_offset.abs())
            absolute = dot(A.abs(), largest)
        self._add(lifted)
        if self.rounding:
            # The lines absorb the rounding of A times slope; the dot products are left.
            self.error = self.error + gamma(size(A.shape[2:]) + 4) * absolute
        lower, upper = lines.lower_slope.unsqueeze(1), lines.upper_slope.unsqueeze(1)
        if op.kind != "max_pool2d":
            return positive * lower + negative * upper
        rows = positive.unsqueeze(2) * lower + negative.unsqueeze(2) * upper
        found = scattered(op, rows.flatten(0, 1), self._shape(op.inputs[0]))
        return found.view(*rows.shape[:2], *found.shape[1:])

    def through_affine(self, A: Tensor, op: Operation) -> Tensor:
        """Substitute an affine operation by its definition."""
        self.rounded(A, op)
        rows, constant = PULL[op.kind](op, self.params, A, self._shape(op.inputs[0]))
        if constant is not None:
            self._add(constant)
        return rows

    def through_linear_part(self, A: Tensor, op: Operation) -> Tensor:
        """The rows alone: constant and errors were counted at a shallow value above."""
        return PULL[op.kind](without_bias(op), self.params, A, self._shape(op.inputs[0]))[0]

    def rounded(self, A: Tensor, op: Operation) -> None:
        """Count one operation: the deployed one, and our own rows through it."""
        terms = fan_in(op, self.params)
        if not self.rounding or not terms:
            return
        rate = self.rounding.relative(terms, size(A.shape[2:]) + terms)
        self.error = self.error + dot(
            A.abs(), rate * self.sums[op.name] + self.rounding.absolute(terms)
        )

    def merge(self, before: Tensor | None, A: Tensor, source: str) -> Tensor:
        """Rows over one value that come from two places."""
        if before is None:
            return A
        total = before + A
        if self.rounding:
            self.error = self.error + 2 * UNIT64 * dot(total.abs(), self.sizes[source])
        return total

    def at_shallow(self, A: Tensor, value: Shallow) -> None:
        """Take the midpoint of a shallow value into the constant; its radius is left.

        With rounding: the midpoint's error, our own sum, and what the rows over the input
        that are still to be computed can be off by, which is at most a rate of |A| radius.
        """
        self._add(dot(A, value.center))
        if self.rounding:
            terms = size(A.shape[2:]) + size(self.network.input_shape) + 16
            absolute = value.center.abs() + 8 * value.radius
            self.error = self.error + dot(A.abs(), value.error + gamma(terms) * absolute)

    def close(
        self, A: Tensor, box: Box, magnitude: Tensor | None, slope: Tensor | None
    ) -> LinearBound:
        """The finished bound over the input; all errors are subtracted from its constant."""
        boxes, rows = len(box), self.b.shape[1]
        A = A.expand(boxes, *A.shape[1:])
        size = None if magnitude is None else above(magnitude)
        if not self.rounding:
            return LinearBound(A, self.b.expand(boxes, rows), size, slope)
        error = self._total().expand(boxes, rows)
        return LinearBound(A, self.b.expand(boxes, rows) - error, size, slope, error=error)

    def least(self, A: Tensor, radius: Tensor) -> Tensor:
        """Lower end of the rows, [B,M], once every midpoint is in the constant."""
        spread: Tensor = _AbsoluteDot.apply(A.flatten(2), radius.flatten(1))  # type: ignore[no-untyped-call]
        lowest = self.b - spread
        if self.rounding:
            lowest = lowest - self._total() - above(4 * UNIT64 * spread)
        return lowest

    def _add(self, constant: Tensor) -> None:
        self.b = self.b + constant
        if self.rounding:
            self.error = self.error + 2 * UNIT64 * self.b.abs()

    def _total(self) -> Tensor:
        return above(self.error + 4 * UNIT64 * self.b.abs()) + UNDERFLOW

    def _shape(self, name: str) -> tuple[int, ...]:
        shapes = {op.name: op.shape for op in self.network.operations}
        return shapes.get(name, self.network.input_shape)


def dot(A: Tensor, value: Tensor) -> Tensor:
    """Rows [B or 1,M,*shape] times a value [B,*shape]: [B,M]."""
    return (A.flatten(2) @ value.flatten(1).unsqueeze(2)).squeeze(2)


class _AbsoluteDot(torch.autograd.Function):
    """``|A| r``, [B or 1,M,S] and [B,S] to [B,M], with a backward pass that reads A once."""

    generate_vmap_rule = True

    @staticmethod
    def forward(A: Tensor, radius: Tensor) -> Tensor:
        column = radius.unsqueeze(2)
        # |A| = 2 max(A, 0) - A; relu is three times as fast as abs on large tensors.
        return (2 * (A.relu() @ column) - A @ column).squeeze(2)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, *gradient: Tensor) -> tuple[Tensor, None]:
        A, radius = ctx.saved_tensors
        # At A = 0 this is one of the subgradients.
        rows = torch.copysign(radius.unsqueeze(1), A) * gradient[0].unsqueeze(2)
        return rows if rows.shape[0] == A.shape[0] else rows.sum(0, keepdim=True), None
