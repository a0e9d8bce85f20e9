"""Exported ONNX files decide as the repaired network does, and compute nearly the same."""

from __future__ import annotations

import re
from pathlib import Path
from typing import ClassVar

import numpy as np
import onnx
import pytest
import torch
from attrs import evolve, frozen
from exports import ALLOCATORS, a_repair, agrees, everywhere, run
from hypothesis import given
from hypothesis import strategies as st
from onnx import numpy_helper
from torch import Tensor

import advrepair
from advrepair.core.agreement import check_relu, check_routed, trial_inputs
from advrepair.core.errors import AdvrepairError, UsageError
from advrepair.core.graph import INPUT, NON_AFFINE, Network, Operation
from advrepair.core.interfaces import Allocator, OperatorList
from advrepair.core.network import load_network
from advrepair.core.onnx_export import routed_model
from advrepair.core.onnx_writer import OUTPUT, network_model
from advrepair.core.patching import PatchBank, RepairedNetwork
from advrepair.core.relu_form import make_shells, relu_model
from advrepair.core.rounding import Rounding
from advrepair.core.routing_steps import GATES, LOGITS, ROUTE
from advrepair.core.torch_export import ExportableNetwork
from advrepair.core.types import Centres
from advrepair.plugins.allocators.none import NoAllocator
from advrepair.plugins.verifiers.curves import CURVES
from advrepair.testing.networks import NETWORKS, Sketch, convolutional, fully_connected

pytest.importorskip("onnxruntime")
PAGE = Path(__file__).parent.parent.parent / "docs" / "export.md"


# The routed form -----------------------------------------------------------------------


@given(
    name=st.sampled_from(sorted(NETWORKS)),
    seed=st.integers(0, 2**16),
    allocator=st.sampled_from(ALLOCATORS),
    regions=st.integers(1, 12),
    patches=st.sampled_from([1, 3, 40]),
    hidden=st.sampled_from([(), (5,), (4, 3)]),
)
def test_every_route_is_the_same_and_the_sum_nearly(
    name, seed, allocator, regions, patches, hidden
):
    repaired = a_repair(NETWORKS[name](seed), allocator, seed, regions, patches, hidden)
    x, model = everywhere(repaired, seed), routed_model(repaired)
    y, logits, gates = run(model, x, OUTPUT, LOGITS, ROUTE + GATES)
    # An allocator sees outputs of N; the last bit of one can decide.
    assert gates.equal(repaired.route(x, logits))
    expected = repaired.bank.add_to(repaired.base(x), x, gates)
    finite = x.flatten(1).isfinite().all(1)
    assert agrees(y[finite], expected[finite])
    if not {op.kind for op in repaired.base.operations} & (NON_AFFINE - {"relu"}):
        lost = x.flatten(1).isnan().any(1)
        assert y[lost].isnan().equal(expected[lost].isnan())
    found = check_routed(model, repaired, x[finite])
    assert found.inputs == int(finite.sum()) + 1 and found.deviation <= found.tolerance


@pytest.mark.parametrize("allocator", ALLOCATORS, ids=str)
def test_any_batch(allocator):
    repaired = a_repair(convolutional(3), allocator, 1, regions=9)
    x, model = trial_inputs(repaired)[:256].repeat(2, 1, 1, 1)[:256], routed_model(repaired)
    for batch in (1, 7, 256):
        logits, gates = run(model, x[:batch], LOGITS, ROUTE + GATES)
        assert gates.equal(repaired.route(x[:batch], logits))


@pytest.mark.parametrize("name", ["cosine", "nearest", "feature-cosine"])
def test_allocators_that_see_features(name):
    base = convolutional(11)
    x = torch.rand(80, *base.input_shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        y = base(x).argmax(1)
    given = {"patch": {"at": "auto"}, "plan": {"allocator": name}, "evaluation": {"samples": 1}}
    given |= {} if name == "nearest" else {name: {"top": 2}}
    repaired = advrepair.repair(base, x, y, epsilon=0.1, count=8, settings=given).network
    model, many = routed_model(repaired), torch.cat([trial_inputs(repaired), x])
    found = check_routed(model, repaired, many)
    assert found.inputs == len(many) + 1 and found.deviation <= found.tolerance
    (gates,) = run(model, x, ROUTE + GATES)
    assert len(gates[repaired.box.first(x) < 0].unique(dim=0)) > 2


@pytest.mark.parametrize("form", ["routed", "relu"])
def test_a_network_in_float64(form):
    base = Sketch(2, (3,), torch.float64).linear(5).relu().linear(4).finish()
    repaired = a_repair(base, NoAllocator(), 4, idle=0.3)
    x = trial_inputs(repaired)
    if form == "routed":
        assert check_routed(routed_model(repaired), repaired, x).tolerance < 1e-10
    else:
        shells = make_shells(repaired)
        model = relu_model(repaired, (-2, 2), shells)
        assert check_relu(model, repaired, x, shells, (-2, 2)).tolerance < 1e-10


def many_patches(inputs: int, hidden: tuple[int, ...], radius: float) -> RepairedNetwork:
    base = fully_connected(1, (inputs, 10, 4))
    return a_repair(base, NoAllocator(), 5, 1000, 1000, hidden, radius, idle=0.1)


@pytest.mark.parametrize("inputs, radius", [(5, 0.3), (200, 0.05), (200, 1.0)])
def test_a_thousand_patches(inputs, radius):
    """Few inputs, regions that few coordinates tell apart, and regions that all overlap."""
    repaired = many_patches(inputs, (3,), radius)
    found = check_routed(routed_model(repaired), repaired, trial_inputs(repaired))
    assert found.deviation <= found.tolerance


def test_what_is_compared_does_not_grow_with_the_regions():
    """Most coordinates are compared of a few regions only, those that others cannot exclude."""
    stored = onnx.load_from_string(routed_model(many_patches(200, (), 0.05))).graph
    compared = [node for node in stored.node if node.op_type == "LessOrEqual"]
    assert 2 <= len(compared) <= 5 and len(stored.node) < 100


def moved(model: bytes, name: str) -> bytes:
    """The same with one face of a region one ulp further out."""
    changed = onnx.load_from_string(model)
    (stored,) = [t for t in changed.graph.initializer if t.name == name]
    array = numpy_helper.to_array(stored).copy()
    array.ravel()[:] = np.nextafter(array.ravel(), np.float32(np.inf))
    stored.CopyFrom(numpy_helper.from_array(array, name))
    return changed.SerializeToString()


@pytest.mark.parametrize("patches", [0, 3])
def test_regions_without_any_patch(patches):
    repaired = a_repair(fully_connected(1), NoAllocator(), 3, patches=max(1, patches), idle=2.0)
    if not patches:
        none = {name: t[:0] for name, t in repaired.bank.stack.items()}
        repaired.bank = PatchBank(repaired.bank.template, none)
        repaired.centres = evolve(repaired.centres, patches=0)
    x, shells = trial_inputs(repaired), make_shells(repaired)
    check_routed(routed_model(repaired), repaired, x)
    assert agrees(ExportableNetwork(repaired)(x), repaired(x))
    check_relu(relu_model(repaired, (-1, 1), shells), repaired, x, shells, (-1, 1))


def test_the_check_sees_one_ulp():
    repaired = a_repair(fully_connected(1, (50, 8, 4)), NoAllocator(), 3, radius=0.3, idle=0.0)
    model, x = routed_model(repaired), torch.cat([trial_inputs(repaired, i) for i in range(9)])
    check_routed(model, repaired, x)
    with pytest.raises(AdvrepairError, match=r"routes .* otherwise"):
        check_routed(moved(model, ROUTE + "region.upper"), repaired, x)


def test_the_check_sees_another_weight():
    repaired = a_repair(fully_connected(1), NoAllocator(), 3)
    other = a_repair(fully_connected(1), NoAllocator(), 3)
    other.bank.put(torch.arange(4), {n: t * 2 for n, t in other.bank.stack.items()})
    with pytest.raises(AdvrepairError, match="outputs differ"):
        check_routed(routed_model(other), repaired, trial_inputs(repaired))


# Base networks -------------------------------------------------------------------------


def last_name(network: Network) -> str:
    return f"base/{network.operations[-1].name}"


def test_operations_that_only_a_base_network_has():
    sketch = Sketch(0, (2, 8, 8)).conv2d(3, 3, padding=1).leaky(0.125)
    sketch.apply("max_pool2d", kernel_size=(3, 3), stride=(2, 2), padding=(1, 1))
    sketch.apply("tanh").flatten().linear(6).apply("sigmoid").linear(5).apply("gelu").linear(4)
    base = sketch.apply("erf").linear(3).finish()
    x = torch.randn(5, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    assert agrees(run(network_model(base), x, last_name(base))[0], base(x))


@pytest.mark.parametrize("kind", CURVES)
@pytest.mark.parametrize("optimised", [False, True])
def test_onnxruntime_errs_by_less_than_is_assumed(kind, optimised):
    """For inputs of all sizes; docs/soundness.md takes that for granted."""
    network = Network([Operation("a", kind, (INPUT,), (8,))], {}, (8,))
    powers = 2.0 ** torch.arange(-140.0, 100.0)
    share = 1 + torch.rand(64, generator=torch.Generator().manual_seed(0))
    spread = (powers[:, None] * share).flatten()
    x = torch.cat([spread, -spread, torch.linspace(-20, 20, 2**17)])
    y = run(network_model(network), x.view(-1, 8), last_name(network), optimised=optimised)
    want = CURVES[kind].value(x.double())
    scale = torch.ones_like(want) if CURVES[kind].bend == 0 else x.double().abs()
    off = (y[0].flatten().double() - want).abs()
    assert bool((off <= Rounding("deployed-float32").function(scale)).all())


@pytest.mark.parametrize("name", NETWORKS)
def test_a_written_network_reads_as_the_same_one(name, tmp_path):
    network = NETWORKS[name](2)
    (tmp_path / "net.onnx").write_bytes(network_model(network))
    x = torch.randn(5, *network.input_shape, generator=torch.Generator().manual_seed(0))
    assert agrees(load_network(tmp_path / "net.onnx")(x), network(x))


# Allocators of third parties -----------------------------------------------------------


@frozen
class Foreign(Allocator):
    """Patch 0 for all."""

    name: ClassVar[str] = "foreign"

    def allocate(self, x: Tensor, logits: Tensor, centres: Centres) -> Tensor:
        gates = torch.zeros(len(x), centres.patches, dtype=torch.bool)
        gates[:, 0] = True
        return gates


@frozen
class Written(Foreign):
    """As Foreign, written for the export."""

    name: ClassVar[str] = "written"

    def write(self, to: OperatorList, x: str, logits: str, centres: Centres) -> str:
        return to.constant(torch.arange(centres.patches)[None] == 0)


def test_an_allocator_that_cannot_be_written_is_refused_by_name():
    repaired = a_repair(fully_connected(1), Foreign())
    for export in (routed_model, ExportableNetwork):
        with pytest.raises(UsageError, match="allocator 'foreign' cannot be exported"):
            export(repaired)


@pytest.mark.skipif(not PAGE.exists(), reason="no checkout: no docs/")
def test_the_allocator_of_the_documentation_is_exported():
    (source,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)
    names = {"torch": torch, "OperatorList": OperatorList, "Centres": Centres}
    exec(compile(source, str(PAGE), "exec", dont_inherit=True), names)

    @frozen
    class Documented(Foreign):
        name: ClassVar[str] = "documented"
        write = names["write"]

        def allocate(self, x: Tensor, logits: Tensor, centres: Centres) -> Tensor:
            return (logits[:, :1] > 0) & (torch.arange(centres.patches)[None] == 0)

    repaired = a_repair(fully_connected(4, (3, 4)), Documented())
    x = trial_inputs(repaired)
    assert 0 < int((repaired.base(x)[:, 0] > 0).sum()) < len(x)
    check_routed(routed_model(repaired), repaired, x)
    assert agrees(ExportableNetwork(repaired)(x), repaired(x))


def test_one_that_can_be_is_exported():
    repaired = a_repair(fully_connected(1), Written())
    x = trial_inputs(repaired)
    check_routed(routed_model(repaired), repaired, x)
    assert agrees(ExportableNetwork(repaired)(x), repaired(x))


@given(seed=st.integers(0, 2**16), allocator=st.sampled_from(ALLOCATORS))
def test_most_is_no_less_than_what_an_allocator_turns_on(seed, allocator):
    repaired = a_repair(fully_connected(1), allocator, seed, 12, 8)
    x = trial_inputs(repaired)
    given = allocator.allocate(x, repaired.base(x), repaired.centres)
    assert int(given.sum(1).max()) <= allocator.most(repaired.centres)


def test_pieces_of_a_box_and_the_box_behind_them_need_few_comparisons():
    """As a repair lays them out: a hundred pieces meet their box, but not one another."""
    base = fully_connected(1, (40, 8, 4))
    repaired = a_repair(base, NoAllocator(), 3, 101, 4, idle=0.0)
    edge = torch.linspace(-1, 1, 101)
    lower, upper = torch.full((101, 40), -1.0), torch.ones(101, 40)
    lower[:100, 0], upper[:100, 0] = edge[:-1], edge[1:]
    repaired.box_lower, repaired.box_upper = lower, upper
    repaired.patch[-1] = -1
    model, x = routed_model(repaired), trial_inputs(repaired)
    check_routed(model, repaired, x)
    kinds = [node.op_type for node in onnx.load_from_string(model).graph.node]
    assert kinds.count("LessOrEqual") == 1 + 3  # two pieces at a common face, and the box
