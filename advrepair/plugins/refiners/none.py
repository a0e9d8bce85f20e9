"""No splitting at all."""

from typing import ClassVar

import torch
from attrs import frozen
from torch import Tensor

from advrepair.core.box import Box
from advrepair.core.interfaces import Refiner
from advrepair.core.types import SplitPlan


@frozen
class NoRefiner(Refiner):
    """Never split; what one bound cannot prove stays unproved."""

    name: ClassVar[str] = "none"

    def choose(self, box: Box, margin: Tensor, slope: Tensor, budget: int) -> SplitPlan:
        """An empty plan."""
        nothing = torch.empty(0, dtype=torch.long, device=margin.device)
        return SplitPlan(nothing, nothing)
