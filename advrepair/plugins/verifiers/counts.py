"""What rows take along at each value on their way back: constants, and errors."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from attrs import define, field, frozen
from torch import Tensor

from advrepair.core.box import Box
from advrepair.core.graph import INPUT, STEPS, Network, Operation, size
from advrepair.core.rounding import UNIT64, Rounding, gamma
from advrepair.plugins.verifiers.account import Shallow
from advrepair.plugins.verifiers.affine import fan_in
from advrepair.plugins.verifiers.pools import gathered
from advrepair.plugins.verifiers.relaxations import Relaxation
from advrepair.plugins.verifiers.windows import flat, unflat

_SAME = frozenset({"add", "reshape", "permute"})  # rows pass them unchanged
# Roundings of ours at a ReLU beside those of a sum: of slope times constant, of that plus the
# offset, of row times slope; the rest is to spare.
_MORE = 16
# Of slope times constant and slope times error that underflow: rows may be larger than values.
# 2^-1072 covers it, but products with numbers as small as that take a hundred times as long.
_LOST = 2.0**-1000


@frozen(eq=False)
class Count:
    """What a row over a value takes along: ``row . constant``, and ``|row| . error`` at most.

    constant: [B or 1,n]. error: [B,n]. None is nothing.
    """

    constant: Tensor | None
    error: Tensor | None


@frozen(eq=False)
class Lines:
    """A function's lines, and what coefficients of either sign take along through it.

    lower, upper: [B,k,n], k inputs of each number, one but for a pool. positive, negative:
    [B,2,n] for constant and error, else [B,1,n].
    """

    lower: Tensor
    upper: Tensor
    positive: Tensor
    negative: Tensor


@define(eq=False)
class Counts:
    """What is taken along in one call, whose relaxations, sums and sizes grow meanwhile."""

    network: Network
    params: Mapping[str, Tensor]
    box: Box
    rounding: Rounding | None
    relaxed: Mapping[str, Relaxation]
    shallow: Mapping[str, Shallow]
    sums: Mapping[str, Tensor]
    sizes: Mapping[str, Tensor]
    shapes: dict[str, tuple[int, ...]] = field(init=False)
    absorbed: set[str] = field(init=False)
    _counts: dict[str, Count] = field(factory=dict)
    _lines: dict[tuple[str, bool], Lines] = field(factory=dict)

    def __attrs_post_init__(self) -> None:
        operations = self.network.operations
        self.shapes = {INPUT: self.network.input_shape} | {op.name: op.shape for op in operations}
        readers: dict[str, list[str]] = {name: [] for name in self.shapes}
        for op in operations:
            for source in op.inputs:
                readers[source].append(op.kind)
        # The rows over these are always those over the one value that reads them.
        self.absorbed = {
            name for name, kinds in readers.items() if len(kinds) == 1 and kinds[0] in _SAME
        }

    def through(self, op: Operation, merged: bool) -> Lines:
        """The lines of a function, with what is counted at its input.

        Sound: a coefficient a times a line s z + t is a s over z, and a t; what a row over z
        takes along is linear, so a takes s times that along. The constants are rounded a few
        times more than in a sum of products, which the errors they come with allow for; where
        a line has k inputs, 2 k times more, which is counted here.
        """
        if (op.name, merged) not in self._lines:
            relaxed, count = self.relaxed[op.name], self.at(op.inputs[0])
            constant, error = (self._at_inputs(op, t) for t in (count.constant, count.error))
            met = 2 * UNIT64 * flat(self.sizes[op.name], op.shape) if merged else 0.0
            slopes, found = [], []
            for sign, slope, offset in (
                (1, relaxed.lower_slope, relaxed.lower_offset),
                (-1, relaxed.upper_slope, relaxed.offset),
            ):
                slopes.append(slope := self._flat_slopes(op, slope))
                shift = torch.zeros_like(slope[:, 0]) if offset is None else flat(offset, op.shape)
                along = [shift if constant is None else _summed(slope * constant) + shift]
                if self.rounding:
                    own = gamma(size(op.shape) + 4 + _MORE) * shift.abs() + met + _LOST
                    if constant is not None and slope.shape[1] > 1:
                        own = own + gamma(2 * slope.shape[1]) * _summed((slope * constant).abs())
                    lost = own if error is None else _summed(slope.abs() * error) + own
                    along.append(sign * lost)
                found.append(torch.stack(along, 1))
            self._lines[op.name, merged] = Lines(*slopes, *found)
        return self._lines[op.name, merged]

    def _flat_slopes(self, op: Operation, slope: Tensor) -> Tensor:
        """Slopes of each number's k inputs, flat: [B,k,n]."""
        if op.kind != "max_pool2d":
            return flat(slope, op.shape).unsqueeze(1)
        return flat(slope.flatten(0, 1), op.shape).view(*slope.shape[:2], -1)

    def _at_inputs(self, op: Operation, value: Tensor | None) -> Tensor | None:
        """What each number's k inputs have of a flat value below a function: [B or 1,k,n]."""
        if value is None or op.kind != "max_pool2d":
            return value if value is None else value.unsqueeze(1)
        return self._flat_slopes(op, gathered(op, unflat(value, self.shapes[op.inputs[0]])))

    def at(self, name: str) -> Count:
        """What rows over a value take along there, and at the values that it absorbed."""
        if name not in self._counts:
            self._counts[name] = self._counted(name)
        return self._counts[name]

    def _counted(self, name: str) -> Count:
        shape, boxes = self.shapes[name], len(self.box)
        if value := self.shallow.get(name):
            center, radius = flat(value.center, shape), flat(value.radius, shape)
            if not self.rounding:
                return Count(center.expand(boxes, -1), None)
            # Also for what the rows that are pulled on to the input are off by.
            terms = size(shape) + size(self.network.input_shape) + 16 + _MORE
            off = flat(value.error, shape) + gamma(terms) * (center.abs() + 8 * radius)
            return Count(center.expand(boxes, -1), off)
        op = next(op for op in self.network.operations if op.name == name)
        constant, error = self._own(op)
        if op.kind in _SAME:
            for source in op.inputs:
                if source in self.absorbed:
                    count, before = self.at(source), self.shapes[source]
                    constant = total(constant, _moved(count.constant, op, before))
                    error = total(error, _moved(count.error, op, before))
        return Count(constant, error)

    def _own(self, op: Operation) -> tuple[Tensor | None, Tensor | None]:
        """The constant of one operation, and the error of it and of our rows through it."""
        constant = error = None
        if "bias" in op.tensors and op.kind != "relu":
            bias = self.params[op.tensors["bias"]]
            if op.kind == "conv2d":
                bias = bias.view(-1, 1, 1)
            constant = flat(bias.expand(len(self.box), *op.shape), op.shape)
        terms = fan_in(op, self.params)
        if self.rounding and terms:
            rate = self.rounding.relative(terms, size(op.shape) + terms + _MORE)
            error = rate * flat(self.sums[op.name], op.shape) + self.rounding.absolute(terms)
        return constant, error


def _summed(values: Tensor) -> Tensor:
    """The sum of [B,k,n] over k."""
    return values[:, 0] if values.shape[1] == 1 else values.sum(1)


def total(before: Tensor | None, more: Tensor | None) -> Tensor | None:
    """The sum of what there is."""
    if before is None or more is None:
        return more if before is None else before
    return before + more


def _moved(value: Tensor | None, op: Operation, before: tuple[int, ...]) -> Tensor | None:
    """A value [B,n] of the shape before through an operation that only rearranges."""
    if value is None or op.kind == "add":
        return value
    return flat(STEPS[op.kind](op, {}, [unflat(value, before)]), op.shape)
