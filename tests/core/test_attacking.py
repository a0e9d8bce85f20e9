"""Counterexamples: which are found, which are taken as given, and what is left of them."""

from typing import ClassVar

import pytest
import torch
from attrs import evolve, frozen
from problems import EPSILON, a_network, a_problem, some_data, some_parts

from advrepair.core import attacking
from advrepair.core.attacking import (
    counterexamples_left,
    find_counterexamples,
    generalisation_set,
    given_counterexamples,
    join,
    perturb,
    uniform,
)
from advrepair.core.constant import constant_patches
from advrepair.core.data import make_dataset
from advrepair.core.errors import UsageError
from advrepair.core.interfaces import Attack
from advrepair.core.types import Box
from advrepair.plugins.attacks.pgd import Pgd

CLIP = (0.0, 1.0)


def a_dataset(x, y, x_adv=None, outputs=4):
    adv = None if x_adv is None else x_adv.numpy()
    return make_dataset("x", x.numpy(), y.numpy(), (6,), x.dtype, CLIP, outputs, adv)


def find(x, y, count, epsilon=EPSILON, told=None):
    advance = (lambda more: None) if told is None else told.append
    return find_counterexamples(
        a_network(), a_dataset(x, y), epsilon, count, CLIP, Pgd(), 0, advance
    )


def test_it_finds_the_first_that_are_right_and_can_be_made_wrong():
    network, (x, y) = a_network(), some_data()
    y = y.clone()
    y[::3] = (y[::3] + 1) % 4  # these are not classified correctly
    told = []
    problem = find(x, y, 5, told=told)
    every = find(x, y, None)
    assert sum(told) == 5 and torch.equal(problem.row, every.row[:5])
    assert (every.row.diff() > 0).all() and (every.row % 3 != 0).all()
    properties = every.properties
    assert torch.equal(properties.center, x[every.row])
    assert torch.equal(properties.label, y[every.row])
    assert properties.box.holds(every.x_adv).all()
    assert properties.violated(network(every.x_adv)).all()
    assert not properties.violated(network(properties.center)).any()
    assert properties.names[0] == f"x[{int(every.row[0])}]"
    runner_up = network(properties.center).topk(2, dim=1).indices[:, 1]
    assert torch.equal(properties.target, runner_up)


def test_too_few_says_how_many_there_are():
    x, y = some_data()
    there = len(find(x, y, None).row)
    with pytest.raises(UsageError) as error:
        find(x, y, there + 1)
    assert f"count is {there + 1}: the attack finds {there} counterexamples" in str(error.value)
    assert f"use --count {there} or a larger --epsilon" in str(error.value)
    assert len(find(x, y, there).row) == there


def test_none_at_all_is_an_error_too():
    x, y = some_data()
    with pytest.raises(UsageError, match=r"count is all: the attack finds 0 .* larger --epsilon$"):
        find(x, y, None, epsilon=1e-6)


def test_labels_that_are_all_wrong_are_told():
    x, y = some_data()
    with pytest.raises(UsageError, match=r"finds 0 .* among the 0 correctly classified"):
        find(x, (y + 1) % 4, 5)


def test_a_chunk_without_a_correct_input_is_passed_over(monkeypatch):
    monkeypatch.setattr(attacking, "_AT_ONCE", 10)
    x, y = some_data()
    y = y.clone()
    y[10:20] = (y[10:20] + 1) % 4
    assert (find(x, y, None).row >= 20).any()


def test_the_noise_of_a_property_is_its_own():
    x, y = some_data()
    whole, part = find(x, y, None), find(x[:30], y[:30], None)
    assert torch.equal(whole.x_adv[: len(part.row)], part.x_adv)


def test_given_ones_are_taken_where_the_network_is_wrong():
    network, problem = a_network(), a_problem()
    x, y = some_data()
    x_adv = x.clone()
    x_adv[problem.row] = problem.x_adv
    data = a_dataset(x, y, x_adv)
    found = given_counterexamples(network, data, EPSILON, None, CLIP)
    assert torch.equal(found.row, problem.row) and torch.equal(found.x_adv, problem.x_adv)
    assert given_counterexamples(network, data, EPSILON, 2, CLIP).row.tolist() == (
        problem.row[:2].tolist()
    )
    with pytest.raises(UsageError, match=r"wrong on 6 of the 60 x_adv; use --count 6"):
        given_counterexamples(network, data, EPSILON, 7, CLIP)
    with pytest.raises(UsageError, match="there is nothing to repair"):
        given_counterexamples(network, a_dataset(x, y, x), EPSILON, None, CLIP)


def test_a_given_one_outside_its_ball_is_refused_by_its_row():
    x, y = some_data()
    x_adv = x.clone()
    x_adv[7, 2] += EPSILON * 1.01 if x_adv[7, 2] < 0.5 else -EPSILON * 1.01
    data = a_dataset(x, y, x_adv)
    with pytest.raises(UsageError, match=r"x_adv row 7 lies outside the ball of radius 0\.1"):
        given_counterexamples(a_network(), data, EPSILON, None, CLIP)


def test_a_given_one_on_the_face_is_inside():
    problem = a_problem()
    x, y = some_data()
    x_adv = x.clone()
    x_adv[problem.row] = (x[problem.row] + EPSILON).clamp(0, 1)
    given_counterexamples(a_network(), a_dataset(x, (y + 1) % 4, x_adv), EPSILON, None, CLIP)


def test_generalisation_takes_other_points_of_the_same_balls():
    network, problem = a_network(), a_problem()
    told = []
    points, owner = generalisation_set(network, problem, Pgd(), 4, 0, told.append)
    assert 0 < len(points) <= 24 and sum(told) == 24
    properties = problem.properties[owner]
    assert properties.box.holds(points).all()
    assert properties.violated(network(points)).all()
    assert (points != problem.x_adv[owner]).flatten(1).any(1).all()
    again, _ = generalisation_set(network, problem, Pgd(), 4, 0, told.append)
    other, _ = generalisation_set(network, problem, Pgd(), 4, 1, told.append)
    assert torch.equal(points, again) and not torch.equal(points, other)


def test_what_is_left_is_what_the_attack_or_x_adv_still_breaks():
    parts = some_parts()
    stack, _ = constant_patches(torch.arange(6), parts.worklist, parts.bounder)
    some = torch.tensor([0, 2, 5])
    parts.repaired.bank.put(some, {name: t[some] for name, t in stack.items()})
    told = []
    left, points = counterexamples_left(parts.repaired, parts.problem, Pgd(), 0, told.append)
    assert torch.equal(parts.properties.violated(parts.repaired(points)), left)
    assert left.tolist() == [False, True, False, True, True, False] and sum(told) == 6
    still, _ = counterexamples_left(parts.repaired, parts.problem, Lazy(), 0, told.append)
    assert torch.equal(left, still)  # x_adv is enough


@frozen
class Lazy(Attack):
    """Returns where it started."""

    name: ClassVar[str] = "lazy"

    def perturb(self, model, properties, start, generator):
        return start


@frozen
class Cheat(Attack):
    """Leaves the box, or returns NaN."""

    name: ClassVar[str] = "cheat"
    value: ClassVar[float] = 7.0

    def perturb(self, model, properties, start, generator):
        return torch.full_like(start, self.value)


@pytest.mark.parametrize("value", [7.0, -torch.inf, torch.nan])
def test_an_attack_is_held_to_its_box(value, monkeypatch):
    monkeypatch.setattr(Cheat, "value", value)
    problem = a_problem()
    x = perturb(Cheat(), a_network(), problem.properties, problem.x_adv, torch.Generator())
    assert problem.properties.box.holds(x).all()
    if value != value:
        assert torch.equal(x, problem.x_adv)


def test_uniform_points_lie_inside():
    lower = torch.rand(50, 3)
    box = Box(lower, lower + torch.rand(50, 3) * 1e-6)
    x = uniform(box, torch.Generator().manual_seed(0))
    assert box.holds(x).all() and len(x.unique(dim=0)) == 50


def test_joined_problems_follow_each_other():
    problem = a_problem()
    both = join([problem, problem])
    assert both.row.tolist() == problem.row.tolist() * 2
    assert both.properties.names == problem.properties.names * 2
    assert torch.equal(both.properties.C[6:], problem.properties.C)
    assert torch.equal(both.properties.box.lower[6:], problem.properties.box.lower)


def test_more_examples_stand_behind_those_found_in_one_array():
    network, problem = a_network(), a_problem()
    found, owner = generalisation_set(network, problem, Pgd(), 3, 0, lambda more: None)
    known = evolve(problem, unseen=(problem.x_adv[:2] + 0.5, torch.tensor([1, 0])))
    points, owners = generalisation_set(network, known, Pgd(), 3, 0, lambda more: None)
    assert points.equal(torch.cat([found, problem.x_adv[:2] + 0.5]))
    assert owners.tolist() == [*owner.tolist(), 1, 0]
    # No second copy was made: what is left over of the first one lies behind it.
    room = 3 * len(problem.properties) + 2
    assert points.untyped_storage().nbytes() == room * points[0].numel() * points.element_size()
