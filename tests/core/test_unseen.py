"""What is proved of inputs that were not repaired, and a smooth allocator as deployed."""

from __future__ import annotations

import copy

import pytest
import torch
from attrs import evolve
from problems import a_network, some_data, some_parts, the_balls

import advrepair
from advrepair.core.artefacts import read_repaired, write_repaired
from advrepair.core.attacking import uniform
from advrepair.core.errors import UsageError
from advrepair.core.patching import RepairedNetwork
from advrepair.core.registry import Registry
from advrepair.core.remembering import points_of
from advrepair.core.sections import Training
from advrepair.core.threats import FixedRoute, route_of
from advrepair.core.training import Trained, train
from advrepair.core.types import PropertySet
from advrepair.core.unseen import least_margins
from advrepair.plugins.allocators.kernel import Kernel
from advrepair.plugins.allocators.nearest import Nearest
from advrepair.plugins.allocators.none import NoAllocator
from advrepair.plugins.refiners.gradient_width import GradientWidth
from advrepair.plugins.verifiers.deeppoly import DeepPoly

KERNEL = Kernel(temperature=0.05, weight=1.0, ramp=(), trust=0.01)


def a_repair(allocator) -> tuple[RepairedNetwork, object]:
    """A trained repair, with another allocator, and its parts."""
    parts = some_parts(verifier=DeepPoly())
    result = Trained.nothing_yet(len(parts.repaired.bank))
    train(parts.bank, parts.worklist, parts.bounder, GradientWidth(), Training(), result)
    repaired = parts.repaired
    centres = repaired.centres
    if isinstance(allocator, Kernel):
        x, y = some_data(60)
        x, y = torch.cat([x, torch.zeros(1, 6)]), torch.cat([y, torch.tensor([1])])  # all classes
        given = advrepair.Points(
            x,
            y,
            parts.properties[torch.arange(0)],
            False,
            (0.0, 1.0),
            torch.Generator().manual_seed(0),
        )
        centres = evolve(centres, fitted=dict(allocator.fit(repaired.base, given)))
    found = RepairedNetwork(
        repaired.base, repaired.bank, repaired.regions, repaired.assignment, centres, allocator
    )
    return found.eval(), parts


def unseen(count: int = 40, epsilon: float = 0.03) -> PropertySet:
    network = a_network()
    x = torch.rand(count, 6, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        return the_balls(network, x, network(x).argmax(1), epsilon)


def least_seen(model, asked: PropertySet) -> torch.Tensor:
    """The least margin at random points and corners of each ball: [P]."""
    noise, seen = torch.Generator().manual_seed(0), torch.full((len(asked),), torch.inf)
    for turn in range(200):
        x = uniform(asked.box, noise)
        if turn % 2:
            x = torch.where(x > asked.center, asked.box.upper, asked.box.lower)
        with torch.no_grad():
            seen = torch.minimum(seen, asked.margin(model(x)))
    return seen


@pytest.mark.parametrize("allocator", [NoAllocator(), KERNEL])
@pytest.mark.parametrize("epsilon", [0.01, 0.1, 0.3])
def test_no_input_of_a_ball_lies_below_what_is_proved(allocator, epsilon):
    model, parts = a_repair(allocator)
    new = unseen(epsilon=epsilon)
    near = the_balls(model.base, parts.properties.center + 0.01, parts.properties.label, epsilon)
    for asked in (new, near, parts.properties):
        least = least_margins(model, parts.bounder, asked)
        assert (least <= least_seen(model, asked)).all()


def test_something_is_proved():
    model, parts = a_repair(KERNEL)
    asked = unseen(epsilon=0.02)
    assert int((least_margins(model, parts.bounder, asked) > 0).sum()) > 10
    plain = least_margins(model.base, parts.bounder, asked)
    silent, _ = a_repair(NoAllocator())
    apart = silent.box.meets(asked.box)[:, 0].unique()
    other = torch.ones(len(asked), dtype=torch.bool)
    other[apart] = False
    assert torch.equal(least_margins(silent, parts.bounder, asked)[other], plain[other])


def test_a_repaired_ball_is_proved_whatever_lies_outside():
    for allocator in (NoAllocator(), Nearest(), KERNEL):
        model, parts = a_repair(allocator)
        assert (least_margins(model, parts.bounder, parts.properties) > 0).all()


def test_nothing_is_known_of_an_allocator_that_chooses():
    model, parts = a_repair(Nearest())
    least = least_margins(model, parts.bounder, unseen())
    meets = model.box.meets(unseen().box)[:, 0].unique()
    assert bool((least == -torch.inf).any()) and len(meets) < len(least)


def test_the_interface_says_the_same():
    model, parts = a_repair(KERNEL)
    asked = unseen(epsilon=0.02)
    with torch.no_grad():
        label = model(asked.center).argmax(1)
    found = advrepair.certify(model, asked.center, 0.02, input_range=())
    same = the_balls(model.base, asked.center, label, 0.02)
    assert torch.equal(found, least_margins(model, parts.bounder, same))
    wrong = advrepair.certify(model, asked.center, 0.02, (label + 1) % 4, input_range=())
    assert (wrong < 0).all()


def test_the_kernel_proves_nothing_where_the_network_overflows():
    model, parts = a_repair(evolve(KERNEL, weight=50.0))
    base = copy.deepcopy(model.base)
    for name, value in base.tensors.items():
        value.mul_(1e30 if name.endswith("weight") else 1.0)
    huge = RepairedNetwork(
        base, model.bank, model.regions, model.assignment, model.centres, model.allocator
    ).eval()
    asked = unseen(epsilon=0.0)
    smooth = huge.smooth(asked.center)
    assert bool(smooth.any()) and not huge(asked.center)[smooth].isfinite().all()
    kept = evolve(asked, label=model(asked.center).argmax(1))
    least = least_margins(huge, evolve(parts.bounder, network=base), kept)
    assert (least[smooth] == -torch.inf).all()


def test_what_has_no_label_is_not_proved():
    model, parts = a_repair(KERNEL)
    asked = unseen(epsilon=0.0)
    asked = evolve(asked, label=torch.full_like(asked.label, -1))
    for function in (model, model.base):
        assert (least_margins(function, parts.bounder, asked) == -torch.inf).all()


# As deployed --------------------------------------------------------------------------------


def test_inside_a_box_the_box_decides_and_outside_the_kernel():
    model, parts = a_repair(KERNEL)
    silent, _ = a_repair(NoAllocator())
    x = torch.cat([parts.properties.center, unseen().center])
    smooth = model.smooth(x)
    assert 0 < int(smooth.sum()) < len(x)
    with torch.no_grad():
        found, plain = model(x), silent(x)
        ours = KERNEL.outputs(x, model.base(x), model.centres)
    assert torch.equal(found[~smooth], plain[~smooth])
    torch.testing.assert_close(found[smooth], ours[smooth])


def test_an_attacker_sees_the_gradient_of_the_kernel():
    model, _ = a_repair(KERNEL)
    x = unseen().center.clone().requires_grad_(True)
    x_ours = x.detach().clone().requires_grad_(True)
    smooth = model.smooth(x)
    (slope,) = torch.autograd.grad(model(x)[smooth].square().sum(), x)
    ours = KERNEL.outputs(x_ours, model.base(x_ours), model.centres)
    (other,) = torch.autograd.grad(ours[smooth].square().sum(), x_ours)
    assert float(slope[smooth].abs().min(1).values.max()) > 0
    torch.testing.assert_close(slope, other)


def test_a_fixed_route_leads_to_the_kernel_too():
    model, parts = a_repair(KERNEL)
    x = torch.cat([parts.properties.center, unseen().center])
    route = route_of(model, x)
    assert torch.equal(route[:, -1], model.smooth(x))
    with torch.no_grad():
        assert torch.equal(FixedRoute(model, route)(x), model(x))


def test_it_is_stored_whole(tmp_path):
    model, _ = a_repair(KERNEL)
    write_repaired(tmp_path / "repaired.safetensors", model)
    again = read_repaired(tmp_path / "repaired.safetensors", Registry.load())
    x = unseen().center
    with torch.no_grad():
        assert torch.equal(again(x), model(x))
        assert torch.equal(copy.deepcopy(model)(x), model(x))
    assert again.allocator == KERNEL


# What is remembered -------------------------------------------------------------------------


def the_points(points: int, validation: int, total: int = 60):
    from problems import a_problem, a_registry

    from advrepair.core.config import resolve
    from advrepair.core.data import make_dataset

    network, problem = a_network(), a_problem()
    x, y = some_data(60)
    data = make_dataset("x", x[:total], y[:total], (6,), torch.float32, (0.0, 1.0), 4)
    kernel = Kernel(points=points, validation=validation)
    plan = resolve(a_registry(), [{"problem": {"epsilon": 0.1}}])
    return problem, points_of(network, problem, kernel, plan, data), x


def rows_of(x: torch.Tensor, of: torch.Tensor) -> set[int]:
    return {int((of == each).all(1).nonzero()[0]) for each in x}


def test_points_are_the_repaired_inputs_and_others():
    problem, given, x = the_points(20, 10)
    points, held = rows_of(given.x, x), rows_of(given.held.center, x)
    assert len(points) == 20 and len(held) == 10 and not points & held and not given.keep
    assert torch.equal(given.x[: len(problem.row)], x[problem.row])
    assert len(the_points(0, 10)[1].x) == len(problem.row)


def test_all_inputs_can_be_remembered():
    _, given, x = the_points(60, 10)
    points, held = rows_of(given.x, x), rows_of(given.held.center, x)
    assert given.keep and not points & held and len(points | held) == 60 and len(held) == 6


def test_more_than_there_are_is_refused():
    with pytest.raises(UsageError, match=r"kernel.points is 61: x has 60 inputs"):
        the_points(61, 10)
