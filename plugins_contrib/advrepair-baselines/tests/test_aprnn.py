"""APRNN: a layer and later biases by hand, boxes, then the digits network and ACAS Xu."""

from __future__ import annotations

import pytest
import torch
from attrs import evolve
from conftest import acas_task, network_of, task_of

from advrepair import Box, MethodStatus, Network, Scope, Task, UsageError
from advrepair.testing import METHOD_CHECKS, digits_task, digits_test_images
from advrepair_baselines.aprnn import Aprnn
from advrepair_baselines.aprnn_repair import at_corners, corners_of, pieces
from advrepair_baselines.linearised import gates


@pytest.mark.parametrize("check", METHOD_CHECKS, ids=lambda check: check.__name__)
def test_the_contract(check) -> None:
    check(Aprnn())


# By hand -------------------------------------------------------------------------------


@pytest.fixture
def fold() -> Task:
    """Hidden relu(x) and relu(-x), outputs the same; at 1 output 1 is to lead, and lacks 1."""
    eye = [[1.0, 0.0], [0.0, 1.0]]
    network = network_of(([[1.0], [-1.0]], [0.0, 0.0]), (eye, [0.0, 0.0]))
    x = torch.tensor([[1.0]])
    return task_of(network, x, [1], 0.1, x)


def change(task: Task, model: Network) -> dict[str, list[float]]:
    before = task.network.tensors
    return {n: (t - before[n]).flatten().tolist() for n, t in model.tensors.items()}


def test_the_first_layer_and_the_last_bias_share_the_change(fold: Task) -> None:
    """-w0 - b0 - c0 + c1 >= 1.05, four entries of the six alike: 1.05 / 4 each."""
    result = Aprnn(layer=1).repair(fold)
    assert (result.status, result.scope) == (MethodStatus.REPAIRED, Scope.POINTS)
    assert result.model.structure() == fold.network.structure()
    found, u = change(fold, result.model), 1.05 / 4
    assert found["linear0.weight"] == pytest.approx([-u, 0], abs=1e-6)
    assert found["linear0.bias"] == pytest.approx([-u, 0], abs=1e-6)
    assert found["linear1.bias"] == pytest.approx([-u, u], abs=1e-6)
    assert found["linear1.weight"] == [0, 0, 0, 0]


def test_a_relu_stays_on_the_side_where_it_is(fold: Task) -> None:
    """A margin of 3 lacks 4; the ReLU may lose its 1 and no more, so the last biases do 3."""
    result = Aprnn(layer=1, margin=3.0).repair(fold)
    found = change(fold, result.model)
    assert found["linear0.weight"][0] + found["linear0.bias"][0] == pytest.approx(-1, abs=1e-5)
    assert found["linear1.bias"] == pytest.approx([-1.5, 1.5], abs=1e-5)
    assert float(result.model(fold.x_adv)[0, 1] - result.model(fold.x_adv)[0, 0]) >= 3 - 1e-5


def test_a_limit_that_is_too_small_is_infeasible(fold: Task) -> None:
    """Four entries of 0.25 do 1, and 1.05 is asked for."""
    result = Aprnn(layer=1, limit=0.25).repair(fold)
    assert (result.status, result.model) == (MethodStatus.INFEASIBLE, None)
    assert result.evidence["layers"]["linear0"]["exclude each other"] == [0]


def test_what_excludes_each_other_is_named(fold: Task) -> None:
    """Input 1 is asked for both labels; inputs 0 and 3 have nothing to do with it."""
    x = torch.tensor([[2.0], [1.0], [1.0], [-1.0]])
    task = task_of(fold.network, x, [0, 1, 0, 1], 0.1, x)
    result = Aprnn().repair(task)
    assert result.status is MethodStatus.INFEASIBLE
    for layer in result.evidence["layers"].values():
        assert layer["exclude each other"] == [1, 2]


def test_no_memory_is_said_with_the_number(fold: Task) -> None:
    result = Aprnn().repair(evolve(fold, memory=2**20))
    assert (result.status, result.model) == (MethodStatus.OUT_OF_MEMORY, None)
    assert "6 parameters" in result.evidence["reason"]


# Boxes ---------------------------------------------------------------------------------


def test_corners_and_pieces_by_hand() -> None:
    lower, upper = torch.tensor([[0.0, 1.0, 5.0]]), torch.tensor([[4.0, 2.0, 5.0]])
    found = corners_of(lower, upper)
    assert found.tolist() == [[[0, 1, 5]], [[0, 2, 5]], [[4, 1, 5]], [[4, 2, 5]]]
    cut = pieces(lower, upper, 2)
    assert [low.tolist()[0] for low, _ in cut] == [[0, 1, 5], [1, 1, 5], [2, 1, 5], [3, 1, 5]]
    assert [high.tolist()[0] for _, high in cut] == [[1, 2, 5], [2, 2, 5], [3, 2, 5], [4, 2, 5]]
    assert corners_of(lower, lower).tolist() == lower[None].tolist()


def test_a_box_is_repaired_up_to_its_corner(threshold: Task) -> None:
    """Outputs 2x - 1 and 0; at 0.55 the second is to lead by 0.05: four entries of 0.15 / 3.1."""
    result = Aprnn(region="boxes").repair(threshold)
    assert (result.status, result.scope) == (MethodStatus.REPAIRED, Scope.REGION)
    found, u = change(threshold, result.model), 0.15 / 3.1
    assert found["linear0.weight"] == pytest.approx([-u, u], abs=1e-5)
    assert found["linear0.bias"] == pytest.approx([-u, u], abs=1e-5)
    assert result.evidence["regions"] == ["ball 0"]


def bent_task() -> Task:
    """A random network of two inputs; around one of them another label is asked for."""
    noise = torch.Generator().manual_seed(3)

    def layer(rows: int, columns: int) -> tuple[list[list[float]], list[float]]:
        weight = torch.randn(rows, columns, generator=noise)
        return weight.tolist(), torch.randn(rows, generator=noise).tolist()

    network = network_of(layer(8, 2), layer(6, 8), layer(3, 6))
    center = torch.tensor([[0.4, -0.2]])
    label = int(network(center).argsort(1)[0, 1])  # the second best
    return task_of(network, center, [label], 0.3, center)


def test_every_input_of_a_box_is_right_and_held_as_it_was() -> None:
    task = bent_task()
    result = Aprnn(region="boxes", cuts=4).repair(task)
    assert (result.status, result.scope) == (MethodStatus.REPAIRED, Scope.REGION)
    box, model = task.properties.box, result.model
    turned = 0
    for low, high in pieces(box.lower[0], box.upper[0], 4):
        share = torch.rand(500, 2, generator=torch.Generator().manual_seed(0))
        x, centre = low + share * (high - low), ((low + high) / 2)[None]
        with torch.no_grad():
            outputs = model(x)
            assert not task.properties[torch.zeros(500, dtype=torch.long)].violated(outputs).any()
            values = model.values(model.tensors, x)
            before = gates(task.network, task.network.values(task.network.tensors, centre))
        for op in task.network.operations:
            if op.kind == "relu":
                side = 2 * before[f"{op.name}/gate"] - 1
                assert float((side * values[op.inputs[0]]).min()) >= -1e-5
        turned += int((before["relu1/gate"] != gates(model, values)["relu1/gate"]).any())
    assert turned <= 16
    with torch.no_grad():
        assert task.properties.violated(task.network(task.x_adv)).all()


def test_bad_choices_are_refused(threshold: Task) -> None:
    with pytest.raises(UsageError, match=r"aprnn\.layer is 2: the network has 1"):
        Aprnn(layer=2).repair(threshold)
    digits = digits_task(count=1)
    with pytest.raises(UsageError, match=r"has \d\d sides, so each of its 1 pieces has 2\^"):
        Aprnn(region="boxes").repair(digits)
    with pytest.raises(UsageError, match="only the first layer can change"):
        Aprnn(region="boxes", layer=2).repair(bent_task())
    box = Box(threshold.properties.center, threshold.properties.center)
    point = evolve(threshold, properties=evolve(threshold.properties, box=box))
    assert len(at_corners(Aprnn(region="boxes"), point).x) == 1  # no sides, one corner


# Real networks -------------------------------------------------------------------------


def test_the_digits_network_stays_a_network_and_is_repaired() -> None:
    task = digits_task(count=20, epsilon=0.1)
    result = Aprnn().repair(task)
    assert (result.status, result.scope) == (MethodStatus.REPAIRED, Scope.POINTS)
    assert isinstance(result.model, Network)
    assert result.model.structure() == task.network.structure()
    layers = result.evidence["layers"]
    assert len(layers) == 3
    assert all(each["objective"] <= 1.06 * each["at least"] for each in layers.values())
    x, y = digits_test_images()
    with torch.no_grad():
        assert not task.properties[task.owner].violated(result.model(task.x_adv)).any()
        before = (task.network(x).argmax(1) == y).float().mean()
        after = (result.model(x).argmax(1) == y).float().mean()
    assert before - after < 0.2


def test_an_acas_network_is_repaired() -> None:
    task = acas_task()
    result = Aprnn(layer=6).repair(task)
    assert result.status is MethodStatus.REPAIRED and isinstance(result.model, Network)
    with torch.no_grad():
        outputs = result.model(task.x_adv)
        assert not (outputs[:, 0] >= outputs[:, 1:].amax(1)).any()
        kept = task.decide(result.model(task.held.x)) == task.held.label
    assert float(kept.float().mean()) > 0.5
