"""Zonotopes: never above the truth, in exact arithmetic and in any order of the deployed one."""

from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from advrepair.core.graph import INPUT, Network, Operation
from advrepair.core.rounding import Level, Rounding
from advrepair.core.types import Box
from advrepair.plugins.verifiers.deeppoly import DeepPoly
from advrepair.plugins.verifiers.relaxations import Relaxation
from advrepair.plugins.verifiers.sets import Forward
from advrepair.plugins.verifiers.zonotope import Zonotope
from advrepair.testing import CHECKS, Check
from advrepair.testing.cases import Case, make_case
from advrepair.testing.networks import NETWORKS, fully_connected
from advrepair.testing.oracle import exact_minimum, exact_rows, fractions
from advrepair.testing.search import linear_rows, low_points, scatter
from advrepair.testing.strategies import cases, networks, seeds, tiny_networks
from advrepair.testing.trial import Trial, require_below, require_equal

LEVELS: tuple[Level, ...] = ("real", "deployed-float32", "deployed-float64")
CHAIN = {"linear", "relu", "reshape"}
CHAINS = [name for name, make in NETWORKS.items() if {o.kind for o in make(0).operations} <= CHAIN]
OTHERS = [name for name in NETWORKS if name not in CHAINS]
chains = networks(CHAINS)
Intervals = list[tuple[Tensor, Tensor]]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_the_conformance_kit(check: Check) -> None:
    check(Zonotope())


def _trial(case: Case, level: Level | None = None) -> Trial:
    rounding = None if level is None else Rounding(level)
    return Trial(case, Zonotope().prepare(case.network, rounding), rigorous=level is not None)


def _seen(case: Case, level: Level) -> Intervals:
    """The interval of every ReLU, in order."""
    seen: Intervals = []

    lines = Forward.lines

    def spy(self: Forward, op: Operation, lower: Tensor, upper: Tensor) -> Relaxation:
        seen.append((lower, upper))
        return lines(self, op, lower, upper)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Forward, "lines", spy)
        _trial(case, level).bound()
    return seen


@given(cases(chains), st.sampled_from([None, *LEVELS]), seeds)
def test_no_point_is_below_the_bound(case: Case, level: Level | None, seed: int) -> None:
    """Samples, corners, and descents both of the margin and of its distance to the line."""
    trial = _trial(case, level)
    bound = trial.bound()
    reached = case.rows(low_points(case, case.rows, seed)).amin(1)
    require_below(case, trial.minimum(), reached.detach(), "bound {have}, reached {want}")

    def gap(x: Tensor) -> Tensor:
        return case.rows(x) - linear_rows(bound, x)

    nearest = gap(low_points(case, gap, seed)).amin(1).detach()
    require_below(case, torch.zeros_like(nearest), nearest, "the line is above by {want}")


@given(cases(tiny_networks()))
def test_the_exact_minimum_is_not_beaten(case: Case) -> None:
    exact = exact_minimum(case.network, case.box, case.C, case.d)
    value = torch.tensor([[float(v) for v in row] for row in exact], dtype=torch.float64)
    require_below(case, _trial(case).minimum(), value, "bound {have}, exact minimum {want}")
    for level in LEVELS:
        for bounds, values in zip(_trial(case, level).minimum().tolist(), exact, strict=True):
            assert all(b <= v for b, v in zip(bounds, values, strict=True))


@given(cases(chains, kinds=("point",)))
def test_a_point_box_is_exact(case: Case) -> None:
    value = case.rows(case.box.lower.unsqueeze(1))[:, 0]
    require_equal(case, _trial(case).minimum(), value, "bound {have}, value {want}")
    least = _trial(case, "real").minimum()
    require_equal(case, least, value, "rigorous bound {have}, value {want}")
    for box, bounds in enumerate(least.tolist()):
        exact = exact_rows(case.network, case.box.lower[box], case.C[box], case.d[box])
        assert all(b <= v for b, v in zip(bounds, exact, strict=True))


def _shuffled(network: Network, x: np.ndarray, dtype: type, rng: np.random.Generator) -> list:
    """ReLU inputs and the outputs at one point, every sum one by one and in a random order."""
    value, seen = x.astype(dtype).ravel(), []
    for op in network.operations:
        if op.kind == "relu":
            seen.append(value)
            value = np.maximum(value, dtype(0))
        elif op.kind == "linear":
            W = network.tensors[op.tensors["weight"]].numpy().astype(dtype)
            terms = W * value
            if "bias" in op.tensors:
                bias = network.tensors[op.tensors["bias"]].numpy().astype(dtype)
                terms = np.hstack([terms, bias[:, None]])
            order = rng.permutation(terms.shape[1])
            if rng.random() < 0.5:  # what cancels comes last
                order = np.argsort(terms.sum(0))
            value = np.zeros(len(W), dtype)
            for place in order:
                value = (value + terms[:, place]).astype(dtype)
    return [*seen, value]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@given(cases(chains), seeds)
def test_no_order_of_the_deployed_sums_leaves_the_bounds(
    dtype: type, case: Case, seed: int
) -> None:
    level: Level = "deployed-float32" if dtype is np.float32 else "deployed-float64"
    rng = np.random.default_rng(seed)
    least, intervals = _trial(case, level).minimum().numpy(), _seen(case, level)
    C, d = case.C.numpy(), case.d.numpy()
    points = scatter(case.box, 2, 3, seed).to(torch.float32).double()
    for box, x in enumerate(points.numpy()):
        low, high = case.box.lower[box].numpy(), case.box.upper[box].numpy()
        for point in x:
            inside = np.clip(point, low, high)
            *values, y = _shuffled(case.network, inside, dtype, rng)
            for value, (lower, upper) in zip(values, intervals, strict=True):
                assert (lower[box].flatten().numpy() <= value).all()
                assert (value <= upper[box].flatten().numpy()).all()
            rows = C[box] @ y.astype(float) + d[box]
            assert (least[box] <= rows + 1e-14 * (np.abs(C[box]) @ np.abs(y) + 1)).all()


def _stable(seed: int, scale: float) -> Network:
    """Large biases, so no ReLU is unstable on a box around 0, and a set is exact but for rounding.

    scale: of the inputs that it is made for.
    """
    network = fully_connected(seed, (3, 6, 5, 4, 2))
    tensors = dict(network.tensors)
    linear = [op for op in network.operations if op.kind == "linear"]
    sign = -1.0
    for op in linear[:-1]:
        name, sign = op.tensors["bias"], -sign
        size = torch.where(torch.arange(len(tensors[name])) % 3 > 0, 300.0, -300.0)
        tensors[name] = scale * (tensors[name] + sign * size)
    return Network(network.operations, tensors, network.input_shape)


def _exactly(network: Network, x: Tensor) -> list[list[Fraction]]:
    """The inputs of every ReLU at a point, in rational arithmetic."""
    value, seen = fractions(x), []
    for op in network.operations:
        if op.kind == "relu":
            seen.append(value)
            value = [max(v, Fraction(0)) for v in value]
            continue
        weight, bias = (network.tensors[op.tensors[role]] for role in ("weight", "bias"))
        rows = zip(weight, fractions(bias), strict=True)
        value = [
            sum((w * v for w, v in zip(fractions(row), value, strict=True)), shift)
            for row, shift in rows
        ]
    return seen


@settings(max_examples=25, deadline=None)
@given(seeds, st.sampled_from([0.0, 1e-7, 0.1, 1.0]), st.sampled_from([1e-6, 1.0, 1e6]))
def test_intervals_hold_the_exact_values(seed: int, width: float, scale: float) -> None:
    """In rational arithmetic, at the corners where an exact set is tight."""
    network = _stable(seed, scale)
    generator = torch.Generator().manual_seed(seed)
    # Faces that float64 holds and float32 does not: their middle is rounded.
    center, share = torch.rand(2, 1, 3, generator=generator, dtype=torch.float64)
    center, radius = scale * (2 * center - 1), scale * width * share
    box = Box(center - radius, center + radius)
    case = Case("stable", network, box, torch.eye(2).double()[None], torch.zeros(1, 2).double())
    intervals = _seen(case, "real")
    for corner in range(8):
        side = torch.tensor([bool(corner >> i & 1) for i in range(3)])
        x = torch.where(side, box.upper, box.lower)[0]
        for values, (lower, upper) in zip(_exactly(network, x), intervals, strict=True):
            ends = zip(values, lower[0].tolist(), upper[0].tolist(), strict=True)
            assert all(Fraction(low) <= value <= Fraction(high) for value, low, high in ends)
    spread = [float((high - low).max()) for low, high in intervals]
    assert width > 0 or max(spread) <= 1e-9 * scale


@given(cases(networks(OTHERS)), st.sampled_from([None, *LEVELS]))
def test_another_network_is_bounded_as_deeppoly_does(case: Case, level: Level | None) -> None:
    rounding = None if level is None else Rounding(level)
    ours, other = (
        Trial(case, verifier.prepare(case.network, rounding)).bound()
        for verifier in (Zonotope(), DeepPoly())
    )
    assert torch.equal(ours.A, other.A) and torch.equal(ours.b, other.b)
    assert ours.influence is None


def test_a_layer_on_the_rows_of_a_matrix_is_bounded_as_deeppoly_does() -> None:
    operations = [
        Operation("rows", "linear", (INPUT,), (2, 4), {"weight": "w"}),
        Operation("relu", "relu", ("rows",), (2, 4)),
        Operation("flat", "reshape", ("relu",), (8,)),
        Operation("out", "linear", ("flat",), (2,), {"weight": "v"}),
    ]
    generator = torch.Generator().manual_seed(0)
    tensors = {
        "w": torch.randn(4, 3, generator=generator),
        "v": torch.randn(2, 8, generator=generator),
    }
    case = make_case("rows", Network(operations, tensors, (2, 3)), ("small", "wide"), 2, 0)
    ours, other = (
        Trial(case, verifier.prepare(case.network, Rounding())).minimum()
        for verifier in (Zonotope(), DeepPoly())
    )
    assert torch.equal(ours, other) and bool(torch.isfinite(ours).all())


@given(cases(chains), st.sampled_from(LEVELS))
def test_the_last_bit_of_a_slope_says_which_way_is_steep(case: Case, level: Level) -> None:
    """A checker reads both choices of lines from the slopes that a certificate stores."""
    slope = _trial(case, level).bound().slope
    seen = _seen(case, level)
    assert slope is not None and slope.dtype == torch.uint8
    lower, upper = (torch.cat([pair[side].flatten(1) for pair in seen], 1) for side in (0, 1))
    assert slope.shape == lower.shape
    unstable = (lower < 0) & (upper > 0)
    steep, share = (upper > -lower).double(), upper / (upper - lower)
    assert torch.equal((slope % 2)[unstable], steep[unstable].to(torch.uint8))
    assert bool(((slope / 255 - share).abs() <= 1.5 / 255)[unstable].all())
    assert bool((slope[lower >= 0] == 255).all()) and bool((slope[upper < 0] == 0).all())


@given(cases(chains), st.sampled_from(LEVELS))
def test_each_row_is_one_of_the_two_choices_of_lines(case: Case, level: Level) -> None:
    """Neither a mixture nor a row of another box: A and b belong together."""
    bound, rounding = _trial(case, level).bound(), Rounding(level)
    assert bound.slope is not None
    stored = bound.slope.double() / 255
    found = []
    for chosen in (stored, (bound.slope % 2).double()):
        state, first = _state(case, rounding), 0
        for op in case.network.operations:
            if op.kind == "relu":
                lower, upper = state._interval(op.inputs[0], op)
                part = chosen[:, first : first + lower[0].numel()].view_as(lower)
                above = stored[:, first : first + lower[0].numel()].view_as(lower)
                state.relaxed[op.name] = _lines(lower, upper, part, above)
                first += lower[0].numel()
        last = len(case.network.operations) - 1
        found.append(state.back_substitute(last, case.C, case.d))
    least = [each.minimum(case.box) for each in found]
    require_equal(case, bound.minimum(case.box), torch.maximum(*least), "have {have}, want {want}")


def _lines(lower: Tensor, upper: Tensor, below: Tensor, above: Tensor) -> Relaxation:
    """With a slope above that is that of the zonotope, not the nearest line."""
    low, high = lower.clamp(max=0), upper.clamp(min=0)
    size = torch.maximum(-low, high)
    offset = torch.maximum(-above * low, (1 - above) * high) + 2.0**-50 * size
    return Relaxation(below, above, offset + torch.finfo(lower.dtype).tiny)


def _state(case: Case, rounding: Rounding) -> Forward:
    """What the verifier knows when every ReLU is bounded."""
    state = Forward(case.network, case.params, case.box, "same", rounding)
    state.relax_all()
    return state


@given(cases(chains), st.sampled_from(LEVELS))
def test_a_set_knows_how_far_it_reaches_and_keeps_every_error(case: Case, level: Level) -> None:
    state = _state(case, Rounding(level))
    for held in state.sets.values():
        spread = held.G.abs().sum(1).index_add(0, held.owner, held.E.abs()) + held.error
        assert bool((held.reach >= spread * (1 - 1e-15)).all())
    for op in case.network.operations:
        before, after = state.sets[op.inputs[0]], state.sets[op.name]
        if op.kind == "relu":
            slope = state.relaxed[op.name].lower_slope.flatten(1)
            assert bool((after.error >= slope * before.error).all())
        elif op.kind == "linear":
            weight = case.params[op.tensors["weight"]]
            assert bool((after.error >= before.error @ weight.T.abs()).all())


@given(cases(chains))
def test_influence_is_a_share_of_the_width(case: Case) -> None:
    bound, state = _trial(case, "real").bound(), _state(case, Rounding())
    last, influence = state.sets[case.network.operations[-1].name], bound.influence
    assert influence is not None and influence.shape == bound.A.shape
    assert bool((influence >= 0).all())
    own = (case.C @ last.G.transpose(1, 2)).abs().sum(2)
    fresh = torch.einsum("rn,rmn->rm", last.E, case.C[last.owner]).abs()
    width = own.index_add(0, last.owner, fresh)
    assert bool((influence.flatten(2).sum(2) <= width * (1 + 1e-9) + 1e-300).all())
    assert bool((influence.flatten(2).sum(2) >= own * (1 - 1e-9)).all())
    # An input without a width answers for no more than its rounding.
    thin = (case.box.radius == 0).flatten(1)[:, None].expand(-1, bound.A.shape[1], -1)
    assert bool((influence.flatten(2)[thin] <= 1e-12 * (1 + width.max())).all())


def test_influence_of_an_affine_network_is_all_of_the_width() -> None:
    network = fully_connected(1, (3, 2))
    case = make_case("affine", network, ("wide", "unequal", "point"), 2, 1)
    bound = _trial(case, "real").bound()
    assert bound.influence is not None
    want = bound.A.abs() * case.box.radius.unsqueeze(1)
    torch.testing.assert_close(bound.influence, want, rtol=1e-9, atol=1e-12)


def test_many_inputs_have_no_influence() -> None:
    case = make_case("many", fully_connected(1, (65, 4, 2)), ("small",), 2, 1)
    assert _trial(case, "real").bound().influence is None


@pytest.mark.parametrize("seed", range(20))
def test_it_is_as_tight_as_intervals_of_exact_affine_layers(seed: int) -> None:
    """Wide of the truth by rounding alone where no ReLU is unstable."""
    case = make_case("stable", _stable(seed, 1.0), ("small", "tiny", "point"), 3, seed)
    plain, rigorous = _trial(case).minimum(), _trial(case, "real").minimum()
    deep = Trial(case, DeepPoly().prepare(case.network)).minimum()
    require_equal(case, plain, deep, "zonotope {have}, deeppoly {want}")
    assert bool((rigorous <= plain).all())
    assert bool((plain - rigorous <= 1e-9 * (1 + plain.abs())).all())


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("size", [1e30, 1e160, 1e308, float("inf"), float("nan")])
def test_numbers_too_large_prove_nothing(level: Level, size: float) -> None:
    operations = [
        Operation("up", "linear", (INPUT,), (2,), {"weight": "up", "bias": "shift"}),
        Operation("relu", "relu", ("up",), (2,)),
        Operation("down", "linear", ("relu",), (1,), {"weight": "down", "bias": "one"}),
    ]
    weights = {
        "up": torch.tensor([[size, -size], [size, size]]).double(),
        "shift": torch.zeros(2).double(),
        "down": torch.tensor([[-size, size]]).double(),
        "one": torch.ones(1).double(),
    }
    network = Network(operations, weights, (2,))
    box = Box(-torch.ones(1, 2).double(), torch.ones(1, 2).double())
    case = Case("huge", network, box, torch.ones(1, 1, 1).double(), torch.zeros(1, 1).double())
    assert not bool((_trial(case, level).minimum() > 0).any())


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("face", [1e39, 1e200, float("inf"), float("nan")])
def test_a_box_too_large_proves_nothing(level: Level, face: float) -> None:
    """Of an output that is 1 for every number, but might be NaN."""
    network = fully_connected(0, (2, 3, 1))
    tensors = {name: torch.zeros_like(t) for name, t in network.tensors.items()}
    last = network.operations[-1].tensors["bias"]
    tensors[last] = tensors[last] + 1
    network = Network(network.operations, tensors, (2,))
    ends = (torch.full((1, 2), sign * face, dtype=torch.float64) for sign in (-1, 1))
    box = Box(*ends)
    case = Case("wide", network, box, torch.ones(1, 1, 1).double(), torch.zeros(1, 1).double())
    proved = bool((_trial(case, level).minimum() > 0).any())
    assert not proved or (level != "deployed-float32" and face == 1e39)


def test_a_deployed_network_that_may_overflow_is_not_proved() -> None:
    """The exact sum is 3e38, a partial one is infinite in float32: the output may be NaN."""
    operations = [
        Operation("sum", "linear", (INPUT,), (1,), {"weight": "large"}),
        Operation("relu", "relu", ("sum",), (1,)),
        Operation("out", "linear", ("relu",), (1,), {"weight": "small"}),
    ]
    large = torch.tensor([[-3e38, -3e38, 3e38, 3e38, 3e38]])
    network = Network(operations, {"large": large, "small": torch.tensor([[1e-30]])}, (5,))
    box = Box(torch.ones(1, 5).double(), torch.ones(1, 5).double())
    case = Case("over", network, box, torch.ones(1, 1, 1).double(), torch.zeros(1, 1).double())
    assert not bool((_trial(case, "deployed-float32").minimum() > 0).any())
    assert bool((_trial(case, "real").minimum() > 0).all())


@pytest.mark.parametrize("level", ["real", "deployed-float64"])
def test_rows_that_underflow_prove_nothing(level: Level) -> None:
    """-1e250 x 1e-200 x 1e-200 + 1e-155 is negative; a row that became 0 would miss it."""
    weights = {"a": -1e250, "b": 1e-200, "c": 1e-200}
    tensors = {name: torch.tensor([[value]]).double() for name, value in weights.items()}
    tensors["bias"] = torch.tensor([1e-155]).double()
    names = [INPUT, "a", "b", "c"]
    operations = [
        Operation(name, "linear", (before,), (1,), {"weight": name})
        for before, name in pairwise(names)
    ]
    operations[-1] = Operation("c", "linear", ("b",), (1,), {"weight": "c", "bias": "bias"})
    x = torch.ones(1, 1).double()
    one, none = torch.ones(1, 1, 1).double(), torch.zeros(1, 1).double()
    case = Case("under", Network(operations, tensors, (1,)), Box(x, x), one, none)
    assert not bool((_trial(case, level).minimum() > 0).any())
