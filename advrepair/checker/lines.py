"""Lines around functions that are not affine, chosen here from bounds of what they are given."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from advrepair.checker.files import Array

_TINY = 2.0**-900
Lines = tuple[Array, Array, Array, Array, Array, Array]
Function = Callable[[Array], Array]
_erf = np.vectorize(math.erf, [float])


def _sigmoid(x: Array) -> Array:
    return np.asarray(0.5 + 0.5 * np.tanh(x / 2))


def _normal(x: Array) -> Array:
    return np.asarray((1 + _erf(x / math.sqrt(2))) / 2)


# Value and slope; the curve is convex on [-bend, bend] or, where bend is 0, for x < 0, and else
# concave; where it is least.
CURVES: dict[str, tuple[Function, Function, float, float]] = {
    "tanh": (np.tanh, lambda x: 1 - np.tanh(x) ** 2, 0.0, -math.inf),
    "sigmoid": (_sigmoid, lambda x: _sigmoid(x) * _sigmoid(-x), 0.0, -math.inf),
    "erf": (_erf, lambda x: 2 / math.sqrt(math.pi) * np.exp(-x * x), 0.0, -math.inf),
    "gelu": (
        lambda x: x * _normal(x),
        lambda x: _normal(x) + x * np.exp(-x * x / 2) / math.sqrt(2 * math.pi),
        math.sqrt(2),
        -0.7517915246935645,
    ),
}


def curve(kind: str, low: Array, high: Array) -> Lines:
    """Slopes below and above, offsets below and above, least and greatest result: [B,n] each.

    Up to rounding: less than 2^-44 (1 + the largest input). Of a GELU the side is seen that
    reaches farther, by f(x) = x + f(-x); so high >= -low. Left of -bend f falls, so that f - s x
    does for the slopes s > 0 that the line above has, and is largest at an end there.
    """
    value, slope, bend, lowest = CURVES[kind]
    ends = value(low), value(high), value(np.maximum(low, np.minimum(high, lowest)))
    turned = (low + high < 0) & (bend > 0)
    low, high = np.where(turned, -high, low), np.where(turned, -low, high)
    first = np.maximum(low, -bend) if bend else low
    under, lift = _below(value, slope, low, high, first, bend)
    mirrored = (lambda x: -value(-x)), (lambda x: slope(-x))  # convex where the curve is concave
    over, drop = _below(*mirrored, -high, -low, -high, -bend)
    under, over = (np.where(turned, 1 - each, each) for each in (under, over))
    return under, over, lift, -drop, ends[2], np.maximum(ends[0], ends[1])


def _below(
    value: Function, slope: Function, low: Array, high: Array, first: Array, bend: float
) -> tuple[Array, Array]:
    """Slope s and offset t of a line below f, which is convex on [first, bend], else concave.

    Let g = f - s x. Where f is concave g is least at an end. Where it is convex, it is least at
    d, s = f'(d), wherever that was looked for; or at first = low, where s is that of the chord
    and f' at low exceeds it, as the tangent at low is above f at high.
    """

    def beyond(d: Array, of: Any = ...) -> Array:
        return np.asarray(value(d) + slope(d) * (high[of] - d) - at_high[of])  # of the tangent at d

    at_low, at_high, middle = value(low), value(high), (low + high) / 2
    wide = high - low > 2.0**-9  # else its chord is all rounding; Simpson's rule has the mean
    mean = (slope(low) + 4 * slope(middle) + slope(high)) / 6  # slope, off by width^4 / 180
    chord = np.where(wide, (at_high - at_low) / np.where(wide, high - low, 1), mean)
    straight = (first >= bend) | (beyond(first) > 0)
    d = np.minimum(np.maximum(middle, first), bend)
    far = ~straight & (beyond(d) > 2.0**-46 * (1 + np.maximum(-low, high)))
    near, past = first[far], d[far]
    for _ in range(20):
        half = (near + past) / 2
        passed = beyond(half, far) > 0
        near, past = np.where(passed, near, half), np.where(passed, half, past)
    short, over = np.maximum(-beyond(near, far), 0), np.maximum(beyond(past, far), 0)
    d[far] = near + short / np.maximum(short + over, _TINY) * (past - near)
    s = np.where(straight, chord, slope(d))
    ends = np.minimum(at_low - s * low, at_high - s * high)
    return s, np.where(straight, ends, np.minimum(ends, value(d) - s * d))


def max_pool(low: Array, high: Array, index: Array) -> Lines:
    """Of each window its lines, its least and greatest result, and the largest of its inputs.

    low, high: of what is given, [B,S]. index: [n,k], the inputs of each window, -1 for none.
    Returns slopes below and above [B,n,k], the offset above, and three more, [B,n].

    Any mean of the inputs is at most the largest. That is x_r, of any r, or another one, of
    which each is at most v; so for 0 <= s <= 1 it is at most s x_r plus the larger of
    (1 - s) h_r and v - s l_r. Here r is the input with the greatest upper bound, s the slope of
    the chord of max(x_r, v), and below is the mean of those whose middle is highest, or nearly.
    """
    real = index >= 0
    low, high = np.where(real, low[:, index], np.inf), np.where(real, high[:, index], -np.inf)
    least, first = low.min(2, keepdims=True), high.argmax(2)[..., None]
    low, high = np.where(real, low, least), np.where(real, high, least)
    chosen = np.arange(index.shape[1]) == first
    top, bottom = (np.take_along_axis(face, first, 2) for face in (high, low))
    rest = np.where(chosen, least, high).max(2, keepdims=True)
    s = np.clip((top - rest) / np.maximum(top - bottom, _TINY), 0, 1)
    shift = np.maximum((1 - s) * top, rest - s * bottom)
    middle = np.where(real, (low + high) / 2, -np.inf)
    behind = (middle.max(2, keepdims=True) - middle) / np.maximum((high - low) / 8, _TINY)
    share = np.where(real, np.maximum(1 - behind, 0), 0)
    share /= share.sum(2, keepdims=True)
    ends = low.max(2), high.max(2), np.maximum(-low, high).max(2)
    return share, s * chosen, shift[..., 0], *ends
