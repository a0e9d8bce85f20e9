"""Caps: proved for every output that a network may give, and changing as little as can be."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st
from problems import a_network, a_registry, bytes_of, configure
from problems import write_inputs as files

import advrepair
from advrepair import checker
from advrepair.checker.cap import cap
from advrepair.checker.network import Network as Followed
from advrepair.core import pipeline
from advrepair.core.box import Box
from advrepair.core.capping import cap_stack, capped
from advrepair.core.errors import UsageError
from advrepair.core.finding import bounder_of
from advrepair.core.graph import INPUT, Network, Operation
from advrepair.core.patching import patch_template
from advrepair.core.rounding import Rounding
from advrepair.testing.networks import Sketch, convolutional, residual

CAP = {"training": {"objective": "cap"}, "plan": {"allocator": "none"}}
LEVELS = {"deployed-float32": torch.float32, "deployed-float64": torch.float64}
levels = st.sampled_from(["deployed-float32", "deployed-float64"])
seeds = st.integers(0, 2**31)


def outputs_of(count, dtype):
    """A network that gives what it is given."""
    same = Operation("outputs", "reshape", (INPUT,), (count,))
    return Network([same], {}, (count,)), patch_template(
        Network([same], {"none": torch.zeros(1, dtype=dtype)}, (count,)), (2 * count, count)
    )


def a_cap(count, label, level="deployed-float32", margin=0.02):
    network, template = outputs_of(count, LEVELS[level])
    stack = cap_stack(template, torch.tensor([label]), margin, Rounding(level))
    return network, template, {name: t[0] for name, t in stack.items()}


def rows_of(label, count, faces=8.0):
    eye = torch.eye(count)
    C = (eye[label] - eye)[torch.arange(count) != label][None]
    box = Box(torch.full((1, count), -faces), torch.full((1, count), faces))
    return box, C, torch.zeros(1, count - 1)


def proved(network, template, stack, given, level="deployed-float32"):
    return capped(network, Rounding(level), template, stack, given)


def some_outputs(seed, count, dtype, rows=64):
    """Numbers of all sizes, with equal ones and zeros among them."""
    noise = torch.Generator().manual_seed(seed)
    z = torch.randn(rows, count, generator=noise, dtype=dtype)
    z = z * 10.0 ** (torch.rand(rows, 1, generator=noise, dtype=dtype) * 60 - 30)
    near = z[:, :1] * (1 + 2.0**-22 * torch.randn(rows, count, generator=noise, dtype=dtype))
    z = torch.where(torch.rand(rows, 1, generator=noise, dtype=dtype) < 0.4, near, z)
    z = torch.where(torch.rand(rows, count, generator=noise, dtype=dtype) < 0.1, 0.0, z)
    return torch.where(torch.rand(rows, 1, generator=noise, dtype=dtype) < 0.1, z[:, :1], z)


def in_some_order(weight, bias, x, order):
    """A layer whose sums run in another order, every product and sum rounded."""
    total = np.zeros((len(x), len(weight)), x.dtype)
    for i in order:
        term = bias[None] if i == x.shape[1] else x[:, i : i + 1] * weight[None, :, i]
        total = (total + term).astype(x.dtype)
    return total


@given(seed=seeds, count=st.integers(2, 12), level=levels, which=st.integers(0, 11))
def test_whatever_the_outputs_are_the_label_is_above_the_rest(seed, count, level, which):
    label, dtype = which % count, LEVELS[level]
    network, template, stack = a_cap(count, label, level)
    least = proved(network, template, stack, rows_of(label, count), level)
    assert bool((least > 0.0099).all())
    z, order = some_outputs(seed, count, dtype), np.random.default_rng(seed)
    layers = [(f"linear{i}.weight", f"linear{i}.bias") for i in range(3)]
    x = z.numpy()
    for i, (weight, bias) in enumerate(layers):
        x = np.maximum(x, 0) if i else x
        places = order.permutation(x.shape[1] + 1)
        x = in_some_order(stack[weight].numpy(), stack[bias].numpy(), x, places)
    for F in (z.numpy() + x, (z + template.apply_tensors(stack, z)).numpy()):
        for row in F:
            own = Fraction(float(row[label]))
            others = [Fraction(float(v)) for k, v in enumerate(row) if k != label]
            assert own - max(others) >= Fraction(float(least.min()))


@given(seed=seeds, count=st.integers(2, 12))
def test_nothing_changes_where_the_label_is_above_the_rest_already(seed, count):
    _, template, stack = a_cap(count, 0)
    z = torch.randn(32, count, generator=torch.Generator().manual_seed(seed)) * 10
    z[:, 0] = z[:, 1:].amax(1) + 0.03
    assert not bool(template.apply_tensors(stack, z).any())


def followed(template, stack):
    """A patch as the checker reads it."""
    return Followed(template.structure(), {name: t.numpy() for name, t in stack.items()})


def as_it_is(count):
    op = {"name": "outputs", "kind": "reshape", "inputs": ["input"], "shape": [count]}
    return Followed(
        {"input_shape": [count], "operations": [op | {"tensors": {}, "settings": {}}]}, {}
    )


CHANGES = [0.0, -1.0, 0.5, 1 - 2.0**-20, 1 + 2.0**-20, 3.0, float("nan"), float("inf")]


@given(seed=seeds, change=st.sampled_from(CHANGES), more=st.sampled_from([0.0, 1e-6, -0.5, 2.0]))
def test_a_cap_with_another_number_is_none_or_still_right(seed, change, more):
    """Planted: any one weight is another. Both programs, neither of which asks the other."""
    count, draw = 4, np.random.default_rng(seed)
    label = int(draw.integers(count))
    network, template, stack = a_cap(count, label)
    name = sorted(stack)[draw.integers(len(stack))]
    flat = stack[name].clone().flatten()
    place = int(draw.integers(len(flat)))
    flat[place] = flat[place] * change + more
    changed = {**stack, name: flat.view_as(stack[name])}
    with np.errstate(all="ignore"):
        found = cap(as_it_is(count), followed(template, changed), "deployed-float32")
    least = proved(network, template, changed, rows_of(label, count))
    for claimed in (least.min(), torch.tensor(-1.0 if found is None else found[1])):
        if claimed > 0:
            z = some_outputs(seed, count, torch.float32, 256)
            F = (z + template.apply_tensors(changed, z)).double()
            assert bool(
                (F[:, label] - F.index_fill(1, torch.tensor([label]), -torch.inf).amax(1) > 0).all()
            )
    assert found is None or found[0] == label


@pytest.mark.parametrize("delta", [0.0, 2.0**-22])
def test_without_room_for_rounding_it_is_none(delta):
    network, template, stack = a_cap(10, 3)
    eye, weight = torch.eye(10), stack["linear1.weight"]
    K, others = 10, torch.arange(10) != 3
    rows = torch.cat([(1 + delta) * eye, -(1 - delta) * eye], 1)
    rows[:, 3], rows[:, K + 3] = -(1 - delta), 1 + delta
    changed = {**stack, "linear1.weight": torch.where(others[:, None], rows, 0.0)}
    assert changed["linear1.weight"].shape == weight.shape
    assert bool(torch.isinf(proved(network, template, changed, rows_of(3, 10))).all())
    assert cap(as_it_is(10), followed(template, changed), "deployed-float32") is None
    exactly = proved(network, template, changed, rows_of(3, 10), "real")
    assert bool((exactly > 0).all())  # in exact arithmetic it is one
    assert cap(as_it_is(10), followed(template, changed), "real") == (3, pytest.approx(0.01))


def test_other_demands_and_outputs_without_bounds_are_not_proved():
    network, template, stack = a_cap(4, 1)
    box, C, d = rows_of(1, 4)
    assert bool((proved(network, template, stack, (box, C, d)) > 0).all())
    for C_, d_ in [(-C, d), (2 * C, d), (C, d - 1), (rows_of(2, 4)[1], d)]:
        assert bool(torch.isinf(proved(network, template, stack, (box, C_, d_))).any())
    for size in (2.0**101, torch.inf):
        assert bool(torch.isinf(proved(network, template, stack, rows_of(1, 4, size))).all())


# As an objective of a run ---------------------------------------------------------------


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    return files(tmp_path_factory.mktemp("files"))


@pytest.mark.parametrize("indicator", ["property-guided", "untargeted-label", "targeted-label"])
@pytest.mark.parametrize("level", ["deployed", "real"])
def test_a_run_certifies_all_and_the_checker_agrees(indicator, level, asked, tmp_path):
    more = {"plan": {"indicator": indicator}, "certification": {"level": level}}
    plan = configure(a_registry(), *asked, CAP, more)
    report = pipeline.run(plan, a_registry(), tmp_path / "run")
    assert report["properties"]["certified"] == report["properties"]["total"] == 6
    assert report["metrics"]["RSR"] == report["metrics"]["RGR"] == 1.0
    verdict = checker.check(tmp_path / "run")
    assert verdict.word == "VALID" and verdict.certified == 6, verdict.line


def test_the_bytes_do_not_depend_on_the_workers(asked, tmp_path):
    found = []
    for workers in (1, 3):
        plan = configure(a_registry(), *asked, CAP, {"in-process": {"workers": workers}})
        pipeline.run(plan, a_registry(), tmp_path / str(workers))
        found.append(bytes_of(tmp_path / str(workers)))
    assert found[0] == found[1]


def inputs_of(network):
    noise = torch.Generator().manual_seed(0)
    x = torch.rand(80, *network.input_shape, generator=noise, dtype=network.dtype)
    with torch.no_grad():
        return x, network(x).argmax(1)


@pytest.mark.parametrize("network", [convolutional(11), residual(10)])
def test_the_balls_of_any_network_are_repaired_and_nothing_else(network, tmp_path):
    x, y = inputs_of(network)
    done = advrepair.repair(network, x, y, epsilon=0.1, count=4, settings=CAP)
    assert done.report["properties"]["certified"] == 4
    F, box = done.network, Box.around(done.network.center, 0.1, (0.0, 1.0))
    noise = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for _ in range(30):
            share = torch.rand(box.lower.shape, generator=noise).round()
            at = box.clamp(box.lower + share * (box.upper - box.lower))
            own, repaired = network(at), F(at)
            assert torch.equal(repaired.argmax(1), F.centres.label)
            rest = own.scatter(1, F.centres.label[:, None], -torch.inf).amax(1)
            fine = own.gather(1, F.centres.label[:, None])[:, 0] > rest + 0.03
            assert torch.equal(repaired[fine], own[fine])
        assert torch.equal(F(x), network(x))
    margins = advrepair.certify(F, F.center, 0.1, label=F.centres.label)
    assert bool((margins > 0).all())


def test_an_evaluation_bounds_the_network_as_it_bounds_the_repair(asked, tmp_path):
    """By intervals to its outputs: DeepPoly through a large network does not fit the memory."""
    plan = configure(a_registry(), *asked, CAP)
    for network in (a_network(), residual(10)):
        bounder = bounder_of(network, plan)
        assert bounder is not None and bounder.front is not None
        assert bounder.front.verifier.name == "interval"
        assert [op.kind for op in bounder.network.operations] == ["reshape"]


@pytest.mark.parametrize("level", ["deployed", "real"])
def test_networks_of_float64_get_caps_of_float64(level, tmp_path):
    network = residual(10).double()
    x, y = inputs_of(network)
    given = CAP | {"certification": {"level": level}}
    done = advrepair.repair(network, x, y, epsilon=0.1, count=4, settings=given)
    assert done.report["properties"]["certified"] == 4
    assert {t.dtype for t in done.network.bank.stack.values()} == {torch.float64}
    done.save(tmp_path / "run")
    assert checker.check(tmp_path / "run").word == "VALID"
    with torch.no_grad():
        assert torch.equal(advrepair.load(tmp_path / "run")(x), done.network(x))


def end_with_relu(operations):
    last = operations[-1]
    return [*operations, evolve(last, name="end", kind="relu", inputs=(last.name,), tensors={})]


def gelu_for_relu(operations):
    return [evolve(op, kind="gelu") if op.kind == "relu" else op for op in operations]


def past_a_relu(operations):
    return [*operations[:-1], evolve(operations[-1], inputs=(operations[-3].name,))]


@pytest.mark.parametrize("edit", [end_with_relu, gelu_for_relu, past_a_relu])
def test_planted_a_patch_with_the_numbers_of_a_cap_and_other_steps_is_none(edit):
    network, template, stack = a_cap(4, 1)
    other = Network(edit(template.operations), template.tensors, template.input_shape)
    assert bool(torch.isinf(proved(network, other, stack, rows_of(1, 4))).all())
    assert bool((proved(network, template, stack, rows_of(1, 4)) > 0).all())


def test_outputs_that_may_overflow_are_not_certified(tmp_path):
    network = Sketch(3, (3,)).linear(8).relu().linear(3).finish()
    wild = {n: t * 1e30 if n.endswith("weight") else t for n, t in network.tensors.items()}
    network = Network(network.operations, wild, network.input_shape)
    x, y = inputs_of(network)
    done = advrepair.repair(network, x, y, epsilon=0.1, count=2, settings=CAP)
    assert done.report["properties"]["certified"] == 0


@pytest.mark.parametrize(
    ("more", "text"),
    [
        ({"patch": {"hidden": [3]}}, "leave out --at, --hidden"),
        ({"patch": {"at": "auto"}}, "leave out --at, --hidden"),
        ({"plan": {"allocator": "kernel"}}, "does not go with"),
        ({"plan": {"certifier": "branch-and-bound"}}, "does not go with"),
    ],
)
def test_what_a_cap_does_not_go_with_is_refused(more, text, asked, tmp_path):
    plan = configure(a_registry(), *asked, CAP, more)
    with pytest.raises(UsageError, match=text):
        pipeline.run(plan, a_registry(), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_property_file_is_refused(asked, tmp_path):
    plan = configure(a_registry(), *asked, CAP)
    plan = evolve(plan, problem=evolve(plan.problem, property=("any.vnnlib",)))
    with pytest.raises(UsageError, match="property files"):
        pipeline.check_bounds(Sketch(3, (3,)).linear(3).finish(), plan)
