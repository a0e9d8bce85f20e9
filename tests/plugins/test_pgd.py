"""The attack stays in the box, and finds what is there to be found."""

from typing import cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from advrepair.core.errors import UsageError
from advrepair.core.types import Box, PropertySet
from advrepair.plugins.attacks import advrepair_components
from advrepair.plugins.attacks.pgd import Pgd


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def properties_of(box: Box, C: Tensor, d: Tensor, group: Tensor) -> PropertySet:
    count = len(box)
    none = torch.full((count,), -1)
    names = tuple(f"property {i}" for i in range(count))
    return PropertySet(box, C, d, group, none, none, box.center, names)


def rows(count: int, *row: list[float]) -> Tensor:
    return torch.tensor(row).expand(count, -1, -1)


def robust(box: Box, outputs: int = 3) -> PropertySet:
    """Output 0 is the largest."""
    C = torch.cat([torch.ones(outputs - 1, 1), -torch.eye(outputs - 1)], 1)
    count, size = len(box), outputs - 1
    group = torch.arange(size).expand(count, -1)
    return properties_of(box, C.expand(count, -1, -1), torch.zeros(count, size), group)


def network(seed: int = 0, size: int = 6, outputs: int = 3) -> nn.Module:
    generator = seeded(seed)
    net = nn.Sequential(nn.Linear(size, 8), nn.ReLU(), nn.Linear(8, outputs))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.normal_(generator=generator)
    return net


@settings(deadline=None)
@given(st.integers(0, 2**31), st.booleans(), st.integers(1, 3))
def test_points_lie_in_their_boxes_exactly(seed: int, points: bool, restarts: int) -> None:
    generator = seeded(seed)
    x = torch.rand(5, 6, generator=generator)
    # A radius per coordinate; some of it zero, or so small that x + radius is x.
    radius = torch.rand(5, 6, generator=generator) * 10.0 ** -torch.randint(
        0, 9, (5, 6), generator=generator
    )
    radius[:, ::3] = 0.0
    box = Box(x, x) if points else Box(x - radius, x + radius)
    start = torch.rand(5, 6, generator=generator)
    attack = Pgd(steps=5, restarts=restarts)
    found = attack.perturb(network(seed), robust(box), start, generator)
    assert found.dtype == torch.float32
    assert bool(box.holds(found).all())
    if points:
        assert torch.equal(found, x)


@settings(deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([torch.float32, torch.float64]))
def test_a_linear_classifier_is_broken_exactly_where_it_can_be(
    seed: int, dtype: torch.dtype
) -> None:
    generator = seeded(seed)
    net = nn.Linear(6, 2).to(dtype)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.normal_(generator=generator)
    x = torch.rand(20, 6, generator=generator, dtype=dtype)
    box = Box.around(x, 0.3)
    properties = robust(box, outputs=2)
    weight, bias = (p.detach().double() for p in net.parameters())
    slope, offset = weight[0] - weight[1], bias[0] - bias[1]
    corner = torch.where(slope > 0, box.lower.double(), box.upper.double())
    least = corner @ slope + offset
    found = Pgd().perturb(net, properties, x, generator)
    margin = properties.margin(net(found).detach())
    assert torch.allclose(margin, least, atol=1e-5) or bool((margin <= 0).any())
    clear = least.abs() > 1e-5
    assert torch.equal(properties.violated(net(found))[clear], (least <= 0)[clear])


def test_a_property_with_several_rows_in_a_group() -> None:
    """Output 0 is not the largest: one of the others must be larger."""
    net = nn.Linear(2, 3, bias=False)
    with torch.no_grad():
        net.weight.copy_(torch.tensor([[1.0, 1.0], [1.0, 0.0], [0.0, 1.0]]))
    # The margin is max(-x1, -x0): positive iff a coordinate is negative.
    box = Box(torch.tensor([[-1.0, -1.0], [-1.0, -1.0]]), torch.tensor([[0.5, 0.5], [-0.1, 0.5]]))
    C = rows(2, [-1.0, 1.0, 0.0], [-1.0, 0.0, 1.0])
    group = torch.zeros(2, 2, dtype=torch.long)
    properties = properties_of(box, C, torch.zeros(2, 2), group)
    found = Pgd().perturb(net, properties, box.center, seeded())
    assert properties.violated(net(found)).tolist() == [True, False]


def test_padded_rows_are_no_target() -> None:
    net = nn.Linear(1, 1, bias=False)
    nn.init.ones_(net.weight)
    box = Box(torch.tensor([[-1.0], [-1.0]]), torch.tensor([[1.0], [1.0]]))
    group = torch.tensor([[0, 1], [0, -1]])
    properties = properties_of(
        box, rows(2, [1.0], [0.0]), torch.tensor([[2.0, -1.0], [2.0, -1.0]]), group
    )
    found = Pgd().perturb(net, properties, box.center, seeded())
    assert properties.violated(net(found)).tolist() == [True, False]
    assert found[1].item() == -1.0


class Plateau(nn.Module):
    """Flat around the origin, and wrong beyond 0.5 on either side."""

    def forward(self, x: Tensor) -> Tensor:
        distance = (x.abs().amax(1, keepdim=True) - 0.5).relu()
        return torch.cat([0.1 - distance, 0 * distance], 1)


def test_a_flat_start_is_left_in_a_random_direction() -> None:
    box = Box(-torch.ones(4, 3), torch.ones(4, 3))
    properties = robust(box, outputs=2)
    found = Pgd().perturb(Plateau(), properties, box.center, seeded())
    assert properties.violated(Plateau()(found)).all()


class Pit(nn.Module):
    """A pit that a descent from the centre walks away from."""

    def forward(self, x: Tensor) -> Tensor:
        margin = torch.where(x < 0.2, (x + 0.5).abs() - 0.05, 1.0 - 0.5 * x)
        return torch.cat([margin, 0 * margin], 1)


def test_restarts_look_elsewhere() -> None:
    box = Box(-torch.ones(1, 1), torch.ones(1, 1))
    properties = robust(box, outputs=2)
    start = torch.full((1, 1), 0.5)
    once = Pgd().perturb(Pit(), properties, start, seeded())
    often = Pgd(restarts=10).perturb(Pit(), properties, start, seeded())
    assert not properties.violated(Pit()(once)).any()
    assert properties.violated(Pit()(often)).all()


def test_a_point_never_has_a_higher_margin_than_its_start() -> None:
    net, generator = network(3), seeded(3)
    start = torch.rand(30, 6, generator=generator)
    properties = robust(Box.around(start, 0.5))
    found = Pgd(steps=1, step=100.0).perturb(net, properties, start, generator)
    assert (properties.margin(net(found)) <= properties.margin(net(start)) + 1e-6).all()


def test_a_result_does_not_depend_on_the_company() -> None:
    net = network(1).double()
    x = torch.rand(9, 6, generator=seeded(1), dtype=torch.float64)
    properties = robust(Box.around(x, 0.2))
    attack = Pgd(steps=7, restarts=3)
    together = attack.perturb(net, properties, x, seeded())
    assert torch.equal(together, attack.perturb(net, properties, x, seeded()))
    some = torch.tensor([7, 2, 5])
    apart = attack.perturb(net, properties[some], x[some], seeded())
    assert torch.allclose(together[some], apart, atol=1e-12)


def test_what_is_broken_costs_nothing_more() -> None:
    """Half of the properties are broken at once; after that only the others are run."""
    sizes = []

    class Counting(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            sizes.append(len(x))
            return torch.cat([x, -x], 1)

    center = torch.tensor([[-1.0]] * 5 + [[1.0]] * 3)  # output 0 is to be the larger one
    box = Box(center - 0.1, center + 0.1)
    asked = robust(box, 2)
    points = Pgd(steps=6).perturb(Counting(), asked, center, seeded())
    assert sizes == [8] + [3] * 6
    assert torch.equal(points[:5], center[:5])
    assert torch.allclose(points[5:], center[5:] - 0.1)


def test_nothing_of_the_caller_is_changed() -> None:
    net = nn.Sequential(nn.BatchNorm1d(6), network(0))
    net[1].eval()
    x = torch.rand(4, 6, generator=seeded())
    before = x.clone()
    with torch.no_grad():
        Pgd().perturb(net, robust(Box.around(x, 0.2)), x, seeded())
    assert torch.equal(x, before) and not x.requires_grad
    assert net.training and net[0].training and not net[1].training
    assert cast(Tensor, net[0].num_batches_tracked).item() == 0
    assert all(parameter.grad is None for parameter in net.parameters())


def test_a_nan_output_breaks_its_property() -> None:
    class Sick(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            sick = torch.where(x[:, :1] > 0.5, torch.nan, 1.0)
            return torch.cat([sick, 0 * x[:, :1]], 1)

    box = Box(torch.zeros(2, 2), torch.ones(2, 2))
    properties = robust(box, outputs=2)
    start = torch.tensor([[0.7, 0.2], [0.1, 0.2]])
    found = Pgd(steps=2, step=0.1).perturb(Sick(), properties, start, seeded())
    assert properties.violated(Sick()(found)).tolist() == [True, False]
    assert box.holds(found).all()


def test_no_property_is_no_work() -> None:
    nothing = torch.empty(0, 6)
    properties = robust(Box(nothing, nothing))
    assert Pgd().perturb(network(), properties, nothing, seeded()).shape == (0, 6)


@pytest.mark.parametrize(
    ("start", "message"),
    [
        (torch.full((1, 2), torch.nan, dtype=torch.float64), "NaN"),
        (torch.zeros(1, 2, dtype=torch.float32), "narrowing"),
    ],
)
def test_a_useless_start_is_refused(start: Tensor, message: str) -> None:
    box = Box(torch.zeros(1, 2, dtype=torch.float64), torch.ones(1, 2, dtype=torch.float64))
    with pytest.raises(UsageError, match=message):
        Pgd().perturb(network(size=2, outputs=2), robust(box, outputs=2), start, seeded())


def test_the_hook_brings_it() -> None:
    assert Pgd in advrepair_components()
