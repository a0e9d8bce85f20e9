"""Lines around functions that are not affine, chosen here from bounds of what they are given."""

import numpy as np

from advrepair.checker.files import Array

_TINY = 2.0**-900
Lines = tuple[Array, Array, Array, Array, Array, Array]


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
