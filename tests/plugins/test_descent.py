"""Blocks change the order of work, and nothing that is found; strips and bands leave out zeros."""

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from advrepair.core.graph import INPUT, STEPS, Network, Operation, size
from advrepair.core.rounding import Rounding
from advrepair.plugins.verifiers import descent, transposed
from advrepair.plugins.verifiers.affine import PULL
from advrepair.plugins.verifiers.propagation import Propagation
from advrepair.testing.cases import Case, make_case
from advrepair.testing.networks import Sketch
from advrepair.testing.strategies import cases, seeds
from advrepair.testing.trial import rearranged

ROUNDINGS = (None, Rounding(), Rounding("deployed-float32"), Rounding("deployed-float64"))
KINDS = ("small", "tiny", "unequal", "touching zero", "point")


def images(seed: int) -> Network:
    """Lines enough that bands leave some out: blocks with paths around them, strides, a pool."""
    sketch = Sketch(seed, (2, 11, 6)).scale().conv2d(3, 3, padding=1).relu()
    around = sketch.last
    sketch.conv2d(4, 3, stride=2, padding=1).scale().relu().conv2d(4, 3, padding=1)
    inner, sketch.last = sketch.last, around
    sketch.conv2d(4, 1, stride=2).add(inner).relu()
    around = sketch.last
    sketch.conv2d(4, 3, padding=1).add(around).relu().avg_pool2d(3).flatten().linear(5).relu()
    return sketch.linear(3).finish()


def residual_before(seed: int) -> Network:
    """ReLUs before the sums, so that a ReLU's input is read twice."""
    sketch = Sketch(seed, (2, 6, 5)).conv2d(3, 3, padding=1).conv2d(3, 3, padding=1)
    for _ in range(2):
        around = sketch.last
        sketch.relu().conv2d(3, 3, padding=1).add(around)
    return sketch.relu().reshape(9, 10).flatten().linear(4).relu().linear(3).finish()


def state(case: Case, rounding: Rounding | None, slope: str = "area") -> Propagation:
    """A call in which every ReLU is bounded."""
    made = Propagation(case.network, case.params, case.box, slope, rounding)
    made.relax_all()
    return made


def plainly(case: Case, rounding: Rounding | None, slope: str = "area") -> Propagation:
    """The same call, step by step instead of in blocks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Propagation, "_plain", lambda self: False)
        return state(case, rounding, slope)


def intervals(made: Propagation) -> Iterator[tuple[Tensor, Tensor]]:
    yield from made._bounded.values()


def require_equal(case: Case, rounding: Rounding | None, slope: str = "area") -> bool:
    """Every interval in blocks is the one found step by step, or settles the same sign.

    Interval arithmetic may settle a sign that steps leave open; what comes after it is not
    compared. Returns whether all was.
    """
    have, want = state(case, rounding, slope), plainly(case, rounding, slope)
    loose = 1e-9 if rounding is None or rounding.level != "deployed-float32" else 1e-3
    for (low, high), (lower, upper) in zip(intervals(have), intervals(want), strict=True):
        near = loose * (1 + lower.abs().maximum(upper.abs()))
        active, dead = low >= 0, high <= 0
        assert bool((active | (lower <= near)).all() and (dead | (upper >= -near)).all())
        for ends, others in ((low, lower), (high, upper)):
            assert bool((active | dead | ((ends - others).abs() <= near)).all())
        if bool(((active & (lower < -near)) | (dead & (upper > near))).any()):
            return False
    for name, size_of in have.sizes.items() if rounding else ():
        if name in have.relaxed:  # what is left out makes no size of a ReLU's result larger
            assert bool((size_of <= want.sizes[name] * (1 + loose) + loose).all())
    ends, others = (made.rows(case.C, case.d).minimum(case.box) for made in (have, want))
    assert bool(((ends - others).abs() <= loose * (1 + others.abs())).all())
    return True


@pytest.mark.parametrize("block", [1, 600, 2**20])
@settings(max_examples=40, deadline=None)
@given(case=cases(), rounding=st.sampled_from(ROUNDINGS), slope=st.sampled_from(("area", "same")))
def test_blocks_find_what_steps_find(
    block: int, case: Case, rounding: Rounding | None, slope: str
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(descent, "_BLOCK_BYTES", block)
        require_equal(case, rounding, slope)


@pytest.mark.parametrize("block", [1, 4000, 2**20])
@pytest.mark.parametrize("build", [images, residual_before])
@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_images_in_blocks(build, block: int, rounding: Rounding | None, monkeypatch) -> None:
    monkeypatch.setattr(descent, "_BLOCK_BYTES", block)
    kinds = ("small", "tiny", "unequal", "point")
    whole = [require_equal(make_case("", build(i), kinds, 2, i), rounding) for i in range(4)]
    assert any(whole)


@pytest.mark.parametrize("block", [1, 4000, 2**20])
@pytest.mark.parametrize("build", [images, residual_before])
def test_no_input_of_a_relu_leaves_its_interval(build, block: int, monkeypatch) -> None:
    monkeypatch.setattr(descent, "_BLOCK_BYTES", block)
    case = make_case("images", build(5), KINDS, 2, 5)
    made = state(case, Rounding("deployed-float32"))
    share = torch.rand(len(case.box), 50, *case.box.input_shape, dtype=torch.float64).round()
    lower, upper = case.box.lower.unsqueeze(1), case.box.upper.unsqueeze(1)
    x = (lower + share * (upper - lower)).flatten(0, 1).float()
    values = {INPUT: x}
    for op in case.network.operations:
        given = [values[name] for name in op.inputs]
        values[op.name] = STEPS[op.kind](op, case.network.tensors, given)
        if op.kind == "relu":
            z = given[0].double().unflatten(0, (len(case.box), 50))
            low, high = (end.unsqueeze(1) for end in made._bounded[op.name])
            assert bool(((low <= z) & (z <= high)).all())


@settings(max_examples=30, deadline=None)
@given(seed=seeds, block=st.sampled_from((1, 3000, 2**20)))
def test_a_box_has_the_same_bits_in_any_company(seed: int, block: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(descent, "_BLOCK_BYTES", block)
        case = make_case("images", images(seed), KINDS * 2, 2, seed)
        order = torch.randperm(len(case.box), generator=torch.Generator().manual_seed(seed))
        pairs = [
            intervals(state(each, Rounding("deployed-float32")))
            for each in (rearranged(case, order), case)
        ]
        for have, want in zip(*pairs, strict=True):
            for ends, others in zip(have, want, strict=True):
                assert torch.equal(ends, others[order])


def convolution(draw: st.DrawFn) -> tuple[Operation, dict[str, Tensor], tuple[int, ...]]:
    """Any convolution of an image of at most 9 by 9."""
    two = st.tuples(st.integers(1, 3), st.integers(1, 3))
    groups = draw(st.integers(1, 2))
    inputs, outputs = groups * draw(st.integers(1, 2)), groups * draw(st.integers(1, 2))
    stride, dilation, kernel = draw(two), draw(st.tuples(*[st.integers(1, 2)] * 2)), draw(two)
    padding = draw(st.tuples(*[st.integers(0, 2)] * 2))
    reach = [dilation[axis] * (kernel[axis] - 1) + 1 for axis in (0, 1)]
    shape = [draw(st.integers(max(1, reach[axis] - 2 * padding[axis]), 9)) for axis in (0, 1)]
    weight = torch.randn(
        outputs,
        inputs // groups,
        *kernel,
        dtype=draw(st.sampled_from((torch.float64, torch.float32))),
        generator=torch.Generator().manual_seed(draw(seeds)),
    )
    given = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    result = [
        (shape[axis] + 2 * padding[axis] - reach[axis]) // stride[axis] + 1 for axis in (0, 1)
    ]
    op = Operation("conv", "conv2d", (INPUT,), (outputs, *result), {"weight": "w"}, given)
    return op, {"w": weight}, (inputs, *shape)


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_a_convolution_backwards_is_the_transposed_one(data: st.DataObject) -> None:
    op, tensors, shape = convolution(data.draw)
    lines, dtype = op.shape[1], tensors["w"].dtype
    band = tuple(sorted((data.draw(st.integers(0, lines - 1)), data.draw(st.integers(1, lines)))))
    band = (band[0], max(band[1], band[0] + 1))
    want = transposed.bands_below([op], tensors, {INPUT: shape, op.name: op.shape}, band)[INPUT]
    wider = (data.draw(st.integers(0, want[0])), data.draw(st.integers(want[1], shape[1])))
    A = torch.randn(2, 3, *op.shape, dtype=dtype, generator=torch.Generator().manual_seed(1))
    inside = torch.zeros(lines, 1, dtype=dtype)
    inside[band[0] : band[1]] = 1
    A = A * inside
    strips = [w for w in range(1, op.shape[2] + 1) if op.shape[2] % w == 0]
    with pytest.MonkeyPatch.context() as patch:
        chosen = data.draw(st.sampled_from(strips))
        patch.setattr(transposed, "_strip", lambda *given: chosen)
        pull = transposed.transposed(op, tensors, shape)
        if set(op.settings["dilation"]) == {1} and data.draw(st.booleans()):
            pull = transposed._skipping(op, tensors["w"], shape)
    flat = transposed.flat(A.flatten(0, 1), op.shape).unflatten(0, (2, 3))
    found = pull(transposed.cut(flat, op.shape, band), band, wider)
    found = transposed.grown(found, shape, wider, (0, shape[1]))
    expected = PULL["conv2d"](op, tensors, A, shape)[0]
    have = transposed.unflat(found.flatten(0, 1), shape).unflatten(0, (2, 3))
    torch.testing.assert_close(have, expected, rtol=1e-4, atol=1e-5 if dtype.itemsize == 4 else 0)


def test_units_that_are_left_out_decide_nothing(monkeypatch) -> None:
    monkeypatch.setattr(descent, "_BLOCK_BYTES", 3000)
    case = make_case("images", images(2), KINDS, 2, 2)
    made = state(case, Rounding())
    assert made._descent is not None
    index = max(
        i for i, op in enumerate(case.network.operations) if len(op.shape) == 3 and op.kind == "add"
    )
    assert made._descent.selective(index)
    shape = case.network.operations[index].shape
    some = torch.rand(len(case.box), *shape, generator=torch.Generator().manual_seed(3)) < 0.3
    every = made._descent.ends(index, *[torch.ones_like(some)] * 2)
    found = made._descent.ends(index, some, some)
    for have, want in zip(found, every, strict=True):
        assert torch.isnan(have[~some]).any()
        torch.testing.assert_close(have[some], want[some], rtol=1e-12, atol=1e-12)
    assert size(shape) > 4
