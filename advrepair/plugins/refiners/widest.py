"""Splitting without looking at the network."""

from typing import ClassVar

from attrs import frozen
from torch import Tensor

from advrepair.core.box import Box
from advrepair.core.interfaces import Refiner
from advrepair.core.types import SplitPlan
from advrepair.plugins.refiners.selection import best_dimension, width, worst_pieces


@frozen
class Widest(Refiner):
    """Cut the widest dimension."""

    name: ClassVar[str] = "widest"

    def choose(self, box: Box, margin: Tensor, slope: Tensor, budget: int) -> SplitPlan:
        """Pick at most budget pieces and a dimension for each.

        box: B pieces. margin: [B]. slope: [B,*S], not looked at.
        """
        piece = worst_pieces(box, margin, budget)
        chosen = box[piece]
        return SplitPlan(piece, best_dimension(chosen, width(chosen)))
