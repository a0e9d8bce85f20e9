"""A constant that makes open pieces hold and changes as few decisions as it can.

Which output to raise or lower is a choice: where a demand is about the largest output and
decisions are about the smallest, raising an output that is never the smallest changes none.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from attrs import frozen
from torch import Tensor, nn

from advrepair.core.bounding import Bounder
from advrepair.core.box import Box
from advrepair.core.constant import proved_patches
from advrepair.core.evaluation import DECISIONS, Around
from advrepair.core.patching import PatchBank, constant_stack
from advrepair.core.refinement import Worklist
from advrepair.core.training import Trained

_MORE, _ATTEMPTS = 2, 6  # the deployed sum of N and the patch takes its share too
_SHARE = 1e-4  # shares of changed decisions that differ by less count as equal


@frozen(eq=False)
class Decisions:
    """Sampled outputs of N, [n,K], whose decisions should stay; decide: [n,K] to [n]."""

    outputs: Tensor
    decide: Callable[[Tensor], Tensor]

    def inside(self, x: Tensor, box: Box) -> Decisions:
        """Those of the samples, x: [n,*S], that lie in some box."""
        return Decisions(self.outputs[box.first(x) >= 0], self.decide)

    def changed(self, constant: Tensor) -> float:
        """Share that adding a constant changes, [K]."""
        if not len(self.outputs):
            return 0.0
        before, after = self.decide(self.outputs), self.decide(self.outputs + constant)
        return float((before != after).double().mean())


def sampled(base: nn.Module, around: Around) -> tuple[Tensor, Decisions]:
    """Inputs that the network is right on, [n,*S], and what it decides there."""
    with torch.no_grad():
        return around.right, Decisions(base(around.right), DECISIONS[around.rule])


def preserving_constant(
    least: Tensor, C: Tensor, group: Tensor, decisions: Decisions, slack: float
) -> Tensor | None:
    """A constant for the outputs after which every group has a row above slack, or None.

    Outputs are moved one after the other: each time the one of those that help whose move
    changes fewest decisions, then that mends most, then that moves least. It is a proposal:
    whoever uses it proves the result.

    least: [W,M], lower bounds of rows. C: [W,M,K]. group: [W,M].
    """
    C, outputs = C.to(least.dtype), C.shape[2]
    value = least.new_zeros(outputs)
    directions = torch.cat([torch.eye(outputs), -torch.eye(outputs)]).to(least.dtype)
    for _ in range(2 * outputs):
        rows = least + C @ value
        if not bool(_lacking(rows, group, slack).any()):
            return value
        best: tuple[tuple[float, float, float], Tensor] | None = None
        for direction in directions:
            length, mended = step(rows, C @ direction, group, slack)
            if not mended:
                continue
            moved = value + length * direction
            share = round(decisions.changed(moved) / _SHARE)
            rank = (float(share), -mended, length)
            if best is None or rank < best[0]:
                best = (rank, moved)
        if best is None:
            return None
        value = best[1]
    rows = least + C @ value
    return None if bool(_lacking(rows, group, slack).any()) else value


def propose(
    bank: PatchBank,
    worklist: Worklist,
    bounder: Bounder,
    samples: tuple[Tensor, Decisions],
    result: Trained,
) -> None:
    """Give patches of properties without labels such a constant; what it proves is settled.

    samples: inputs that N is right on, and what it decides there.
    """
    x, decisions = samples
    for patch in (~result.settled).nonzero()[:, 0]:
        pieces = worklist.pieces_of(patch[None])[0]
        owner = worklist.owner[pieces]
        if bool((worklist.properties.label[owner] >= 0).any()):
            continue
        box, rows = worklist.box[pieces], worklist.proof[pieces]
        least = rows.minimum_rigorous(box)
        inside = decisions.inside(x, box)  # the pieces fill the regions of the patch
        if rows.magnitude is None or not bool(torch.isfinite(least).all()):
            continue
        batch = worklist.batch(patch[None], rigorous=True)
        slack = _MORE * float(rows.spare().max())
        for _ in range(_ATTEMPTS):
            C, group = worklist.properties.C[owner], worklist.properties.group[owner]
            value = preserving_constant(least, C, group, inside, slack)
            if value is None:
                break
            stack = constant_stack(bounder.template, value[None])
            if bool(proved_patches(bounder.margins(stack, batch), batch.group, batch.real)[0]):
                bank.put(patch[None], stack)
                result.settled[patch] = True
                break
            slack *= 4  # rounding in the deployed sum


def step(rows: Tensor, rate: Tensor, group: Tensor, slack: float) -> tuple[float, int]:
    """How far to go for every group that can be mended, and how many these are.

    rows: [W,M]. rate: [W,M], what a row gains a unit of length.
    """
    need = needed(rows, rate, group, slack + 2.0**-40 * float(rows.abs().max()))
    lacking = _lacking(rows, group, slack)
    finite = lacking & torch.isfinite(need)
    return float(need[finite].max()) if bool(finite.any()) else 0.0, int(finite.sum())


def needed(rows: Tensor, rate: Tensor, group: Tensor, slack: float) -> Tensor:
    """Length at which each group has a row above slack: [W,G]; inf where none ever has."""
    length = ((slack - rows) / rate.clamp(min=1e-30)).clamp(min=0)
    length = torch.where((rate > 0) | (rows > slack), length, torch.inf)
    count = int(group.max()) + 1
    column = torch.where(group < 0, count, group)
    start = rows.new_full((len(rows), count + 1), torch.inf)
    return start.scatter_reduce(1, column, length, "amin", include_self=True)[:, :count]


def _lacking(rows: Tensor, group: Tensor, slack: float) -> Tensor:
    """Groups without a row above slack: bool [W,G]."""
    count = int(group.max()) + 1
    column = torch.where(group < 0, count, group)
    start = rows.new_full((len(rows), count + 1), -torch.inf)
    best = start.scatter_reduce(1, column, rows, "amax", include_self=True)[:, :count]
    there = torch.zeros(len(rows), count + 1, dtype=torch.bool).scatter(1, column, True)[:, :count]
    return there & ~(best > slack)
