"""Axis-parallel boxes, and the one membership test.

Shape letters: ``docs/shapes.md``.
"""

from __future__ import annotations

import torch
from attrs import frozen
from torch import Tensor

from advrepair.core.errors import UsageError
from advrepair.core.rounding import round_down, round_up

# Coordinates compared before the rest: a few for all pairs, more for those that are left. Any
# numbers are exact.
_COARSE, _PROBES = 6, 32
_SAMPLE = 512  # boxes looked at to choose them
_BLOCK, _PAIRS = 1024, 2**18  # rows and pairs compared at a time, for bounded memory


def dot(A: Tensor, value: Tensor) -> Tensor:
    """Rows [B,M,*S] times points [B,*S]: [B,M]; the same bits whatever else is in the batch.

    A batch of one takes another path through the linear algebra library, so it becomes two.
    """
    rows, column = A.flatten(2), value.to(A.dtype).flatten(1).unsqueeze(2)
    if len(rows) == 1:
        rows, column = rows.expand(2, -1, -1), column.expand(2, -1, -1)
    return (rows @ column).squeeze(2)[: len(A)]


def concatenated(a: Box, b: Box) -> Box:
    """Boxes of a, then those of b."""
    return Box(torch.cat([a.lower, b.lower]), torch.cat([a.upper, b.upper]))


@frozen(eq=False)
class Box:
    """Axis-parallel input regions, faces included.

    lower, upper: [B,*S], same dtype; lower <= upper everywhere (see :meth:`checked`).
    """

    lower: Tensor
    upper: Tensor

    def __attrs_post_init__(self) -> None:
        if self.lower.shape != self.upper.shape or self.lower.dtype != self.upper.dtype:
            raise UsageError(
                f"box: lower {tuple(self.lower.shape)} {self.lower.dtype} and upper "
                f"{tuple(self.upper.shape)} {self.upper.dtype} must agree"
            )

    @classmethod
    def checked(cls, lower: Tensor, upper: Tensor) -> Box:
        """Build from outside data; raises UsageError for NaN or an inverted box."""
        box = cls(lower, upper)
        if not bool((lower <= upper).all()):
            raise UsageError("box: a lower bound is above its upper bound, or a bound is NaN")
        return box

    @classmethod
    def around(cls, x: Tensor, epsilon: float, clip: tuple[float, float] | None = None) -> Box:
        """Balls of L-infinity radius epsilon around x, rounded outward, then clipped.

        Every point computed in x's dtype as ``clip(x ± epsilon)`` lies inside, although
        epsilon itself may round up in that dtype.

        x: centres, [B,*S]. epsilon: in input units. clip: the input range.
        """
        wide = max(epsilon, torch.tensor(epsilon, dtype=x.dtype).double().item())
        exact = x.double()
        # One step outward in float64 covers the rounding of the subtraction itself.
        low = torch.nextafter(exact - wide, torch.full_like(exact, -torch.inf))
        high = torch.nextafter(exact + wide, torch.full_like(exact, torch.inf))
        lower, upper = round_down(low, x.dtype), round_up(high, x.dtype)
        if clip is not None:
            lower, upper = lower.clamp(min=clip[0]), upper.clamp(max=clip[1])
        return cls.checked(lower, upper)

    def __len__(self) -> int:
        return self.lower.shape[0]

    def __getitem__(self, index: Tensor | slice | list[int]) -> Box:
        return Box(self.lower[index], self.upper[index])

    @property
    def input_shape(self) -> tuple[int, ...]:
        """*S."""
        return tuple(self.lower.shape[1:])

    @property
    def center(self) -> Tensor:
        """Midpoints, [B,*S], in the box's dtype."""
        return (self.lower + self.upper) / 2

    @property
    def radius(self) -> Tensor:
        """Half widths, [B,*S]."""
        return (self.upper - self.lower) / 2

    def to(self, dtype: torch.dtype) -> Box:
        """The same numbers in a wider dtype; raises UsageError if a bound would change."""
        lower, upper = self.lower.to(dtype), self.upper.to(dtype)
        if torch.finfo(dtype).eps > torch.finfo(self.lower.dtype).eps:
            raise UsageError("box: narrowing the dtype would move its faces")
        return Box(lower, upper)

    def clamp(self, x: Tensor) -> Tensor:
        """Nearest points of the box, [B,*S]."""
        return torch.minimum(torch.maximum(x, self.lower), self.upper)

    def holds(self, x: Tensor) -> Tensor:
        """Whether point i lies in box i: bool [B], exact comparison."""
        inside = (self.lower <= x) & (x <= self.upper)
        return inside.flatten(1).all(1)

    def meets(self, other: Box) -> Tensor:
        """All pairs (i, j) for which box i of other and box j of this one share a point.

        Exact comparison, so with points as boxes of zero width it is *the* membership test.
        Coordinates that tell boxes apart are compared first; the few pairs that are left
        are compared in full. Returns [pairs, 2], sorted.
        """
        if not len(self) or not len(other):
            return torch.zeros(0, 2, dtype=torch.long, device=self.lower.device)
        lower, upper = self.lower.flatten(1), self.upper.flatten(1)
        low, high = other.lower.flatten(1), other.upper.flatten(1)
        # Any choice is exact; coordinates that vary over some of the boxes tell most apart.
        spread = lower[:_SAMPLE].double().var(0, correction=0)
        telling = spread.topk(min(_PROBES, low.shape[1])).indices
        ends = (lower[:, telling].T.contiguous(), upper[:, telling].T.contiguous())
        found = []
        for start in range(0, len(low), _BLOCK):
            part = slice(start, start + _BLOCK)
            below, above = low[part][:, telling], high[part][:, telling]
            near = torch.ones(len(below), len(self), dtype=torch.bool, device=low.device)
            for k in range(min(_COARSE, len(telling))):
                near &= ends[0][k] <= above[:, k, None]
                near &= below[:, k, None] <= ends[1][k]
            for pairs in near.nonzero().split(_PAIRS):
                i, j = pairs.T
                fine = (ends[0][:, j] <= above[i].T) & (ends[1][:, j] >= below[i].T)
                i, j = pairs[fine.all(0)].T
                for some in torch.arange(len(i)).split(_BLOCK):
                    q, p = i[some] + start, j[some]
                    full = (lower[p] <= high[q]) & (low[q] <= upper[p])
                    found.append(torch.stack([q, p], 1)[full.all(1)])
        return torch.cat(found) if found else torch.zeros(0, 2, dtype=torch.long)

    def first(self, x: Tensor) -> Tensor:
        """The first box that holds each point: [N], -1 where there is none."""
        pairs = self.meets(Box(x, x))
        none = torch.full((len(x),), len(self), dtype=torch.long, device=x.device)
        index = none.scatter_reduce(0, pairs[:, 0], pairs[:, 1], "amin")
        return torch.where(index == len(self), -1, index)

    def split(self, dim: Tensor) -> tuple[Box, Box]:
        """Bisect every box along its flat dimension dim, [B]. The halves share the cut."""
        cut = self.center.flatten(1).gather(1, dim[:, None])
        upper = self.upper.flatten(1).scatter(1, dim[:, None], cut)
        lower = self.lower.flatten(1).scatter(1, dim[:, None], cut)
        shape = self.lower.shape
        return Box(self.lower, upper.view(shape)), Box(lower.view(shape), self.upper)
