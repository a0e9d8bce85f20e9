"""ART: cells, distances and losses by hand, then the digits network."""

from __future__ import annotations

import itertools
import math
import time

import pytest
import torch
from attrs import evolve
from conftest import network_of, task_of
from hypothesis import given, settings
from hypothesis import strategies as st

from advrepair import (
    Box,
    Labelled,
    MethodStatus,
    Network,
    PropertySet,
    Rounding,
    Scope,
    Task,
    UsageError,
)
from advrepair.testing import METHOD_CHECKS, digits_task, digits_test_images
from advrepair_baselines.art import Art
from advrepair_baselines.art_cells import Cells
from advrepair_baselines.art_distance import Distances, worst
from advrepair_baselines.art_training import _Training, accuracy_loss, consistent


@pytest.mark.parametrize("check", METHOD_CHECKS, ids=lambda check: check.__name__)
def test_the_contract(check) -> None:
    check(Art(cells=8, cut=4, epochs=3))


def boxed(task: Task) -> Task:
    """With DeepPoly, as the core gives it."""
    return evolve(task, prepare=digits_task(count=1).prepare)


def demands_of(boxes: list[tuple[list[float], list[float]]], rows: int = 1) -> PropertySet:
    """Boxes, each with a demand of its own on two outputs: y0 - y1 > 0 in so many rows."""
    lower, upper = (torch.tensor(each) for each in zip(*boxes, strict=True))
    count = len(boxes)
    return PropertySet(
        box=Box(lower.float(), upper.float()),
        C=torch.tensor([1.0, -1.0]).expand(count, rows, 2),
        d=torch.zeros(count, rows),
        group=torch.arange(rows).expand(count, -1),
        label=torch.full((count,), -1),
        target=torch.full((count,), -1),
        center=(lower + upper) / 2,
        names=tuple(map(str, range(count))),
    )


# Cells ---------------------------------------------------------------------------------

SIDE = 5


@st.composite
def grids(draw: st.DrawFn) -> PropertySet:
    """Up to six boxes with whole faces, in one to three dimensions; touching ones are common."""
    dims = draw(st.integers(1, 3))
    side = st.tuples(st.integers(0, SIDE - 1), st.integers(1, SIDE)).filter(lambda s: s[0] < s[1])
    boxes = draw(st.lists(st.lists(side, min_size=dims, max_size=dims), min_size=1, max_size=6))
    return demands_of([([float(a) for a, _ in b], [float(b) for _, b in b]) for b in boxes])


def holders(box: Box, point: torch.Tensor) -> list[int]:
    inside = (box.lower < point) & (point < box.upper)
    return inside.all(1).nonzero()[:, 0].tolist()


@given(grids())
@settings(deadline=None)
def test_cells_are_disjoint_and_owe_what_the_boxes_demand(asked: PropertySet) -> None:
    """On a grid the middles of the squares say it all: exact, not sampled."""
    cells = Cells.of(asked, 10_000)
    assert cells.disjoint and bool((cells.box.lower < cells.box.upper).all())
    dims = asked.box.lower.shape[1]
    for corner in itertools.product(range(SIDE), repeat=dims):
        point = torch.tensor(corner) + 0.5
        owed, found = holders(asked.box, point), holders(cells.box, point)
        assert len(found) == (1 if owed else 0)
        if owed:
            assert cells.owed[found[0]].nonzero()[:, 0].tolist() == owed


@given(st.data())
@settings(deadline=None)
def test_cuts_lose_no_input(data: st.DataObject) -> None:
    """Inputs with any numbers, faces among them, lie in a cell that owes what their boxes do."""
    asked = data.draw(grids())
    cells = Cells.of(asked, 10_000)
    noise = torch.Generator().manual_seed(data.draw(st.integers(0, 999)))
    dims = asked.box.lower.shape[1]
    for _ in range(data.draw(st.integers(0, 4))):
        some = torch.randperm(len(cells), generator=noise)[:3]
        dim = torch.randint(dims, (len(some),), generator=noise)
        cells = cells.bisected(some, dim)
    assert float(cells.share.sum()) == len(Cells.of(asked, 10_000))
    drawn = SIDE * torch.rand(40, dims, generator=noise)
    for point in torch.cat([drawn, drawn.round(), asked.box.lower, asked.box.upper]):
        held = (cells.box.lower <= point) & (point <= cells.box.upper)
        owed = cells.owed[held.all(1)].any(0)
        asks = ((asked.box.lower <= point) & (point <= asked.box.upper)).all(1)
        assert bool((owed | ~asks).all())


def test_boxes_that_would_need_too_many_cells_stay_whole() -> None:
    asked = demands_of([([0.0] * 6, [2.0] * 6), ([1.0] * 6, [3.0] * 6)])
    assert len(Cells.of(asked, 13)) == 13  # six slabs of each, and the common part
    whole = Cells.of(asked, 12)
    assert not whole.disjoint and torch.equal(whole.box.lower, asked.box.lower)
    assert whole.owed.tolist() == [[True, False], [False, True]]


# Distances -----------------------------------------------------------------------------


def test_the_distance_by_hand(threshold: Task) -> None:
    """N1 - N0 = 1 - 2x on [0.35, 0.55]: at least -0.1, so 0.11 from a margin of 0.01."""
    task = boxed(threshold)
    found, cells = Distances.of(task, 0.01), Cells.of(task.properties, 10)
    dist = found.of_cells({}, cells, torch.tensor([0]))
    assert dist.tolist() == pytest.approx([0.11], abs=1e-6)
    safe = cells.bisected(torch.tensor([0]), torch.tensor([0]))  # [0.35, 0.45]: at least 0.1
    assert found.of_cells({}, safe, torch.arange(2)).tolist() == pytest.approx([0, 0.11], abs=1e-6)
    # Only the upper face counts, 2 for each unit of it; the width is 0.2.
    assert float(found.shares({}, cells, torch.tensor([0]))) == pytest.approx(0.4, abs=1e-5)


def test_of_a_group_the_best_row_counts_and_of_groups_the_worst() -> None:
    values = torch.tensor([[-1.0, -3.0, 2.0], [4.0, -2.0, 9.0]])
    assert worst(values, torch.tensor([[0, 0, 1], [0, 1, -1]])).tolist() == [-1.0, -2.0]
    assert worst(values, torch.tensor([[0, 0, 0], [0, 1, 2]])).tolist() == [2.0, -2.0]


def test_not_the_largest_needs_one_other_that_is_larger() -> None:
    """Outputs (x, 0.3, 0.5) on [0.2, 0.6], output 0 must not be the largest: 0.5 - 0.6 is best."""
    network = network_of(([[1.0], [0.0], [0.0]], [0.0, 0.3, 0.5]))
    task = boxed(task_of(network, torch.tensor([[0.4]]), [0], 0.2, torch.tensor([[0.55]])))
    C = torch.tensor([[[-1.0, 1.0, 0.0], [-1.0, 0.0, 1.0]]])
    group, label = torch.zeros(1, 2, dtype=torch.long), torch.tensor([-1])
    asked = evolve(task.properties, C=C, group=group, label=label)
    task = evolve(task, properties=asked)
    dist = Distances.of(task, 0.0).of_cells({}, Cells.of(asked, 1), torch.tensor([0]))
    assert dist.tolist() == pytest.approx([0.1], abs=1e-6)


def test_what_a_cell_owes_adds_up(threshold: Task) -> None:
    """The common part of two boxes owes both: each is 0.1 off at x = 0.55."""
    twice = threshold.properties[torch.tensor([0, 0])]
    task = boxed(evolve(threshold, properties=twice))
    cells = Cells.of(twice, 10)
    assert cells.owed.tolist() == [[True, True]]
    dist = Distances.of(task, 0.0).of_cells({}, cells, torch.tensor([0]))
    assert dist.tolist() == pytest.approx([0.2], abs=1e-6)


def test_a_bound_that_is_nothing_is_far_away(threshold: Task) -> None:
    task, asked = boxed(threshold), threshold.properties
    broken = {"linear0.bias": torch.tensor([math.nan, 0.0])}
    dist = Distances.of(task, 0.0).of_cells(broken, Cells.of(asked, 1), torch.tensor([0]))
    assert float(dist) > 1e20


def test_what_does_not_fit_is_refused_with_its_size(threshold: Task) -> None:
    with pytest.raises(UsageError, match=r"of one cell .* GiB"):
        Art().repair(evolve(boxed(threshold), memory=10))


# Losses and points ---------------------------------------------------------------------


def test_the_sign_of_the_accuracy_loss() -> None:
    """Of argmin the output (1, 0) decides for 1: with the other sign the loss would be larger."""
    outputs, one = torch.tensor([[1.0, 0.0]]), torch.tensor([1])
    right, wrong = math.log(1 + math.exp(-1)), math.log(1 + math.exp(1))
    assert float(accuracy_loss(outputs, one, "argmin", False)) == pytest.approx(right, rel=1e-5)
    assert float(accuracy_loss(outputs, one, "argmax", False)) == pytest.approx(wrong, rel=1e-5)
    p = 1 / (1 + math.exp(-1))
    twice = math.log(1 + math.exp((1 - p) - p))
    assert float(accuracy_loss(outputs, one, "argmin", True)) == pytest.approx(twice, rel=1e-5)


def test_points_that_contradict_a_demand_are_left_out(threshold: Task) -> None:
    x = torch.tensor([[0.1], [0.4], [0.45], [0.53], [0.9]])
    task = evolve(threshold, clean=Labelled(x, torch.tensor([1, 0, 1, 1, 0])))
    kept = consistent(task)
    assert kept is not None and kept.x.flatten().tolist() == x[[0, 2, 3, 4]].flatten().tolist()
    # Without a label of its own the box asks what the network does there: 0.53 breaks it.
    task = evolve(task, properties=evolve(task.properties, label=torch.tensor([-1])))
    kept = consistent(task)
    assert kept is not None and kept.x.flatten().tolist() == x[[0, 1, 2, 4]].flatten().tolist()


# Training ------------------------------------------------------------------------------


def test_the_whole_ball_becomes_right(threshold: Task) -> None:
    result = Art(cells=2, epochs=200).repair(boxed(threshold))
    assert (result.status, result.scope) == (MethodStatus.REPAIRED, Scope.REGION)
    box, ends = threshold.properties.box, []
    with torch.no_grad():
        for x in (box.lower, box.upper):  # N is affine: its least margin is at an end
            ends.append(float(threshold.properties.margin(result.model(x))))
    assert min(ends) >= 0.0099
    assert result.evidence["volume proved before"] < 1 == result.evidence["volume proved"]


def test_decisions_for_the_smallest_are_kept() -> None:
    """Outputs (20x, 10, 4): 0 may not be the largest up to 0.6; it is the smallest below 0.2."""
    network = network_of(([[20.0], [0.0], [0.0]], [0.0, 10.0, 4.0]))
    x = torch.linspace(0, 1, 101)[:, None]
    clean = Labelled(x, network(x).argmin(1))
    task = task_of(network, torch.tensor([[0.3]]), [0], 0.3, torch.tensor([[0.59]]), clean=clean)
    C = torch.tensor([[[-1.0, 1.0, 0.0], [-1.0, 0.0, 1.0]]])
    group, label = torch.zeros(1, 2, dtype=torch.long), torch.tensor([-1])
    asked = evolve(task.properties, C=C, group=group, label=label)
    task = boxed(evolve(task, properties=asked, decision="argmin"))
    result = Art(cells=4, epochs=100, lr=0.02).repair(task)
    assert result.scope is Scope.REGION
    with torch.no_grad():
        y = result.model(x)
    kept = (y.argmin(1) == clean.label).float().mean()
    assert kept > 0.9
    assert not bool((y[x[:, 0] <= 0.6].argmax(1) == 0).any())


def test_the_worst_cell_is_cut(threshold: Task) -> None:
    """N breaks the demand above 0.5: what lies below 0.45 is proved, and the last cell halved."""
    task = boxed(threshold)
    training = _Training(Art(cells=6, cut=1, tiny=1e-6), task)
    look = training.looked(0, Cells.of(task.properties, 6))
    assert look.proved == 0.0
    look = training.refined(look, 5)
    faces = look.cells.box.lower.flatten().tolist()
    assert faces == pytest.approx([0.35, 0.45, 0.5, 0.525, 0.5375], abs=1e-6)
    assert look.proved == 0.5 and not look.complete


@pytest.fixture(scope="module")
def digits() -> Task:
    return digits_task(count=10, epsilon=0.05)


def test_the_digits_network_is_proved(digits: Task) -> None:
    """Every ball, by bounds of another kind too; the accuracy stays."""
    result = Art(cells=20, cut=20, lr=0.003).repair(digits)
    model, asked = result.model, digits.properties
    assert isinstance(model, Network) and model.structure() == digits.network.structure()
    assert (result.status, result.scope) == (MethodStatus.REPAIRED, Scope.REGION)
    rigorous = digits.prepare(model, Rounding("real"))  # type: ignore[call-arg]
    tensors = {name: t.double() for name, t in model.tensors.items()}
    box = asked.box.to(torch.float64)
    rows = rigorous(tensors, box, asked.C.double(), asked.d.double()).minimum_rigorous(box)
    assert int((rows.amin(1) > 0).sum()) >= 9  # whole, without the cuts
    x, y = digits_test_images()
    with torch.no_grad():
        lost = [(net(x).argmax(1) == y).float().mean() for net in (digits.network, model)]
        worst_ = digits.attack(model, asked, asked.center, torch.Generator().manual_seed(0))
        assert not bool(asked.violated(model(worst_)).any())
    assert float(lost[0] - lost[1]) < 0.05


def test_what_is_not_proved_promises_nothing(digits: Task) -> None:
    """Balls as wide as the range: the result says what share is proved, and claims no region."""
    hard = digits_task(count=10, epsilon=0.5)
    result = Art(cells=20, cut=5, epochs=2).repair(hard)
    evidence = result.evidence
    assert result.scope is Scope.NONE and evidence["properties proved"] < 10
    assert 0 <= evidence["volume proved"] < 1 and evidence["epochs"] == 2


def test_it_ends_in_time_with_what_it_has(digits: Task) -> None:
    begin = time.perf_counter()
    late = evolve(digits, deadline=begin + 1.5)
    result = Art(cells=20, epochs=100_000, least_epochs=100_000).repair(late)
    assert time.perf_counter() - begin < 10
    assert result.model is not None and result.evidence["epochs"] < 100_000


def test_another_seed_is_another_network(digits: Task) -> None:
    one, other = (Art(cells=10, epochs=2).repair(evolve(digits, seed=s)).model for s in (0, 1))
    assert not torch.equal(one(digits.x_adv), other(digits.x_adv))
