"""Lines around max pools: they hold exactly, and are exact where one input dominates."""

from fractions import Fraction
from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from advrepair.core.graph import INPUT, STEPS, Operation
from advrepair.plugins.verifiers import propagation
from advrepair.plugins.verifiers.deeppoly import DeepPoly
from advrepair.plugins.verifiers.pools import gathered, max_pool, scattered
from advrepair.plugins.verifiers.relaxations import Relaxation
from advrepair.plugins.verifiers.transposed import spread
from advrepair.plugins.verifiers.windows import flat, unflat, whole
from advrepair.testing.conformance import conformance
from advrepair.testing.strategies import seeds

SHAPE = (2, 5, 4)
POOLS = [((2, 2), (2, 2), (0, 0)), ((3, 2), (1, 2), (1, 1)), ((1, 1), (2, 1), (0, 0))]
extremes = [0.0, 1e-300, 1e-30, 1e-7, 0.1, 1.0, 3.0, 1e30]
numbers = st.one_of(st.floats(-4, 4), st.sampled_from([*extremes, *(-x for x in extremes)]))


def pool(kernel=(2, 2), stride=(2, 2), padding=(0, 0), shape=SHAPE) -> Operation:
    settings = {"kernel_size": kernel, "stride": stride, "padding": padding}
    op = Operation("pool", "max_pool2d", (INPUT,), shape, {}, settings)
    made = STEPS["max_pool2d"](op, {}, [torch.zeros(1, *shape)]).shape[1:]
    return Operation("pool", "max_pool2d", (INPUT,), tuple(made), {}, settings)


def bounds(seed: int, count: int = 3) -> tuple[Tensor, Tensor]:
    """Of very unequal widths, some zero, some the same."""
    noise = torch.Generator().manual_seed(seed)
    center = torch.randn(count, *SHAPE, generator=noise, dtype=torch.float64)
    center = torch.where(torch.rand(center.shape, generator=noise) < 0.3, 0.5, center)
    width = 10 ** (-4 * torch.rand(center.shape, generator=noise, dtype=torch.float64))
    width = torch.where(torch.rand(center.shape, generator=noise) < 0.2, 0.0, width)
    return center - width, center + width


def inside(lower: Tensor, upper: Tensor, seed: int) -> Tensor:
    """Corners and other points of each box: [N,B,*SHAPE]."""
    share = torch.rand(40, *lower.shape, generator=torch.Generator().manual_seed(seed)).double()
    share[:20] = share[:20].round()
    return (lower + share * (upper - lower)).clamp(lower, upper)


@given(seeds, st.sampled_from(POOLS), st.booleans())
def test_no_window_leaves_its_lines(seed, settings, rigorous):
    op = pool(*settings)
    lower, upper = bounds(seed)
    lines = max_pool(op, lower, upper, rigorous)
    below = 0 if lines.lower_offset is None else lines.lower_offset
    for x in inside(lower, upper, seed):
        y, met = STEPS["max_pool2d"](op, {}, [x]), gathered(op, x)
        slack = 0 if rigorous else 1e-14 * (1 + y.abs())
        assert bool(((lines.lower_slope * met).sum(1) + below <= y + slack).all())
        assert bool((y <= (lines.upper_slope * met).sum(1) + lines.offset + slack).all())


@given(st.lists(st.tuples(numbers, numbers), min_size=4, max_size=4))
def test_rigorous_lines_hold_exactly(ends):
    """At every corner of one window, in rational arithmetic."""
    op = pool(shape=(1, 2, 2))
    low, high = (
        torch.tensor([f(*pair) for pair in ends], dtype=torch.float64).view(1, 1, 2, 2)
        for f in (min, max)
    )
    lines = max_pool(op, low, high, True)
    below, above = (
        [Fraction(s.item()) for s in slopes.flatten()]
        for slopes in (lines.lower_slope, lines.upper_slope)
    )
    lift, offset = Fraction(lines.lower_offset.item()), Fraction(lines.offset.item())
    assert all(s >= 0 for s in (*below, *above))
    for corner in product(*([Fraction(a), Fraction(b)] for a, b in ends)):
        assert sum(s * x for s, x in zip(below, corner, strict=True)) + lift <= max(corner)
        assert max(corner) <= sum(s * x for s, x in zip(above, corner, strict=True)) + offset


@given(seeds, st.sampled_from(POOLS))
def test_where_one_input_dominates_the_lines_are_it(seed, settings):
    op = pool(*settings)
    lower, upper = bounds(seed)
    lines = max_pool(op, lower, upper, False)
    low, high = gathered(op, lower), gathered(op, upper)
    real = gathered(op, torch.ones_like(lower)) > 0
    best = torch.where(real, low, -torch.inf).argmax(1, keepdim=True)
    others = torch.where(real, high, -torch.inf).scatter(1, best, -torch.inf).amax(1, keepdim=True)
    sure = (low.gather(1, best) >= others) & (low.gather(1, best) < high.gather(1, best))
    alone = torch.zeros_like(low).scatter(1, best, 1.0)
    for slopes in (lines.lower_slope, lines.upper_slope):
        assert bool(torch.where(sure, slopes == alone, True).all())
    assert bool(torch.where(sure[:, 0], lines.offset == 0, True).all())


@given(seeds, st.sampled_from(POOLS))
def test_the_line_above_is_nowhere_above_that_of_deeppoly(seed, settings):
    """Which is the largest upper end, wherever no input dominates."""
    op = pool(*settings)
    lower, upper = bounds(seed)
    lines = max_pool(op, lower, upper, False)
    most = STEPS["max_pool2d"](op, {}, [upper])
    reached = (lines.upper_slope * gathered(op, upper)).sum(1) + lines.offset
    assert bool((reached <= most + 1e-12 * (1 + most.abs())).all())


@given(seeds, st.sampled_from(POOLS))
def test_whoever_has_nearly_the_same_bounds_has_nearly_the_same_lines(seed, settings):
    op = pool(*settings)
    lower, upper = bounds(seed)
    upper = upper + 0.01  # a point is another matter
    noise = 1e-9 * torch.rand(upper.shape, generator=torch.Generator().manual_seed(seed)).double()
    one, other = (max_pool(op, lower - n, upper + n, False) for n in (0 * noise, noise))
    x = inside(lower, upper, seed)[0]
    for made in ("lower_slope", "upper_slope"):
        ends = [(getattr(lines, made) * gathered(op, x)).sum(1) for lines in (one, other)]
        ends = (
            ends
            if made == "lower_slope"
            else [end + lines.offset for end, lines in zip(ends, (one, other), strict=True)]
        )
        assert bool(((ends[0] - ends[1]).abs() <= 1e-5).all())


@pytest.mark.parametrize("settings", POOLS)
def test_rows_go_back_where_numbers_came_from(settings):
    op, noise = pool(*settings), torch.Generator().manual_seed(0)
    x = torch.randn(3, *SHAPE, generator=noise).double()
    rows = torch.randn(gathered(op, x).shape, generator=noise).double()
    back = scattered(op, rows, SHAPE)
    torch.testing.assert_close(
        (back * x).flatten(1).sum(1), (rows * gathered(op, x)).flatten(1).sum(1)
    )
    k, windows = rows.shape[1], {"pool": whole(op.shape), INPUT: whole(SHAPE)}
    ones = torch.ones(3, 1, rows[0, 0].numel(), dtype=torch.float64)
    slopes = flat(rows.flatten(0, 1), op.shape).view(3, k, -1)
    found = spread(op, (ones, 0 * ones), (slopes, slopes), windows)
    torch.testing.assert_close(unflat(found[:, 0], SHAPE), back)


def test_nan_stays_visible():
    low = torch.full((1, *SHAPE), torch.nan).double()
    lines = max_pool(pool(), low, low, True)
    assert bool(lines.offset.isnan().all()) and bool(lines.lower_slope.isnan().all())


def _too_low(op: Operation, lower: Tensor, upper: Tensor, rigorous: bool) -> Relaxation:
    lines = max_pool(op, lower, upper, rigorous)
    return Relaxation(lines.lower_slope, lines.upper_slope, 0.99 * lines.offset, lines.lower_offset)


def _turned(op: Operation, lower: Tensor, upper: Tensor, rigorous: bool) -> Relaxation:
    lines = max_pool(op, lower, upper, rigorous)
    return Relaxation(lines.lower_slope, lines.lower_slope, 0 * lines.offset, lines.lower_offset)


def _last_window(op: Operation, lower: Tensor, upper: Tensor, rigorous: bool) -> Relaxation:
    lines = max_pool(op, lower, upper, rigorous)
    return Relaxation(
        lines.lower_slope.roll(1, 1), lines.upper_slope.roll(1, 1), lines.offset, lines.lower_offset
    )


@pytest.mark.parametrize("bug", [_too_low, _turned, _last_window])
def test_a_planted_bug_is_caught(bug, monkeypatch):
    monkeypatch.setattr(propagation, "max_pool", bug)
    failed = dict(conformance(DeepPoly()))
    assert any(name.startswith("check_no_point_beats") for name in failed), failed
