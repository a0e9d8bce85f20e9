"""Back-substitution: relaxations from the input on, then rows from the output back."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from attrs import define, field
from torch import Tensor

from advrepair.core.box import Box
from advrepair.core.graph import INPUT, STEPS, Network, Operation, size
from advrepair.core.rounding import UNIT64, Rounding, above
from advrepair.core.types import LinearBound
from advrepair.plugins.verifiers.account import Account, Shallow
from advrepair.plugins.verifiers.affine import DIAGONAL, fan_in, without_bias
from advrepair.plugins.verifiers.asking import Asking
from advrepair.plugins.verifiers.counts import Counts
from advrepair.plugins.verifiers.descent import Descent
from advrepair.plugins.verifiers.relaxations import STEPS_OF_SLOPE, Relaxation, relu


@define(eq=False)
class Propagation:
    """One call: relaxations from the input on, then rows from the output back."""

    network: Network
    params: Mapping[str, Tensor]
    box: Box
    slope: str
    rounding: Rounding | None
    relaxed: dict[str, Relaxation] = field(factory=dict)
    shallow: dict[str, Shallow] = field(factory=dict)
    # With rounding: |value| of every operation is at most sizes[name], and the sum of the
    # absolute values of its terms, which rounding errors scale with, at most sums[name].
    sizes: dict[str, Tensor] = field(factory=dict)
    sums: dict[str, Tensor] = field(factory=dict)
    # Intervals of values that are not affine in the input, for a first look at ReLUs.
    _around: dict[str, Shallow] = field(factory=dict)
    _bounded: dict[str, tuple[Tensor, Tensor]] = field(factory=dict)
    _sources: dict[str, str] = field(factory=dict)
    _asking: Asking | None = None
    _sizes_of_weights: dict[str, Tensor] = field(factory=dict)

    def __attrs_post_init__(self) -> None:
        center, radius = self.box.center, self.box.radius
        if self.rounding:
            size = torch.maximum(self.box.lower.abs(), self.box.upper.abs())
            self.sizes[INPUT] = self.rounding.overflowing(size)
        # The midpoint and the half width of float64 faces are rounded once each.
        error = 4 * UNIT64 * self.sizes[INPUT] if self.rounding else torch.zeros_like(radius)
        self.shallow[INPUT] = Shallow(center, radius, error, mixed=False)

    def rows(self, C: Tensor, d: Tensor) -> LinearBound:
        """Rows of ``C f(x) + d``, [B,M,*S]."""
        self.relax_all()
        return self.back_substitute(len(self.network.operations) - 1, C, d)

    def relax_all(self) -> None:
        """Bound the input of every ReLU, in order, each with the relaxations before it."""
        for op in self.network.operations:
            if self.rounding:
                self.measure(op, self.rounding)
            if op.kind == "relu":
                self._relax(op)
            else:
                self._extend_shallow(op)

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

    def _relax(self, op: Operation) -> None:
        source = op.inputs[0]
        ends = self._interval(source)
        lower, upper = self.known(op, *ends)
        self.relaxed[op.name] = self.lines(op, lower, upper)
        self._bounded[op.name], self._sources[op.name] = (lower, upper), source
        self._around.pop(source, None)  # it was made with a larger size
        if self.rounding:
            # The centre of a shallow value, whose rounding its size accounts for, is that of
            # the whole box, and need not lie in the part that is known.
            low, high = ends if source in self.shallow else (lower, upper)
            reach = self.rounding.overflowing(torch.maximum(low.abs(), high.abs()))
            self.sizes[source] = torch.minimum(self.sizes[source], reach)
            self.sizes[op.name] = torch.minimum(self.sizes[op.name], upper.clamp(min=0))

    def known(self, op: Operation, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        """The interval of a ReLU's input, or what more is known of it."""
        return lower, upper

    def lines(self, op: Operation, lower: Tensor, upper: Tensor) -> Relaxation:
        """Lines around a ReLU whose input lies between two bounds."""
        return relu(lower, upper, self.slope_below(op), self.rounding is not None)

    def slope_below(self, op: Operation) -> str | Tensor:
        """The slope below the unstable units of a ReLU."""
        return self.slope

    def _slopes(self) -> Tensor | None:
        """Slopes below all ReLUs as a certificate stores them: uint8 [B,U]."""
        if not self.rounding:
            return None
        used = [lines.lower_slope.flatten(1) for lines in self.relaxed.values()]
        none = self.box.lower.new_zeros(len(self.box), 0)
        share = torch.cat([none, *used], 1).nan_to_num(0.0)
        return (share * STEPS_OF_SLOPE).round().to(torch.uint8)

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

    def _interval(self, name: str) -> tuple[Tensor, Tensor]:
        """Bounds of a value over the boxes, [B,*shape] each.

        Sound: exact interval arithmetic for a value that is affine in the input, otherwise
        back-substitution of every unit and of its negation.
        """
        if known := self.shallow.get(name):
            return self._faces(known)
        index = next(i for i, op in enumerate(self.network.operations) if op.name == name)
        if self._plain():
            return self._ordered(*self._descend(index))
        shape = self.network.operations[index].shape
        units = size(shape)
        eye = torch.eye(units, dtype=self.box.lower.dtype, device=self.box.lower.device)
        rows = torch.cat([eye, -eye]).view(1, 2 * units, *shape)
        # Mapped like the weights, so that no product is folded over patches: its last bits
        # would depend on how many there are.
        rows = rows + torch.zeros_like(next(iter(self.params.values())).flatten()[:1])
        ends = self._least(index, rows)
        lower, upper = ends[:, :units], -ends[:, units:]
        return self._ordered(lower.unflatten(1, shape), upper.unflatten(1, shape))

    def _ordered(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        if self.rounding:  # rigorous ends that cross would be wrong; NaN proves nothing
            return lower, torch.where(lower <= upper, upper, torch.nan)
        # Rounding may cross the ends of a very small interval.
        return lower, torch.maximum(lower, upper)

    def _faces(self, value: Shallow) -> tuple[Tensor, Tensor]:
        """Least and largest value of what lies around a centre."""
        if not self.rounding:
            return value.center - value.radius, value.center + value.radius
        ends = 4 * UNIT64 * (value.center.abs() + value.radius)
        reach = value.radius + above(value.error + ends)
        return value.center - reach, value.center + reach

    def _plain(self) -> bool:
        """Whether the call is neither mapped nor differentiated."""
        if torch._C._functorch.peek_interpreter_stack() is not None:
            return False
        lines = (lines.lower_slope for lines in self.relaxed.values())
        given = (*self.params.values(), self.box.lower, self.box.upper, *lines)
        return not (torch.is_grad_enabled() and any(t.requires_grad for t in given))

    def _descend(self, index: int) -> tuple[Tensor, Tensor]:
        """Ends of a value by back-substitution in blocks, or by intervals."""
        if self._asking is None:
            found = (self.relaxed, self.shallow, self.sums, self.sizes)
            given = (self.network, self.params, self.box, self.rounding)
            self._asking = Asking(Descent(*given, Counts(*given, *found)))
        low, high = self._faces(self._interval_around(self.network.operations[index].name))
        return self._asking.ends(index, low, high, self.slope == "area")

    def _interval_around(self, name: str) -> Shallow:
        """Interval arithmetic, from the ReLUs that are bounded already."""
        if name in self.shallow:
            return self.shallow[name]
        if name not in self._around:
            op = next(op for op in self.network.operations if op.name == name)
            reader = next((r for r, source in self._sources.items() if source == name), None)
            if op.kind == "relu":
                ends = (end.clamp(min=0) for end in self._bounded[name])
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

    def back_substitute(self, index: int, rows: Tensor, b: Tensor) -> LinearBound:
        """Rows over the value of operation ``index`` become rows over the input.

        Sound: an affine step substitutes an identity; a ReLU is replaced by its lower line
        under a positive coefficient and its upper line under a negative one. With rounding
        every step adds to the error what it and the deployed step can be off by.

        rows: [B or 1,M,*shape]. b: [B or 1,M].
        """
        account, pending = self._account(b), {self.network.operations[index].name: rows}
        for op in reversed(self.network.operations[: index + 1]):
            if (A := pending.pop(op.name, None)) is not None:
                self._step_back(account, pending, A, op)
        A = pending.get(INPUT)
        if A is None:  # the value does not depend on the input
            A = self.box.lower.new_zeros(1, b.shape[1], *self.network.input_shape)
        size = self.sizes.get(self.network.operations[-1].name)
        return account.close(A, self.box, size, self._slopes())

    def _least(self, index: int, rows: Tensor) -> Tensor:
        """Lower end of rows [1,M,*shape] over an operation's value: [B,M].

        Sound as :meth:`back_substitute`. At a value that is affine in the input the midpoint
        is known, so from there on only the rows are needed, for |A| radius at the input.
        """
        zero = rows.new_zeros(1, rows.shape[1])
        account, pending = self._account(zero), {self.network.operations[index].name: rows}
        linear: dict[str, Tensor] = {}
        for op in reversed(self.network.operations[: index + 1]):
            A = pending.pop(op.name, None)
            if A is not None and op.name not in self.shallow:
                self._step_back(account, pending, A, op)
                continue
            if A is not None:
                account.at_shallow(A, self.shallow[op.name])
                linear[op.name] = _sum(linear.get(op.name), A)
            if op.name in linear:
                A = account.through_linear_part(linear.pop(op.name), op)
                linear[op.inputs[0]] = _sum(linear.get(op.inputs[0]), A)
        if INPUT in pending:
            account.at_shallow(pending[INPUT], self.shallow[INPUT])
            linear[INPUT] = _sum(linear.get(INPUT), pending[INPUT])
        if INPUT not in linear:
            linear[INPUT] = rows.new_zeros(1, rows.shape[1], *self.network.input_shape)
        return account.least(linear[INPUT], self.box.radius).expand(len(self.box), -1)

    def _step_back(
        self, account: Account, pending: dict[str, Tensor], A: Tensor, op: Operation
    ) -> None:
        if op.kind == "relu":
            A = self.through_relu(account, A, op)
        elif op.kind != "add":
            A = account.through_affine(A, op)
        else:
            account.rounded(A, op)
        for source in op.inputs:
            pending[source] = account.merge(pending.get(source), A, source)

    def through_relu(self, account: Account, A: Tensor, op: Operation) -> Tensor:
        """Rows over a ReLU's result as rows over its input."""
        return account.through_relu(A, self.relaxed[op.name])

    def _account(self, b: Tensor) -> Account:
        error = torch.zeros_like(b)
        return Account(self.network, self.params, self.rounding, self.sums, self.sizes, b, error)


def _sum(before: Tensor | None, rows: Tensor) -> Tensor:
    return rows if before is None else before + rows
