"""Operations are counted from the shapes, and the machine is measured."""

import pytest

from advrepair.core.counting import Count, epoch, forward, machine, proof, rows
from advrepair.core.graph import size
from advrepair.core.patching import patch_template
from advrepair.testing.networks import NETWORKS, fully_connected


def test_a_linear_layer_takes_two_operations_a_weight():
    network = fully_connected(0)
    weights = sum(t.numel() for t in network.tensors.values() if t.dim() == 2)
    small = sum(len(t) for t in network.tensors.values() if t.dim() == 2)
    assert 2 * weights <= forward(network).single <= 2 * weights + 2 * small
    assert forward(network, gradient=True).single == 2 * forward(network).single


def test_a_convolution_takes_two_operations_a_tap_and_output():
    network = NETWORKS["convolutional"](0)
    first = next(op for op in network.operations if op.kind == "conv2d")
    taps = network.tensors[first.tensors["weight"]][0].numel()
    assert forward(network).single > 2 * taps * size(first.shape)


def test_an_affine_patch_has_no_rows_but_those_asked_for():
    template = patch_template(fully_connected(0), ())
    assert rows(template, 4, rigorous=False).single == 4 * forward(template).single
    assert rows(template, 4, rigorous=True).double == 4 * forward(template).single
    assert proof(template, 4).double == 4 * forward(template).single


def test_hidden_layers_cost_more_in_every_step():
    base = fully_connected(0)
    small, large = (patch_template(base, hidden) for hidden in ((4,), (8, 8)))
    for step in (epoch, proof):
        a, b = step(small, 2), step(large, 2)
        assert a.single + a.double < b.single + b.double
        assert a.moved < b.moved


def test_the_limit_is_the_larger_of_the_two():
    known = machine()
    assert min(known.single, known.double, known.bandwidth) > 1e8
    work = Count(single=known.single, moved=3 * known.bandwidth)
    assert work.limits(known) == pytest.approx((1.0, 3.0))
    assert work.limit(known) == pytest.approx(3.0)
    assert (2.0 * work + work).limit(known) == pytest.approx(9.0)
