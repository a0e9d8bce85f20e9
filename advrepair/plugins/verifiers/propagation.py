"""Back-substitution: relaxations from the input on, then rows from the output back."""

from __future__ import annotations

import torch
from attrs import define, field
from torch import Tensor

from advrepair.core.graph import INPUT, NON_AFFINE, Operation, size
from advrepair.core.types import LinearBound
from advrepair.plugins.verifiers.account import Account
from advrepair.plugins.verifiers.asking import Asking
from advrepair.plugins.verifiers.counts import Counts
from advrepair.plugins.verifiers.curves import CURVES, curved
from advrepair.plugins.verifiers.descent import Descent
from advrepair.plugins.verifiers.forwards import Forwards
from advrepair.plugins.verifiers.interval_arithmetic import image
from advrepair.plugins.verifiers.pools import max_pool
from advrepair.plugins.verifiers.relaxations import STEPS_OF_SLOPE, Relaxation, relu


@define(eq=False)
class Propagation(Forwards):
    """One call: relaxations from the input on, then rows from the output back."""

    relaxed: dict[str, Relaxation] = field(factory=dict)
    _asking: Asking | None = None

    def rows(self, C: Tensor, d: Tensor) -> LinearBound:
        """Rows of ``C f(x) + d``, [B,M,*S]."""
        self.relax_all()
        return self.back_substitute(len(self.network.operations) - 1, C, d)

    def relax_all(self) -> None:
        """Bound what every function is given, in order, each with the relaxations before it."""
        for op in self.network.operations:
            if self.rounding:
                self.measure(op, self.rounding)
            if op.kind in NON_AFFINE:
                self._relax(op)
            else:
                self._extend_shallow(op)

    def _relax(self, op: Operation) -> None:
        source = op.inputs[0]
        ends = self._given(op)
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
            small, large = image(op, lower, upper, self.rounding)
            reach = large if op.kind == "relu" else torch.maximum(small.abs(), large.abs())
            # Of a curve the other size leaves no room for what the deployed one errs by.
            curve = op.kind in CURVES
            self.sizes[op.name] = reach if curve else torch.minimum(self.sizes[op.name], reach)

    def _given(self, op: Operation) -> tuple[Tensor, Tensor]:
        """Ends of what a function is given; those of a function's results are known."""
        source = op.inputs[0]
        if op.kind != "relu" and source in self._bounded:
            return image(self._operation(source), *self._bounded[source], self.rounding)
        return self._interval(source, op)

    def known(self, op: Operation, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        """The interval of a function's input, or what more is known of it."""
        return lower, upper

    def lines(self, op: Operation, lower: Tensor, upper: Tensor) -> Relaxation:
        """Lines around a function whose input lies between two bounds."""
        if op.kind == "max_pool2d":
            return max_pool(op, lower, upper, self.rounding is not None)
        if op.kind in CURVES:
            return curved(op.kind, lower, upper, self.rounding)
        return relu(lower, upper, self.slope_below(op), self.rounding is not None)

    def slope_below(self, op: Operation) -> str | Tensor:
        """The slope below the unstable units of a ReLU."""
        return self.slope

    def _slopes(self) -> Tensor | None:
        """Slopes below all ReLUs as a certificate stores them: uint8 [B,U]."""
        if not self.rounding:
            return None
        relus = [op.name for op in self.network.operations if op.kind == "relu"]
        used = [self.relaxed[name].lower_slope.flatten(1) for name in relus]
        none = self.box.lower.new_zeros(len(self.box), 0)
        share = torch.cat([none, *used], 1).nan_to_num(0.0)
        return (share * STEPS_OF_SLOPE).round().to(torch.uint8)

    def _interval(self, name: str, reader: Operation) -> tuple[Tensor, Tensor]:
        """Bounds of a value over the boxes, [B,*shape] each, for the function that reads it.

        Sound: exact interval arithmetic for a value that is affine in the input, otherwise
        back-substitution of every unit and of its negation. Where more than a sign counts, or
        rows would begin at a function, the better of that and of interval arithmetic is taken:
        so does the checker, which must find the same lines.
        """
        if known := self.shallow.get(name):
            return self._faces(known)
        index = next(i for i, op in enumerate(self.network.operations) if op.name == name)
        lower, upper = (self._descend if self._plain() else self._by_steps)(index, reader)
        if self._whole() or self.network.operations[index].kind in NON_AFFINE:
            low, high = self._faces(self._interval_around(name))
            lower, upper = torch.maximum(lower, low), torch.minimum(upper, high)
        return self._ordered(lower, upper)

    def _whole(self) -> bool:
        """Whether some lines, here or later on, depend on more than a sign."""
        return any(op.kind in NON_AFFINE - {"relu"} for op in self.network.operations)

    def _by_steps(self, index: int, reader: Operation) -> tuple[Tensor, Tensor]:
        """Ends of a value by back-substitution, one operation after the other."""
        shape = self.network.operations[index].shape
        units = size(shape)
        eye = torch.eye(units, dtype=self.box.lower.dtype, device=self.box.lower.device)
        rows = torch.cat([eye, -eye]).view(1, 2 * units, *shape)
        # Mapped like the weights, so that no product is folded over patches: its last bits
        # would depend on how many there are.
        rows = rows + torch.zeros_like(next(iter(self.params.values())).flatten()[:1])
        ends = self._least(index, rows)
        return ends[:, :units].unflatten(1, shape), -ends[:, units:].unflatten(1, shape)

    def _ordered(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        if self.rounding:  # rigorous ends that cross would be wrong; NaN proves nothing
            return lower, torch.where(lower <= upper, upper, torch.nan)
        # Rounding may cross the ends of a very small interval.
        return lower, torch.maximum(lower, upper)

    def _plain(self) -> bool:
        """Whether the call is neither mapped nor differentiated."""
        if torch._C._functorch.peek_interpreter_stack() is not None:
            return False
        lines = (lines.lower_slope for lines in self.relaxed.values())
        given = (*self.params.values(), self.box.lower, self.box.upper, *lines)
        return not (torch.is_grad_enabled() and any(t.requires_grad for t in given))

    def _descend(self, index: int, reader: Operation) -> tuple[Tensor, Tensor]:
        """Ends of a value by back-substitution in blocks, or by intervals."""
        if self._asking is None:
            found = (self.relaxed, self.shallow, self.sums, self.sizes)
            given = (self.network, self.params, self.box, self.rounding)
            self._asking = Asking(Descent(*given, Counts(*given, *found)))
        low, high = self._faces(self._interval_around(self.network.operations[index].name))
        least = self.slope == "area" and reader.kind == "relu"
        return self._asking.ends(index, low, high, least, self._whole())

    def back_substitute(self, index: int, rows: Tensor, b: Tensor) -> LinearBound:
        """Rows over the value of operation ``index`` become rows over the input.

        Sound: an affine step substitutes an identity; a function is replaced by its lower line
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
        if op.kind in NON_AFFINE:
            A = self.through_lines(account, A, op)
        elif op.kind != "add":
            A = account.through_affine(A, op)
        else:
            account.rounded(A, op)
        for source in op.inputs:
            pending[source] = account.merge(pending.get(source), A, source)

    def through_lines(self, account: Account, A: Tensor, op: Operation) -> Tensor:
        """Rows over a function's result as rows over its input."""
        return account.through_lines(A, op, self.relaxed[op.name])

    def _account(self, b: Tensor) -> Account:
        error = torch.zeros_like(b)
        return Account(self.network, self.params, self.rounding, self.sums, self.sizes, b, error)


def _sum(before: Tensor | None, rows: Tensor) -> Tensor:
    return rows if before is None else before + rows
