"""Lines around smooth activations: below and above them on the whole interval, to the last bit."""

import mpmath
import pytest
import torch
from attrs import evolve
from functions import doubles, ends, exact, grid, kinds, numbers, widths
from hypothesis import example, given
from hypothesis import strategies as st

from advrepair.core import rounding
from advrepair.core.graph import INPUT, STEPS, Operation
from advrepair.core.rounding import Level, Rounding
from advrepair.core.types import Box
from advrepair.plugins.verifiers import curves, propagation
from advrepair.plugins.verifiers.curves import CURVES, curved, image
from advrepair.plugins.verifiers.deeppoly import DeepPoly
from advrepair.plugins.verifiers.interval import Interval
from advrepair.plugins.verifiers.relaxations import Relaxation
from advrepair.testing.conformance import conformance
from advrepair.testing.networks import Sketch

REAL = Rounding("real")


def holds(kind: str, lower: float, upper: float, lines: Relaxation) -> bool:
    under, lift, over, drop = numbers(lines)
    return all(under * x + lift <= exact(kind, x) <= over * x + drop for x in grid(lower, upper))


@given(kinds, ends, ends)
@example("tanh", -1e120, 1e120)
@example("sigmoid", 0.0, 0.0)
@example("erf", -40.0, 1e-3)
@example("gelu", -5.0, -1.0)  # a chord from end to end would cross the curve
@example("gelu", -2.0, 2.0)
@example("gelu", -40.0, 1.5)
@example("gelu", -1.4142135623730951, 1.4142135623730954)
def test_rigorous_lines_hold_exactly(kind, one, other):
    lower, upper = min(one, other), max(one, other)
    assert holds(kind, lower, upper, curved(kind, *doubles(lower, upper), REAL))


@given(kinds, ends, widths)
def test_rigorous_lines_hold_on_small_intervals(kind, lower, width):
    upper = lower + width * (1 + abs(lower))
    assert holds(kind, lower, upper, curved(kind, *doubles(lower, upper), REAL))


@given(kinds, ends, widths)
def test_lines_are_near_where_the_interval_is_small(kind, lower, width):
    """Within the second order of the width; so a point gets its value."""
    upper = lower + width
    under, lift, over, drop = numbers(curved(kind, *doubles(lower, upper), REAL))
    off = mpmath.mpf(upper - lower) ** 2 + 2.0**-42 * (1 + abs(lower) + width)
    for x in grid(lower, upper):
        assert exact(kind, x) - (under * x + lift) <= off
        assert (over * x + drop) - exact(kind, x) <= off


@given(kinds, ends, ends)
def test_lines_enclose_less_than_the_box_of_the_ends(kind, one, other):
    """Interval arithmetic encloses the area between the least and the greatest value."""
    lower, upper = min(one, other), max(one, other)
    under, lift, over, drop = numbers(curved(kind, *doubles(lower, upper), REAL))
    least, greatest = (mpmath.mpf(end.item()) for end in image(kind, *doubles(lower, upper), REAL))
    middle = (mpmath.mpf(lower) + mpmath.mpf(upper)) / 2
    between = (over - under) * middle + drop - lift
    assert between <= (greatest - least) * (1 + mpmath.mpf(2) ** -18) + 2.0**-40 * (1 + abs(middle))


@given(kinds, ends, ends)
def test_the_image_holds_every_value(kind, one, other):
    lower, upper = min(one, other), max(one, other)
    least, greatest = (mpmath.mpf(end.item()) for end in image(kind, *doubles(lower, upper), REAL))
    assert all(least <= exact(kind, x) <= greatest for x in grid(lower, upper))


@pytest.mark.parametrize("kind", CURVES)
def test_values_and_slopes_are_those_of_the_function(kind):
    """The lines leave room for 2^-44 (1 + |x|); the library is far within."""
    x = torch.cat(
        [torch.linspace(-12, 12, 401), torch.tensor([-1e30, -40.0, 1e-30, 50.0])]
    ).double()
    curve = CURVES[kind]
    for each, value, slope in zip(
        x.tolist(), curve.value(x).tolist(), curve.slope(x).tolist(), strict=True
    ):
        point = mpmath.mpf(each)
        room = mpmath.mpf(2) ** -49 * (1 + abs(point))
        assert abs(mpmath.mpf(value) - exact(kind, point)) <= room
        assert abs(mpmath.mpf(slope) - mpmath.diff(lambda x: exact(kind, x), point)) <= room + 1e-25


@pytest.mark.parametrize("kind", CURVES)
def test_a_curve_is_convex_and_concave_where_it_says(kind):
    bend = CURVES[kind].bend
    for x in (mpmath.mpf(i) / 32 for i in range(-320, 321)):
        curvature = mpmath.diff(lambda x: exact(kind, x), x, 2)
        inside = x < bend and (bend == 0 or x > -bend)
        assert (curvature >= 0) == inside or abs(abs(x) - bend) < 1e-9, x


def test_a_gelu_is_what_its_lines_rest_on():
    """Less x / 2 it is even and grows with the size of x; it falls left of -bend, and is steep."""
    curve = CURVES["gelu"]
    x = torch.linspace(0, 12, 4001).double()
    off, grows = curve.value(x) - x / 2, curve.slope(x) - 0.5
    torch.testing.assert_close(off, curve.value(-x) + x / 2, rtol=0, atol=1e-14)
    assert bool((grows >= 0).all()) and bool((off.diff() >= -1e-15).all())
    assert bool((curve.slope(x[x >= curve.bend]) > 1 - 1e-15).all())
    assert bool((curve.slope(-x[x >= curve.bend]) < 1e-15).all())
    assert bool((curve.slope(x.new_tensor([curve.lowest])).abs() < 1e-15).all())


@pytest.mark.parametrize("kind", CURVES)
def test_gradients_are_those_of_the_lines(kind):
    """Where a tangent is looked for, where a chord is taken, and at a point: always finite."""
    pairs = [(-3.0, 2.0), (-2.0, 3.0), (0.3, 0.9), (-0.9, -0.3), (-6.0, -1.0), (1.0, 1.0), (0, 0)]
    low, high = (torch.tensor([pair], dtype=torch.float64).T for pair in zip(*pairs, strict=True))
    low, high = low.requires_grad_(), high.requires_grad_()
    parts = ("lower_slope", "lower_offset", "upper_slope", "offset")
    step = 1e-5
    for part in parts:
        found = torch.autograd.grad(getattr(curved(kind, low, high, None), part).sum(), (low, high))
        assert all(bool(each.isfinite().all()) for each in found)
        for each, down, up in ((found[0], step, 0.0), (found[1], 0.0, step)):
            ahead, behind = (
                getattr(curved(kind, low + s * down, high + s * up, None), part) for s in (1, -1)
            )
            slope = (ahead - behind)[:5] / (2 * step)
            torch.testing.assert_close(each[:5], slope.detach(), rtol=1e-4, atol=1e-4)


def float32s(kind):
    """Samples, dense where the function bends, and of every size."""
    powers = 2.0 ** torch.arange(-140.0, 100.0).double()
    spread = powers[:, None] * (1 + torch.rand(400, generator=torch.Generator().manual_seed(0)))
    x = torch.cat([spread.flatten(), -spread.flatten(), torch.linspace(-20, 20, 400_001).double()])
    return x.float()


@pytest.mark.parametrize("kind", CURVES)
@pytest.mark.parametrize("batch", [1_000_000, 3])
def test_torch_errs_by_less_than_is_assumed(kind, batch):
    x = float32s(kind) if batch > 3 else float32s(kind)[::97]
    op = Operation(kind, kind, (INPUT,), ())
    y = torch.cat([STEPS[kind](op, {}, [part]) for part in x.split(batch)]).double()
    scale = torch.ones_like(y) if CURVES[kind].bend == 0 else x.double().abs()
    allowed = Rounding("deployed-float32").function(scale)
    off = (y - CURVES[kind].value(x.double())).abs()
    assert bool((off <= allowed).all())
    assert bool((off <= allowed / 2).all()), "less than half is what was measured"


@pytest.mark.parametrize("kind", CURVES)
def test_float64_errs_by_less_than_is_assumed(kind):
    x = torch.randn(300, generator=torch.Generator().manual_seed(0)).double() * 4
    y = STEPS[kind](Operation(kind, kind, (INPUT,), ()), {}, [x])
    for each, have in zip(x.tolist(), y.tolist(), strict=True):
        scale = 1 if CURVES[kind].bend == 0 else abs(each)
        assert (
            abs(mpmath.mpf(have) - exact(kind, mpmath.mpf(each)))
            <= 8 * mpmath.mpf(2) ** -53 * scale
        )


def network(kind, seed):
    return Sketch(seed, (3,)).linear(6).apply(kind).linear(5).apply(kind).linear(3).finish()


@pytest.mark.parametrize("kind", CURVES)
@given(seed=st.integers(0, 2**20), radius=st.sampled_from([0.0, 1e-6, 1e-3, 0.05, 0.5, 3.0]))
def test_no_deployed_value_is_below_a_bound(kind, seed, radius):
    made = network(kind, seed)
    noise = torch.Generator().manual_seed(seed)
    center = 4 * torch.randn(3, 3, generator=noise)
    box = Box((center - radius).double(), (center + radius).double())
    C = torch.randn(3, 4, 3, generator=noise).double()
    wide = {name: t.double() for name, t in made.tensors.items()}
    share = torch.rand(64, 3, 3, generator=noise)
    share[:32] = share[:32].round()
    x = (box.lower + share.double() * (box.upper - box.lower)).float().double()
    x = torch.minimum(torch.maximum(x, box.lower), box.upper)
    levels: list[tuple[Level, torch.dtype]] = [
        ("deployed-float32", torch.float32),
        ("deployed-float64", torch.float64),
    ]
    for level, dtype in levels:
        bound = DeepPoly().prepare(made, Rounding(level))(wide, box, C, torch.zeros(3, 4).double())
        least = bound.minimum_rigorous(box)
        weights = {name: t.to(dtype) for name, t in made.tensors.items()}
        for points in x:
            y = made.apply_tensors(weights, points.to(dtype)).double()
            assert bool((torch.einsum("bmk,bk->bm", C, y) >= least).all())


@pytest.mark.parametrize("kind", CURVES)
def test_deeppoly_is_tighter_than_intervals(kind):
    """On the whole: a line that is best on the whole interval may be worse at one end of it."""
    gained = []
    for seed in range(20):
        made = network(kind, seed)
        center = torch.randn(6, 3, generator=torch.Generator().manual_seed(seed)).double()
        box = Box(center - 0.05, center + 0.05)
        C = (torch.eye(3) - torch.eye(3).roll(1, 1)).double().expand(6, 3, 3)
        wide, none = {n: t.double() for n, t in made.tensors.items()}, torch.zeros(6, 3).double()
        verifiers = (DeepPoly(), Interval())
        tight, loose = (v.prepare(made)(wide, box, C, none).minimum(box) for v in verifiers)
        gained.append(tight - loose)
    gain = torch.stack(gained)
    assert float((gain > 0).double().mean()) > 0.9 and float(gain.mean()) > 0.02


def _slightly_low(kind, lower, upper, rounding):
    lines = curved(kind, lower, upper, rounding)
    spread = 0.01 * (upper - lower)
    return evolve(lines, offset=lines.offset - spread)


def _tangent_at_the_middle(kind, lower, upper, rounding):
    """As if a curve were concave everywhere."""
    middle, curve = (lower + upper) / 2, CURVES[kind]
    slope = curve.slope(middle)
    offset = curve.value(middle) - slope * middle
    return evolve(curved(kind, lower, upper, rounding), upper_slope=slope, offset=offset)


def _tangent_beyond_the_end(kind, lower, upper, rounding):
    """Touching where the far end is missed, and not lowered to it."""
    middle, curve = ((lower + upper) / 2).clamp(max=0), CURVES[kind]
    slope = curve.slope(middle)
    lift = curve.value(middle) - slope * middle
    return evolve(curved(kind, lower, upper, rounding), lower_slope=slope, lower_offset=lift)


def _chord_above(kind, lower, upper, rounding):
    """As if a curve were convex everywhere, like a ReLU."""
    at_low, at_high = (CURVES[kind].value(end) for end in (lower, upper))
    slope = (at_high - at_low) / (upper - lower).clamp(min=1e-9)
    lines = curved(kind, lower, upper, rounding)
    offset = torch.maximum(at_low - slope * lower, at_high - slope * upper)
    return evolve(lines, upper_slope=slope, offset=offset + 1e-9)


def _never_turned(kind, lower, upper, rounding):
    """The line above a GELU as if its left side were like its right one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(CURVES, kind, evolve(CURVES[kind], bend=0.0))
        return curved(kind, lower, upper, rounding)


def _another_curve(kind, lower, upper, rounding):
    return curved("erf" if kind != "erf" else "tanh", lower, upper, rounding)


BUGS = {
    _slightly_low: CURVES,
    _tangent_at_the_middle: CURVES,
    _tangent_beyond_the_end: CURVES,
    _chord_above: CURVES,
    _never_turned: ["gelu"],
    _another_curve: CURVES,
}


@pytest.mark.parametrize("bug, kind", [(bug, kind) for bug in BUGS for kind in BUGS[bug]])
def test_planted_bugs_cross_the_curve(bug, kind):
    """On intervals like those of the tests above."""
    ends = [-5.0, -1.7, -1.0, -0.2, 0.4, 1.0, 1.8, 5.0]
    pairs = [(low, high) for i, low in enumerate(ends) for high in ends[i + 1 :]]
    assert all(holds(kind, *pair, curved(kind, *doubles(*pair), REAL)) for pair in pairs)
    assert not all(holds(kind, *pair, bug(kind, *doubles(*pair), REAL)) for pair in pairs)


@pytest.mark.parametrize("kind", CURVES)
def test_lines_without_room_for_our_own_rounding_cross_the_curve(kind, monkeypatch):
    monkeypatch.setattr(curves, "_OURS", 0.0)
    ends = [(i / 7 - 6, i / 7 - 6 + 2.0 ** -(i % 40)) for i in range(84)]
    assert not all(holds(kind, *pair, curved(kind, *doubles(*pair), REAL)) for pair in ends)


def test_a_planted_bug_is_caught_by_the_kit(monkeypatch):
    monkeypatch.setattr(propagation, "curved", _tangent_at_the_middle)
    failed = dict(conformance(DeepPoly()))
    assert any(name.startswith("check_no_point_beats") for name in failed), failed


@pytest.mark.parametrize("kind", CURVES)
def test_a_bound_without_the_library_s_error_is_beaten(kind, monkeypatch):
    """At a point, where a float32 result is not the exact one; so that error must be counted."""
    x = torch.linspace(-3, 3, 999)
    op = Operation(kind, kind, (INPUT,), ())
    y = STEPS[kind](op, {}, [x]).double()
    level = Rounding("deployed-float32")
    least, greatest = image(kind, x.double(), x.double(), level)
    assert bool(((least <= y) & (y <= greatest)).all())
    monkeypatch.setattr(rounding, "UNITS_OF_FUNCTIONS", 0)
    least, greatest = image(kind, x.double(), x.double(), level)
    assert not bool(((least <= y) & (y <= greatest)).all())
