"""What separates a repair from a lookup table, on patches of which the answer is known."""

import pytest
import torch
from problems import a_network, some_data, some_parts

from advrepair.core.lookup import insight
from advrepair.core.patching import constant_stack


def of(parts, images=None, labels=None):
    return insight(
        parts.repaired, parts.properties, images, labels, torch.Generator().manual_seed(0)
    )


def test_no_patch_at_all():
    parts = some_parts()
    found = of(parts, *some_data(60))
    assert found["input_dependence"] == found["intrusion"] == found["intrusion_most"] == 0
    assert 0 < found["forced_noise"] < 0.9 and found["forced_images"] < 0.1
    assert (found["parameters"], found["bytes"]) == (7 * 4, 7 * 4 * 4)


def test_a_huge_constant_sends_everything_to_its_label():
    parts = some_parts()
    value = 1e4 * torch.nn.functional.one_hot(parts.properties.label, 4)
    parts.repaired.bank.put(torch.arange(6), constant_stack(parts.repaired.bank.template, value))
    found = of(parts, *some_data(60))
    assert found["input_dependence"] == pytest.approx(0, abs=1e-10)
    assert found["forced_images"] == found["forced_noise"] == 1
    assert found["intrusion"] > 1e3


def test_a_patch_that_is_all_input_depends_on_it():
    parts = some_parts()
    stack = {n: torch.zeros_like(t) for n, t in parts.repaired.bank.stack.items()}
    centre = parts.properties.box.center
    stack["linear0.weight"][:, 0] = 1.0
    stack["linear0.bias"][:, 0] = -centre.sum(1)  # zero in the middle of the box
    parts.repaired.bank.put(torch.arange(6), stack)
    assert of(parts)["input_dependence"] > 0.8


def test_what_cannot_be_measured_is_null():
    parts = some_parts()
    assert of(parts)["forced_images"] is None
    x, _ = some_data(20)
    same = torch.full((20,), int(parts.properties.label[0]))
    found = of(parts, x[:1], same[:1])
    labels = parts.properties.label
    assert (found["forced_images"] is None) == bool((labels == labels[0]).all())


def test_the_same_generator_gives_the_same_figures():
    parts = some_parts(network=a_network())
    assert of(parts, *some_data(60)) == of(parts, *some_data(60))
