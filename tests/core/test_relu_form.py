"""The form without comparisons is the routed function, but in shells."""

from __future__ import annotations

import onnx
import pytest
import torch
from exports import a_repair, agrees, run
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from advrepair.core.agreement import check_relu, trial_inputs
from advrepair.core.box import Box
from advrepair.core.errors import UsageError
from advrepair.core.graph import Network
from advrepair.core.network import load_network
from advrepair.core.onnx_writer import OUTPUT
from advrepair.core.patching import RepairedNetwork
from advrepair.core.relu_form import Shells, make_shells, relu_model
from advrepair.plugins.allocators.nearest import Nearest
from advrepair.plugins.allocators.none import NoAllocator
from advrepair.testing.networks import NETWORKS, convolutional, fully_connected

pytest.importorskip("onnxruntime")

RELU_OPERATORS = {"Gemm", "Relu", "Add", "Conv", "Flatten", "Reshape", "Identity"}


def in_shells(repaired: RepairedNetwork, shells: Shells, x: Tensor) -> Tensor:
    """Inputs about which the form relu says less, written out: bool [N]."""
    shell = []
    for point in x:
        apart = torch.maximum(repaired.box.lower - point, point - repaired.box.upper)
        distance = apart.clamp(min=0).flatten(1).amax(1)
        home = int(repaired.box.first(point[None]))
        near = distance < shells.width
        if home >= 0:
            near = near[:home] & (repaired.patch[:home] != repaired.patch[home])
        shell.append(bool(near.any()))
    return torch.tensor(shell)


@given(
    name=st.sampled_from(["fully connected", "convolutional"]),
    seed=st.integers(0, 2**16),
    regions=st.integers(1, 10),
    patches=st.sampled_from([1, 3, 20]),
    hidden=st.sampled_from([(), (5,), (4, 3)]),
    shell=st.sampled_from([None, 0.01, 0.3]),
)
def test_the_form_relu_is_the_routed_function_outside_shells(
    name, seed, regions, patches, hidden, shell
):
    base = {"fully connected": fully_connected, "convolutional": convolutional}[name](seed)
    repaired = a_repair(base, NoAllocator(), seed, regions, patches, hidden)
    shells = make_shells(repaired, shell)
    x = trial_inputs(repaired, seed)
    model = relu_model(repaired, (-2, 2), shells)
    (y,) = run(model, x, OUTPUT)
    shell_points, expected = in_shells(repaired, shells, x), repaired(x)
    assert agrees(y[~shell_points], expected[~shell_points])
    # In a shell the patches that are on lie between 0 and their own outputs.
    every = torch.stack([repaired.bank.add_to(base(x) * 0, x, gate) for gate in gates_of(repaired)])
    low, high = every.clamp(max=0).sum(0), every.clamp(min=0).sum(0)
    part = y - base(x)
    assert bool(((low - 1e-4 <= part) & (part <= high + 1e-4)).all())


def gates_of(repaired: RepairedNetwork) -> list[Tensor]:
    eye = torch.eye(len(repaired.bank), dtype=torch.bool)
    return [row.expand(len(trial_inputs(repaired)), -1) for row in eye]


def test_inside_regions_no_rounding_is_added():
    """N and p are known here without rounding, and so is their sum: M must leave no trace."""
    base = fully_connected(1, (3, 5, 4))
    base = Network(base.operations, {n: t * 0 + 0.25 for n, t in base.tensors.items()}, (3,))
    repaired = a_repair(base, NoAllocator(), 2, idle=0.0)
    tiny = {n: torch.full_like(t, 2.0**-20) for n, t in repaired.bank.stack.items()}
    repaired.bank.put(torch.arange(4), tiny)
    shells = make_shells(repaired)
    model = relu_model(repaired, (-1024, 1024), shells)
    x = repaired.box.center.mul(1024).round() / 1024
    inside = repaired.box.holds(x) & ~in_shells(repaired, shells, x)
    assert int(inside.sum()) >= 2
    (y,) = run(model, x, OUTPUT)
    assert y[inside].equal(repaired(x)[inside])


@pytest.mark.parametrize("size", ["small", "large"])
def test_the_form_relu_has_nothing_but_linear_layers_and_relu(size, tmp_path):
    inputs, regions, hidden = (4, 6, (5,)) if size == "small" else (150, 120, (40,))
    base = fully_connected(1, (inputs, 8, 4))
    repaired = a_repair(base, NoAllocator(), 3, regions, regions, hidden)
    shells = make_shells(repaired)
    model = relu_model(repaired, (-1, 1), shells)
    kinds = {node.op_type for node in onnx.load_from_string(model).graph.node}
    assert kinds <= RELU_OPERATORS and ("Conv" in kinds) == (size == "large")
    (tmp_path / "net.onnx").write_bytes(model)
    x = trial_inputs(repaired).clamp(-1, 1)
    assert agrees(load_network(tmp_path / "net.onnx")(x), run(model, x, OUTPUT)[0])
    assert check_relu(model, repaired, x, shells, (-1, 1)).inputs > 100


def test_shells_are_powers_of_two_and_fit_between_regions():
    repaired = a_repair(fully_connected(1), NoAllocator(), 3)
    box = Box(torch.tensor([[0.0] * 3, [1.0625] * 3]), torch.tensor([[1.0] * 3, [2.0] * 3]))
    repaired.box_lower, repaired.box_upper = box.lower, box.upper
    repaired.patch = torch.tensor([0, 1])
    assert make_shells(repaired).width == 2.0**-11  # 2^-10 of the narrowest width, 0.9375
    assert (
        make_shells(repaired, 0.06).width == 2.0**-5
        and not make_shells(repaired, 0.06).touched.any()
    )
    assert make_shells(repaired, 0.2).touched.tolist() == [False, True]
    with pytest.raises(UsageError, match=r"less than .* which the network's numbers resolve"):
        make_shells(repaired, 1e-9)
    for wrong in (0.0, -1.0, torch.nan, torch.inf):
        with pytest.raises(UsageError, match="must be a positive number"):
            make_shells(repaired, wrong)


def test_the_form_relu_refuses_an_allocator():
    repaired = a_repair(fully_connected(1), Nearest(), 3)
    with pytest.raises(UsageError, match="allocator 'nearest' cannot be exported with --form relu"):
        relu_model(repaired, (0, 1), make_shells(repaired))


@pytest.mark.parametrize("name, kind", [("curved", "sigmoid"), ("max pooled", "max_pool2d")])
def test_functions_other_than_relu_are_refused_by_name(name, kind):
    repaired = a_repair(NETWORKS[name](0), NoAllocator(), 3)
    with pytest.raises(UsageError, match=rf"node '.*' \({kind}\) cannot .* --form relu"):
        relu_model(repaired, (-1, 1), make_shells(repaired))
