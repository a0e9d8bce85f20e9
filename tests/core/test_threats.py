"""Threats propose points; the deployed function alone decides."""

from itertools import pairwise
from typing import ClassVar

import pytest
import torch
from attrs import frozen
from problems import a_network, some_data, some_parts, the_balls

from advrepair.core import threats
from advrepair.core.box import Box
from advrepair.core.constant import constant_patches
from advrepair.core.interfaces import Attack, of_rows
from advrepair.core.patching import RepairedNetwork
from advrepair.core.threats import THREATS, FixedRoute, Target, route_of
from advrepair.core.types import Regions
from advrepair.plugins.allocators.label_pair import LabelPair
from advrepair.plugins.allocators.nearest import Nearest
from advrepair.plugins.attacks.pgd import Pgd


def a_repair(allocator=None):
    """Constant patches that hold, and an allocator that uses them outside too."""
    parts = some_parts()
    stack, proved = constant_patches(torch.arange(6), parts.worklist, parts.bounder)
    assert proved.all()
    parts.repaired.bank.put(torch.arange(6), stack)
    r = parts.repaired
    model = RepairedNetwork(
        r.base, r.bank, r.regions, r.assignment, r.centres, allocator or Nearest(within=1.0)
    )
    return model, parts


def target(model):
    return Target(model, Pgd(), Pgd(steps=30), torch.Generator().manual_seed(0))


def unseen(model, epsilon=0.1, count=30):
    x, y = some_data(60, a_network())
    return the_balls(model.base, x[-count:], y[-count:], epsilon)


@pytest.mark.parametrize("name", THREATS)
@pytest.mark.parametrize("allocator", [Nearest(within=1.0), LabelPair()])
def test_every_point_lies_in_its_ball(name, allocator):
    model, _ = a_repair(allocator)
    asked = unseen(model)
    for x in THREATS[name](target(model), asked):
        assert bool(asked.box.holds(x).all())


def broken(model, asked, name):
    hits = torch.zeros(len(asked), dtype=torch.bool)
    for x in THREATS[name](target(model), asked):
        hits |= asked.violated(model(x))
    return hits


def test_inside_the_repaired_boxes_no_threat_succeeds():
    model, parts = a_repair()
    for name in THREATS:
        assert not bool(broken(model, parts.properties, name).any())


def test_a_route_that_is_fixed_is_that_of_its_row():
    model, parts = a_repair()
    x = parts.properties.center
    route = route_of(model, x)
    assert torch.equal(route[:, :-1], model.route(x, model.base(x)))
    fixed = FixedRoute(model, route)
    assert torch.equal(fixed(x), model(x))
    swapped = FixedRoute(model, route.flip(0))
    assert not torch.equal(swapped(x), model(x))
    some = torch.tensor([4, 1])
    assert torch.equal(of_rows(fixed, some)(x[some]), model(x[some]))
    assert of_rows(model, some) is model


def test_every_subject_is_searched_by_both_attacks():
    model, _ = a_repair()
    asked = unseen(model, count=3)
    marked = Target(model, Nothing(), Pgd(steps=3), torch.Generator().manual_seed(0))
    at_rest, moved = marked.search(model, asked)
    assert torch.equal(at_rest, asked.center)
    assert not torch.equal(moved, asked.center)


@frozen
class Nothing(Attack):
    """Finds nothing."""

    name: ClassVar[str] = "nothing"

    def perturb(self, model, properties, start, generator):
        return properties.center.clone()


def test_just_outside_leaves_a_box_by_one_rounding():
    """The ball of a query reaches beyond a repaired box, and its centre lies inside that."""
    model, parts = a_repair()
    box = parts.properties.box
    centre = box.upper - 1e-3
    label = parts.properties.label
    asked = the_balls(model.base, centre.clamp(0, 1), label, 0.05)
    found = THREATS["just-outside"](Target(model, Nothing(), Nothing(), torch.Generator()), asked)
    assert found
    x = found[0]
    left = model.box.first(x) != torch.arange(6)
    assert bool(left.any())
    for i in left.nonzero()[:, 0].tolist():
        over, under = x[i] - box.upper[i], box.lower[i] - x[i]
        moved = (x[i] != asked.center[i]).sum()
        assert int(moved) == 1 and float(torch.maximum(over, under).max()) <= 1e-6


def test_just_outside_finds_what_ends_at_the_face():
    """Right inside the box by a patch, wrong as soon as the box is left: nothing else is seen."""
    model, parts = a_repair(Nearest(within=0.0))
    box = parts.properties.box
    # The counterexamples of the unrepaired network, at the face of a box that is cut short.
    asked = parts.properties
    short = Box(box.lower, torch.minimum(box.upper, parts.problem.x_adv - 1e-4).maximum(box.lower))
    inside = model.base
    regions = Regions(short, model.patch)
    cut = RepairedNetwork(
        inside, model.bank, regions, model.assignment, model.centres, model.allocator
    )
    assert bool(broken(cut, asked, "just-outside").any())


def test_routes_of_a_ball_start_with_that_of_its_centre():
    model, _ = a_repair()
    asked = unseen(model, 0.3)
    routes = threats._routes_in(model, asked, torch.Generator().manual_seed(0))
    x = asked.center
    assert torch.equal(routes[0], route_of(model, x))
    assert 1 < len(routes) <= threats._ROUTES
    for one, other in pairwise(routes):
        assert bool((one != other).any())
