"""Screening: pieces cover the boxes, and what is called proved is."""

from fractions import Fraction

import pytest
import torch
from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st

from advrepair.core.attacking import Problem
from advrepair.core.bounding import Bounder
from advrepair.core.covering import cover
from advrepair.core.patching import patch_template
from advrepair.core.preserving import Decisions
from advrepair.core.properties import demands
from advrepair.core.refinement import Worklist
from advrepair.core.rounding import Rounding
from advrepair.core.screening import Screen
from advrepair.core.sections import Screening
from advrepair.core.types import worst_margin
from advrepair.plugins.indicators.property_guided import PropertyGuided
from advrepair.plugins.refiners.gradient_width import GradientWidth
from advrepair.plugins.verifiers.deeppoly import DeepPoly
from advrepair.plugins.verifiers.zonotope import Zonotope
from advrepair.testing.networks import fully_connected

INPUTS, OUTPUTS = 2, 3


def a_problem(seed, count=2, groups=2):
    """Boxes in [-1, 1], on which most points of a network meet the demand."""
    network, noise = fully_connected(seed, (INPUTS, 8, 8, OUTPUTS)), torch.Generator()
    noise.manual_seed(seed)
    faces = (2 * torch.rand(2, count, INPUTS, generator=noise) - 1).sort(0).values
    C = torch.randn(count, 3, OUTPUTS, generator=noise)
    inside = faces[0] + torch.rand(500, count, INPUTS, generator=noise) * (faces[1] - faces[0])
    with torch.no_grad():
        rows = torch.einsum("pmk,npk->npm", C, network(inside.flatten(0, 1)).view(500, count, -1))
    d = -torch.quantile(rows, 0.05, 0)
    group = torch.tensor([0, 1, -1] if groups == 2 else [0, 0, 1]).expand(count, 3)
    return network, demands(faces[0], faces[1], C, d, group.contiguous())


def a_screen(network, asked, certifier, pieces=40, split=6):
    bounder = Bounder(
        network, patch_template(network, []), DeepPoly(), certifier, Rounding("real"), 2**30
    )
    x = asked.center
    with torch.no_grad():
        known = Decisions(network(x), lambda outputs: outputs.argmax(1))
    budget = Screening(pieces=pieces, split=split)
    return Screen(asked, bounder, GradientWidth(), budget, (x, known), lambda more: None)


cases = given(
    st.integers(0, 10**6), st.sampled_from([DeepPoly(), Zonotope()]), st.sampled_from([1, 2])
)


def boxes_of(tree, box):
    """Faces of the leaves, from the boxes and the cuts alone: {node: (lower, upper)}."""
    found = {i: (box.lower[i].clone(), box.upper[i].clone()) for i in range(len(box))}
    for node, below in enumerate(tree.children()):
        if below:
            (lower, upper), dim, cut = found.pop(node), tree.dim[node], tree.cut[node]
            first, second = upper.clone(), lower.clone()
            first[dim] = second[dim] = cut
            found[below[0]], found[below[1]] = (lower, first), (second, upper)
    return found


def volume(lower, upper):
    """Exact."""
    result = Fraction(1)
    for low, high in zip(lower.tolist(), upper.tolist(), strict=True):
        result *= Fraction(high) - Fraction(low)
    return result


@cases
@settings(max_examples=25, deadline=None)
def test_pieces_are_the_leaves_and_cover_the_boxes(seed, certifier, groups):
    network, asked = a_problem(seed, groups=groups)
    pieces = a_screen(network, asked, certifier).run(torch.arange(len(asked)))
    leaves = boxes_of(pieces.tree, asked.box)
    assert sorted(leaves) == sorted(pieces.node.tolist())
    total = [Fraction(0)] * len(asked)
    for row, node in enumerate(pieces.node.tolist()):
        assert torch.equal(leaves[node][0], pieces.box.lower[row])
        assert torch.equal(leaves[node][1], pieces.box.upper[row])
        assert pieces.tree.owner[node] == int(pieces.owner[row])
        total[int(pieces.owner[row])] += volume(*leaves[node])
    assert total == [volume(*faces) for faces in zip(asked.box.lower, asked.box.upper, strict=True)]


@cases
@settings(max_examples=25, deadline=None)
def test_rows_are_those_of_the_certifier_and_what_is_not_open_holds(seed, certifier, groups):
    network, asked = a_problem(seed, groups=groups)
    screen = a_screen(network, asked, certifier)
    pieces = screen.run(torch.arange(len(asked)))
    own = asked[pieces.owner]
    exact = screen.bounder.base(pieces.box, own.C, own.d, rigorous=True)
    torch.testing.assert_close(pieces.proof.A, exact.A, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(pieces.proof.b, exact.b, rtol=1e-9, atol=1e-12)
    assert pieces.proof.magnitude is not None and pieces.proof.influence is None
    margin = worst_margin(pieces.proof.minimum_rigorous(pieces.box), own.group)
    open_ = torch.zeros(len(pieces.owner), dtype=torch.bool)
    open_[pieces.open] = True
    assert torch.equal(open_, ~(margin > 0))
    noise = torch.Generator().manual_seed(seed)
    for _ in range(20):
        share = torch.rand(pieces.box.lower.shape, generator=noise)
        x = pieces.box.lower + share * (pieces.box.upper - pieces.box.lower)
        with torch.no_grad():
            y = network.double()(pieces.box.clamp(x).double())
        assert not bool(own.violated(y)[~open_].any())
        network.float()


@cases
@settings(max_examples=10, deadline=None)
def test_what_was_cut_goes_on_into_the_worklist(seed, certifier, groups):
    """A repair begins where the screening ended, with the same margins."""
    network, asked = a_problem(seed, groups=groups)
    screen = a_screen(network, asked, certifier)
    pieces = screen.run(torch.arange(len(asked)))
    problem = Problem(asked, asked.center, torch.full((len(asked),), -1))
    indicator, of = PropertyGuided(), screen.bounder
    kept = cover(evolve(problem, pieces=pieces), of, indicator, False)
    again = cover(evolve(problem, pieces=evolve(pieces, proof=None)), of, indicator, False)
    whole = torch.tensor(pieces.tree.parent)[pieces.node] < 0
    mine = ~whole.new_zeros(len(kept.owner)).index_fill(0, whole.nonzero()[:, 0], True)
    mine &= ~kept.shared  # those are asked about with their shards
    torch.testing.assert_close(kept.own[mine], again.own[mine], rtol=1e-9, atol=1e-9)
    assert kept.slope.shape == again.slope.shape == (len(kept.tree.owner), network.units)
    assert torch.equal(kept.slope[pieces.node[~whole]], again.slope[pieces.node[~whole]])
    apart = kept.shards(of.template)
    for place, shard in enumerate(apart):
        worklist = Worklist.start(shard, of)
        fresh = Worklist.start(evolve(shard, proof=None), of)
        own = worklist.own_margin()
        torch.testing.assert_close(own, fresh.own_margin(), rtol=1e-9, atol=1e-9)
        known = ~kept.shared[apart.pieces[place]]
        assert torch.equal(own[known], kept.own[apart.pieces[place]][known])
        assert torch.equal(worklist.slope, fresh.slope)


@pytest.mark.parametrize("pieces", [1, 2, 3, 17])
def test_so_many_pieces_at_most(pieces):
    network, asked = a_problem(3, count=2)
    found = a_screen(network, asked, Zonotope(), pieces=pieces).run(torch.arange(2))
    assert len(found.owner) <= max(pieces, 2)
    assert pieces < 3 or len(found.owner) > 2


def test_cutting_proves_more():
    network, asked = a_problem(3)
    open_ = [
        len(a_screen(network, asked, DeepPoly(), pieces=n).run(torch.arange(2)).open)
        / len(a_screen(network, asked, DeepPoly(), pieces=n).run(torch.arange(2)).owner)
        for n in (2, 40, 400)
    ]
    assert open_[2] < open_[0]


def test_a_property_that_holds_at_once_is_not_cut():
    network, asked = a_problem(4)
    easy = evolve(asked, d=asked.d + 1e4)
    found = a_screen(network, easy, DeepPoly()).run(torch.arange(2))
    assert found.tree.parent == [-1, -1] and len(found.open) == 0


def test_without_anything_to_screen_every_box_is_one_open_piece():
    network, asked = a_problem(5)
    found = a_screen(network, asked, DeepPoly()).run(torch.arange(0))
    assert found.open.tolist() == found.owner.tolist() == [0, 1]
    assert found.proof is None


def test_only_some_properties():
    """The others keep their boxes in one piece."""
    network, asked = a_problem(3)
    found = a_screen(network, asked, DeepPoly()).run(torch.tensor([1]))
    assert int((found.owner == 0).sum()) == 1
    assert int((found.owner == 1).sum()) > 1
    assert sorted(boxes_of(found.tree, asked.box)) == sorted(found.node.tolist())
