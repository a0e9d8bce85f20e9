"""What the refiners share: which pieces to cut, and which dimensions can be cut at all."""

import torch
from torch import Tensor

from advrepair.core.box import Box


def cuttable(box: Box) -> Tensor:
    """Whether the midpoint lies strictly between the faces: bool [B,S], S flat dimensions.

    It does not where the width is zero, nor where the faces are neighbouring floats; a cut
    there would give the piece back unchanged, for ever.
    """
    return ((box.lower < box.center) & (box.center < box.upper)).flatten(1)


def width(box: Box) -> Tensor:
    """Width of every flat dimension, [B,S], in float64."""
    return (box.upper.double() - box.lower.double()).flatten(1)


def worst_pieces(box: Box, margin: Tensor, budget: int) -> Tensor:
    """The unproved pieces to cut, lowest margin first, equal ones by index: [T], T <= budget.

    margin: [B]; not positive, or NaN, where nothing is proved.
    """
    candidates = (~(margin > 0) & cuttable(box).any(1)).nonzero().squeeze(1)
    badness = margin[candidates].nan_to_num(nan=-torch.inf, neginf=-torch.inf)
    return candidates[badness.argsort(stable=True)[: max(budget, 0)]]


def best_dimension(box: Box, score: Tensor) -> Tensor:
    """The cuttable dimension of the largest score, the first of equal ones: [B].

    box: each piece must have a cuttable dimension. score: [B,S], not negative.
    """
    return score.masked_fill(~cuttable(box), -1.0).argmax(1)
