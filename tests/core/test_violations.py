"""What is found really breaks a demand, lies inside its region, and is found once."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import WIDTHS, a_network

from advrepair.core.box import Box
from advrepair.core.properties import demands
from advrepair.core.violations import find_violations, inner
from advrepair.plugins.attacks.pgd import Pgd
from advrepair.testing.networks import fully_connected

SIZE = WIDTHS[0]


def one(output, above, lower=0.0, upper=1.0, network=None, sign=1.0):
    """Sign times an output lies above a number on a box; a number or [S] for each face."""
    lower, upper = (torch.as_tensor(f).float().expand(1, SIZE).clone() for f in (lower, upper))
    C = torch.zeros(1, 1, WIDTHS[-1])
    C[0, 0, output] = sign
    return demands(lower, upper, C, torch.full((1, 1), -above), torch.zeros(1, 1).long())


def quantile(network, output, share):
    x = torch.rand(4000, SIZE, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return float(torch.quantile(network(x)[:, output], share))


def search(network, asked, count, open_=None, seed=0):
    every = torch.arange(len(asked))
    box, owner = (asked.box, every) if open_ is None else open_
    return find_violations(network, asked, every, box, owner, Pgd(), count, seed, lambda more: None)


def require_true(network, asked, found):
    """Broken as the deployed function computes it, inside, and each once."""
    with torch.no_grad():
        assert bool(asked[found.owner].violated(network(found.x)).all())
    assert bool(inner(asked.box)[found.owner].holds(found.x).all())
    for i in range(len(asked)):
        mine = found.x[found.owner == i].flatten(1)
        assert len(mine.unique(dim=0)) == len(mine)


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 5), st.sampled_from([0.0, 0.02, 0.5, 1.0]), st.integers(1, 60))
def test_points_break_the_demand_inside_the_box_once_each(seed, share, count):
    network = a_network(seed)
    asked = one(seed % 4, quantile(network, seed % 4, share))
    found = search(network, asked, count, seed=seed)
    require_true(network, asked, found)
    assert 0 < len(found.x) <= count
    assert len(found.x) == count or share == 0.0
    assert found.x.dtype == asked.box.lower.dtype


def test_a_corner_that_breaks_the_demand_is_not_on_a_face():
    """The lowest point of a network that grows with every input is the lower corner."""
    network = fully_connected(0, (SIZE, 4))
    weight = next(iter(network.tensors))
    network.tensors[weight].copy_(torch.ones_like(network.tensors[weight]))
    with torch.no_grad():
        lowest = float(network(torch.zeros(1, SIZE))[0, 0])
    asked = one(0, lowest + 1e-3)
    found = search(network, asked, 20)
    require_true(network, asked, found)
    assert len(found.x)
    assert bool((found.x > 0).all())


@pytest.mark.parametrize("seed", range(3))
def test_nothing_breaks_what_holds(seed):
    network = a_network(seed)
    found = search(network, one(0, -1e4), 5)
    assert found.x.shape == (0, SIZE) and found.owner.shape == (0,)


def test_nothing_is_looked_for_where_nothing_is_open():
    network = a_network()
    asked = one(0, 1e4)
    none = Box(asked.box.lower[:0], asked.box.upper[:0])
    found = search(network, asked, 5, (none, torch.zeros(0).long()))
    assert len(found.x) == 0


def test_points_are_those_of_their_property():
    """Three properties on boxes of their own; the second one holds."""
    network = a_network()
    parts = [
        one(0, quantile(network, 0, 0.5), 0.0, 0.5),
        one(1, -1e4, 0.4, 0.9),
        one(2, quantile(network, 2, 0.9), 0.6, 1.0),
    ]
    asked = demands(
        *(torch.cat([getattr(p.box, f) for p in parts]) for f in ("lower", "upper")),
        *(torch.cat([getattr(p, f) for p in parts]) for f in ("C", "d", "group")),
    )
    found = search(network, asked, 30)
    require_true(network, asked, found)
    assert torch.bincount(found.owner, minlength=3).tolist() == [30, 0, 30]
    assert found.owner.tolist() == sorted(found.owner.tolist())


def test_the_same_seed_finds_the_same():
    network = a_network()
    asked = one(0, quantile(network, 0, 0.1))
    first, again, other = (search(network, asked, 25, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first.x, again.x)
    assert not torch.equal(first.x, other.x)


def test_inputs_that_are_fixed_stay_so():
    network = a_network()
    lower, upper = torch.zeros(SIZE), torch.ones(SIZE)
    lower[2] = upper[2] = 0.25
    upper[4] = lower[4].nextafter(torch.tensor(1.0))
    asked = one(0, quantile(network, 0, 0.7), lower, upper)
    found = search(network, asked, 20)
    require_true(network, asked, found)
    assert len(found.x) == 20 and bool((found.x[:, 2] == 0.25).all())


@given(st.integers(0, 2**31))
def test_inner_boxes_have_no_faces_unless_they_are_thin(seed):
    noise = torch.Generator().manual_seed(seed)
    lower = torch.rand(3, 4, generator=noise) - 0.5
    steps = torch.randint(0, 4, lower.shape, generator=noise)
    upper = lower
    for step in range(3):
        upper = torch.where(steps > step, upper.nextafter(torch.tensor(9.0)), upper)
    found, thin = inner(Box(lower, upper)), steps < 2
    assert torch.equal(found.lower[thin], lower[thin])
    assert torch.equal(found.upper[thin], upper[thin])
    assert bool(((found.lower > lower) & (found.upper < upper))[~thin].all())
    assert bool((found.lower <= found.upper).all())
