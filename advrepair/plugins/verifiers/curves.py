"""How smooth activations are bounded by lines: what is substituted backwards for them.

Tangents are found by bisection, and offsets follow from where a curve is convex: whatever the
bisection finds, the lines hold.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from attrs import frozen
from torch import Tensor

from advrepair.core.rounding import Rounding
from advrepair.plugins.verifiers.relaxations import Relaxation

Function = Callable[[Tensor], Tensor]
_HALVINGS = 20  # of where a tangent's point is looked for; then a chord
# Up to this width the slope of a chord is the mean of the curve's, by Simpson's rule: a quotient
# would be all rounding. It is off by width^4 / 2880 times the fifth derivative, which is at most
# 16; times the width that is less than 2^-52.
_NARROW = 2.0**-9
_NOISE = 64  # units of 1 + the largest |x|, by which nothing that is computed here can be told
# Times 1 + the largest |x|: what a value less slope * x, or a row times a slope, is off by in
# float64, with room for functions of the library that err by some hundred units.
_OURS = 2.0**-44


@frozen
class Curve:
    """An activation: convex on [-bend, bend] or, where bend is 0, for x < 0; else concave.

    value: the function f. slope: its derivative, between -1 and 2. lowest: where f is least.
    Where bend is not 0, f(x) = x + f(-x), and E(x) = f(x) - x / 2 grows with ``|x|``.
    """

    value: Function
    slope: Function
    bend: float = 0.0
    lowest: float = -math.inf


def _erf_slope(x: Tensor) -> Tensor:
    return 2 / math.sqrt(math.pi) * torch.exp(-x * x)


def _gelu_slope(x: Tensor) -> Tensor:
    density = torch.exp(-x * x / 2) / math.sqrt(2 * math.pi)
    return (1 + torch.erf(x / math.sqrt(2))) / 2 + x * density


CURVES: Mapping[str, Curve] = {
    "tanh": Curve(torch.tanh, lambda x: 1 - torch.tanh(x) ** 2),
    "sigmoid": Curve(torch.sigmoid, lambda x: torch.sigmoid(x) * torch.sigmoid(-x)),
    "erf": Curve(torch.erf, _erf_slope),
    # x P(X < x), X normal with density p: f' = P + x p, f'' = (2 - x^2) p, E' = P - 1/2 + x p.
    "gelu": Curve(F.gelu, _gelu_slope, math.sqrt(2), -0.7517915246935645),
}


def curved(kind: str, lower: Tensor, upper: Tensor, rounding: Rounding | None) -> Relaxation:
    """Lines around a curve for inputs in [lower, upper], [B,*shape].

    Sound: below as :func:`below` says; above, as that says of F(x) = -f(-x), which for curves in
    the form of an S is convex where f is concave. A GELU is seen from the side that reaches
    farther from 0, by f(x) = x + f(-x); so upper >= -lower. F is convex up to -bend and concave
    up to bend; from there on it is convex again, but falls, as f' < 0 left of -bend. There
    F - s x falls, too, and is least at its end, as s > 0: a chord has the slope 1/2 + (E(upper)
    - E(lower)) / (upper - lower) >= 1/2, and a tangent at bend or right of it more than 1.
    With ``rounding`` the offsets leave room for what :func:`slack_of` says.
    """
    curve = CURVES[kind]
    turned = (lower + upper < 0) & (curve.bend > 0)
    low, high = torch.where(turned, -upper, lower), torch.where(turned, -lower, upper)
    first = low.clamp(min=-curve.bend) if curve.bend else low
    under, lift = below(curve.value, curve.slope, low, high, first, curve.bend)
    over, drop = below(
        lambda x: -curve.value(-x), lambda x: curve.slope(-x), -high, -low, -high, -curve.bend
    )
    under, over = (torch.where(turned, 1 - slope, slope) for slope in (under, over))
    if rounding is None:
        return Relaxation(under, over, -drop, lift)
    slack = slack_of(curve, lower, upper, rounding)
    return Relaxation(under, over, slack - drop, lift - slack)


def below(
    value: Function, slope: Function, low: Tensor, high: Tensor, first: Tensor, bend: float
) -> tuple[Tensor, Tensor]:
    """Slope s and offset t of a line below f on [low, high]: s x + t <= f(x), [B,*shape] each.

    f is convex on [first, bend], and concave elsewhere on [low, high].

    Sound: let g = f - s x. Where f is concave g is least at an end. Where it is convex, g is at
    least g(d) + (f'(d) - s)(x - d), for any d: g(d), up to rounding, where s is f' at d. Where s
    is that of the chord although first < bend, the tangent at first is above f at high; then
    first = low, f' exceeds s there and from there on, and g is least at low. So g is at least
    the least of g(low), g(high) and g(d).

    Of the tangents that lie below f at high, that nearest to the middle is taken: CROWN, arXiv
    1811.00866. (Of GELU that at 0 lies below f everywhere, so the one taken touches at 0 or
    right of it, and lies below f at low, too.) Gradients are those of the line where d is found
    exactly.
    """

    def beyond(d: Tensor) -> Tensor:
        return value(d) + slope(d) * (high - d) - at_high  # of the tangent at d

    at_low, at_high, middle = value(low), value(high), (low + high) / 2
    wide = high - low > _NARROW
    mean = (slope(low) + 4 * slope(middle) + slope(high)) / 6
    chord = torch.where(wide, (at_high - at_low) / torch.where(wide, high - low, 1.0), mean)
    straight = (first >= bend) | (beyond(first) > 0)
    middle = torch.maximum(middle, first).clamp(max=bend)
    noise = _NOISE * torch.finfo(low.dtype).eps * (1 + torch.maximum(low.abs(), high.abs()))
    far = (beyond(middle) > noise) & ~straight
    near, past = first.detach(), middle.detach()
    for _ in range(_HALVINGS):
        half = (near + past) / 2
        passed = beyond(half) > 0
        near, past = torch.where(passed, near, half), torch.where(passed, half, past)
    short, over = beyond(near).clamp(max=0).neg(), beyond(past).clamp(min=0)
    rest = short / (short + over).clamp(min=torch.finfo(low.dtype).tiny)
    near = (near + rest * (past - near)).detach()
    d = torch.where(far, near, middle)
    # That of the line through high, which moves d: its own slope is as good as a tangent's.
    secant = (at_high - value(near)) / torch.where(far, high - near, 1.0)
    tangent = torch.where(far, slope(near) + secant - secant.detach(), slope(middle))
    s = torch.where(straight, chord, tangent)
    ends = torch.minimum(at_low - s * low, at_high - s * high)
    return s, torch.where(straight, ends, torch.minimum(ends, value(d) - s * d))


def slack_of(curve: Curve, low: Tensor, high: Tensor, rounding: Rounding) -> Tensor:
    """What values and lines are off by, on either side: when deployed, and here.

    Sound: the deployed function errs by what :meth:`Rounding.function` says, an assumption; our
    values and slopes, and rows times slopes, by less than 2^-44 (1 + the largest input).
    """
    reach = torch.maximum(low.abs(), high.abs())
    scale = torch.ones_like(reach) if curve.bend == 0 else reach
    return rounding.function(scale) + _OURS * (1 + reach)


def image(kind: str, low: Tensor, high: Tensor, rounding: Rounding | None) -> tuple[Tensor, Tensor]:
    """Least and greatest result for inputs in [low, high], [B,*shape] each.

    Sound: a curve falls up to its lowest point and rises from there on; what is off there is
    of second order. With ``rounding`` both ends leave room for what :func:`slack_of` says.
    """
    curve = CURVES[kind]
    bottom = torch.maximum(low, high.clamp(max=curve.lowest))
    least, greatest = curve.value(bottom), torch.maximum(curve.value(low), curve.value(high))
    if rounding is None:
        return least, greatest
    slack = slack_of(curve, low, high, rounding)
    return least - slack, greatest + slack
