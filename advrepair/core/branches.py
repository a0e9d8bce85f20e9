"""What is known of a piece beyond its box: signs of ReLU inputs, and how to use them.

A piece of branch and bound is the part of a box where some ReLUs have an input of a known
sign. Units: U, those of :attr:`~advrepair.core.graph.Network.units`, in their order.
"""

from __future__ import annotations

from attrs import frozen
from torch import Tensor

from advrepair.core.types import LinearBound


@frozen(eq=False)
class Branch:
    """A part of each box, and how to bound it.

    phase: [B,U], the input of the ReLU is <= 0 (-1), >= 0 (1) or of any sign (0). slope:
    [B,U] in [0, 1], below unstable ReLUs; None leaves it to the verifier. multiplier:
    [B,M,U], >= 0: a row may be lowered by multiplier * phase * input, which is no negative
    number on the piece (arXiv 2103.06624).
    """

    phase: Tensor
    slope: Tensor | None
    multiplier: Tensor


@frozen(eq=False)
class BranchBound:
    """Bounds of the part of each box that a branch leaves.

    rows: hold on that part. gap: [B,M,U], what a row loses at most where a line stands for
    an unstable ReLU, 0 where the sign is settled. empty: bool [B], no input is left, so
    anything holds there.
    """

    rows: LinearBound
    gap: Tensor
    empty: Tensor
