"""Look for points where a network is lower than a bound says: samples, corners, a descent."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from advrepair.core.box import Box
from advrepair.core.types import LinearBound
from advrepair.testing.cases import Case

Rows = Callable[[Tensor], Tensor]  # [B,N,*S] to [B,N,M]


def scatter(box: Box, samples: int, corners: int, seed: int) -> Tensor:
    """Points of each box: its centre, its two extreme corners, corners, samples; [B,N,*S]."""
    generator = torch.Generator().manual_seed(seed)
    lower, upper = box.lower.unsqueeze(1), box.upper.unsqueeze(1)
    shape = (len(box), samples + corners, *box.input_shape)
    share = torch.rand(*shape, generator=generator).to(lower.dtype)
    share[:, :corners] = share[:, :corners].round()
    inside = torch.lerp(lower, upper, share)
    points = torch.cat([box.center.unsqueeze(1), lower, upper, inside], 1)
    return torch.minimum(torch.maximum(points, lower), upper)  # lerp may round past a face


def descend(rows: Rows, box: Box, start: Tensor, steps: int = 20) -> Tensor:
    """Signed-gradient descent of row m from point m: [B,M,*S], inside the boxes.

    rows: of which row m is made small at point m. start: [B,M,*S].
    """
    lower, upper, radius = (t.unsqueeze(1) for t in (box.lower, box.upper, box.radius))
    x, best = start.clone(), start.clone()
    least = torch.full(start.shape[:2], torch.inf, dtype=start.dtype)
    for step in range(steps + 1):
        x.requires_grad_()
        own = rows(x).diagonal(dim1=1, dim2=2)
        (slope,) = torch.autograd.grad(own.nan_to_num().sum(), x)
        x = x.detach()
        better = own.detach() < least
        least = torch.where(better, own.detach(), least)
        best = torch.where(better.view(*better.shape, *[1] * (x.dim() - 2)), x, best)
        x = x - slope.sign() * radius * 0.8**step
        x = torch.minimum(torch.maximum(x, lower), upper)
    return best


def low_points(case: Case, rows: Rows, seed: int) -> Tensor:
    """Points of each box where rows are low: the scattered ones and where descents end."""
    points = scatter(case.box, samples=24, corners=16, seed=seed)
    with torch.no_grad():
        index = rows(points).argmin(1)  # [B,M]
    start = points[torch.arange(len(points))[:, None], index]
    return torch.cat([points, descend(rows, case.box, start)], 1)


def linear_rows(bound: LinearBound, x: Tensor) -> Tensor:
    """``A.x + b`` of every row at every point: [B,N,M] from [B,N,*S]."""
    return x.flatten(2) @ bound.A.flatten(2).transpose(1, 2) + bound.b.unsqueeze(1)
