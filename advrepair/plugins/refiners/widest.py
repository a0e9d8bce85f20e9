"""Splitting without looking at the network."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from attrs import frozen

from advrepair.core.interfaces import Refiner

if TYPE_CHECKING:
    from torch import Tensor

    from advrepair.core.box import Box
    from advrepair.core.types import SplitPlan


@frozen
class Widest(Refiner):
    """Cut the widest dimension."""

    name: ClassVar[str] = "widest"

    def choose(self, box: Box, margin: Tensor, slope: Tensor, budget: int) -> SplitPlan:
        """Pick at most budget pieces and a dimension for each.

        box: B pieces. margin: [B]. slope: [B,*S], not looked at.
        """
        from advrepair.plugins.refiners.selection import by_width

        return by_width(box, margin, budget)
