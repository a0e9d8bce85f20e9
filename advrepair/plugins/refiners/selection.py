"""Which pieces to cut and where, by each refiner's rule, and what can be cut at all."""

from __future__ import annotations

import torch
from torch import Tensor

from advrepair.core.box import Box
from advrepair.core.types import SplitPlan


def by_width(box: Box, margin: Tensor, budget: int) -> SplitPlan:
    """The worst pieces, each cut where it is widest."""
    piece = worst_pieces(box, margin, budget)
    chosen = box[piece]
    return SplitPlan(piece, best_dimension(chosen, width(chosen)))


def by_gradient_width(box: Box, margin: Tensor, slope: Tensor, budget: int) -> SplitPlan:
    """The worst pieces, each cut where ``|slope| x width`` is largest."""
    piece = worst_pieces(box, margin, budget)
    chosen = box[piece]
    wide = width(chosen)
    # A slope that overflowed still says "here"; NaN says nothing.
    steep = slope[piece].double().flatten(1).abs().nan_to_num(nan=0.0)
    score = (steep * wide).masked_fill(~cuttable(chosen), 0.0)
    flat = (score == 0).all(1, keepdim=True)
    return SplitPlan(piece, best_dimension(chosen, torch.where(flat, wide, score)))


def nowhere(margin: Tensor) -> SplitPlan:
    """An empty plan."""
    nothing = torch.empty(0, dtype=torch.long, device=margin.device)
    return SplitPlan(nothing, nothing)


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
