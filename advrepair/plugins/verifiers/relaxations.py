"""How one ReLU is bounded by lines: what DeepPoly substitutes backwards; what lines are."""

import torch
from attrs import frozen
from torch import Tensor

from advrepair.core.rounding import UNIT64

SLOPES = ("area", "zero", "one", "same")
STEPS_OF_SLOPE = 255
# More than underflow loses; products with numbers as small as that are slow, so it is larger.
LOST = 2.0**-900


@frozen(eq=False)
class Relaxation:
    """``lower_slope * x + lower_offset <= f(x) <= upper_slope * x + offset``, each [B,*shape].

    lower_offset: None is 0. Of a max pool the slopes are [B,k,*shape], of the inputs of a window.
    Rows may be multiplied with the slopes, which rounds: rigorous offsets cover that.
    """

    lower_slope: Tensor
    upper_slope: Tensor
    offset: Tensor
    lower_offset: Tensor | None = None


def relu(lower: Tensor, upper: Tensor, slope: str | Tensor, rigorous: bool) -> Relaxation:
    """Lines around ReLU for inputs in [lower, upper].

    Sound: relu is convex, so a line is above it on the interval iff it is above it at both
    ends, which ``offset = max(-s l, (1 - s) u)`` gives for *any* s in [0, 1]; and s x lies
    below relu(x) for any s in [0, 1]. So a rounded slope costs precision, never soundness;
    with ``rigorous`` the offset also covers its own rounding and that of the product A s.
    DeepPoly, POPL 2019 (10.1145/3290354): s = u / (u - l), lower slope by least area.

    lower, upper: [B,*shape]. slope: lower slope of unstable units, one of SLOPES or numbers
    in [0, 1]; rigorous ones are multiples of 1/255, as a certificate stores them.
    """
    low, high = lower.clamp(max=0), upper.clamp(min=0)
    tiny = torch.finfo(lower.dtype).tiny
    # Dead: high = 0 gives slope 0. Active: low = 0 gives 1. No branch, so it can be mapped.
    above = high / (high - low).clamp(min=tiny)
    offset = torch.maximum(-above * low, (1 - above) * high) if rigorous else -above * low
    active, dead = (lower >= 0).to(lower.dtype), (upper <= 0).to(lower.dtype)
    if rigorous:
        # Through an active or a dead unit nothing is rounded: its slope is 1 or 0.
        reach = torch.maximum(-low, high) * (1 - torch.maximum(active, dead))
        offset = offset + 8 * UNIT64 * reach + LOST
    if isinstance(slope, Tensor):
        below = torch.where(active + dead > 0, active, slope)
    elif slope == "area":
        below = (upper > -lower).to(lower.dtype)
    elif slope == "zero":
        below = active
    elif slope == "one":
        below = 1 - dead
    else:
        below = above
    if rigorous:
        below = (below * STEPS_OF_SLOPE).round() / STEPS_OF_SLOPE
    return Relaxation(below, above, offset)
