"""A network in two parts is the network, wherever it can be parted."""

import pytest
import torch
from attrs import evolve
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


def renamed(network, old, new):
    """The same with another name for a node."""
    operations = [
        evolve(
            op,
            name=new if op.name == old else op.name,
            inputs=tuple(new if source == old else source for source in op.inputs),
        )
        for op in network.operations
    ]
    return Network(operations, network.tensors, network.input_shape)


def test_a_node_that_is_called_auto_is_meant_by_that_name():
    network = Sketch(0, (1, 6, 6)).conv2d(2, 3).relu().flatten().linear(6).relu().linear(3).finish()
    last = network.operations[-1].name
    assert parted(renamed(network, last, "auto"), "auto").tail.operations[0].kind == "reshape"


@pytest.mark.parametrize(
    "name", ["features", "features in shape", "relu_1 as a row", "relu_1 in shape"]
)
def test_names_of_nodes_do_not_matter(name):
    network = Sketch(0, (1, 6, 6)).conv2d(2, 3).relu().flatten().linear(6).relu().linear(3).finish()
    at = network.operations[1].name
    other = renamed(network, network.operations[2].name, name)
    x = torch.rand(5, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for each, place in ((other, at), (renamed(network, at, name), name)):
            parts = parted(each, place)
            assert torch.equal(parts.tail(parts.front(x)), network(x))


def test_parts_compute_in_the_format_of_the_network():
    network = fully_connected(0).double()
    for at in places(network):
        parts = parted(network, at)
        assert parts.front.dtype == parts.tail.dtype == torch.float64


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
