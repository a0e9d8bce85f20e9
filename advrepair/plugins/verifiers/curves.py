"""How smooth activations are bounded by lines: what is substituted backwards for them.

Tangents are found by bisection, and offsets follow from where a curve is convex: whatever the
bisection finds, the lines hold.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from attrs import frozen
from torch import Tensor

from advrepair.core.rounding import Rounding
from advrepair.plugins.verifiers.relaxations import Relaxation

Function = Callable[[Tensor], Tensor]
_HALVINGS = 20  # of where a tangent's point is looked for; then a chord
# Times 1 + the largest |x|: what a value less slope * x, or a row times a slope, is off by in
# float64, with room for functions of the library that err by some hundred units.
_OURS = 2.0**-44


@frozen
class Curve:
    """An activation: convex from ``-bend`` or from -inf up to bend, concave elsewhere.

    value: the function. slope: its derivative, between -1 and 2. bend: 0 of curves in the form
    of an S, which are convex where x is negative; of the others f(x) - x / 2 is even. lowest:
    where the function is least.
    """

    value: Function
    slope: Function
    bend: float = 0.0
    lowest: float = -math.inf


def _erf_slope(x: Tensor) -> Tensor:
    return 2 / math.sqrt(math.pi) * torch.exp(-x * x)


CURVES: Mapping[str, Curve] = {
    "tanh": Curve(torch.tanh, lambda x: 1 - torch.tanh(x) ** 2),
    "sigmoid": Curve(torch.sigmoid, lambda x: torch.sigmoid(x) * torch.sigmoid(-x)),
    "erf": Curve(torch.erf, _erf_slope),
}


def curved(kind: str, lower: Tensor, upper: Tensor, rounding: Rounding | None) -> Relaxation:
    """Lines around a curve for inputs in [lower, upper], [B,*shape].

    Sound: below as :func:`below` says; above, as that says of -f(-x), which is convex up to
    -bend. With ``rounding`` the offsets leave room for what :func:`slack_of` says.
    """
    curve = CURVES[kind]
    under, lift = below(curve.value, curve.slope, lower, upper, lower, curve.bend)
    over, drop = below(
        lambda x: -curve.value(-x), lambda x: curve.slope(-x), -upper, -lower, -upper, -curve.bend
    )
    if rounding is None:
        return Relaxation(under, over, -drop, lift)
    slack = slack_of(curve, lower, upper, rounding)
    return Relaxation(under, over, slack - drop, lift - slack)


def below(
    value: Function, slope: Function, low: Tensor, high: Tensor, first: Tensor, bend: float
) -> tuple[Tensor, Tensor]:
    """Slope s and offset t of a line below f on [low, high]: s x + t <= f(x), [B,*shape] each.

    f is convex on [first, bend], and concave elsewhere on [low, high].

    Sound: let g = f - s x. Where f is concave g is least at an end. Where it is convex, it is
    least at the point d whose tangent has the slope s = f'(d); or, where s is that of the chord
    although first < bend, at first = low, as f' exceeds it there: the tangent at low is above f
    at high. So g is at least the least of g(low), g(high) and g(d).

    Of the tangents that lie below f at high, that nearest to the middle is taken: CROWN, arXiv
    1811.00866. Gradients are those of the line where d is found exactly.
    """

    def beyond(d: Tensor) -> Tensor:
        return value(d) + slope(d) * (high - d) - at_high  # of the tangent at d

    at_low, at_high, middle = value(low), value(high), (low + high) / 2
    small = torch.finfo(low.dtype).eps ** 0.75 * (1 + high.abs())  # its chord is all rounding
    wide = high - low > small
    width = torch.where(wide, high - low, 1.0)
    chord = torch.where(wide, (at_high - at_low) / width, slope(middle))
    straight = (first >= bend) | (beyond(first) > 0)
    middle = torch.maximum(middle, first).clamp(max=bend)
    far = beyond(middle) > 0
    near, past = first.detach(), middle.detach()
    for _ in range(_HALVINGS):
        half = (near + past) / 2
        passed = beyond(half) > 0
        near, past = torch.where(passed, near, half), torch.where(passed, half, past)
    short, over = -beyond(near), beyond(past)
    rest = (short / (short + over).clamp(min=torch.finfo(low.dtype).tiny)).clamp(0, 1)
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
