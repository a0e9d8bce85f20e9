"""DeepPoly by back-substitution: linear bounds in the inputs, all intermediate ones too."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from attrs import define, field, frozen
from torch import Tensor

from advrepair.core.errors import UnsupportedNetworkError
from advrepair.core.graph import INPUT, STEPS, Network, Operation, size
from advrepair.core.interfaces import BoundFn, Verifier
from advrepair.core.options import option
from advrepair.core.rounding import UNIT64, Rounding, above
from advrepair.core.types import Box, LinearBound
from advrepair.plugins.verifiers.affine import DIAGONAL, PULL, fan_in, without_bias
from advrepair.plugins.verifiers.relaxations import SLOPES, Relaxation, relu


@frozen
class DeepPoly(Verifier):
    """Linear bounds by back-substitution through every layer (DeepPoly, CROWN).

    Singh et al., POPL 2019, 10.1145/3290354; Zhang et al., arXiv 1811.00866.
    """

    name: ClassVar[str] = "deeppoly"
    differentiable: ClassVar[bool] = True
    batchable: ClassVar[bool] = True
    rigorous: ClassVar[bool] = True

    lower_slope: str = option(
        "area", "slope below an unstable ReLU; area is DeepPoly's own choice", choices=SLOPES
    )

    def prepare(self, network: Network, rounding: Rounding | None = None) -> BoundFn:
        """Bounds for one network; see :class:`~advrepair.core.interfaces.Verifier`.

        Raises UnsupportedNetworkError for an operation without a rule, by node name.
        """
        check_supported(network, self.name)
        slope = self.lower_slope

        def bound(params: Mapping[str, Tensor], box: Box, C: Tensor, d: Tensor) -> LinearBound:
            state = _Propagation(network, params, box, slope, rounding)
            state.relax_all()
            return state.back_substitute(len(network.operations) - 1, C, d)

        return bound


def check_supported(network: Network, verifier: str) -> None:
    """Raises UnsupportedNetworkError unless every operation can be back-substituted."""
    shapes = {INPUT: network.input_shape} | {op.name: op.shape for op in network.operations}
    for op in network.operations:
        if op.kind not in PULL and op.kind not in ("relu", "add"):
            raise UnsupportedNetworkError(
                f"network: node {op.name!r} ({op.kind}) has no rule in verifier {verifier!r}; "
                "replace the node or choose another verifier"
            )
        if op.kind in ("scale", "add") and any(shapes[name] != op.shape for name in op.inputs):
            raise UnsupportedNetworkError(
                f"network: node {op.name!r} ({op.kind}) broadcasts its input "
                f"{shapes[op.inputs[0]]} to {op.shape}, which verifier {verifier!r} cannot bound"
            )


@define(eq=False)
class _Shallow:
    """A value that is affine in the input: exact interval, [B,*shape], and its error."""

    center: Tensor
    radius: Tensor
    error: Tensor
    mixed: bool


@define(eq=False)
class _Propagation:
    """One call: relaxations from the input on, then rows from the output back."""

    network: Network
    params: Mapping[str, Tensor]
    box: Box
    slope: str
    rounding: Rounding | None
    relaxed: dict[str, Relaxation] = field(factory=dict)
    shallow: dict[str, _Shallow] = field(factory=dict)
    # With rounding: |value| of every operation is at most sizes[name], and the sum of the
    # absolute values of its terms, which rounding errors scale with, at most sums[name].
    sizes: dict[str, Tensor] = field(factory=dict)
    sums: dict[str, Tensor] = field(factory=dict)

    def __attrs_post_init__(self) -> None:
        center, radius = self.box.center, self.box.radius
        if self.rounding:
            self.sizes[INPUT] = torch.maximum(self.box.lower.abs(), self.box.upper.abs())
        # The midpoint and the half width of float64 faces are rounded once each.
        error = 4 * UNIT64 * self.sizes[INPUT] if self.rounding else torch.zeros_like(radius)
        self.shallow[INPUT] = _Shallow(center, radius, error, mixed=False)

    def relax_all(self) -> None:
        """Bound the input of every ReLU, in order, each with the relaxations before it."""
        for op in self.network.operations:
            if self.rounding:
                self._measure(op, self.rounding)
            if op.kind == "relu":
                self._relax(op)
            else:
                self._extend_shallow(op)

    def _measure(self, op: Operation, rounding: Rounding) -> None:
        terms = fan_in(op, self.params)
        inputs = [self.sizes[name] for name in op.inputs]
        total = above(STEPS[op.kind](op, self._absolute(op), inputs))
        self.sums[op.name] = total
        rate = rounding.relative(terms, terms) if terms else 0.0
        self.sizes[op.name] = total * (1 + rate) + rounding.absolute(terms)

    def _absolute(self, op: Operation) -> dict[str, Tensor]:
        return {name: self.params[name].abs() for name in op.tensors.values()}

    def _relax(self, op: Operation) -> None:
        source = op.inputs[0]
        lower, upper = self._interval(source)
        self.relaxed[op.name] = relu(lower, upper, self.slope, self.rounding is not None)
        if self.rounding:
            reach = torch.maximum(lower.abs(), upper.abs())
            self.sizes[source] = torch.minimum(self.sizes[source], reach)
            self.sizes[op.name] = torch.minimum(self.sizes[op.name], upper.clamp(min=0))

    def _extend_shallow(self, op: Operation) -> None:
        """Carry the exact interval through an affine operation while it stays exact."""
        source = self.shallow.get(op.inputs[0])
        if source is None or len(op.inputs) > 1 or (source.mixed and op.kind not in DIAGONAL):
            return
        step, linear = STEPS[op.kind], without_bias(op)
        center = step(op, self.params, [source.center])
        radius = step(linear, self._absolute(op), [source.radius])
        error = source.error
        if self.rounding:
            terms = fan_in(op, self.params)
            rate = 3 * self.rounding.relative(terms, terms) if terms else 0.0
            error = step(linear, self._absolute(op), [source.error])
            error = above(error + rate * self.sums[op.name] + self.rounding.absolute(terms))
        mixed = source.mixed or op.kind not in DIAGONAL
        self.shallow[op.name] = _Shallow(center, radius, error, mixed)

    def _interval(self, name: str) -> tuple[Tensor, Tensor]:
        """Bounds of a value over the boxes, [B,*shape] each.

        Sound: exact interval arithmetic for a value that is affine in the input, otherwise
        back-substitution of every unit and of its negation.
        """
        if known := self.shallow.get(name):
            if not self.rounding:
                return known.center - known.radius, known.center + known.radius
            ends = 4 * UNIT64 * (known.center.abs() + known.radius)
            reach = known.radius + above(known.error + ends)
            return known.center - reach, known.center + reach
        index = next(i for i, op in enumerate(self.network.operations) if op.name == name)
        shape = self.network.operations[index].shape
        units = size(shape)
        eye = torch.eye(units, dtype=self.box.lower.dtype, device=self.box.lower.device)
        rows = torch.cat([eye, -eye]).view(1, 2 * units, *shape)
        bound = self.back_substitute(index, rows, rows.new_zeros(1, 2 * units))
        ends = bound.minimum_rigorous(self.box) if self.rounding else bound.minimum(self.box)
        lower, upper = ends[:, :units], -ends[:, units:]
        # Rounding may cross the ends of a very small interval.
        return lower.unflatten(1, shape), torch.maximum(lower, upper).unflatten(1, shape)

    def back_substitute(self, index: int, rows: Tensor, b: Tensor) -> LinearBound:
        """Rows over the value of operation ``index`` become rows over the input.

        Sound: an affine step substitutes an identity; a ReLU is replaced by its lower line
        under a positive coefficient and its upper line under a negative one. With rounding
        every step adds to ``error`` what it and the deployed step can be off by.

        rows: [B or 1,M,*shape]. b: [B or 1,M].
        """
        pending = {self.network.operations[index].name: rows}
        account = _Account(self, b, torch.zeros_like(b))
        for op in reversed(self.network.operations[: index + 1]):
            A = pending.pop(op.name, None)
            if A is None:
                continue
            if op.kind == "relu":
                A = account.through_relu(A, self.relaxed[op.name])
            elif op.kind != "add":
                A = account.through_affine(A, op)
            else:
                account.rounded(A, op)
            for source in op.inputs:
                pending[source] = account.merge(pending.get(source), A, source)
        return account.close(pending.get(INPUT))

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a value, without the batch."""
        shapes = {op.name: op.shape for op in self.network.operations}
        return shapes.get(name, self.network.input_shape)


@define(eq=False)
class _Account:
    """The constant of the rows on their way back, and the errors made so far, [B,M]."""

    state: _Propagation
    b: Tensor
    error: Tensor

    def through_relu(self, A: Tensor, lines: Relaxation) -> Tensor:
        positive, negative = A.clamp(min=0), A.clamp(max=0)
        self._add(_dot(negative, lines.offset))
        if self.state.rounding:
            # The lines absorb the rounding of A times slope; the dot product is left.
            rate = self.state.rounding.relative(0, size(A.shape[2:]))
            self.error = self.error - rate * _dot(negative, lines.offset)
        lower, upper = lines.lower_slope.unsqueeze(1), lines.upper_slope.unsqueeze(1)
        return positive * lower + negative * upper

    def through_affine(self, A: Tensor, op: Operation) -> Tensor:
        self.rounded(A, op)
        rows, constant = PULL[op.kind](op, self.state.params, A, self.state.shape(op.inputs[0]))
        if constant is not None:
            self._add(constant)
        return rows

    def rounded(self, A: Tensor, op: Operation) -> None:
        """Account for one operation: the deployed one and our own rows through it."""
        rounding, terms = self.state.rounding, fan_in(op, self.state.params)
        if not rounding or not terms:
            return
        rate = rounding.relative(terms, size(A.shape[2:]) + terms)
        reach = rate * self.state.sums[op.name] + rounding.absolute(terms)
        self.error = self.error + _dot(A.abs(), reach)

    def merge(self, before: Tensor | None, A: Tensor, source: str) -> Tensor:
        if before is None:
            return A
        total = before + A
        if self.state.rounding:
            self.error = self.error + 2 * UNIT64 * _dot(total.abs(), self.state.sizes[source])
        return total

    def _add(self, constant: Tensor) -> None:
        self.b = self.b + constant
        if self.state.rounding:
            self.error = self.error + 2 * UNIT64 * self.b.abs()

    def close(self, A: Tensor | None) -> LinearBound:
        """The finished bound; all errors are subtracted from its constant."""
        box, boxes = self.state.box.lower, self.state.box.lower.shape[0]
        rows = self.b.shape[1]
        if A is None:  # the output does not depend on the input
            A = box.new_zeros(boxes, rows, *box.shape[1:])
        A = A.expand(boxes, *A.shape[1:])
        if not self.state.rounding:
            return LinearBound(A, self.b.expand(boxes, rows))
        b = self.b - above(self.error + 4 * UNIT64 * self.b.abs())
        last = self.state.network.operations[-1].name
        known = self.state.sizes.get(last)
        return LinearBound(A, b.expand(boxes, rows), None if known is None else above(known))


def _dot(A: Tensor, value: Tensor) -> Tensor:
    """Rows [B or 1,M,*shape] times a value [B,*shape]: [B,M]."""
    return torch.matmul(A.flatten(2), value.flatten(1).unsqueeze(2)).squeeze(2)
