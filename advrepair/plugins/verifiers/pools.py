"""How a max pool is bounded by lines: what is substituted backwards for it.

A value [N,C,H,W] is seen as the k numbers of every window, [N,k,C,H',W'].
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from advrepair.core.graph import Operation, PoolWindow
from advrepair.core.rounding import UNIT64
from advrepair.plugins.verifiers.relaxations import LOST, Relaxation

# Of the width of an input: so far below the highest middle it may lie and still have a share.
_NEAR = 1 / 8


def gathered(op: Operation, x: Tensor) -> Tensor:
    """The numbers of every window of [N,C,H,W], copied: [N,k,C,H',W']; 0 for the padding."""
    window, (height, width) = PoolWindow.of(op), op.shape[1:]
    (down, right), (top, left) = window.stride, window.padding
    padded = F.pad(x, (left, left, top, top))
    parts = [
        padded[
            :, :, i : i + (height - 1) * down + 1 : down, j : j + (width - 1) * right + 1 : right
        ]
        for i in range(window.kernel[0])
        for j in range(window.kernel[1])
    ]
    return torch.stack(parts, 1)


def scattered(op: Operation, rows: Tensor, shape: Sequence[int]) -> Tensor:
    """Rows [N,k,C,H',W'] over the numbers of windows as rows over an image: [N,*shape].

    The transposed of :func:`gathered`.
    """
    point = rows.new_zeros(rows.shape[0], *shape)
    _, transpose, *_ = torch.func.vjp(lambda x: gathered(op, x), point)
    found: Tensor = transpose(rows)[0]
    return found


def max_pool(op: Operation, lower: Tensor, upper: Tensor, rigorous: bool) -> Relaxation:
    """Lines around the largest of each window's inputs, which lie in [lower, upper], [B,C,H,W].

    Sound: any mean of the inputs with shares >= 0 is at most the largest. The largest is x_r,
    of any r, or one of the others, which are at most v; so for 0 <= s <= 1 it exceeds s x_r by
    at most (1 - s) u_r or v - s l_r. The shares, s and rows times both are rounded, by less
    than is added to the offsets. Padding is no input: it gets no share, and for v it counts as
    the lowest number that an input of its window can be.

    s is that of the chord of max(x_r, v), r the input with the highest upper end: 1 where it
    dominates, and the line is exact; never above the constant u_r, that of DeepPoly (POPL 2019,
    10.1145/3290354). Below are the inputs whose middle is highest or nearly so. All of it is
    continuous in the bounds, so whoever has nearly the same bounds finds nearly the same lines.
    """
    low, high = gathered(op, lower), gathered(op, upper)
    real = gathered(op, torch.ones_like(lower[:1])) > 0
    lowest = torch.where(real, low, torch.inf).amin(1, keepdim=True)
    low, high = torch.where(real, low, lowest), torch.where(real, high, lowest)
    tiny = torch.finfo(low.dtype).tiny
    first = torch.where(real, high, -torch.inf).argmax(1, keepdim=True)
    chosen = torch.zeros_like(high).scatter(1, first, 1.0)
    top, bottom = high.gather(1, first), low.gather(1, first)
    rest = torch.where(chosen > 0, lowest, high).amax(1, keepdim=True)
    slope = ((top - rest) / (top - bottom).clamp(min=tiny)).clamp(0, 1)
    offset = torch.maximum((1 - slope) * top, rest - slope * bottom)
    middle, width = (low + high) / 2, high - low
    behind = torch.where(real, middle, -torch.inf).amax(1, keepdim=True) - middle
    share = (1 - behind / (_NEAR * width).clamp(min=tiny)).clamp(min=0) * real
    share = share / share.sum(1, keepdim=True)
    if not rigorous:
        return Relaxation(share, slope * chosen, offset.squeeze(1))
    reach = torch.maximum(low.abs(), high.abs()).amax(1)
    slack = (8 * high.shape[1] + 32) * UNIT64 * reach + LOST
    return Relaxation(share, slope * chosen, offset.squeeze(1) + slack, -slack)
