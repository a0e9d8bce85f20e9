"""Which patch is on where in a box: the box cut along the regions of a repair; bounds there."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from advrepair.core.batches import Batch
from advrepair.core.bounding import Bounder
from advrepair.core.box import Box
from advrepair.core.capping import capped
from advrepair.core.certification import weights_of
from advrepair.core.errors import UsageError
from advrepair.core.interfaces import SmoothAllocator
from advrepair.core.patching import RepairedNetwork, Stack
from advrepair.core.types import LinearBound, PropertySet

UNBOUNDED = -2  # patches that an allocator chooses, in place of the number of one
_MOST = 50_000  # areas of one box


def areas(function: nn.Module, box: Box) -> tuple[Box, Tensor]:
    """Areas that cover a box, and the patch that is on in each: [B]; -1 is none.

    function: of a repaired network its regions count; any other module has no patches. box:
    one box. UNBOUNDED: outside all regions, where the allocator chooses.
    Sound: regions are taken in their order, as the first one that holds a point decides. What
    a region has of a part gets the region's patch; the rest of the part is covered by closed
    boxes, for which the regions behind it decide. So every point of the box lies in an area
    of the patch that is on there; on a face that two areas share, both are demanded.
    Raises UsageError if there are too many.
    """
    if not isinstance(function, RepairedNetwork):
        return box, torch.full((1,), -1)
    unchanged = function.allocator.most(function.centres) == 0
    smooth = isinstance(function.allocator, SmoothAllocator)
    outside = -1 if unchanged and not smooth else UNBOUNDED
    regions = function.regions
    near = regions.box.meets(box)[:, 1].sort().values
    lower, upper = (face[near].flatten(1) for face in (regions.box.lower, regions.box.upper))
    patch = regions.patch[near]
    found: list[tuple[Tensor, Tensor, int]] = []
    todo = [(box.lower.flatten(), box.upper.flatten(), 0)]
    while todo:
        low, high, first = todo.pop()
        meets = ((lower[first:] <= high) & (low <= upper[first:])).all(1).nonzero()[:, 0] + first
        if not len(meets) or (outside == -1 and bool((patch[meets] < 0).all())):
            found.append((low, high, outside))
        else:
            at = int(meets[0])
            inside = torch.maximum(low, lower[at]), torch.minimum(high, upper[at])
            found.append((*inside, int(patch[at])))
            todo += [(*part, at + 1) for part in _around(low, high, *inside)]
        if len(found) + len(todo) > _MOST:
            raise UsageError(
                f"the regions of the repair cut the box into more than {_MOST} areas; "
                "'advrepair check' proves what its certificate states"
            )
    shape = (len(found), *box.input_shape)
    lows, highs, chosen = zip(*found, strict=True)
    return Box(torch.stack(lows).view(shape), torch.stack(highs).view(shape)), torch.tensor(chosen)


def _around(low: Tensor, high: Tensor, inner: Tensor, outer: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Closed boxes that cover what a box has outside the box from inner to outer, in it."""
    parts, low, high = [], low.clone(), high.clone()
    for i in range(len(low)):
        if bool(low[i] < inner[i]):
            top = high.clone()
            top[i] = inner[i]
            parts.append((low.clone(), top))
            low[i] = inner[i]
        if bool(outer[i] < high[i]):
            bottom = low.clone()
            bottom[i] = outer[i]
            parts.append((bottom, high.clone()))
            high[i] = outer[i]
    return parts


def patch_weights(function: nn.Module, bounder: Bounder, patch: int) -> Stack:
    """Weights of a patch of a function; zeros for -1, and of what has no patches."""
    if isinstance(function, RepairedNetwork):
        return weights_of(function, patch)
    return dict(bounder.template.tensors)


def least_rows(
    function: nn.Module, bounder: Bounder, asked: PropertySet, box: Box, patch: Tensor
) -> tuple[Tensor, LinearBound]:
    """Rigorous lower bounds of the rows of one property on boxes, [B,M], and the rows of N.

    function: with the network and the patches of the bounder. patch: on in each box, [B].
    Sound: as :meth:`~advrepair.core.bounding.Bounder.least`, or as
    :func:`~advrepair.core.capping.capped`, whichever is better; where no patch is on, the rows of
    N are minimised rigorously.
    """
    C, d, group = (
        part.expand(len(box), *part.shape[1:]) for part in (asked.C, asked.d, asked.group)
    )
    box = bounder.seen(box)
    rows = bounder.base(box, C, d, rigorous=True)
    least = rows.minimum_rigorous(box)
    for number in patch[patch >= 0].unique().tolist():
        here = (patch == number).nonzero()[:, 0]
        real = torch.ones(1, len(here), dtype=torch.bool)
        batch = Batch(box[here], rows[here], C[here], group[here], real)
        stack = {n: t[None] for n, t in patch_weights(function, bounder, number).items()}
        least[here] = bounder.proofs(stack, batch)[0]
        one, asked_ = {n: t[0] for n, t in stack.items()}, (box[here], C[here], d[here])
        known = capped(bounder.network, bounder.rounding, bounder.template, one, asked_)
        least[here] = torch.fmax(least[here], known)  # a NaN gives way
    return least, rows
