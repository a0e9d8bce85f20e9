"""Blocks change the order of work, and nothing that is found; strips and bands leave out zeros."""

from collections.abc import Iterator
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from advrepair.core.graph import INPUT, STEPS, Network, Operation, size
from advrepair.core.rounding import UNIT64, Rounding, gamma
from advrepair.plugins.verifiers import descent, transposed, windows
from advrepair.plugins.verifiers.affine import PULL
from advrepair.plugins.verifiers.counts import Count, Counts, Lines
from advrepair.plugins.verifiers.propagation import Propagation
from advrepair.plugins.verifiers.relaxations import SLOPES
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


def left_out(seed: int) -> Network:
    """A stride that leaves out the last line, below it a pool that bands end at."""
    sketch = Sketch(seed, (2, 14, 6)).conv2d(3, 3, padding=1).relu().avg_pool2d(2)
    sketch.conv2d(3, 3, padding=1).relu().conv2d(4, 2, stride=2).relu()
    return sketch.flatten().linear(4).relu().linear(3).finish()


def _doubly_read(seed: int) -> Case:
    """Values that ReLUs read and others too, so that they have a size and an interval."""
    sketch = Sketch(seed, (3,)).linear(6).relu().linear(5)
    before = sketch.last
    sketch.relu().linear(5).add(before).linear(4)
    inner, sketch.last = sketch.last, before
    network = sketch.linear(4).add(inner).relu().linear(2).finish()
    return make_case("doubly read", network, KINDS, 2, seed)


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
    # What is left out makes no size of a function's result larger, unless only a ReLU reads it.
    results = have.relaxed.keys() - {
        op.inputs[0] for op in case.network.operations if op.kind == "relu"
    }
    for name, size_of in have.sizes.items() if rounding else ():
        if name in results:
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


@pytest.mark.parametrize("tile", [8, 64])
@pytest.mark.parametrize("block", [1, 4000, 2**20])
@pytest.mark.parametrize("build", [images, residual_before, left_out])
@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_images_in_blocks(
    build, block: int, tile: int, rounding: Rounding | None, monkeypatch
) -> None:
    monkeypatch.setattr(descent, "_BLOCK_BYTES", block)
    monkeypatch.setattr(descent, "_TILE", tile)
    kinds = ("small", "tiny", "unequal", "point")
    whole = [require_equal(make_case("", build(i), kinds, 2, i), rounding) for i in range(4)]
    assert any(whole)


@pytest.mark.parametrize("tile", [8, 64])
@pytest.mark.parametrize("block", [1, 4000, 2**20])
@pytest.mark.parametrize("build", [images, residual_before, left_out])
def test_no_input_of_a_relu_leaves_its_interval(build, block: int, tile: int, monkeypatch) -> None:
    monkeypatch.setattr(descent, "_BLOCK_BYTES", block)
    monkeypatch.setattr(descent, "_TILE", tile)
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


@settings(max_examples=60, deadline=None)
@given(case=st.one_of(cases(), st.builds(_doubly_read, seeds)), slope=st.sampled_from(SLOPES))
def test_intervals_are_within_the_sizes_that_their_errors_scale_with(
    case: Case, slope: str
) -> None:
    """What an image loses is counted by the sizes of its inputs, so none may be wider."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(descent, "_BLOCK_BYTES", 1)
        made = state(case, Rounding(), slope)
    for name, value in made._around.items():
        reach = value.center.abs() + value.radius
        assert bool((reach <= made.sizes[name] * (1 + 1e-9) + 1e-90).all())


@pytest.mark.parametrize("block", [1, 2**20])
def test_rows_that_met_above_the_highest_relu_are_counted_at_theirs(block, monkeypatch) -> None:
    """Two paths meet over the first ReLU, none of them through the second, which is higher."""
    sketch = Sketch(1, (4,)).linear(3).relu()
    first = sketch.last
    sketch.last = INPUT
    sketch.linear(3).relu().linear(5)
    second, sketch.last = sketch.last, first
    sketch.linear(5)
    one, sketch.last = sketch.last, first
    network = sketch.linear(5).add(one).add(second).relu().linear(2).finish()
    seen = set()
    through = Counts.through

    def spy(self: Counts, op: Operation, merged: bool) -> Lines:
        seen.add((op.name, merged))
        return through(self, op, merged)

    monkeypatch.setattr(descent, "_BLOCK_BYTES", block)
    monkeypatch.setattr(Counts, "through", spy)
    state(make_case("two paths", network, ("small", "wide"), 2, 1), Rounding())
    assert (first, True) in seen and (first, False) not in seen


@settings(max_examples=60, deadline=None)
@given(case=cases())
def test_blocks_take_off_what_steps_take_off(case: Case) -> None:
    """What deployed rounding costs an end is the same in blocks, and not only nearly the ends."""
    level = Rounding("deployed-float32")
    exact, steps = (list(plainly(case, r, "zero")._bounded.values()) for r in (Rounding(), level))
    blocks = list(state(case, level, "zero")._bounded.values())
    for (low, high), (lower, upper), (least, most) in zip(blocks, steps, exact, strict=True):
        near = 1e-11 * (1 + lower.abs().maximum(upper.abs()))
        assert bool((low <= lower + 0.02 * (least - lower).clamp(min=0) + near).all())
        assert bool((high >= upper - 0.02 * (upper - most).clamp(min=0) - near).all())


@settings(max_examples=60, deadline=None)
@given(case=cases(), tiny=st.integers(0, 3), merged=st.booleans())
def test_what_is_taken_along_at_a_relu_covers_its_own_rounding(
    case: Case, tiny: int, merged: bool
) -> None:
    made = state(case, Rounding(), "same")
    if made._asking is None:
        return
    counts = made._asking.descent.counts
    for op in case.network.operations:
        if op.kind != "relu":
            continue
        count, shape = counts.at(op.inputs[0]), op.shape
        constant = torch.zeros(len(case.box), size(shape), dtype=torch.float64)
        constant = constant if count.constant is None else count.constant.expand_as(constant)
        error = torch.zeros_like(constant) if count.error is None else count.error
        if tiny:  # so small that products with slopes lose their digits
            constant, error = constant * 2.0**-1070, error * 0 + tiny * 2.0**-1074
            counts._counts[op.inputs[0]] = Count(constant, error)
            counts._lines.clear()
        lines = counts.through(op, merged)
        offset = windows.flat(made.relaxed[op.name].offset, shape)
        met = 2 * UNIT64 * windows.flat(made.sizes[op.name], shape) if merged else 0 * offset
        own = gamma(size(shape)) * offset
        parts = (lines.lower, lines.positive, 1, 0 * own), (lines.upper, lines.negative, -1, own)
        for slope, taken, sign, more in parts:
            shift = offset if sign < 0 else 0 * offset
            numbers = (slope[:, 0], constant, error, shift, taken[:, 0], sign * taken[:, 1])
            needed = (met + more).flatten().tolist()
            for s, c, e, t, have, lost, least in zip(
                *(part.flatten().tolist() for part in numbers), needed, strict=True
            ):
                off = abs(Fraction(s) * Fraction(c) + Fraction(t) - Fraction(have))
                off -= 3 * Fraction(UNIT64) * (abs(Fraction(s) * Fraction(c)) + Fraction(t))
                owed = Fraction(s) * Fraction(e) * (1 - Fraction(UNIT64) * 8) + max(off, 0)
                assert Fraction(lost) >= owed + Fraction(least) * (1 - Fraction(UNIT64) * 8)


def test_a_window_ends_where_an_operation_needs_all() -> None:
    network = left_out(1)
    shapes = {INPUT: network.input_shape} | {op.name: op.shape for op in network.operations}
    tile = (2, 3, 1, 2)
    found = windows.windows_below(network.operations[:4], network.tensors, shapes, tile)
    pool, conv = network.operations[2:4]
    assert found[conv.name] == tile and found[pool.name] == windows.whole(shapes[pool.name])


@settings(max_examples=30, deadline=None)
@given(seed=seeds, block=st.sampled_from((1, 3000, 2**20)), tile=st.sampled_from((8, 64)))
def test_a_box_has_the_same_bits_in_any_company(seed: int, block: int, tile: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(descent, "_BLOCK_BYTES", block)
        patch.setattr(descent, "_TILE", tile)
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
    window, shapes = a_window(data.draw, op.shape), {INPUT: shape, op.name: op.shape}
    want = windows.windows_below([op], tensors, shapes, window)[INPUT]
    wider = wider_window(data.draw, want, shape)
    dtype = tensors["w"].dtype
    A = torch.randn(2, 3, *op.shape, dtype=dtype, generator=torch.Generator().manual_seed(1))
    inside = torch.zeros(op.shape[1:], dtype=dtype)
    inside[window[0] : window[1], window[2] : window[3]] = 1
    A = A * inside
    with pytest.MonkeyPatch.context() as patch:
        chosen = data.draw(st.integers(1, op.shape[2]))
        patch.setattr(transposed, "_strip", lambda *given: min(chosen, given[3]))
        patch.setattr(transposed, "_WIDE", data.draw(st.sampled_from((0, 10**9))))
        pull = transposed.transposed(op, tensors, shape)
        if set(op.settings["dilation"]) == {1} and data.draw(st.booleans()):
            pull = transposed._skipping(op, tensors["w"], shape)
        flat = windows.flat(A.flatten(0, 1), op.shape).unflatten(0, (2, 3))
        found = pull(windows.cut(flat, op.shape, window), window, wider)
    found = windows.grown(found, shape, wider, windows.whole(shape))
    expected = PULL["conv2d"](op, tensors, A, shape)[0]
    have = windows.unflat(found.flatten(0, 1), shape).unflatten(0, (2, 3))
    torch.testing.assert_close(have, expected, rtol=1e-4, atol=1e-5 if dtype.itemsize == 4 else 0)


def a_window(draw: st.DrawFn, shape: tuple[int, ...]) -> windows.Window:
    """Any window of an image."""
    top, left = (draw(st.integers(0, length - 1)) for length in shape[1:])
    bottom, right = (
        draw(st.integers(first + 1, length))
        for first, length in zip((top, left), shape[1:], strict=True)
    )
    return top, bottom, left, right


def wider_window(draw: st.DrawFn, window: windows.Window, shape: tuple[int, ...]) -> windows.Window:
    """Any window that contains one."""
    top, bottom, left, right = window
    return (
        draw(st.integers(0, top)),
        draw(st.integers(bottom, shape[1])),
        draw(st.integers(0, left)),
        draw(st.integers(right, shape[2])),
    )


@given(st.integers(1, 5), st.integers(1, 9), st.integers(1, 9), st.integers(1, 90))
def test_tiles_cover_an_image_once(channels: int, height: int, width: int, units: int) -> None:
    shape = (channels, height, width)
    value = torch.zeros(1, size(shape))
    for tile in windows.tiles(shape, units):
        assert windows.numbers(shape, tile) <= max(units, channels) * 2
        windows.seen(value, shape, tile).add_(1)
    assert bool((value == 1).all())


def test_what_meets_little_falls_into_tiles(monkeypatch) -> None:
    monkeypatch.setattr(descent, "_TILE", 8)
    case = make_case("images", images(2), KINDS, 2, 2)
    made = state(case, None)
    assert made._asking is not None
    found = {
        op.kind: len(made._asking.descent.tiles(i))
        for i, op in enumerate(case.network.operations)
        if op.kind in ("add", "linear")
    }
    assert found["add"] > 1 and found["linear"] == 1


def test_units_that_are_left_out_decide_nothing(monkeypatch) -> None:
    monkeypatch.setattr(descent, "_BLOCK_BYTES", 3000)
    case = make_case("images", images(2), KINDS, 2, 2)
    made = state(case, Rounding())
    assert made._asking is not None
    found = made._asking.descent
    index = max(
        i for i, op in enumerate(case.network.operations) if len(op.shape) == 3 and op.kind == "add"
    )
    shape = case.network.operations[index].shape
    for at, tile in enumerate(found.tiles(index)):
        units = windows.numbers(shape, tile)
        some = torch.rand(len(case.box), units, generator=torch.Generator().manual_seed(3)) < 0.3
        every = found.ends(index, at, *[torch.ones_like(some)] * 2)
        for have, want in zip(found.ends(index, at, some, some), every, strict=True):
            assert torch.isnan(have[~some]).any()
            torch.testing.assert_close(have[some], want[some], rtol=1e-12, atol=1e-12)
