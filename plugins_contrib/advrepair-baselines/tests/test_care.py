"""CARE: causes and the swarm by hand, then the digits network."""

from __future__ import annotations

import pytest
import torch
from attrs import evolve
from conftest import acas_task, network_of, task_of

from advrepair import Labelled, MethodStatus, Network, Operation, Scope, Task, UsageError
from advrepair.testing import METHOD_CHECKS, digits_task, digits_test_images
from advrepair_baselines.care import Care
from advrepair_baselines.care_search import (
    Cost,
    Unit,
    contributions,
    effect,
    hidden_layers,
    most,
    rescaled,
    swarm,
)
from advrepair_baselines.cutting import behind, probed, upto


@pytest.mark.parametrize("check", METHOD_CHECKS, ids=lambda check: check.__name__)
def test_the_contract(check) -> None:
    check(Care(iterations=5, particles=5))


# By hand -------------------------------------------------------------------------------


@pytest.fixture
def culprit() -> Task:
    """Hidden a = relu(x0), b = relu(x1), c = 3; outputs a + c, 2b + c. Wanted: output 0.

    The inputs (1, 0.6) and (1, 0.8) give 1.2 and 1.6 against 1: b is to blame, c never varies.
    """
    network = network_of(
        ([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]], [0.0, 0.0, 3.0]),
        ([[1.0, 0.0, 1.0], [0.0, 2.0, 1.0]], [0.0, 0.0]),
    )
    x = torch.tensor([[1.0, 0.6], [1.0, 0.8]])
    clean = Labelled(torch.tensor([[1.0, 0.4], [0.2, 1.0]]), torch.tensor([0, 1]))
    return task_of(network, x, [0, 0], 0.05, x, clean=clean)


def test_the_effect_of_a_unit_by_hand(culprit: Task) -> None:
    """s = 2b - a. Of b, held at 0.6, 0.7 and 0.8: E = 0.2, 0.4, 0.6; mean |E - 0.4| = 0.4 / 3."""
    (layer,) = hidden_layers(culprit.network, 0)
    found = contributions(Care(values=3), culprit, layer)
    assert found.tolist() == pytest.approx([0.0, 0.4 / 3, 0.0], abs=1e-6)
    spread = contributions(Care(values=3, contribution="range"), culprit, layer)
    assert spread.tolist() == pytest.approx([0.0, 0.4, 0.0], abs=1e-6)
    mean = contributions(Care(values=3, contribution="mean"), culprit, layer)
    assert mean.tolist() == pytest.approx([0.0, 0.4, 0.0], abs=1e-6)


def test_it_is_the_value_behind_the_relu_that_is_held() -> None:
    """x = -1 and 1: the unit is 0 and 1 behind the ReLU, so it is held in [0, 1]."""
    network = network_of(([[1.0]], [0.0]), ([[0.0], [1.0]], [0.1, 0.2]))
    x = torch.tensor([[-1.0], [1.0]])
    task = task_of(network, x, [0, 0], 0.1, x)
    found = contributions(Care(values=2, contribution="range"), task, network.operations[1])
    assert found.tolist() == pytest.approx([1.0])


def test_the_mean_scores_say_it_three_ways() -> None:
    means = torch.tensor([[1.0, 5.0], [2.0, 5.0], [6.0, 5.0]])
    assert effect(means, "abs_ace").tolist() == pytest.approx([2.0, 0.0])
    assert effect(means, "mean").tolist() == pytest.approx([3.0, 5.0])
    assert effect(means, "range").tolist() == pytest.approx([5.0, 0.0])


def test_the_largest_effects_are_taken() -> None:
    effects = {"a": torch.tensor([0.1, 0.9]), "b": torch.tensor([0.5, 0.9, 0.0])}
    assert most(effects, 0.6, 64)[0] == [Unit("a", 1), Unit("b", 1), Unit("b", 0)]
    assert most(effects, 1.0, 2)[0] == [Unit("a", 1), Unit("b", 1)]
    assert most(effects, 0.01, 64)[0] == [Unit("a", 1)]


def test_the_cost_by_hand(culprit: Task) -> None:
    """With b at f: wrong while 2 f b >= 1; the clean (0.2, 1) is lost when 2 f < 0.2."""
    cost = Cost.of(Care(alpha=0.3), culprit, [Unit("relu1", 1)])
    assert cost(torch.tensor([0.0])) == pytest.approx(0.7)  # both wrong, both clean right
    assert cost(torch.tensor([-0.3])) == pytest.approx(0.35)  # 0.84 and 1.12
    assert cost(torch.tensor([-0.5])) == pytest.approx(0.0)
    assert cost(torch.tensor([-0.95])) == pytest.approx(0.15)
    smooth = Cost.of(Care(alpha=0.0, smooth=True), culprit, [Unit("relu1", 1)])
    assert smooth(torch.tensor([0.0])) == pytest.approx((0.2 + 0.6) / 2)


def test_where_the_least_output_decides_the_accuracy_is_counted_so(culprit: Task) -> None:
    """The outputs at (1, 0.4) are 4 and 3.8, at (0.2, 1) 3.2 and 5."""
    labels = Labelled(culprit.clean.x, torch.tensor([1, 0]))
    least = evolve(culprit, clean=labels, decision="argmin")
    assert Cost.of(Care(alpha=1.0), least, [Unit("relu1", 1)])(torch.tensor([0.0])) == 0.0
    most_ = evolve(least, decision="argmax")
    assert Cost.of(Care(alpha=1.0), most_, [Unit("relu1", 1)])(torch.tensor([0.0])) == 1.0


def test_it_repairs_by_weakening_the_culprit(culprit: Task) -> None:
    result = Care(share=0.3).repair(culprit)
    assert (result.status, result.scope) == (MethodStatus.REPAIRED, Scope.NONE)
    assert result.evidence["units"] == ["relu1[1]"] and result.evidence["cost"] == 0.0
    (factor,) = result.evidence["factors"]
    assert 0.1 < factor < 0.625  # 2 f 0.8 < 1 and 2 f > 0.2
    weight = result.model.tensors["linear0.weight"]
    assert weight[1].tolist() == pytest.approx([0.0, factor], abs=1e-5)
    assert weight[0].tolist() == [1.0, 0.0]  # nothing else moves
    assert result.model.structure() == culprit.network.structure()


def test_the_swarm_finds_a_minimum_and_stops() -> None:
    def bowl(r: torch.Tensor) -> float:
        return float((r - torch.tensor([0.5, -0.25])).square().sum())

    best, history = swarm(bowl, 2, 20, 200, torch.Generator().manual_seed(0))
    assert torch.allclose(best, torch.tensor([0.5, -0.25]), atol=0.05)
    assert history == sorted(history, reverse=True) and len(history) < 200
    flat, history = swarm(lambda r: 1.0, 3, 5, 200, torch.Generator().manual_seed(0))
    assert flat.tolist() == [0, 0, 0] and len(history) == 11  # ten iterations without a change


def test_the_box_is_never_left() -> None:
    seen = []

    def cost(r: torch.Tensor) -> float:
        seen.append(r.clone())
        return -float(r.sum())

    best, _ = swarm(cost, 3, 10, 50, torch.Generator().manual_seed(1))
    assert best.tolist() == [1, 1, 1]
    assert torch.stack(seen).abs().max() <= 1


# Parts of a network --------------------------------------------------------------------


def image_network() -> Network:
    """A convolution, a residual sum, a reshape and a linear layer."""
    noise = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=noise)

    settings = {"stride": (1, 1), "padding": (1, 1), "dilation": (1, 1), "groups": 1}
    roles = {"weight": "c.w", "bias": "c.b"}
    operations = [
        Operation("conv", "conv2d", ("input",), (3, 4, 4), roles, settings),
        Operation("relu1", "relu", ("conv",), (3, 4, 4)),
        Operation("conv2", "conv2d", ("relu1",), (3, 4, 4), {"weight": "d.w"}, settings),
        Operation("sum", "add", ("conv2", "relu1"), (3, 4, 4)),
        Operation("relu2", "relu", ("sum",), (3, 4, 4)),
        Operation("flat", "reshape", ("relu2",), (48,)),
        Operation("out", "linear", ("flat",), (2,), {"weight": "l.w"}),
    ]
    tensors = {"c.w": random(3, 1, 3, 3), "c.b": random(3), "d.w": random(3, 3, 3, 3)}
    return Network(operations, tensors | {"l.w": random(2, 48)}, (1, 4, 4))


@pytest.mark.parametrize("name", ["conv", "relu1", "sum", "relu2", "flat"])
def test_both_parts_are_the_whole(name: str) -> None:
    network, x = image_network(), torch.randn(5, 1, 4, 4)
    rest = behind(network, name)
    values = upto(network, name)(x)
    if rest is None:
        assert name in ("conv2",)
    else:
        assert torch.allclose(rest(values), network(x), atol=1e-5)


def test_a_residual_connection_cannot_be_cut() -> None:
    assert behind(image_network(), "conv2") is None
    assert behind(image_network(), "out") is None


def test_factors_are_exact_wherever_they_end_up() -> None:
    """relu1 has a convolution before it that only it reads, relu2 a sum."""
    network, x = image_network(), torch.randn(5, 1, 4, 4)
    units = [Unit("relu1", 0), Unit("relu2", 2), Unit("relu1", 2)]
    model = rescaled(network, units, torch.tensor([0.5, 0.0, 2.0]))
    probe = probed(network, ("relu1", "relu2"))
    tensors = probe.tensors | {
        "relu1/factor": torch.tensor([0.5, 1.0, 2.0]).view(3, 1, 1),
        "relu2/factor": torch.tensor([1.0, 1.0, 0.0]).view(3, 1, 1),
    }
    assert torch.allclose(model(x), probe.apply_tensors(tensors, x), atol=1e-5)
    kinds = [op.kind for op in model.operations]
    assert kinds.count("scale") == 1 and len(kinds) == len(network.operations) + 1


def test_bad_choices_are_refused(culprit: Task) -> None:
    with pytest.raises(UsageError, match=r"care\.layer is 3: the network has 1"):
        Care(layer=3).repair(culprit)
    linear = network_of(([[1.0, 0.0], [0.0, 1.0]], [0.0, 0.0]))
    with pytest.raises(UsageError, match="has none"):
        Care().repair(evolve(culprit, network=linear))


# The digits network --------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits() -> Task:
    return digits_task(count=20, epsilon=0.05)


def test_the_digits_network_becomes_no_worse_by_its_own_measure(digits: Task) -> None:
    result = Care(iterations=15).repair(digits)
    evidence = result.evidence
    assert evidence["cost"] <= evidence["cost before"]
    assert evidence["candidates"] == 48 and len(evidence["units"]) == 5
    x, y = digits_test_images()
    with torch.no_grad():
        before = (digits.network(x).argmax(1) == y).float().mean()
        after = (result.model(x).argmax(1) == y).float().mean()
        wrong = digits.properties[digits.owner].violated(result.model(digits.x_adv))
    assert before - after < 0.2
    assert int(wrong.sum()) == evidence["still wrong"] < len(digits.x_adv)


def test_the_cost_is_that_of_the_model(digits: Task) -> None:
    """Factors that the swarm tried are the factors that the network got."""
    result = Care(iterations=10, clean=300).repair(digits)
    some = digits.clean[:300]
    with torch.no_grad():
        wrong = digits.properties[digits.owner].violated(result.model(digits.x_adv))
        lost = result.model(some.x).argmax(1) != some.label
    cost = 0.7 * float(wrong.double().mean()) + 0.3 * float(lost.double().mean())
    assert cost == pytest.approx(result.evidence["cost"], abs=0.01)


def test_another_seed_is_another_swarm(digits: Task) -> None:
    first, other = (
        Care(iterations=4).repair(evolve(digits, seed=seed)).evidence["factors"] for seed in (0, 1)
    )
    assert first != other


# An ACAS Xu network -----------------------------------------------------------------------


def test_an_acas_network_is_repaired_and_decides_nearly_as_before() -> None:
    """Demands are about the largest output, decisions about the least."""
    task = acas_task()
    result = Care().repair(task)
    assert result.status is MethodStatus.REPAIRED and result.evidence["still wrong"] == 0
    assert len(result.evidence["units"]) == 30  # a tenth of 300
    assert isinstance(result.model, Network)
    assert result.model.structure() == task.network.structure()
    with torch.no_grad():
        kept = task.decide(result.model(task.held.x)) == task.held.label
    assert float(kept.float().mean()) > 0.8
