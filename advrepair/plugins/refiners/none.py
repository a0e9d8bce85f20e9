"""No splitting at all."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from attrs import frozen

from advrepair.core.interfaces import Refiner

if TYPE_CHECKING:
    from torch import Tensor

    from advrepair.core.box import Box
    from advrepair.core.types import SplitPlan


@frozen
class NoRefiner(Refiner):
    """Never split; what one bound cannot prove stays unproved."""

    name: ClassVar[str] = "none"

    def choose(self, box: Box, margin: Tensor, slope: Tensor, budget: int) -> SplitPlan:
        """An empty plan."""
        from advrepair.plugins.refiners.selection import nowhere

        return nowhere(margin)
