"""The final statement: what counts as proved, and what happens when a proof is wrong."""

from contextlib import nullcontext
from typing import ClassVar

import pytest
import torch
from attrs import frozen
from hypothesis import given
from hypothesis import strategies as st
from problems import a_network, a_problem, some_data, some_parts, the_balls, untold

from advrepair.core.attacking import Problem
from advrepair.core.box import Box
from advrepair.core.constant import constant_patches as constants
from advrepair.core.errors import SoundnessError
from advrepair.core.layout import Layout, SplitTree, routed
from advrepair.core.solving import are_constant
from advrepair.core.types import LinearBound, PropertySet, Regions, SplitPlan, Status
from advrepair.plugins.attacks.pgd import Pgd
from advrepair.plugins.verifiers.deeppoly import DeepPoly


def state(parts, attack=None, told=None):
    stage = untold if told is None else lambda name, total: nullcontext(told.append)
    return parts.certificate(attack, stage=stage)


def mend(parts, *which):
    """Constant patches for some properties."""
    stack, proved = constants(torch.arange(len(parts.properties)), parts.worklist, parts.bounder)
    index = torch.tensor(which)
    assert proved[index].all()
    parts.repaired.bank.put(index, {name: t[index] for name, t in stack.items()})


def test_every_status():
    network = a_network()
    problem = a_problem(network, count=3)
    x, y = some_data(30, network)
    every = the_balls(network, x, y, 0.08)
    safe = ~every.violated(network(Pgd().perturb(network, every, x, torch.Generator())))
    parts = some_parts(Problem(every, x, torch.arange(30)), network)
    statuses = state(parts, Pgd()).status
    unknown = [i for i in range(30) if safe[i] and statuses[i] is Status.UNKNOWN]
    assert unknown and {Status.CERTIFIED, Status.FALSIFIED} <= set(statuses)
    assert all(s is not Status.CERTIFIED for s, ok in zip(statuses, safe, strict=True) if not ok)
    parts = some_parts(problem, network)
    mend(parts, 1)
    told = []
    found = state(parts, Pgd(), told)
    assert found.status == (Status.FALSIFIED, Status.CERTIFIED, Status.FALSIFIED)
    assert (found.count(Status.CERTIFIED), found.count(Status.UNKNOWN)) == (1, 0)
    assert found.constant.tolist() == [False, True, False] and sum(told) == 3
    assert ((found.margin > 0) == torch.tensor([False, True, False])).all()
    assert (found.level, found.certifier.name) == ("deployed-float32", "deeppoly")


def test_without_an_attack_nothing_is_falsified():
    parts = some_parts()
    mend(parts, 0)
    found = state(parts)
    assert found.status == (Status.CERTIFIED, *[Status.UNKNOWN] * 5)


def overlapping(*shifts):
    """The same input several times, moved a little: balls of one label that overlap."""
    network, one = a_network(), a_problem(count=1)
    x = torch.cat([one.properties.center + shift for shift in shifts])
    asked = the_balls(network, x, one.properties.label.expand(len(x)))
    return some_parts(Problem(asked, asked.box.clamp(x), torch.arange(len(x))), network)


def test_where_an_unproved_patch_comes_first_nothing_is_certified():
    """A point of both boxes meets the patch of the first, about which nothing is proved."""
    parts = overlapping(0.0, 0.05)
    mend(parts, 1)
    bias = parts.repaired.bank.stack["linear0.bias"][0].clone()
    bias[(int(parts.properties.label[0]) + 1) % 4] = 100.0  # the first patch is hostile
    hostile = {n: torch.zeros_like(t[:1]) for n, t in parts.repaired.bank.stack.items()}
    parts.repaired.bank.put(torch.tensor([0]), hostile | {"linear0.bias": bias[None]})
    point = parts.properties.center[1:]
    assert bool(parts.properties.box[:1].holds(point)) and bool(
        parts.properties[torch.tensor([1])].violated(parts.repaired(point))
    )
    found = state(parts)
    assert bool(found.margin[1] > 0)  # of its own patch
    assert found.status == (Status.UNKNOWN, Status.UNKNOWN)
    mend(parts, 0)
    assert state(parts).status == (Status.CERTIFIED, Status.CERTIFIED)


def test_an_unproved_patch_that_comes_later_or_elsewhere_does_no_harm():
    parts = overlapping(0.0, 0.05, 0.5)
    mend(parts, 0, 2)
    assert state(parts).status == (Status.CERTIFIED, Status.UNKNOWN, Status.CERTIFIED)


def first_boxes(proved, box, patch):
    """What holds where every box is a region, and all demand the same."""
    every, count = torch.arange(len(patch)), len(patch)
    one, none = torch.ones(count, 1), torch.full((count,), -1)
    properties = PropertySet(
        box, one[:, None], 0 * one, 0 * one.long(), none, none, box.center, ("p",) * count
    )
    layout = Layout(Regions(box, patch), every, torch.zeros(0, 2, dtype=torch.long))
    return routed(proved, layout, properties, SplitTree.roots(count))


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 2), st.booleans()), max_size=8))
def test_the_first_box_decides_what_holds(boxes):
    """On a line of unit steps, point by point: the first box that holds it must be proved,
    or be served by the patch of a box that is."""
    lower = torch.tensor([[float(low)] for low, _, _ in boxes]).view(-1, 1)
    patch = torch.tensor([which for _, which, _ in boxes], dtype=torch.long)
    proved = torch.tensor([good for _, _, good in boxes], dtype=torch.bool)
    found = first_boxes(proved, Box(lower, lower + 1), patch)
    for i, (low, which, good) in enumerate(boxes):
        expected = good
        for point in (low, low + 0.5, low + 1):
            first = next(j for j, (other, _, _) in enumerate(boxes) if other <= point <= other + 1)
            expected &= boxes[first][1] == which or boxes[first][2]
        assert not (bool(found[i]) and not expected)


def test_a_property_is_as_good_as_its_worst_piece():
    parts = some_parts()
    mend(parts, *range(6))
    parts.worklist.split(SplitPlan(torch.tensor([2, 4]), torch.tensor([0, 1])), parts.bounder)
    parts.worklist.split(SplitPlan(torch.tensor([4]), torch.tensor([3])), parts.bounder)
    found = state(parts)
    assert len(found.proof.margin) == 9
    for i in range(6):
        own = found.proof.margin[found.proof.owner == i]
        assert found.margin[i] == own.min()
    assert found.status == (Status.CERTIFIED,) * 6


def test_margins_of_pieces_are_those_of_their_patches():
    parts = some_parts(hidden=(4,))
    parts.worklist.split(SplitPlan(torch.tensor([3]), torch.tensor([0])), parts.bounder)
    margin = parts.margins()
    for piece in range(7):
        patch = parts.worklist.patch[piece][None]
        batch = parts.worklist.batch(patch, rigorous=True)
        stack = {name: t[patch] for name, t in parts.repaired.bank.stack.items()}
        slot = parts.worklist.pieces_of(patch)[0].tolist().index(piece)
        expected = parts.bounder.margins(stack, batch)[slot].min()
        assert torch.isclose(margin[piece], expected, rtol=0, atol=1e-12)


@frozen
class Liar(DeepPoly):
    """Above the function by its worth."""

    name: ClassVar[str] = "liar"
    worth: ClassVar[float] = 1000.0

    def prepare(self, network, rounding=None):
        inner = super().prepare(network, rounding)

        def bound(params, box, C, d):
            known = inner(params, box, C, d)
            return LinearBound(known.A, known.b + self.worth, known.magnitude)

        return bound


def test_a_wrong_proof_is_a_soundness_error_that_names_the_property():
    parts = some_parts(certifier=Liar())
    mend(parts, 0)
    first = parts.properties.names[0]
    with pytest.raises(SoundnessError, match=r"is certified with margin .* falsifies it") as error:
        state(parts, Pgd())
    assert str(error.value).startswith(first)


def test_without_an_attack_a_wrong_proof_is_not_noticed():
    assert state(some_parts(certifier=Liar())).count(Status.CERTIFIED) == 6


def test_nan_proves_nothing(monkeypatch):
    monkeypatch.setattr(Liar, "worth", torch.nan)
    found = state(some_parts(certifier=Liar()), Pgd())
    assert found.count(Status.CERTIFIED) == 0 and (found.margin == -torch.inf).all()


def test_a_patch_that_adds_nothing_is_not_called_constant():
    parts = some_parts(hidden=(4,))
    assert are_constant(parts.bank).tolist() == [False] * 6
    mend(parts, 2, 3)
    assert are_constant(parts.bank).nonzero()[:, 0].tolist() == [2, 3]


def with_constant(parts, value):
    """The same numbers added by every patch, value: [K]."""
    zeros = {n: torch.zeros_like(t) for n, t in parts.repaired.bank.stack.items()}
    zeros["linear0.bias"] = value.expand(6, 4).clone()
    parts.repaired.bank.put(torch.arange(6), zeros)
    return parts


def test_a_constant_that_swallows_the_logits_is_certified_for_real_numbers_only():
    """1e8 on every output: as real numbers nothing changes, in float32 all outputs tie."""
    network = a_network()
    x, y = some_data(30, network)
    every = the_balls(network, x, y, 1e-3)
    level = {}
    for name in ("real", "deployed-float32"):
        safe = some_parts(Problem(every, x, torch.arange(30)), network, level=name)
        assert (safe.proof().margin > 0).sum() > 20
        problem = Problem(every[torch.arange(6)], x[:6], torch.arange(6))
        parts = with_constant(some_parts(problem, network, level=name), torch.full((4,), 1e8))
        level[name] = state(parts)
        assert problem.properties.violated(parts.repaired(x[:6])).all()
    assert level["real"].count(Status.CERTIFIED) > 3
    assert level["deployed-float32"].count(Status.CERTIFIED) == 0


@pytest.mark.parametrize("size", [1e3, 1e6, 1e9])
def test_a_large_constant_keeps_its_promise(size):
    parts = some_parts(hidden=())
    for index in range(6):
        bias = torch.zeros(1, 4)
        bias[0, parts.properties.label[index]] = size
        zeros = {n: torch.zeros_like(t[:1]) for n, t in parts.repaired.bank.stack.items()}
        parts.repaired.bank.put(torch.tensor([index]), zeros | {"linear0.bias": bias})
    found = state(parts, Pgd())
    assert found.count(Status.CERTIFIED) == 6
    noise = torch.Generator().manual_seed(0)
    for _ in range(50):
        box = parts.properties.box
        x = box.clamp(box.lower + torch.rand(box.lower.shape, generator=noise) * 2 * box.radius)
        assert (parts.properties.margin(parts.repaired(x)) >= found.margin).all()
