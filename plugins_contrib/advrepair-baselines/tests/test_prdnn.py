"""PRDNN: decoupled networks and their LP by hand, then the digits network and ACAS Xu."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from attrs import evolve
from conftest import acas_task, network_of, task_of
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from test_care import image_network

from advrepair import MethodStatus, Network, Operation, Scope, Task, UsageError, demands
from advrepair.testing import METHOD_CHECKS, digits_task, digits_test_images
from advrepair_baselines import layerwise
from advrepair_baselines.decoupled import Decoupled
from advrepair_baselines.layerwise import Tried, best_of, looked_at
from advrepair_baselines.linearised import Demanded, Effects, Place
from advrepair_baselines.lp_types import Change
from advrepair_baselines.prdnn import Prdnn


@pytest.mark.parametrize("check", METHOD_CHECKS, ids=lambda check: check.__name__)
def test_the_contract(check) -> None:
    check(Prdnn())


# By hand -------------------------------------------------------------------------------


@pytest.fixture
def fold() -> Network:
    """Hidden relu(x) and relu(-x), outputs the same."""
    eye = [[1.0, 0.0], [0.0, 1.0]]
    return network_of(([[1.0], [-1.0]], [0.0, 0.0]), (eye, [0.0, 0.0]))


def test_the_value_channel_does_not_move_what_is_on(fold: Network) -> None:
    """The first bias is -2: at 1 the first ReLU stays on and gives -1; at 0 both are off."""
    model = Decoupled(fold, {"linear0.bias": torch.tensor([-2.0, 0.5])})
    x = torch.tensor([[1.0], [3.0], [0.0], [-1.0]])
    assert model(x).tolist() == [[-1, 0], [1, 0], [0, 0], [0, 1.5]]
    same = Decoupled(fold, {})
    assert torch.equal(same(x), fold(x))


def test_the_least_change_of_one_layer_by_hand(threshold: Task) -> None:
    """Outputs 2x - 1 and 0; at 0.54 the second is to lead by 0.05: 0.13 more than it does.

    0.54 (w1 - w0) + b1 - b0 >= 0.13 with four entries of one size: 0.13 / 3.08.
    """
    result = Prdnn(gap=1e-4).repair(threshold)
    assert (result.status, result.scope) == (MethodStatus.REPAIRED, Scope.POINTS)
    size, value = 0.13 / 3.08, result.model.value.tensors
    assert (value["linear0.weight"][:, 0] - torch.tensor([2.0, 0.0])).tolist() == pytest.approx(
        [-size, size], rel=1e-3
    )
    assert (value["linear0.bias"] - torch.tensor([-1.0, 0.0])).tolist() == pytest.approx(
        [-size, size], rel=1e-3
    )
    (layer,) = result.evidence["layers"].values()
    assert layer["objective"] == pytest.approx(2 * size, rel=1e-3)
    assert layer["at least"] <= layer["objective"]


def test_a_limit_that_is_too_small_is_infeasible(threshold: Task) -> None:
    """3.08 times the limit must reach 0.13."""
    assert Prdnn(limit=0.043).repair(threshold).status is MethodStatus.REPAIRED
    result = Prdnn(limit=0.042).repair(threshold)
    assert (result.status, result.model) == (MethodStatus.INFEASIBLE, None)
    assert "linear0: no change inside the limits" in result.evidence["reason"]


def test_the_same_input_with_two_labels_is_infeasible() -> None:
    network = network_of(([[2.0], [0.0]], [-1.0, 0.0]))
    x = torch.tensor([[0.5], [0.5]])
    result = Prdnn().repair(task_of(network, x, [0, 1], 0.1, x))
    assert (result.status, result.model) == (MethodStatus.INFEASIBLE, None)


def test_of_several_rows_the_one_that_is_broken_least_is_asked_for() -> None:
    """Property: output 0 is not the largest; at 0.5 it is 3, the others 1 and 2."""
    network = network_of(([[0.0], [0.0], [0.0]], [3.0, 1.0, 2.0]))
    C = torch.tensor([[[-1.0, 1.0, 0.0], [-1.0, 0.0, 1.0]]])
    zero = torch.zeros(1, 2)
    properties = demands(torch.zeros(1, 1), torch.ones(1, 1), C, zero, zero.long())
    x = torch.tensor([[0.5]])
    demanded = Demanded.nearest(properties, network(x))
    assert demanded.C.tolist() == [[-1, 0, 1]] and demanded.chosen
    task = evolve(task_of(network, x, [0], 0.1, x), properties=properties)
    assert Prdnn().repair(task).model(x).argmax().item() == 2
    failed = Prdnn(limit=0.1).repair(task)  # not infeasible: the other row was not tried
    assert (failed.status, failed.model) == (MethodStatus.SOLVER_FAILED, None)


def test_what_a_solver_gives_without_solving_is_never_applied(
    threshold: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    none = Change(torch.zeros(4, dtype=torch.float64), MethodStatus.REPAIRED, "", 0.0, 0.0, 1, 1)
    monkeypatch.setattr(layerwise, "least_change", lambda *rest: none)
    result = Prdnn().repair(threshold)
    assert (result.status, result.model) == (MethodStatus.SOLVER_FAILED, None)
    assert "lacks 0.13 in a row" in result.evidence["reason"]


def test_a_model_that_is_wrong_after_all_is_never_applied(threshold: Task) -> None:
    change = Change(torch.zeros(4), MethodStatus.REPAIRED, "", 0.0, 0.0, 1, 1)
    x, network = threshold.x_adv, threshold.network
    place = Place.at(network, "linear0", ("linear0.weight", "linear0.bias"), x, x)
    effects = Effects(place, Demanded.nearest(threshold.properties, network(x)), {})
    tried = looked_at(threshold, "linear0", effects, change, network, 0.0)
    assert (tried.model, tried.status) == (None, MethodStatus.SOLVER_FAILED)
    assert tried.evidence["reason"] == "1 inputs are wrong after rounding to torch.float32"


def test_a_layer_that_takes_all_its_time_leaves_the_others_theirs(threshold: Task) -> None:
    asked = []

    def attempt(layer: str, task: Task) -> Tried:
        asked.append(task.left())
        if layer == "slow":
            time.sleep(task.left())
            task.tell(layer, 0, 1)
        return Tried(layer, MethodStatus.REPAIRED, {}, task.network)

    task = evolve(threshold, deadline=time.perf_counter() + 3.0)
    result = best_of(task, ["slow", "quick", "last"], attempt, Scope.POINTS, {})
    assert (result.status, result.evidence["layer"]) == (MethodStatus.REPAIRED, "quick")
    assert result.evidence["layers"]["slow"]["status"] == "timeout"
    first, second, third = asked
    assert 0.5 < first <= 1 and 0.5 < second <= 1.01 and third > second


def test_when_all_the_time_is_up_no_further_layer_is_tried(threshold: Task) -> None:
    def attempt(layer: str, task: Task) -> Tried:
        time.sleep(0.2)
        raise TimeoutError(f"up in {layer}")

    task = evolve(threshold, deadline=time.perf_counter() + 0.1)
    result = best_of(task, ["first", "second"], attempt, Scope.POINTS, {})
    assert (result.status, list(result.evidence["layers"])) == (MethodStatus.TIMEOUT, ["first"])


def test_no_memory_is_said_with_the_number(threshold: Task) -> None:
    result = Prdnn().repair(evolve(threshold, memory=2**20))
    assert (result.status, result.model) == (MethodStatus.OUT_OF_MEMORY, None)
    assert "4 parameters" in result.evidence["reason"] and "GiB" in result.evidence["reason"]


def test_bad_choices_are_refused(threshold: Task) -> None:
    with pytest.raises(UsageError, match=r"prdnn\.layer is 2: the network has 1"):
        Prdnn(layer=2).repair(threshold)
    tensors = threshold.network.tensors
    last = Operation("tanh", "tanh", ("linear0",), (2,))
    bent = Network([*threshold.network.operations, last], tensors, (1,))
    with pytest.raises(UsageError, match=r"'tanh' \(tanh\): this method takes networks that bend"):
        Prdnn().repair(evolve(threshold, network=bent))


# The rows of an LP, and the file, on a network with a convolution and a residual sum ------------


@pytest.mark.parametrize("layer", ["conv", "conv2", "out"])
def test_the_decoupled_network_is_affine_in_a_layer(layer: str) -> None:
    """D of a change is what the rows of the LP say, however large; transposed, too."""
    network, noise = image_network(), torch.Generator().manual_seed(1)
    x = torch.randn(3, 1, 4, 4, generator=noise)
    (op,) = [each for each in network.operations if each.name == layer]
    free = tuple(op.tensors.values())
    place = Place.at(network, layer, free, x, x)
    C = torch.eye(2, dtype=torch.float64).repeat(3, 1)
    none = torch.zeros(6, dtype=torch.float64)
    effects = Effects(place, Demanded(torch.arange(3).repeat_interleave(2), C, none, False), {})
    assert torch.allclose(effects.start, network(x).double().flatten(), rtol=1e-4, atol=1e-4)
    size = (effects.parameters,)
    change = 5 * torch.randn(size, generator=noise, dtype=torch.float64)
    moved = {n: network.tensors[n].double() + part for n, part in place.split(change).items()}
    with torch.no_grad():
        expected = (Decoupled(network, moved)(x) - network(x)).double().flatten()
    found = effects.forward(change)
    assert torch.allclose(found, expected, rtol=1e-3, atol=1e-3 * float(found.abs().max()))
    weights = torch.randn(6, generator=noise, dtype=torch.float64)
    assert float(effects.backward(weights) @ change) == pytest.approx(float(weights @ found))


class Nodes:
    """A list of operators that becomes an ONNX model."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.stored: list[Any] = []

    def call(self, kind: str, *inputs: str, name: str = "", **attributes: Any) -> str:
        output, names = name or f"{kind}_{len(self.nodes)}", list(inputs)
        if "shape" in attributes:
            names.append(self.constant(torch.tensor(attributes.pop("shape"))))
        self.nodes.append(helper.make_node(kind, names, [output], **attributes))
        return output

    def constant(self, value: torch.Tensor, name: str = "") -> str:
        name = name or f"constant_{len(self.stored)}"
        self.stored.append(numpy_helper.from_array(value.numpy(), name))
        return name

    def run(self, output: str, x: torch.Tensor) -> np.ndarray:
        ends = [
            helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
            for name, shape in (("x", ["N", *x.shape[1:]]), (output, ["N", 2]))
        ]
        graph = helper.make_graph(self.nodes, "network", ends[:1], ends[1:], self.stored)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
        onnx.checker.check_model(model)
        return np.asarray(ReferenceEvaluator(model).run(None, {"x": x.numpy()})[0])


def test_both_channels_are_in_the_file() -> None:
    network = image_network()
    changed = {"c.b": network.tensors["c.b"] + 2, "d.w": -network.tensors["d.w"]}
    model, to, x = Decoupled(network, changed), Nodes(), torch.randn(4, 1, 4, 4)
    written = to.run(model.write(to, "x"), x)
    assert np.allclose(written, model(x).numpy(), rtol=1e-4, atol=1e-4)
    kinds = [node.op_type for node in to.nodes]
    assert kinds.count("Greater") == 2 and kinds.count("Conv") == 4
    assert not np.allclose(written, model.value(x).numpy(), atol=0.1)


# Real networks -------------------------------------------------------------------------


def test_the_digits_network_is_repaired_where_it_was_asked_to_be() -> None:
    task = digits_task(count=20, epsilon=0.1)
    result = Prdnn().repair(task)
    assert (result.status, result.scope) == (MethodStatus.REPAIRED, Scope.POINTS)
    layers = result.evidence["layers"]
    assert len(layers) == 3 and result.evidence["layer"] in layers
    best = max(each["accuracy"] for each in layers.values())
    assert layers[result.evidence["layer"]]["accuracy"] == best
    x, y = digits_test_images()
    with torch.no_grad():
        assert not task.properties[task.owner].violated(result.model(task.x_adv)).any()
        before = (task.network(x).argmax(1) == y).float().mean()
        after = (result.model(x).argmax(1) == y).float().mean()
        rows = torch.einsum("pmk,pk->pm", task.properties.C[task.owner], result.model(task.x_adv))
    assert before - after < 0.2
    assert float(rows.min()) == pytest.approx(0.05, abs=1e-3)  # a least change leaves no more


def test_an_acas_network_is_repaired() -> None:
    task = acas_task()
    result = Prdnn(layer=7).repair(task)
    assert result.status is MethodStatus.REPAIRED
    with torch.no_grad():
        outputs = result.model(task.x_adv)
        assert not (outputs[:, 0] >= outputs[:, 1:].amax(1)).any()
        kept = task.decide(result.model(task.held.x)) == task.held.label
    assert float(kept.float().mean()) > 0.5
