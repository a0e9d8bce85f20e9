"""DeepPoly on the part of a box that a branch leaves, and where to cut that part."""

from __future__ import annotations

from itertools import accumulate, pairwise

import torch
from attrs import define, field
from torch import Tensor

from advrepair.core.box import Box
from advrepair.core.branches import Branch, BranchBound
from advrepair.core.graph import Operation, size
from advrepair.plugins.verifiers.account import Account
from advrepair.plugins.verifiers.propagation import Propagation


def best_cut(box: Box, A: Tensor, gap: Tensor, signs: bool) -> Tensor:
    """The input that moves the row most, or with signs the ReLU whose line costs it most: [B].

    A: [B,*S]. gap: [B,U]. A ReLU's number comes after those of the inputs.
    """
    width = (A.abs() * box.radius).flatten(1)
    widest = width.argmax(1)
    if not signs or not gap.shape[1]:
        return widest
    most = gap.max(1)
    # Where every ReLU is settled the rest is a matter of the input alone.
    return torch.where(most.values > 0, size(box.input_shape) + most.indices, widest)


@define(eq=False)
class Branched(Propagation):
    """Propagation on the part of each box that a branch leaves.

    Sound: every computed input of a ReLU that the part allows has the sign its phase says,
    so its interval may be clipped there, and phase * input is no negative number, of which
    any multiple may be taken from a row. An interval that becomes empty shows that no input
    is left. Any slope in [0, 1] is sound.
    """

    branch: Branch = field(kw_only=True)
    gaps: dict[str, Tensor] = field(factory=dict)
    _intervals: dict[str, tuple[Tensor, Tensor]] = field(factory=dict)
    empty: Tensor = field(init=False)
    _units: dict[str, slice] = field(init=False)
    _final: bool = False

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        self.empty = torch.zeros(len(self.box), dtype=torch.bool, device=self.box.lower.device)
        relus = [op for op in self.network.operations if op.kind == "relu"]
        ends = list(accumulate((size(op.shape) for op in relus), initial=0))
        self._units = {
            op.name: slice(*pair) for op, pair in zip(relus, pairwise(ends), strict=True)
        }

    def bound(self, C: Tensor, d: Tensor) -> BranchBound:
        """Rows of ``C f(x) + d`` on the part that is left."""
        self.relax_all()
        self._final = True
        rows = self.back_substitute(len(self.network.operations) - 1, C, d)
        gap = rows.b.new_zeros(*rows.b.shape, self.branch.phase.shape[1])
        for name, lost in self.gaps.items():
            gap[:, :, self._units[name]] = lost.detach()
        return BranchBound(rows, gap, self.empty)

    def known(self, op: Operation, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        """The interval; of a ReLU clipped at 0 where the sign is known."""
        if op.kind != "relu":
            return lower, upper
        phase = self._of(self.branch.phase, op)
        lower = torch.where(phase > 0, lower.clamp(min=0), lower)
        upper = torch.where(phase < 0, upper.clamp(max=0), upper)
        self.empty = self.empty | (lower > upper).flatten(1).any(1)
        upper = torch.maximum(lower, upper)
        self._intervals[op.name] = (lower, upper)
        return lower, upper

    def slope_below(self, op: Operation) -> str | Tensor:
        """The slopes of the branch, if it has some."""
        return self.slope if self.branch.slope is None else self._of(self.branch.slope, op)

    def through_lines(self, account: Account, A: Tensor, op: Operation) -> Tensor:
        """As without a branch; of final rows, multiples of the known signs are taken off."""
        rows = super().through_lines(account, A, op)
        if not self._final or op.kind != "relu":
            return rows
        self.gaps[op.name] = self._gap(A, op).flatten(2)
        signs = self._of(self.branch.phase, op).unsqueeze(1)
        taken = self._of(self.branch.multiplier, op) * signs
        return account.merge(rows, -taken, op.inputs[0])

    def _gap(self, A: Tensor, op: Operation) -> Tensor:
        """What rows lose at most where a line stands for an unstable ReLU.

        A hundredth of it below, where the slope is free: those cuts pay less.
        """
        low, high = (end.unsqueeze(1) for end in self._intervals[op.name])
        slope = self.relaxed[op.name].lower_slope.unsqueeze(1)
        below = torch.maximum((1 - slope) * high, -slope * low) / 100
        above = -low * high / (high - low)
        lost = torch.where(A > 0, A * below, -A * above)
        return torch.where((low < 0) & (high > 0), lost, 0.0)

    def _of(self, values: Tensor, op: Operation) -> Tensor:
        """The part of [B,U] or [B,M,U] that belongs to an operation, in its shape."""
        part: Tensor = values[..., self._units[op.name]].unflatten(-1, op.shape)
        return part
