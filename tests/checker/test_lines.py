"""The checker's lines around functions: they hold exactly, and mistakes in them are found."""

from fractions import Fraction
from functools import partial
from itertools import product

import mpmath
import numpy as np
import pytest
import torch
from functions import doubles, ends, exact, grid, kinds, numbers, widths
from hypothesis import given, settings
from hypothesis import strategies as st
from test_bounds import lowest

from advrepair.checker import bounds
from advrepair.checker.lines import CURVES, curve, max_pool
from advrepair.core.graph import INPUT, Operation
from advrepair.plugins.verifiers import pools
from advrepair.plugins.verifiers.curves import curved
from advrepair.testing.cases import make_case
from advrepair.testing.networks import Sketch
from advrepair.testing.search import low_points

extremes = [0.0, 1e-300, 1e-30, 1e-7, 0.1, 1.0, 3.0, 1e30]
floats = st.one_of(st.floats(-4, 4), st.sampled_from([*extremes, *(-x for x in extremes)]))
G = 8 * 2.0**-53 * 21  # what the checker adds to its lines, for a window of four


def exactly(array):
    return [Fraction(x) for x in array.ravel().tolist()]


@given(st.lists(st.tuples(floats, floats), min_size=4, max_size=4), st.booleans())
def test_lines_around_a_window_hold_exactly(ends, padded):
    """At every corner, in rational arithmetic; padding is no input."""
    index = np.array([[3, 0, 1, -1 if padded else 2]])
    low, high = (np.array([[f(*pair) for pair in ends]]) for f in (min, max))
    below, above, shift, least, greatest, reach = max_pool(low, high, index)
    below, above, (offset,) = exactly(below), exactly(above), exactly(shift)
    assert all(0 <= s <= 1 for s in (*below, *above))
    slack = Fraction(G) * Fraction(reach.item()) + Fraction(2) ** -400
    real = [i for i in index[0] if i >= 0]
    for corner in product(*([Fraction(a), Fraction(b)] for a, b in ends)):
        met = [corner[i] if i >= 0 else Fraction(10**40) for i in index[0]]
        largest = max(corner[i] for i in real)
        assert sum(s * x for s, x in zip(below, met, strict=True)) - slack <= largest
        assert largest <= sum(s * x for s, x in zip(above, met, strict=True)) + offset + slack
        assert Fraction(least.item()) <= largest <= Fraction(greatest.item())


@given(kinds, ends, ends)
def test_lines_around_a_curve_hold_exactly(kind, one, other):
    low, high = (np.array([[f(one, other)]]) for f in (min, max))
    lines = curve(kind, low, high)
    under, over, lift, drop, least, greatest = (mpmath.mpf(each.item()) for each in lines)
    slack = mpmath.mpf(2) ** -44 * (1 + max(abs(one), abs(other)))
    for x in grid(low.item(), high.item()):
        y = exact(kind, x)
        assert under * x + lift - slack <= y <= over * x + drop + slack
        assert least - slack <= y <= greatest + slack


@given(kinds, ends, widths)
def test_both_choose_the_same_lines_around_a_curve(kind, low, width):
    high = low + width * (1 + abs(low))
    mine = [each.item() for each in curve(kind, np.array([[low]]), np.array([[high]]))[:4]]
    theirs = [float(each) for each in numbers(curved(kind, *doubles(low, high), None))]
    under, lift, over, drop = theirs
    for x in (low, high, (low + high) / 2):
        near = 1e-9 * (1 + abs(x))
        assert abs((mine[0] * x + mine[2]) - (under * x + lift)) <= near
        assert abs((mine[1] * x + mine[3]) - (over * x + drop)) <= near


def too_low(low, high, index):
    below, above, shift, *rest = max_pool(low, high, index)
    return below, above, 0.99 * shift, *rest


def turned(low, high, index):
    below, _, shift, *rest = max_pool(low, high, index)
    return below, below, 0 * shift, *rest


def another_input(low, high, index):
    below, above, *rest = max_pool(low, high, index)
    return np.roll(below, 1, 2), np.roll(above, 1, 2), *rest


def is_beaten(build):
    """Whether descents find a value below its bound."""
    for seed in range(8):
        case = make_case("", build(seed), ("small", "wide", "unequal", "wide"), 4, seed)
        found, _ = lowest(case.network, case.box, case.C, "deployed-float64")
        least = case.rows(low_points(case, case.rows, seed)).amin(1) - case.d
        if (found > least.detach().numpy() + 1e-9).any():
            return True
    return False


def window(seed):
    """One max pool, and little else."""
    sketch = Sketch(seed, (1, 3, 3)).max_pool2d(2, stride=1)
    return sketch.flatten().linear(3).finish()


def rising(seed, kind):
    return Sketch(seed, (2,)).linear(5).apply(kind).linear(3).finish()


def concave(kind, low, high):
    """As if a curve were concave everywhere: the tangent at the middle above it."""
    under, _, lift, _, *rest = curve(kind, low, high)
    middle, (value, slope, *_) = (low + high) / 2, CURVES[kind]
    return under, slope(middle), lift, value(middle) - slope(middle) * middle, *rest


def narrow(kind, low, high):
    under, over, lift, drop, *rest = curve(kind, low, high)
    return under, over, lift, drop - 0.01 * (high - low), *rest


@pytest.mark.parametrize("kind", CURVES)
@pytest.mark.parametrize("bug", [None, concave, narrow])
def test_a_planted_bug_in_a_curve_is_caught(bug, kind, monkeypatch):
    if bug is not None:
        monkeypatch.setattr(bounds, "curve", bug)
    assert is_beaten(partial(rising, kind=kind)) == (bug is not None)


def test_a_gelu_that_is_not_turned_crosses_its_lines(monkeypatch):
    monkeypatch.setitem(CURVES, "gelu", (*CURVES["gelu"][:2], 0.0, CURVES["gelu"][3]))
    lines = curve("gelu", np.array([[-5.0]]), np.array([[-1.0]]))
    _, over, _, drop, *_ = (each.item() for each in lines)
    assert any(exact("gelu", x) > over * x + drop for x in grid(-5.0, -1.0))


@pytest.mark.parametrize("bug", [None, too_low, turned, another_input])
def test_a_planted_bug_is_caught(bug, monkeypatch):
    if bug is not None:
        monkeypatch.setattr(bounds, "max_pool", bug)
    assert is_beaten(window) == (bug is not None)


@given(st.integers(0, 2**32))
@settings(max_examples=20)
def test_both_choose_the_same_lines(seed):
    """Given the same bounds: so a claim is found again."""
    noise = torch.Generator().manual_seed(seed)
    center = torch.randn(2, 3, 4, 4, generator=noise, dtype=torch.float64)
    width = torch.rand(center.shape, generator=noise, dtype=torch.float64)
    low, high = center - width, center + width
    pool = {"kernel_size": (3, 2), "stride": (1, 2), "padding": (1, 1)}
    op = Operation("pool", "max_pool2d", (INPUT,), (3, 4, 3), {}, pool)
    place = torch.arange(1.0, 49).view(1, 3, 4, 4)
    index = pools.gathered(op, place).flatten(2).permute(0, 2, 1)[0].long().numpy() - 1
    mine = max_pool(low.flatten(1).numpy(), high.flatten(1).numpy(), index)
    theirs = pools.max_pool(op, low, high, False)
    for slopes, other in zip(mine, (theirs.lower_slope, theirs.upper_slope), strict=False):
        assert np.allclose(slopes, other.flatten(2).permute(0, 2, 1).numpy(), rtol=0, atol=1e-12)
    assert np.allclose(mine[2], theirs.offset.flatten(1).numpy(), rtol=0, atol=1e-12)
