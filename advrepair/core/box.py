"""Axis-parallel boxes, and the one membership test.

Shape letters: ``docs/shapes.md``.
"""

from __future__ import annotations

import torch
from attrs import field, frozen
from torch import Tensor

from advrepair.core.errors import UsageError
from advrepair.core.membership import Kept
from advrepair.core.rounding import round_down, round_up


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
    _kept: Kept = field(factory=Kept, init=False, repr=False)

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

        Exact comparison, so with points as boxes of zero width it is *the* membership test; see
        :mod:`advrepair.core.membership`. Returns [pairs, 2], sorted.
        """
        points = other.lower is other.upper
        low = other.lower.detach().flatten(1)
        high = low if points else other.upper.detach().flatten(1)
        return self._kept.of(self.lower, self.upper, len(other)).meets(low, high)

    def first(self, x: Tensor) -> Tensor:
        """The first box that holds each point: [N], -1 where there is none."""
        return self._kept.of(self.lower, self.upper, len(x)).first(x.detach().flatten(1))

    def split(self, dim: Tensor) -> tuple[Box, Box]:
        """Bisect every box along its flat dimension dim, [B]. The halves share the cut."""
        cut = self.center.flatten(1).gather(1, dim[:, None])
        upper = self.upper.flatten(1).scatter(1, dim[:, None], cut)
        lower = self.lower.flatten(1).scatter(1, dim[:, None], cut)
        shape = self.lower.shape
        return Box(self.lower, upper.view(shape)), Box(lower.view(shape), self.upper)
