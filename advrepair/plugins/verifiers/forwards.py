"""What is known of values on the way forwards: their sizes, and intervals around them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from attrs import define, field
from torch import Tensor

from advrepair.core.box import Box
from advrepair.core.graph import INPUT, NON_AFFINE, STEPS, Network, Operation
from advrepair.core.rounding import UNIT64, Rounding, above
from advrepair.plugins.verifiers.account import Shallow
from advrepair.plugins.verifiers.affine import DIAGONAL, fan_in, without_bias
from advrepair.plugins.verifiers.interval_arithmetic import image


@define(eq=False)
class Forwards:
    """One call, from the input on."""

    network: Network
    params: Mapping[str, Tensor]
    box: Box
    slope: str
    rounding: Rounding | None
    shallow: dict[str, Shallow] = field(factory=dict)
    # With rounding: |value| of every operation is at most sizes[name], and the sum of the
    # absolute values of its terms, which rounding errors scale with, at most sums[name].
    sizes: dict[str, Tensor] = field(factory=dict)
    sums: dict[str, Tensor] = field(factory=dict)
    # Intervals of values that are not affine in the input, for a first look at what bends them.
    _around: dict[str, Shallow] = field(factory=dict)
    _bounded: dict[str, tuple[Tensor, Tensor]] = field(factory=dict)
    _sources: dict[str, str] = field(factory=dict)
    _sizes_of_weights: dict[str, Tensor] = field(factory=dict)

    def __attrs_post_init__(self) -> None:
        center, radius = self.box.center, self.box.radius
        if self.rounding:
            size = torch.maximum(self.box.lower.abs(), self.box.upper.abs())
            self.sizes[INPUT] = self.rounding.overflowing(size)
        # The midpoint and the half width of float64 faces are rounded once each.
        error = 4 * UNIT64 * self.sizes[INPUT] if self.rounding else torch.zeros_like(radius)
        self.shallow[INPUT] = Shallow(center, radius, error, mixed=False)

    def measure(self, op: Operation, rounding: Rounding) -> None:
        """The size and the sum of an operation, from the sizes of its inputs."""
        terms = fan_in(op, self.params)
        inputs = [self.sizes[name] for name in op.inputs]
        total = above(STEPS[op.kind](op, self._absolute(op), inputs))
        share = terms if op.kind == "avg_pool2d" else 1  # summed before it is divided
        total = rounding.overflowing(total * share) / share
        self.sums[op.name] = total
        rate = rounding.relative(terms, terms) if terms else 0.0
        self.sizes[op.name] = total * (1 + rate) + rounding.absolute(terms)

    def _absolute(self, op: Operation) -> dict[str, Tensor]:
        for name in op.tensors.values():
            if name not in self._sizes_of_weights:
                self._sizes_of_weights[name] = self.params[name].abs()
        return self._sizes_of_weights

    def _extend_shallow(self, op: Operation) -> None:
        """Carry the exact interval through an affine operation while it stays exact."""
        source = self.shallow.get(op.inputs[0])
        if source is None or len(op.inputs) > 1 or (source.mixed and op.kind not in DIAGONAL):
            return
        self.shallow[op.name] = self._image(op, [source])

    def _image(self, op: Operation, sources: list[Shallow]) -> Shallow:
        """Interval arithmetic through an affine operation, [B,*shape]."""
        step, linear, weights = STEPS[op.kind], without_bias(op), self._absolute(op)
        center = step(op, self.params, [source.center for source in sources])
        radius = step(linear, weights, [source.radius for source in sources])
        error = sources[0].error
        if self.rounding:
            terms = fan_in(op, self.params)
            # Ours three times: center, radius, and the sum of the two.
            rate = self.rounding.relative(terms, 4 * terms + 16) if terms else 0.0
            error = step(linear, weights, [source.error for source in sources])
            error = above(error + rate * self.sums[op.name] + self.rounding.absolute(terms))
        mixed = sources[0].mixed or op.kind not in DIAGONAL
        return Shallow(center, radius, error, mixed)

    def _faces(self, value: Shallow) -> tuple[Tensor, Tensor]:
        """Least and largest value of what lies around a centre."""
        if not self.rounding:
            return value.center - value.radius, value.center + value.radius
        ends = 4 * UNIT64 * (value.center.abs() + value.radius)
        reach = value.radius + above(value.error + ends)
        return value.center - reach, value.center + reach

    def _interval_around(self, name: str) -> Shallow:
        """Interval arithmetic, from the functions that are bounded already."""
        if name in self.shallow:
            return self.shallow[name]
        if name not in self._around:
            op = self._operation(name)
            reader = next((r for r, source in self._sources.items() if source == name), None)
            if op.kind in NON_AFFINE:
                ends = image(op, *self._bounded[name], self.rounding)
                self._around[name] = self._between(name, *ends)
            elif reader is not None:
                self._around[name] = self._between(name, *self._bounded[reader])
            else:
                sources = [self._interval_around(source) for source in op.inputs]
                self._around[name] = self._image(op, sources)
        return self._around[name]

    def _between(self, name: str, low: Tensor, high: Tensor) -> Shallow:
        """A value between two ends, and within its size, by which its images count what they lose.

        Rows may bound a value more loosely than its size does.
        """
        if not self.rounding:
            return Shallow((low + high) / 2, (high - low) / 2, torch.zeros_like(low), True)
        size = self.sizes[name]
        low, high = torch.maximum(low, -size), torch.minimum(high, size)
        # Of the midpoint and of the half width.
        error = above(4 * UNIT64 * torch.maximum(low.abs(), high.abs()))
        return Shallow((low + high) / 2, (high - low) / 2, error, True)

    def _operation(self, name: str) -> Operation:
        return next(op for op in self.network.operations if op.name == name)
