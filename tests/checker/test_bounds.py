"""Bounds of the checker are never above exact or computed values, and not far below."""

import random
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from advrepair.checker.bounds import LEVELS, Region, row_margins
from advrepair.checker.network import Network
from advrepair.core import graph
from advrepair.core.box import Box
from advrepair.core.branches import Branch
from advrepair.core.graph import INPUT, STEPS, Operation
from advrepair.core.rounding import Rounding
from advrepair.plugins.verifiers.branched import Branched
from advrepair.plugins.verifiers.deeppoly import DeepPoly
from advrepair.testing.networks import NETWORKS, Sketch, absorbing, fully_connected, tiny
from advrepair.testing.oracle import exact_minimum


def mine(network):
    return Network(network.structure(), {n: t.numpy() for n, t in network.tensors.items()})


def faces(box):
    return tuple(each.flatten(1).double().numpy() for each in (box.lower, box.upper))


def pieces_of(net, box):
    """Boxes whose units may be anything: [B, inputs + units]."""
    free = np.full((len(box[0]), net.units), np.inf)
    return np.hstack([box[0], -free]), np.hstack([box[1], free])


def slopes(net, level, box, rule):
    """Of every ReLU unit, by DeepPoly's area rule or all alike."""
    slope = np.full((len(box[0]), net.units), {"zero": 0.0, "half": 0.5}.get(rule, 1.0))
    if rule == "area":
        for _ in range(sum(step.kind == "relu" for step in net.steps)):
            region = Region(net, level, pieces_of(net, box), slope)
            values = [step.sources[0] for step in net.steps if step.kind == "relu"]
            low, high = (np.hstack([v[i] for i in values]) for v in (region.low, region.high))
            slope = (high > -low).astype(float)
    return slope


def region_of(net, level, box, rule="area"):
    return Region(net, level, pieces_of(net, box), slopes(net, level, box, rule))


def lowest(network, box, C, level, slope="area"):
    """Lower bounds of C f(x), [B,M], by the checker."""
    region = region_of(mine(network), level, faces(box), slope)
    boxes, rows, _ = C.shape
    own = np.repeat(np.arange(boxes), rows)
    weights = C.double().numpy().reshape(boxes * rows, -1)
    found, _ = region.least(*region.pull(len(region.net.steps), weights, own), own)
    return found.reshape(boxes, rows), region


def some_boxes(network, seed, radius=0.2, count=3):
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(count, *network.input_shape, generator=generator)
    box = Box(x - radius, x + radius)
    C = torch.randn(count, 4, network.outputs, generator=generator)
    return box, C


@given(st.integers(0, 2**32), st.sampled_from(["area", "zero", "one", "half"]))
@settings(max_examples=15)
def test_never_above_the_exact_minimum(seed, slope):
    network = tiny(seed)
    box, C = some_boxes(network, seed)
    found, _ = lowest(network, box, C, "real", slope)
    exact = exact_minimum(network, box, C, torch.zeros(C.shape[:2]))
    for i, row in enumerate(exact):
        assert all(found[i, j] <= value for j, value in enumerate(row))


@pytest.mark.parametrize("level", ["deployed-float32", "deployed-float64"])
@pytest.mark.parametrize("name", NETWORKS)
@given(seed=st.integers(0, 2**32))
@settings(max_examples=6)
def test_every_value_lies_between_its_bounds(name, level, seed):
    network = NETWORKS[name](seed % 1000)
    box, C = some_boxes(network, seed)
    found, region = lowest(network, box, C, level)
    dtype = torch.float32 if level == "deployed-float32" else torch.float64
    tensors = {n: t.to(dtype) for n, t in network.tensors.items()}
    for point in points(box, seed):
        y = network.apply_tensors(tensors, point.to(dtype)).double()
        rows = torch.einsum("bmk,bk->bm", C.double(), y).numpy()
        assert (found <= rows + 1e-12 * np.abs(rows)).all()
        assert (region.low[-1] <= y.numpy()).all()
        assert (y.numpy() <= region.high[-1]).all()


def points(box, seed):
    generator = torch.Generator().manual_seed(seed)
    for share in (0.0, 1.0, None, None, None, None):
        weight = torch.rand(box.lower.shape, generator=generator)
        weight = weight.round() if share is None else torch.full_like(weight, share)
        point = box.lower + weight * (box.upper - box.lower)
        yield box.clamp(point)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("level", LEVELS)
def test_as_tight_as_the_verifier(name, level):
    """Its own account, so not the same numbers; but close."""
    network = NETWORKS[name](5)
    box, C = some_boxes(network, 5, 0.05)
    found, region = lowest(network, box, C, level)
    bound = DeepPoly().prepare(network, Rounding(level))
    params = {n: t.double() for n, t in network.tensors.items()}
    double = box.to(torch.float64)
    other = bound(params, double, C.double(), torch.zeros(C.shape[:2], dtype=torch.float64))
    least = other.minimum_rigorous(double).numpy()
    assert region.valid.all()
    assert (found >= least - 1e-3 - 1e-2 * np.abs(least)).all()


def mixed(seed):
    """ReLUs, smooth functions, sums and max pools, in any order."""
    choose = random.Random(seed)
    kinds = choose.choice(["relu gelu", "relu tanh", "relu erf gelu", "gelu", "tanh sigmoid relu"])
    kinds, image = kinds.split(), choose.random() < 0.3
    sketch = Sketch(seed, (1, 6, 6) if image else (3,))
    if image:
        sketch.conv2d(3, 3, padding=1).apply(choose.choice(kinds))
        if choose.random() < 0.6:
            sketch.max_pool2d(2, 2)
        sketch.conv2d(3, 2).apply(choose.choice(kinds)).flatten()
    sketch.linear(8)
    for _ in range(choose.choice([1, 2, 5])):
        around = sketch.last
        sketch.apply(choose.choice(kinds)).linear(8)
        if choose.random() < 0.3:
            sketch.add(around)
    return sketch.apply(choose.choice(kinds)).linear(3).finish()


@given(st.integers(0, 2**20), st.sampled_from([0.01, 0.05, 0.2, 0.4]), st.booleans())
@settings(deadline=None)
def test_lines_that_no_certificate_stores_are_found_again(seed, radius, cut):
    """So claims are confirmed: where boxes are wide, and with units cut by their signs, too."""
    network, generator = mixed(seed), torch.Generator().manual_seed(seed)
    box, C = some_boxes(network, seed, radius)
    box, C, net = box.to(torch.float64), C.double(), mine(network)
    params = {n: t.double() for n, t in network.tensors.items()}
    sign, shape = computed(network, box.center), (*C.shape[:2], net.units)
    phase = sign * (torch.rand(sign.shape, generator=generator) < 0.3) * cut
    multiplier = 0.1 * torch.rand(shape, generator=generator).double() * (phase != 0)[:, None]
    branch = Branch(phase, None, multiplier)
    level = Rounding("deployed-float32")
    found = Branched(network, params, box, "area", level, branch=branch)
    bound = found.bound(C, torch.zeros(C.shape[:2], dtype=torch.float64))
    claimed = bound.rows.minimum_rigorous(box).numpy()
    floor = np.where(phase.numpy() > 0, 0.0, -np.inf), np.where(phase.numpy() < 0, 0.0, np.inf)
    part = tuple(np.hstack(pair) for pair in zip(faces(box), floor, strict=True))
    most = np.full(claimed.shape, -np.inf)
    for steep in (False, True):
        region = Region(net, level.level, part, bound.rows.slope.numpy() / 255)
        d, given_ = np.zeros(claimed.shape), multiplier.numpy()
        least, error = row_margins([region], C.numpy(), d, given_, steep)
        most = np.maximum(most, least + 4 * error)
    assert ((claimed <= most) | bound.empty.numpy()[:, None]).all()


def computed(network, x):
    """Signs of all ReLU inputs at x: [B,U], int8."""
    values, signs = {INPUT: x}, [torch.zeros(len(x), 0)]
    tensors = {n: t.double() for n, t in network.tensors.items()}
    for op in network.operations:
        given_ = [values[name] for name in op.inputs]
        values[op.name] = STEPS[op.kind](op, tensors, given_)
        if op.kind == "relu":
            signs.append(given_[0].flatten(1).sign())
    return torch.cat(signs, 1).to(torch.int8)


@pytest.mark.parametrize(("level", "dtype"), [("deployed-float32", torch.float32)])
def test_rounding_at_its_worst(level, dtype):
    network = absorbing(2.0**-24)
    point = torch.ones(1, 2)
    C = torch.eye(2)[None]
    found, _ = lowest(network, Box(point, point), C, level)
    exact, _ = lowest(network, Box(point, point), C, "real")
    assert (found <= network(point).double().numpy()).all()
    assert (found < exact).all()


def margins(base, patch, level, box, C, d):
    """Of N + P on the same boxes, without multipliers."""
    units = base.units + patch.units
    free, slope = np.full((len(d), units), np.inf), np.zeros((len(d), units))
    part = np.hstack([box[0], -free]), np.hstack([box[1], free])
    regions = Region(base, level, part, slope), Region(patch, level, part, slope, base.units)
    return row_margins(regions, C, d, np.zeros((*d.shape, units)))[0]


def test_large_numbers_prove_nothing():
    for factor in (2.0**127, float("inf"), float("nan")):
        network = fully_connected(0)
        tensors = {n: t.numpy().copy() for n, t in network.tensors.items()}
        tensors["linear_0.weight"][0, 0] = factor
        net = Network(network.structure(), tensors)
        box, C = some_boxes(network, 0)
        box = Box(box.lower + 2, box.upper + 2)
        rows, none = C.double().numpy(), np.zeros(C.shape[:2])
        fine = margins(mine(network), mine(network), "deployed-float32", faces(box), rows, none)
        assert np.isfinite(fine).all()
        with np.errstate(all="ignore"):
            found = margins(net, mine(network), "deployed-float32", faces(box), rows, none)
        assert (found == -np.inf).all()


@pytest.mark.parametrize(
    "settings_",
    [((2, 1), (1, 2), (1, 2), 1), ((1, 2), (0, 1), (2, 1), 2), ((3, 3), (2, 2), (1, 1), 4)],
)
def test_convolutions_of_every_kind(settings_):
    stride, padding, dilation, groups = settings_
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(8, 4 // groups, 3, 2, generator=generator).double()
    x = torch.randn(5, 4, 9, 8, generator=generator).double()
    y = torch.nn.functional.conv2d(x, weight, None, stride, padding, dilation, groups)
    options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    conv = {
        "name": "c",
        "kind": "conv2d",
        "inputs": ["input"],
        "shape": list(y.shape[1:]),
        "tensors": {"weight": "w"},
        "settings": {n: list(v) if isinstance(v, tuple) else v for n, v in options.items()},
    }
    flat = {"name": "f", "kind": "reshape", "inputs": ["c"], "shape": [y[0].numel()]}
    flat |= {"tensors": {}, "settings": {}}
    net = Network({"input_shape": [4, 9, 8], "operations": [conv, flat]}, {"w": weight.numpy()})
    step = net.steps[0]
    flat_x, flat_y = x.flatten(1).numpy(), y.flatten(1).numpy()
    assert np.allclose(step.apply(flat_x), flat_y)
    rows = np.random.default_rng(0).normal(size=flat_y.shape)
    assert np.allclose((rows * flat_y).sum(1), (step.back(rows) * flat_x).sum(1))


@pytest.mark.parametrize("name", NETWORKS)
def test_each_step_and_its_transposed(name):
    net = mine(NETWORKS[name](2))
    generator = np.random.default_rng(0)
    for step in net.steps:
        if step.kind in ("relu", "add"):
            continue
        x = generator.normal(size=(3, net.sizes[step.sources[0]]))
        y = step.apply(x)
        rows = generator.normal(size=y.shape)
        assert np.allclose((rows * y).sum(1), (step.back(rows) * x).sum(1))
        assert (np.abs(y) <= step.apply(np.abs(x), True) + 1e-12).all()


def test_values_that_are_used_several_times():
    """Without ReLU the bounds of a sum of many paths are exact but for rounding."""
    sketch = Sketch(0, (3,)).linear(3)
    first = sketch.last
    sketch.linear(3).add(first)
    network = sketch._emit("add", inputs=(first, sketch.last)).add(first).linear(2).finish()
    box, C = some_boxes(network, 1)
    found, _ = lowest(network, box, C, "real")
    tensors = {n: t.double() for n, t in network.tensors.items()}

    def f(x):
        return network.apply_tensors(tensors, x[None])[0]

    for i in range(len(box)):
        low, high = box.lower[i].double(), box.upper[i].double()
        A = C[i].double() @ torch.autograd.functional.jacobian(f, low)
        exact = C[i].double() @ f((low + high) / 2) - A.abs() @ ((high - low) / 2)
        assert np.allclose(found[i], exact.numpy(), atol=1e-12)
        assert (found[i] < exact.numpy()).all()


def test_the_sum_of_network_and_patch_is_rounded():
    """1 + 0.9 u is 1 in float32, although both terms are exact."""
    flat = {"name": "f", "kind": "reshape", "inputs": ["input"], "shape": [2]}
    flat |= {"tensors": {}, "settings": {}}
    base = Network({"input_shape": [2], "operations": [flat]}, {})
    roles = {"weight": "w", "bias": "b"}
    last = {**flat, "name": "g", "kind": "linear", "tensors": roles}
    tensors = {"w": np.zeros((2, 2), np.float32), "b": np.float32([0.9 * 2.0**-24, 0])}
    patch = Network({"input_shape": [2], "operations": [last]}, tensors)
    point = (np.ones((1, 2)),) * 2
    C, d = np.array([[[1.0, 0.0]]]), np.array([[-1.0]])

    def margin(level):
        return margins(base, patch, level, point, C, d).item()

    assert margin("real") > 0
    assert margin("deployed-float64") > 0
    assert margin("deployed-float32") <= 0


def test_a_pool_that_may_overflow_before_it_divides_proves_nothing():
    """Sixteen values of 2^125 sum to 2^129 in float32, although their mean is 2^125."""
    operations = [
        Operation("up", "scale", ("input",), (1, 4, 4), {"weight": "up"}),
        Operation(
            "pool", "avg_pool2d", ("up",), (1, 1, 1), {}, {"kernel_size": (4, 4), "stride": (4, 4)}
        ),
        Operation("down", "scale", ("pool",), (1, 1, 1), {"weight": "down"}),
        Operation("flat", "reshape", ("down",), (1,)),
    ]
    up = torch.full((1, 1, 1), 2.0**125)
    network = graph.Network(operations, {"up": up, "down": 1 / up}, (1, 4, 4))
    x = torch.ones(1, 1, 4, 4)
    assert not bool(torch.isfinite(network(x)).all())
    with np.errstate(all="ignore"):  # as the checker itself runs
        found, region = lowest(network, Box(x, x), torch.ones(1, 1, 1), "deployed-float32")
    assert not bool(region.valid[0]) or not bool((found > 0).any())
    real, fine = lowest(network, Box(x, x), torch.ones(1, 1, 1), "real")
    assert bool(fine.valid[0]) and bool((real > 0.99).all())


@given(st.integers(0, 2**32), st.sampled_from(["real", "deployed-float64", "deployed-float32"]))
@settings(max_examples=40)
def test_cuts_and_multipliers_hold_at_every_input_of_a_piece(seed, level):
    """Any slopes, any units cut, any multipliers: only tightness depends on them."""
    rng = np.random.default_rng(seed)
    name = list(NETWORKS)[seed % len(NETWORKS)]
    networks = [NETWORKS[name](seed % 1000), NETWORKS[name](seed % 1000 + 1)]
    nets = [mine(network) for network in networks]
    units = sum(net.units for net in nets)
    low = rng.random((1, nets[0].sizes[0])) - 0.2
    high = low + 0.6
    x = low + rng.random((400, low.shape[1])) * (high - low)
    dtype = torch.float32 if level == "deployed-float32" else torch.float64
    tensor = torch.from_numpy(x).to(dtype)
    x = tensor.double().numpy()
    low, high = np.minimum(low, x.min(0)), np.maximum(high, x.max(0))
    values = [inputs_of_relus(network, tensor) for network in networks]
    z = np.hstack([each for each, _ in values])
    floor, ceiling = np.full((1, units), -np.inf), np.full((1, units), np.inf)
    for unit in rng.choice(units, 3, replace=False):  # a piece that holds the first point
        (floor if z[0, unit] >= 0 else ceiling)[0, unit] = 0
    inside = ((floor <= z) & (z <= ceiling)).all(1)
    box = (np.hstack([low, floor]), np.hstack([high, ceiling]))
    slope = rng.integers(0, 256, (1, units)) / 255
    outputs = nets[0].sizes[-1]
    C, d = rng.normal(size=(1, 3, outputs)), rng.normal(size=(1, 3))
    multiplier = rng.exponential(size=(1, 3, units)) * rng.integers(0, 2, (1, 3, units))
    base = Region(nets[0], level, box, slope)
    patch = Region(nets[1], level, box, slope, nets[0].units)
    assert not (base.empty | patch.empty)[0]
    found = row_margins([base, patch], C, d, multiplier)[0][0]
    y = (values[0][1] + values[1][1]).double().numpy()[inside]
    rows = y @ C[0].T + d
    assert np.isfinite(found).all()
    assert (found <= rows.min(0) + 1e-12 * abs(rows).max()).all()


def inputs_of_relus(network, x):
    """What every ReLU unit is given, [N,units], and the outputs."""
    values = {"input": x.reshape(-1, *network.input_shape)}
    tensors = {n: t.to(x.dtype) for n, t in network.tensors.items()}
    found = []
    for op in network.operations:
        inputs = [values[name] for name in op.inputs]
        if op.kind == "relu":
            found.append(inputs[0].flatten(1).double().numpy())
        values[op.name] = graph.STEPS[op.kind](op, tensors, inputs)
    return np.hstack(found), values[network.operations[-1].name]


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", NETWORKS)
def test_no_sum_is_longer_than_the_account_says(name, seed):
    """Terms are counted in dense matrices: rows of the step, and rows of the transposed."""
    net = mine(NETWORKS[name](seed))
    for step in net.steps:
        W = step.apply(np.eye(net.sizes[step.sources[0]])) != 0
        assert net.longest >= W.sum(0).max() + 1  # and the bias
        assert net.longest >= W.sum(1).max() + 1  # and what has arrived already
        assert net.longest >= len(step.bias)  # the constant of a row
        if step.kind in ("linear", "conv2d", "scale", "avg_pool2d", "add"):
            terms = W.sum(0).max() * len(step.sources) + bool(step.bias.any())
            assert step.terms >= terms + 2


def test_transposed_sums_count_where_they_are_the_longest():
    """One input, a hundred outputs; and a padded image that every window meets."""
    wide = fully_connected(0, (1, 100, 1))
    assert mine(wide).longest >= 100
    weight = np.ones((50, 1, 3, 3))
    conv = {"name": "c", "kind": "conv2d", "inputs": ["input"], "shape": [50, 3, 3]}
    conv |= {"tensors": {"weight": "w"}}
    conv |= {"settings": {"stride": [1, 1], "padding": [1, 1], "dilation": [1, 1], "groups": 1}}
    flat = {"name": "f", "kind": "reshape", "inputs": ["c"], "shape": [450]}
    last = {"name": "l", "kind": "linear", "inputs": ["f"], "shape": [1], "settings": {}}
    structure = {
        "input_shape": [1, 3, 3],
        "operations": [
            conv,
            {**flat, "tensors": {}, "settings": {}},
            {**last, "tensors": {"weight": "v"}},
        ],
    }
    net = Network(structure, {"w": weight, "v": np.ones((1, 450))})
    assert (net.steps[0].apply(np.eye(9)) != 0).sum(1).max() == 450  # the middle of the image
    assert net.longest >= 450


@given(st.integers(0, 2**32), st.sampled_from(["real", "deployed-float32"]))
@settings(max_examples=40)
def test_slack_of_a_relu_covers_its_rounding(seed, level):
    """In exact arithmetic: what t is short of, and what rows times slopes are off by."""
    rng = np.random.default_rng(seed)
    scale = 2.0 ** rng.integers(-30, 30)
    low, high = -scale * rng.random((1, 5)), scale * rng.random((1, 5))
    operation = {"name": "r", "kind": "relu", "inputs": ["input"], "shape": [5]}
    structure = {"input_shape": [5], "operations": [{**operation, "tensors": {}, "settings": {}}]}
    net = Network(structure, {})
    slope = rng.integers(0, 256, (1, 5)) / 255
    region = Region(net, level, pieces_of(net, (low, high)), slope)
    (_, (below, _), above, shift, _), slack = region.lines[1], region.slack[1]
    rows = rng.normal(size=(1, 5))
    pulled, constant, _ = region.pull(1, rows, np.zeros(1, int))
    owed, had = Fraction(0), Fraction(0)
    for j in range(5):
        s, t, bottom = (Fraction(each[0, j]) for each in (above, shift, below))
        line, row = min(bottom, 1), Fraction(rows[0, j])
        assert 0 <= s <= 1 and 0 <= bottom <= 1
        ends = [Fraction(low[0, j]), Fraction(high[0, j])]
        short = max(-s * ends[0], (1 - s) * ends[1]) - t  # of t, where it is rounded down
        used = line if row > 0 else s
        product = abs(Fraction(pulled[0, j]) - row * used) * max(map(abs, ends))
        missing = product + (abs(row) * max(short, 0) if row < 0 else 0)
        assert missing <= abs(row) * Fraction(slack[0, j])
        assert Fraction(slack[0, j]) >= 2 * Fraction(2) ** -53 * max(map(abs, ends))
        owed += min(row, 0) * t
        had += abs(row) * Fraction(slack[0, j])
    assert abs(Fraction(constant[0]) - owed) <= had
