"""The oracle against networks whose minimum is known, and against many points."""

from fractions import Fraction

import pytest
import torch
from hypothesis import given

from advrepair.core.errors import UsageError
from advrepair.core.graph import INPUT, Network, Operation
from advrepair.core.types import Box
from advrepair.testing.cases import Case
from advrepair.testing.networks import NETWORKS, Sketch, fully_connected
from advrepair.testing.oracle import can_evaluate, exact_minimum, exact_rows
from advrepair.testing.strategies import cases, tiny_networks


def _absolute_sum() -> Network:
    """``|x - 1| + |x + y|`` as a ReLU network, and its first term alone."""
    tensors = {
        "w": torch.tensor([[1.0, 0.0], [-1.0, 0.0], [1.0, 1.0], [-1.0, -1.0]]),
        "b": torch.tensor([-1.0, 1.0, 0.0, 0.0]),
        "sum": torch.tensor([[1.0, 1.0, 1.0, 1.0], [1.0, 1.0, 0.0, 0.0]]),
    }
    operations = [
        Operation("hidden", "linear", (INPUT,), (4,), {"weight": "w", "bias": "b"}),
        Operation("relu", "relu", ("hidden",), (4,)),
        Operation("out", "linear", ("relu",), (2,), {"weight": "sum"}),
    ]
    return Network(operations, tensors, (2,))


def test_minima_that_are_known() -> None:
    lower = torch.tensor([[0.0, -3.0], [2.0, 0.0], [0.25, -0.5]]).double()
    upper = torch.tensor([[2.0, 3.0], [3.0, 1.0], [0.25, -0.5]]).double()
    C = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]]).double().expand(3, 3, 2)
    d = torch.zeros(3, 3, dtype=torch.float64)
    found = exact_minimum(_absolute_sum(), Box(lower, upper), C, d)
    assert found == [[0, -6, 0], [3, -6, 1], [1, -1, Fraction(3, 4)]]


def _steepest(case: Case) -> torch.Tensor:
    """How fast a row can change, at most, with the largest change of an input: [B,M]."""
    slope = case.C.abs().sum(2)
    for tensor in case.params.values():
        if tensor.dim() == 2:
            slope = slope * tensor.abs().sum(1).max()
    return slope


@given(cases(tiny_networks()))
def test_no_point_is_lower_and_the_next_point_of_a_grid_is_near(case: Case) -> None:
    exact = exact_minimum(case.network, case.box, case.C, case.d)
    least = torch.tensor([[float(v) for v in row] for row in exact], dtype=torch.float64)
    ticks = [torch.linspace(0, 1, 33, dtype=torch.float64)] * case.network.input_shape[0]
    share = torch.cartesian_prod(*ticks).view(1, -1, len(ticks))
    reached = case.rows(case.box.lower[:, None] + 2 * case.box.radius[:, None] * share).amin(1)
    assert bool((least <= reached + 1e-12 * (1 + reached.abs())).all())
    apart = case.box.radius.amax(1, keepdim=True) / 32
    assert bool((reached - least <= _steepest(case) * apart + 1e-9).all())


@pytest.mark.parametrize("name", [n for n in NETWORKS if can_evaluate(NETWORKS[n](0))])
def test_values_at_a_point_are_the_networks(name: str) -> None:
    network = NETWORKS[name](3)
    x = torch.randn(network.input_shape, generator=torch.Generator().manual_seed(4))
    K = network.outputs
    values = exact_rows(network, x, torch.eye(K), torch.zeros(K))
    y = network.double()(x.double().unsqueeze(0))[0]
    torch.testing.assert_close(
        torch.tensor([float(v) for v in values]).double(), y, rtol=1e-6, atol=1e-6
    )


def test_what_is_beyond_it_is_refused() -> None:
    one = torch.zeros(1, 1, 4), torch.zeros(1, 1)
    box = Box(torch.zeros(1, 3), torch.ones(1, 3))
    with pytest.raises(UsageError, match="one or two"):
        exact_minimum(fully_connected(1), box, *one)
    curved = Sketch(1, (2,)).linear(4).apply("tanh").finish()
    with pytest.raises(UsageError, match="'tanh_1'"):
        exact_minimum(curved, Box(torch.zeros(1, 2), torch.ones(1, 2)), *one)


def test_a_mean_of_nine_is_a_ninth() -> None:
    network = Sketch(1, (1, 3, 3)).avg_pool2d(3).flatten().finish()
    ones = torch.arange(9.0).view(1, 3, 3)
    assert exact_rows(network, ones, torch.eye(1), torch.zeros(1)) == [4]
    ones[0, 0, 0] = 1.0
    assert exact_rows(network, ones, torch.eye(1), torch.zeros(1)) == [Fraction(37, 9)]
