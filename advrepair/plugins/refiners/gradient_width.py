"""The paper's splitting rule, with its sign put right."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from attrs import frozen

from advrepair.core.interfaces import Refiner

if TYPE_CHECKING:
    from torch import Tensor

    from advrepair.core.box import Box
    from advrepair.core.types import SplitPlan


@frozen
class GradientWidth(Refiner):
    """Cut where |slope of the loss| x width is largest (the paper's score)."""

    name: ClassVar[str] = "gradient-width"

    def choose(self, box: Box, margin: Tensor, slope: Tensor, budget: int) -> SplitPlan:
        """Pick at most budget pieces and a dimension for each.

        The score is that of section 3.2 of arXiv 2404.01642 in absolute value: as printed, a
        dimension in which the loss falls steeply would count for less than one in which it
        does not change. A piece whose score is zero throughout is cut where it is widest.

        box: B pieces. margin: [B]. slope: [B,*S].
        """
        from advrepair.plugins.refiners.selection import by_gradient_width

        return by_gradient_width(box, margin, slope, budget)
