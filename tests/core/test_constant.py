"""Constant patches: proved at once wherever a finite bound is to be had."""

from typing import ClassVar

import pytest
import torch
from attrs import evolve, frozen
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import Mixed, a_network, a_problem, some_data, some_parts, the_balls

from advrepair.core import bounding
from advrepair.core.attacking import Problem
from advrepair.core.constant import constant_patches, proved_patches
from advrepair.core.patching import PatchBank, RepairedNetwork
from advrepair.core.types import LinearBound
from advrepair.plugins.indicators.untargeted_label import UntargetedLabel
from advrepair.plugins.verifiers.deeppoly import DeepPoly


def margins_of(parts, stack, patches):
    batch = parts.worklist.batch(patches, rigorous=True)
    return parts.bounder.margins(stack, batch).amin(1).view(batch.real.shape).amin(1)


@settings(max_examples=20)
@given(st.integers(0, 2**31), st.floats(0.01, 0.3), st.sampled_from([(), (5,)]))
def test_one_is_proved_for_any_network_and_any_ball(seed, epsilon, hidden):
    network = a_network(seed)
    x = some_data(4, network)[0] + torch.arange(4)[:, None]  # balls that do not meet
    y = network(x).argmax(1)
    properties = the_balls(network, x, (y + 1) % 4, epsilon)
    none = torch.arange(4)
    parts = some_parts(Problem(properties, x, none), network, hidden)
    patches = torch.tensor([0, 2, 3])
    stack, proved = constant_patches(patches, parts.worklist, parts.bounder)
    assert proved.all()
    margin = margins_of(parts, stack, patches)
    assert (margin > 0).all() and (margin < 0.1).all()  # and no larger than it must be


def test_it_raises_the_label_alone():
    parts = some_parts()
    stack, proved = constant_patches(torch.arange(6), parts.worklist, parts.bounder)
    assert proved.all()
    labels = parts.properties.label
    for name, t in stack.items():
        if name.endswith("bias"):
            assert (t.gather(1, labels[:, None]) > 0).all()
            assert not t.scatter(1, labels[:, None], 0.0).any()
        else:
            assert not t.any()


def test_one_patch_serves_all_properties_of_a_label():
    parts = some_parts(indicator=UntargetedLabel())
    patches = torch.arange(len(parts.repaired.bank))
    assert len(patches) < 6
    stack, proved = constant_patches(patches, parts.worklist, parts.bounder)
    assert proved.all() and (margins_of(parts, stack, patches) > 0).all()


def test_where_nothing_lacks_nothing_is_added():
    network = a_network()
    x, y = some_data(30, network)
    sure = network(x).topk(2, dim=1).values.diff(dim=1)[:, 0].argsort()[:3]
    properties = the_balls(network, x[sure], y[sure], 1e-4)
    parts = some_parts(Problem(properties, x[sure], sure), network)
    stack, proved = constant_patches(torch.arange(3), parts.worklist, parts.bounder)
    assert proved.all() and not any(t.any() for t in stack.values())


def test_unlabelled_specifications_are_met_too():
    """One group of three rows, any of which will do: 'output 0 is not the largest'."""
    problem = a_problem()
    properties = problem.properties
    C = torch.tensor([[-1.0, 1, 0, 0], [-1, 0, 1, 0], [-1, 0, 0, 1]]).expand(6, -1, -1)
    none = torch.full((6,), -1)
    d = torch.full((6, 3), -20.0)
    properties = evolve(properties, C=C, d=d, group=torch.zeros(6, 3, dtype=torch.long), label=none)
    parts = some_parts(evolve(problem, properties=properties))
    stack, proved = constant_patches(torch.arange(6), parts.worklist, parts.bounder)
    assert proved.all()
    repaired = parts.repaired
    repaired.bank.put(torch.arange(6), stack)
    for x in (properties.box.lower, properties.box.upper, properties.center):
        assert not properties.violated(repaired(x)).any()


def test_opposite_demands_on_one_patch_are_not_proved():
    network = a_network()
    x, y = some_data(2, network)
    same_place = x[:1].expand(2, -1)
    properties = the_balls(network, same_place, torch.stack([y[0], (y[0] + 1) % 4]), 0.01)

    @frozen
    class Both(Mixed):
        """One patch for everything."""

        def assign(self, properties):
            return type(super().assign(properties))(torch.zeros(2, dtype=torch.long), ("all",))

    parts = some_parts(Problem(properties, same_place, y), network, indicator=Both())
    _, proved = constant_patches(torch.tensor([0]), parts.worklist, parts.bounder)
    assert proved.tolist() == [False]


@frozen
class Ignorant(DeepPoly):
    """Says nothing about boxes whose first coordinate starts above a half."""

    name: ClassVar[str] = "ignorant"
    worth: ClassVar[float] = -torch.inf

    def prepare(self, network, rounding=None):
        inner = super().prepare(network, rounding)

        def bound(params, box, C, d):
            known = inner(params, box, C, d)
            lost = box.lower.flatten(1)[:, :1] > 0.5
            return LinearBound(known.A, torch.where(lost, self.worth, known.b), known.magnitude)

        return bound


@pytest.mark.parametrize("worth", [-torch.inf, torch.nan])
def test_without_a_finite_bound_nothing_is_proved(worth, monkeypatch):
    monkeypatch.setattr(Ignorant, "worth", worth)
    parts = some_parts(certifier=Ignorant(), verifier=Ignorant())
    lost = parts.properties.box.lower[:, 0] > 0.5
    assert lost.any() and not lost.all()
    _, proved = constant_patches(torch.arange(6), parts.worklist, parts.bounder)
    assert torch.equal(proved, ~lost)


def test_the_baseline_is_a_repair_of_everything():
    parts = some_parts(hidden=(5,))
    stack, proved = constant_patches(torch.arange(6), parts.worklist, parts.bounder)
    bank = PatchBank(parts.bounder.template, stack)
    assert proved.all()
    old = parts.repaired
    trivial = RepairedNetwork(
        old.base, bank, old.regions, old.assignment, old.centres, old.allocator
    )
    properties = parts.properties
    assert properties.violated(old(parts.problem.x_adv)).all()
    assert not properties.violated(trivial(parts.problem.x_adv)).any()


def test_the_baseline_does_not_depend_on_memory(monkeypatch):
    parts = some_parts()
    whole, _ = constant_patches(torch.arange(6), parts.worklist, parts.bounder)
    monkeypatch.setattr(bounding, "_CACHE_BYTES", 1)
    apart, _ = constant_patches(torch.arange(6), parts.worklist, parts.bounder)
    assert all(torch.equal(t, apart[name]) for name, t in whole.items())


def test_every_piece_of_a_patch_must_be_proved():
    margin = torch.tensor([[1.0, 2], [0.5, -1], [1, 1], [torch.nan, 1], [1, 1], [0, 1]])
    group = torch.arange(2).expand(6, 2)
    real = torch.tensor([[True, True], [True, True], [True, True]])
    assert proved_patches(margin, group, real).tolist() == [False, False, False]
    real[:, 1] = False  # padding
    assert proved_patches(margin, group, real).tolist() == [True, True, True]
    assert proved_patches(margin, torch.zeros_like(group), real | True).tolist() == [
        True,
        False,
        True,
    ]
