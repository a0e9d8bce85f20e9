"""A network in two parts is the network, wherever it can be parted."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from advrepair.core.errors import UsageError
from advrepair.core.graph import INPUT, Network
from advrepair.core.parting import parted, places
from advrepair.testing.networks import Sketch, convolutional, fully_connected, residual

KINDS = (convolutional, fully_connected, residual)


def reads_past(network: Network, name: str) -> bool:
    """Whether something behind an operation reads what came before it, written down again."""
    names = [op.name for op in network.operations]
    behind = network.operations[names.index(name) + 1 :]
    before = {INPUT, *names[: names.index(name)]}
    return any(source in before for op in behind for source in op.inputs)


@settings(max_examples=30)
@given(kind=st.sampled_from(KINDS), seed=st.integers(0, 50))
def test_the_parts_make_up_the_network_to_the_last_bit(kind, seed):
    network = kind(seed)
    x = torch.randn(7, *network.input_shape, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        expected = network(x)
        for at in places(network):
            parts = parted(network, at)
            assert len(parts.tail.input_shape) == 1
            assert parts.front.outputs == parts.tail.input_shape[0]
            assert torch.equal(parts.tail(parts.front(x)), expected), at


@pytest.mark.parametrize("kind", KINDS)
def test_places_are_those_that_nothing_reads_past(kind):
    network = kind(3)
    names = [op.name for op in network.operations]
    assert places(network) == [name for name in names if not reads_past(network, name)]


def test_auto_is_the_last_place_before_the_fully_connected_layers():
    network = Sketch(0, (1, 6, 6)).conv2d(2, 3).relu().flatten().linear(6).relu().linear(3).finish()
    assert parted(network, "auto").at == "reshape_2"
    image = Sketch(0, (1, 6, 6)).conv2d(2, 3).relu().conv2d(3, 4).relu().flatten().linear(3)
    assert [op.kind for op in parted(image.finish(), "auto").tail.operations] == ["linear"]


@pytest.mark.parametrize(
    ("network", "at", "text"),
    [
        (fully_connected(0), "auto", "has no layers before its fully connected ones"),
        (fully_connected(0), "nowhere", "choose one of linear_0, relu_1"),
        (residual(0), "linear_0", "cannot be parted there"),
    ],
)
def test_what_is_no_place_is_refused(network, at, text):
    with pytest.raises(UsageError, match=text):
        parted(network, at)
