"""The paper's splitting rule, with its sign put right."""

from typing import ClassVar

import torch
from attrs import frozen
from torch import Tensor

from advrepair.core.box import Box
from advrepair.core.interfaces import Refiner
from advrepair.core.types import SplitPlan
from advrepair.plugins.refiners.selection import best_dimension, cuttable, width, worst_pieces


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
        piece = worst_pieces(box, margin, budget)
        chosen = box[piece]
        wide = width(chosen)
        # A slope that overflowed still says "here"; NaN says nothing.
        steep = slope[piece].double().flatten(1).abs().nan_to_num(nan=0.0)
        score = (steep * wide).masked_fill(~cuttable(chosen), 0.0)
        flat = (score == 0).all(1, keepdim=True)
        return SplitPlan(piece, best_dimension(chosen, torch.where(flat, wide, score)))
