"""TRADES: its loss and its steps by hand, then the digits network."""

from __future__ import annotations

import math

import pytest
import torch
from attrs import evolve
from conftest import task_of

from advrepair import Box, MethodStatus, Network, Scope, Task, UsageError
from advrepair.testing import METHOD_CHECKS, digits_task, digits_test_images
from advrepair_baselines.trades import Trades
from advrepair_baselines.trades_training import (
    Look,
    Natural,
    divergence,
    natural_inputs,
    search,
    trades_loss,
)


def sigmoid(z: float) -> float:
    return 1 / (1 + math.exp(-z))


def bernoulli(p: float, q: float) -> float:
    """KL(p | q) of two coins."""
    return p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))


def line(x: torch.Tensor) -> torch.Tensor:
    """Outputs (2x, 0) of [n,1]."""
    return torch.cat([2 * x, 0 * x], 1)


def natural(x: float, label: int, radius: float) -> Natural:
    return Natural(torch.tensor([[x]]), torch.tensor([label]), torch.tensor([[radius]]))


@pytest.mark.parametrize("check", METHOD_CHECKS, ids=lambda check: check.__name__)
def test_the_contract(check) -> None:
    check(Trades(epochs=3))


# By hand -------------------------------------------------------------------------------


def test_the_divergence_is_of_the_clean_from_the_other() -> None:
    clean, other = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.4, 0.0]])
    found = float(divergence(clean, other))
    assert found == pytest.approx(bernoulli(sigmoid(1), sigmoid(0.4)), rel=1e-5)
    assert found != pytest.approx(bernoulli(sigmoid(0.4), sigmoid(1)), rel=1e-3)


def test_the_search_ends_at_the_worse_end_of_the_ball() -> None:
    """Outputs (2x, 0) around 0.5: a coin of sigmoid(1); the ends are sigmoid(0.6) and (1.4)."""
    p, ends = sigmoid(1.0), {0.3: sigmoid(0.6), 0.7: sigmoid(1.4)}
    worst = max(ends, key=lambda x: bernoulli(p, ends[x]))
    given, now = natural(0.5, 0, 0.2), line(torch.tensor([[0.5]]))
    found = set()
    for seed in range(8):
        noise = torch.Generator().manual_seed(seed)
        x = search(line, given, lambda y: divergence(now, y), 10, 2.5, None, noise)
        found.add(round(float(x), 5))
    assert worst in found and found <= set(ends)  # it goes on to the side that it began on
    clipped = search(line, given, lambda y: divergence(now, y), 10, 2.5, (0.4, 0.6), noise)
    assert round(float(clipped), 5) in (0.4, 0.6)


def test_the_loss_by_hand() -> None:
    given, adversarial = natural(0.5, 0, 0.2), torch.tensor([[0.3]])
    found = float(trades_loss(line, given, adversarial, beta=6.0))
    by_hand = -math.log(sigmoid(1.0)) + 6 * bernoulli(sigmoid(1.0), sigmoid(0.6))
    assert found == pytest.approx(by_hand, rel=1e-5)


def test_the_gradient_flows_through_both_sides() -> None:
    """d/da of KL(sigmoid(a) | sigmoid(0.6 a)) at a = 1, by the chain rule of coins."""
    a = torch.tensor(1.0, requires_grad=True)
    zero = torch.zeros(1, 1)
    clean, other = (torch.cat([(s * a).view(1, 1), zero], 1) for s in (1.0, 0.6))
    (found,) = torch.autograd.grad(divergence(clean, other), a)
    p, q = sigmoid(1.0), sigmoid(0.6)
    # dKL/dz of the clean logit is p (1-p) (z - z'), of the other q - p.
    by_hand = p * (1 - p) * (1.0 - 0.6) + 0.6 * (q - p)
    assert float(found) == pytest.approx(by_hand, rel=1e-4)


def test_one_step_by_hand(threshold: Task) -> None:
    """beta = 0: one step of logistic regression at 0.54, where output 0 is 0.08 too large."""
    plain = {"beta": 0.0, "clean": False, "momentum": 0.0, "weight_decay": 0.0}
    result = Trades(epochs=1, lr=0.5, **plain).repair(threshold)
    assert isinstance(result.model, Network)
    p = sigmoid(2 * 0.54 - 1)
    weight, bias = (result.model.tensors[f"linear0.{n}"] for n in ("weight", "bias"))
    assert weight[:, 0].tolist() == pytest.approx([2 - 0.5 * p * 0.54, 0.5 * p * 0.54], rel=1e-5)
    assert bias.tolist() == pytest.approx([-1 - 0.5 * p, 0.5 * p], rel=1e-5)


def test_the_threshold_moves_behind_the_ball(threshold: Task) -> None:
    """Class 1 must reach to 0.55; both weights may move, so any threshold above will do."""
    result = Trades(epochs=60, lr=0.1, clean=False).repair(threshold)
    assert (result.status, result.scope) == (MethodStatus.REPAIRED, Scope.NONE)
    with torch.no_grad():
        decided = result.model(torch.tensor([[0.35], [0.45], [0.54]])).argmax(1)
    assert decided.tolist() == [1, 1, 1]
    assert threshold.network(threshold.x_adv).argmax(1).tolist() == [0]


def test_the_radius_of_a_clipped_ball_is_that_of_its_longer_side() -> None:
    centers = torch.tensor([[0.02], [0.5]])
    network = digits_task(count=1).network
    small = task_of(
        Network(network.operations, network.tensors, network.input_shape),
        centers.expand(2, 64).reshape(2, 1, 8, 8),
        [0, 1],
        0.1,
        centers.expand(2, 64).reshape(2, 1, 8, 8),
        clip=(0.0, 1.0),
    )
    radius = natural_inputs(small, "center").radius
    assert radius.shape == (2, 1, 1, 1)
    assert radius.flatten().tolist() == pytest.approx([0.1, 0.1], abs=1e-6)
    assert natural_inputs(small, "adversarial").x.equal(small.x_adv)


def test_a_collapsed_network_is_known() -> None:
    assert Look(1, 0.1, 0.1, None, classes=1.0).collapsed
    assert not Look(1, 1.0, 0.9, None, classes=9.7).collapsed
    assert not Look(1, 1.0, None, None, None).collapsed


def test_properties_without_a_label_are_refused(threshold: Task) -> None:
    properties = evolve(threshold.properties, label=torch.tensor([-1]))
    with pytest.raises(UsageError, match="label for every property"):
        Trades().repair(evolve(threshold, properties=properties))


# The digits network --------------------------------------------------------------------


def robust(model: torch.nn.Module, task: Task, epsilon: float) -> tuple[float, float]:
    """Accuracy on the test images, and under the attack of the task."""
    x, y = digits_test_images()
    outputs = task.network.outputs
    eye = torch.eye(outputs)
    C = torch.stack([eye[y_] - eye[[k for k in range(outputs) if k != y_]] for y_ in y.tolist()])
    asked = type(task.properties)(
        box=Box.around(x, epsilon, clip=(0.0, 1.0)),
        C=C,
        d=torch.zeros(C.shape[:2]),
        group=torch.arange(outputs - 1).expand(len(x), -1),
        label=y,
        target=torch.full_like(y, -1),
        center=x,
        names=tuple(map(str, range(len(x)))),
    )
    worst = task.attack(model, asked, x, torch.Generator().manual_seed(0))
    with torch.no_grad():
        right = model(x).argmax(1) == y
        stand = right & ~asked.violated(model(worst))
    return float(right.float().mean()), float(stand.float().mean())


@pytest.fixture(scope="module")
def digits() -> Task:
    return digits_task(count=60, epsilon=0.1)


def test_the_digits_network_stands_more_attacks() -> None:
    """Trained on 300 balls it stands more on test images that nobody repaired, at a price."""
    digits = digits_task(count=300, epsilon=0.1)
    options = {"anchor": "center", "select": "robust", "drawdown": 1.0, "steps": 5}
    result = Trades(epochs=20, batch=32, lr=0.05, **options).repair(digits)
    assert isinstance(result.model, Network)
    assert result.model.structure() == digits.network.structure()
    before, stood = robust(digits.network, digits, 0.1)
    after, stands = robust(result.model, digits, 0.1)
    assert stands > stood + 0.2
    assert 0 < before - after < 0.15
    evidence = result.evidence
    assert evidence["held-out drawdown"] > 0 and not evidence["collapsed"]
    assert 10 < evidence["epoch"] <= 20 and evidence["held-out inputs"] == len(digits.held)


def test_no_epoch_that_loses_too_much_is_kept(digits: Task) -> None:
    """A rate that destroys the network: the given one is all that keeps the accuracy."""
    result = Trades(epochs=3, lr=20.0, drawdown=0.0).repair(digits)
    x, _ = digits_test_images()
    assert result.evidence["epoch"] == 0 and result.status is MethodStatus.NOT_REPAIRED
    assert result.evidence["collapsed epochs"] > 0
    with torch.no_grad():
        assert torch.equal(result.model(x), digits.network(x))


def test_a_collapse_is_reported(digits: Task) -> None:
    """Without a limit on the accuracy a constant predictor may look best; it is told so."""
    one = digits.properties.label == digits.properties.label[0]
    index = one.nonzero()[:, 0]
    few = evolve(
        digits,
        properties=digits.properties[index],
        x_adv=digits.x_adv[index],
        owner=torch.arange(len(index)),
    )
    result = Trades(epochs=40, lr=0.1, clean=False, drawdown=1.0).repair(few)
    assert result.status is MethodStatus.REPAIRED
    assert result.evidence["collapsed"] and result.evidence["predicted classes"] < 1.5


def test_another_seed_is_another_network(digits: Task) -> None:
    first, other = (
        Trades(epochs=2, drawdown=1.0).repair(evolve(digits, seed=seed)).model for seed in (0, 1)
    )
    assert not torch.equal(first(digits.x_adv), other(digits.x_adv))
