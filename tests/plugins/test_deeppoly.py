"""DeepPoly: as tight as the reference, never above the truth, the same in any batch."""

from itertools import pairwise

import pytest
import torch
from attrs import evolve
from hypothesis import assume, given
from hypothesis import strategies as st
from reference import NAMES, Reference, load
from torch import Tensor

from advrepair.core import bounding
from advrepair.core.batches import Batch
from advrepair.core.bounding import Bounder
from advrepair.core.errors import UnsupportedNetworkError
from advrepair.core.graph import INPUT, NON_AFFINE, Network, Operation
from advrepair.core.options import describe
from advrepair.core.patching import Stack, patch_template
from advrepair.core.rounding import Level, Rounding
from advrepair.core.types import Box, LinearBound
from advrepair.plugins.verifiers import propagation
from advrepair.plugins.verifiers.deeppoly import DeepPoly
from advrepair.plugins.verifiers.relaxations import SLOPES, Relaxation, relu
from advrepair.testing.cases import BOX_KINDS, Case, make_case
from advrepair.testing.networks import Sketch
from advrepair.testing.oracle import exact_minimum
from advrepair.testing.search import linear_rows, low_points
from advrepair.testing.strategies import cases, networks, seeds, tiny_networks
from advrepair.testing.trial import Trial, rearranged, require_below, require_equal

SLOPE_OF = {"adaptive": "area", "same-slope": "same", "zero-lb": "zero", "one-lb": "one"}
verifiers = st.builds(DeepPoly, lower_slope=st.sampled_from(SLOPES))
Intervals = list[tuple[Tensor, Tensor]]


@pytest.fixture(scope="module", params=NAMES)
def reference(request: pytest.FixtureRequest) -> Reference:
    return load(request.param)


@pytest.fixture
def intervals(monkeypatch: pytest.MonkeyPatch) -> Intervals:
    """The interval of every ReLU, in order, as the verifier meets them."""
    seen: Intervals = []

    def spy(lower: Tensor, upper: Tensor, slope: str, rigorous: bool) -> Relaxation:
        seen.append((lower, upper))
        return relu(lower, upper, slope, rigorous)

    monkeypatch.setattr(propagation, "relu", spy)
    return seen


def test_the_slopes_to_choose_from_are_those_that_a_line_can_have() -> None:
    (lower_slope,) = describe(DeepPoly)
    assert lower_slope.choices == SLOPES


def _bound(reference: Reference, slope: str, rounding: Rounding | None = None) -> LinearBound:
    function = DeepPoly(lower_slope=slope).prepare(reference.network, rounding)
    return function(reference.params, reference.box, reference.C, reference.d)


@pytest.mark.parametrize("option", SLOPE_OF)
def test_it_equals_the_reference(reference: Reference, option: str, intervals: Intervals) -> None:
    least = _bound(reference, SLOPE_OF[option]).minimum(reference.box)
    torch.testing.assert_close(-least, reference.arrays[f"ub_{option}_f64"], rtol=0, atol=1e-9)
    assert bool((least <= reference.attack + 1e-12).all())
    for layer, (lower, upper) in enumerate(intervals):
        if (name := f"pre{layer}_lo_{option}_f64") in reference.arrays:
            low, high = reference.arrays[name], reference.arrays[name.replace("_lo_", "_hi_")]
            settled = (low >= 0) | (high <= 0)  # such a unit's ends may be those of intervals
            assert torch.equal(settled, (lower >= 0) | (upper <= 0))
            for ends, others in ((lower, low), (upper, high)):
                torch.testing.assert_close(ends[~settled], others[~settled], rtol=0, atol=1e-9)
            assert bool(((lower <= high + 1e-9) & (low <= upper + 1e-9)).all())
    assert len(intervals) == sum(op.kind == "relu" for op in reference.network.operations)


@pytest.mark.parametrize("level", ["real", "deployed-float32"])
def test_rounding_costs_little_and_no_attack_is_below(reference: Reference, level: Level) -> None:
    least = _bound(reference, "area", Rounding(level)).minimum_rigorous(reference.box)
    assert bool((least <= reference.attack).all())
    plain = -reference.arrays["ub_adaptive_f64"]
    assert bool((least <= plain).all())
    allowed = 1e-9 if level == "real" else 0.02
    assert bool((plain - least <= allowed * (1 + plain.abs())).all())


@given(cases(), verifiers, seeds)
def test_no_point_is_below_the_bound(case: Case, verifier: DeepPoly, seed: int) -> None:
    """Samples, corners, and descents both of the margin and of its distance to the line."""
    trial = Trial(case, verifier.prepare(case.network))
    bound = trial.bound()
    reached = case.rows(low_points(case, case.rows, seed)).amin(1)
    require_below(case, trial.minimum(), reached.detach(), "bound {have}, reached {want}")

    def gap(x: Tensor) -> Tensor:
        return case.rows(x) - linear_rows(bound, x)

    nearest = gap(low_points(case, gap, seed)).amin(1).detach()
    require_below(case, torch.zeros_like(nearest), nearest, "the line is above by {want}")


@given(cases(kinds=("point",)), verifiers)
def test_a_point_box_is_exact(case: Case, verifier: DeepPoly) -> None:
    value = case.rows(case.box.lower.unsqueeze(1))[:, 0]
    have = Trial(case, verifier.prepare(case.network)).minimum()
    require_equal(case, have, value, "bound {have}, value {want}")


@given(cases(tiny_networks()), verifiers)
def test_the_exact_minimum_is_not_beaten(case: Case, verifier: DeepPoly) -> None:
    exact = exact_minimum(case.network, case.box, case.C, case.d)
    value = torch.tensor([[float(v) for v in row] for row in exact], dtype=torch.float64)
    least = Trial(case, verifier.prepare(case.network)).minimum()
    require_below(case, least, value, "bound {have}, exact minimum {want}")
    rigorous = Trial(case, verifier.prepare(case.network, Rounding()), rigorous=True).minimum()
    for bounds, values in zip(rigorous.tolist(), exact, strict=True):
        assert all(b <= v for b, v in zip(bounds, values, strict=True))


@given(cases(tiny_networks(), kinds=("tiny", "small")))
def test_it_is_exact_where_no_relu_is_unstable(case: Case) -> None:
    seen: Intervals = []

    def spy(lower: Tensor, upper: Tensor, slope: str, rigorous: bool) -> Relaxation:
        seen.append((lower, upper))
        return relu(lower, upper, slope, rigorous)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(propagation, "relu", spy)
        least = Trial(case, DeepPoly().prepare(case.network)).minimum()
    stable = torch.stack([((low >= 0) | (up <= 0)).all(1) for low, up in seen]).all(0)
    exact = exact_minimum(case.network, case.box, case.C, case.d)
    value = torch.tensor([[float(v) for v in row] for row in exact], dtype=torch.float64)
    require_equal(
        rearranged(case, stable), least[stable], value[stable], "bound {have}, exact {want}"
    )


def _stack(template: Network, patches: int, seed: int) -> Stack:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: 0.5 * torch.randn(patches, *t.shape, generator=generator, dtype=t.dtype)
        for name, t in template.tensors.items()
    }


def _joint(network: Network, patch: Network, weights: Stack) -> Network:
    """One network that computes the sum of both."""
    renamed = [
        Operation(
            f"patch {op.name}",
            op.kind,
            tuple(name if name == INPUT else f"patch {name}" for name in op.inputs),
            op.shape,
            {role: f"patch {name}" for role, name in op.tensors.items()},
            op.settings,
        )
        for op in patch.operations
    ]
    ends = (network.operations[-1].name, renamed[-1].name)
    total = Operation("sum", "add", ends, (network.outputs,))
    tensors = network.tensors | {f"patch {name}": t for name, t in weights.items()}
    return Network([*network.operations, *renamed, total], tensors, network.input_shape)


@given(cases(), verifiers, st.sampled_from([(), (5,), (4, 3)]), seeds)
def test_the_bounds_of_network_and_patch_add_up(
    case: Case, verifier: DeepPoly, hidden: tuple[int, ...], seed: int
) -> None:
    # Beside such functions ReLUs of known sign are bounded by rows, too: those of the patch then.
    bent = {op.kind for op in case.network.operations} & (NON_AFFINE - {"relu"})
    assume(not (hidden and bent))
    template = patch_template(case.network, hidden)
    weights = {name: t[0] for name, t in _stack(template, 1, seed).items()}
    wide = {name: t.double() for name, t in weights.items()}
    joint = _joint(case.network, template, weights)
    together = Trial(Case("joint", joint, case.box, case.C, case.d), verifier.prepare(joint))
    own = Trial(case, verifier.prepare(case.network)).bound()
    patch = verifier.prepare(template)(wide, case.box, case.C, torch.zeros_like(case.d))
    have, want = own + patch, together.bound()
    torch.testing.assert_close(have.A, want.A, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(have.b, want.b, rtol=1e-9, atol=1e-9)


def _bounder(case: Case, verifier: DeepPoly, memory: int, hidden: tuple[int, ...]) -> Bounder:
    template = patch_template(case.network, hidden)
    return Bounder(case.network, template, verifier, verifier, Rounding(), memory)


@pytest.mark.parametrize("rigorous", [False, True])
@given(case=cases(), verifier=verifiers)
def test_chunks_change_nothing(case: Case, verifier: DeepPoly, rigorous: bool) -> None:
    network = case.network.double()
    wide = Case(case.name, network, case.box, case.C, case.d)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bounding, "_FEW", 1)
        patch.setattr(bounding, "_MANY", 1)
        patch.setattr(bounding, "_CACHE_BYTES", 1)
        few = _bounder(wide, verifier, 2**40, ()).base(case.box, case.C, case.d, rigorous)
    whole = _bounder(wide, verifier, 2**40, ()).base(case.box, case.C, case.d, rigorous)
    torch.testing.assert_close(few.A, whole.A, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(few.b, whole.b, rtol=1e-12, atol=1e-12)
    assert (few.magnitude is None) == (not rigorous)


@given(networks(), verifiers, st.integers(1, 3), st.integers(1, 3), seeds)
def test_patches_bounded_together_equal_patches_alone(
    network: Network, verifier: DeepPoly, patches: int, pieces: int, seed: int
) -> None:
    count = patches * pieces
    case = _random_case(network, count, seed)
    bounder = _bounder(case, verifier, 2**30, (5, 4))
    stack = {n: t.double() for n, t in _stack(bounder.template, patches, seed).items()}
    rows = Trial(case, verifier.prepare(network)).bound()
    group = torch.zeros(count, case.C.shape[1], dtype=torch.long)
    batch = Batch(case.box, rows, case.C, group, torch.ones(patches, pieces, dtype=torch.bool))
    have = bounder.patched(stack, batch)
    function = verifier.prepare(bounder.template)
    for index in range(patches):
        part = torch.arange(index * pieces, (index + 1) * pieces)
        own = {name: t[index] for name, t in stack.items()}
        want = function(own, case.box[part], case.C[part], torch.zeros_like(case.d[part]))
        torch.testing.assert_close(have.A[part], want.A, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(have.b[part], want.b, rtol=1e-12, atol=1e-12)


def _random_case(network: Network, count: int, seed: int) -> Case:
    kinds = [BOX_KINDS[(seed + i) % len(BOX_KINDS)] for i in range(count)]
    return make_case("random", network, kinds, 3, seed)


def test_an_operation_without_a_rule_is_refused_by_name() -> None:
    network = patch_template(Network([Operation("a", "reshape", (INPUT,), (2,))], {}, (2,)), [3])
    network.operations = tuple(
        Operation("the node", "swish", op.inputs, op.shape) if op.kind == "relu" else op
        for op in network.operations
    )
    with pytest.raises(UnsupportedNetworkError, match=r"'the node'.*'deeppoly'"):
        DeepPoly().prepare(network)


def test_a_deployed_network_that_may_overflow_is_not_proved() -> None:
    """The exact sum is 3e38, a partial one is infinite in float32: the output may be NaN."""
    operations = [
        Operation("sum", "linear", (INPUT,), (1,), {"weight": "large"}),
        Operation("relu", "relu", ("sum",), (1,)),
        Operation("out", "linear", ("relu",), (1,), {"weight": "small"}),
    ]
    large = torch.tensor([[-3e38, -3e38, 3e38, 3e38, 3e38]])
    tensors = {"large": large, "small": torch.tensor([[1e-30]])}
    network = Network(operations, tensors, (5,))
    box = Box(torch.ones(1, 5).double(), torch.ones(1, 5).double())
    C, d = torch.ones(1, 1, 1).double(), torch.zeros(1, 1).double()
    case = Case("overflowing", network, box, C, d)
    function = DeepPoly().prepare(network, Rounding("deployed-float32"))
    assert not bool((Trial(case, function, rigorous=True).minimum() > 0).any())


def _rows(network: Network, box: Box, level: Level) -> torch.Tensor:
    K = network.outputs
    C, d = torch.ones(1, 1, K).double(), torch.zeros(1, 1).double()
    case = Case("extreme", network, box, C, d)
    function = DeepPoly().prepare(network, Rounding(level))
    return Trial(case, function, rigorous=True).minimum()


@pytest.mark.parametrize("level", ["deployed-float32", "deployed-float64"])
def test_a_pool_that_may_overflow_before_it_divides_is_not_proved(level: Level) -> None:
    """Sixteen values of 2^125 sum to 2^129, although their mean is 2^125."""
    big = 125 if level == "deployed-float32" else 1021
    operations = [
        Operation("up", "scale", (INPUT,), (1, 4, 4), {"weight": "up"}),
        Operation(
            "pool", "avg_pool2d", ("up",), (1, 1, 1), {}, {"kernel_size": (4, 4), "stride": (4, 4)}
        ),
        Operation("down", "scale", ("pool",), (1, 1, 1), {"weight": "down"}),
        Operation("flat", "reshape", ("down",), (1,)),
    ]
    dtype = torch.float32 if level == "deployed-float32" else torch.float64
    up = torch.full((1, 1, 1), 2.0**big, dtype=dtype)
    network = Network(operations, {"up": up, "down": 1 / up}, (1, 4, 4))
    x = torch.ones(1, 1, 4, 4).double()
    assert not bool(torch.isfinite(network(x.to(dtype))).all())
    assert not bool((_rows(network, Box(x, x), level) > 0).any())


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
    network = Network(operations, tensors, (1,))
    x = torch.ones(1, 1).double()
    assert not bool((_rows(network, Box(x, x), level) > 0).any())


@pytest.mark.parametrize("settings", [{}, {"kernel_size": (2, 2), "dilation": (2, 2)}])
def test_a_max_pool_of_another_kind_is_refused_by_name(
    settings: dict[str, tuple[int, int]],
) -> None:
    network = Sketch(1, (1, 4, 4)).max_pool2d(2, stride=2).flatten().linear(2).finish()
    network.operations = (evolve(network.operations[0], settings=settings), *network.operations[1:])
    wrong = "dilation" if settings else "kernel_size"
    with pytest.raises(UnsupportedNetworkError, match=rf"'max_pool2d_0'.*{wrong}"):
        DeepPoly().prepare(network)
