"""Lines around ReLU: below and above it on the whole interval, however extreme."""

from fractions import Fraction

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from advrepair.plugins.verifiers.relaxations import SLOPES, Relaxation, relu

EXTREMES = [0.0, -0.0, 5e-324, 1e-310, 1e-300, 1e-30, 1.0, 1e15, 1e30, 1e150]
ends = st.one_of(
    st.sampled_from([*EXTREMES, *(-value for value in EXTREMES)]),
    st.floats(-100, 100, allow_nan=False),
    st.floats(-1e100, 1e100, allow_nan=False),
)
slopes = st.sampled_from(SLOPES)


def _lines(lower: float, upper: float, slope: str, rigorous: bool) -> Relaxation:
    low, high = (torch.tensor([[end]], dtype=torch.float64) for end in (lower, upper))
    return relu(low, high, slope, rigorous)


def _numbers(lines: Relaxation) -> tuple[Fraction, Fraction, Fraction]:
    below, above, offset = (
        Fraction(t.item()) for t in (lines.lower_slope, lines.upper_slope, lines.offset)
    )
    return below, above, offset


def _grid(lower: float, upper: float) -> list[Fraction]:
    low, high = Fraction(lower), Fraction(upper)
    inside = [low + (high - low) * Fraction(i, 16) for i in range(17)]
    return [*inside, *([Fraction(0)] if low <= 0 <= high else [])]


@given(ends, ends, slopes)
@example(0.0, 0.0, "area")
@example(-0.0, 0.0, "one")
@example(-1e30, 1e-300, "same")
@example(-5e-324, 5e-324, "same")
@example(-1e-310, 1e30, "area")
@example(-0.1, 0.3, "same")
def test_rigorous_lines_hold_exactly(one: float, other: float, slope: str) -> None:
    lower, upper = min(one, other), max(one, other)
    below, above, offset = _numbers(_lines(lower, upper, slope, rigorous=True))
    assert 0 <= below <= 1 and 0 <= above <= 1 and offset >= 0
    for x in _grid(lower, upper):
        assert below * x <= max(x, 0) <= above * x + offset


@given(ends, ends)
def test_rigorous_lines_hold_with_a_rounded_slope(one: float, other: float) -> None:
    """Rows are multiplied with the slope, which rounds: up to one unit more or less."""
    lower, upper = min(one, other), max(one, other)
    _, above, offset = _numbers(_lines(lower, upper, "area", rigorous=True))
    for turned in (above * (1 - Fraction(1, 2**53)), above * (1 + Fraction(1, 2**53))):
        if turned not in (0, 1) and above not in (0, 1):
            assert all(max(x, 0) <= turned * x + offset for x in _grid(lower, upper))


@given(ends, ends, slopes)
def test_plain_lines_hold_up_to_rounding(one: float, other: float, slope: str) -> None:
    lower, upper = min(one, other), max(one, other)
    below, above, offset = _numbers(_lines(lower, upper, slope, rigorous=False))
    size = Fraction(max(abs(lower), abs(upper))) * Fraction(1, 2**50)
    for x in _grid(lower, upper):
        assert below * x <= max(x, 0) <= above * x + offset + size + Fraction(2) ** -1000


@pytest.mark.parametrize("rigorous", [False, True])
@given(one=ends, other=ends, slope=slopes)
def test_stable_units_keep_their_function(
    rigorous: bool, one: float, other: float, slope: str
) -> None:
    lower, upper = min(one, other), max(one, other)
    smallest = 2.0**-1022  # below, a quotient of subnormal numbers is not exact
    if lower < 0 < upper or max(abs(lower), abs(upper)) < smallest:
        return
    below, above, offset = _numbers(_lines(lower, upper, slope, rigorous))
    assert below == above == (1 if lower >= 0 else 0)
    # Slopes of 1 and 0 are exact: a rigorous line covers underflow and no more.
    assert offset <= (Fraction(2) ** -900 if rigorous else 0)


@pytest.mark.parametrize(
    ("slope", "lower", "upper", "below"),
    [
        ("area", -1.0, 2.0, 1.0),
        ("area", -2.0, 1.0, 0.0),
        ("zero", -1.0, 2.0, 0.0),
        ("one", -2.0, 1.0, 1.0),
        ("same", -1.0, 3.0, 0.75),
    ],
)
def test_the_slope_below_an_unstable_unit(
    slope: str, lower: float, upper: float, below: float
) -> None:
    lines = _lines(lower, upper, slope, rigorous=False)
    chord = upper / (upper - lower)
    assert _numbers(lines) == (below, chord, -chord * lower)


@pytest.mark.parametrize("slope", SLOPES)
@pytest.mark.parametrize("rigorous", [False, True])
def test_nan_stays_visible(slope: str, rigorous: bool) -> None:
    lines = _lines(float("nan"), float("nan"), slope, rigorous)
    assert lines.offset.isnan().all() and lines.upper_slope.isnan().all()
