"""Layers that become more than one operation compute what they are called."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from advrepair.core.graph import Network
from advrepair.core.rounding import Rounding
from advrepair.core.tracing import trace
from advrepair.core.types import Box
from advrepair.plugins.verifiers.deeppoly import DeepPoly


def leaky(slope: float, dtype: torch.dtype = torch.float32) -> Network:
    """One leaky ReLU of two inputs, before it a factor so that there are weights."""
    layer = nn.Linear(2, 2, bias=False, dtype=dtype)
    with torch.no_grad():
        layer.weight.copy_(torch.eye(2))
    return trace(nn.Sequential(layer, nn.LeakyReLU(slope)), (2,))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("slope", [0.01, 0.3, 1.5, -0.5])
def test_a_leaky_relu_is_a_sum_that_differs_in_the_last_bits_only(slope, dtype):
    network = leaky(slope, dtype)
    assert [op.kind for op in network.operations] == ["linear", "relu", "scale", "scale", "add"]
    x = torch.cat([torch.randn(500, 2, dtype=dtype), torch.zeros(1, 2, dtype=dtype)])
    want = F.leaky_relu(x.double(), float(torch.tensor(slope, dtype=dtype)))
    off = (network(x).double() - want).abs()
    assert bool((off <= 4 * torch.finfo(dtype).eps * x.double().abs()).all())
    assert bool((network(x)[x <= 0] == F.leaky_relu(x, slope)[x <= 0]).all())  # one product


def test_a_slope_of_0_is_a_relu_and_a_slope_of_1_is_nothing():
    assert [op.kind for op in leaky(0.0).operations] == ["linear", "relu"]
    x = torch.randn(9, 2)
    assert leaky(1.0)(x).equal(x)


@pytest.mark.parametrize("slope", [0.01, 0.25])
@pytest.mark.parametrize(("low", "high"), [(-1.0, 3.0), (-3.0, 1.0), (0.5, 2.0), (-2.0, -0.5)])
def test_its_lines_are_those_of_deeppoly(slope, low, high):
    """Above it the chord, below it the slope of least area: POPL 2019, section 4.4, scaled."""
    network = leaky(slope, torch.float64)
    box = Box(torch.full((1, 2), low).double(), torch.full((1, 2), high).double())
    C = torch.tensor([[[1.0, 0.0], [-1.0, 0.0]]]).double()
    for rounding in (None, Rounding()):
        bound = DeepPoly().prepare(network, rounding)
        found = bound(network.tensors, box, C, torch.zeros(1, 2).double())
        ends = [max(end, slope * end) for end in (low, high)]
        chord = (ends[1] - ends[0]) / (high - low)
        below = chord if low * high >= 0 else 1.0 if high > -low else slope
        shift = ends[1] - chord * high
        want = torch.tensor([[below, 0.0], [-chord, 0.0]], dtype=torch.float64)
        torch.testing.assert_close(found.A[0], want, rtol=0, atol=1e-12)
        want = torch.tensor([0.0, -shift], dtype=torch.float64)
        torch.testing.assert_close(found.b[0], want, rtol=0, atol=1e-12)
