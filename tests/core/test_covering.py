"""The cover: who is asked, who gets a patch, and what is claimed without one."""

import pytest
import torch
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st
from problems import a_problem, some_parts

from advrepair.core.bounding import Bounder
from advrepair.core.covering import cover, modest, own_margin
from advrepair.core.layout import Pieces, SplitTree
from advrepair.core.types import worst_margin
from advrepair.plugins.indicators.property_guided import PropertyGuided


def a_problem_with(broken, epsilon=0.02):
    """Six properties of which some hold a counterexample."""
    parts = some_parts(a_problem(epsilon=epsilon))
    which = torch.tensor(broken, dtype=torch.long)
    return parts, evolve(parts.problem, x_adv=parts.properties.center[which], owner=which)


def margins(parts, box, owner):
    asked = parts.properties
    rows = parts.bounder.base(box, asked.C[owner], asked.d[owner], rigorous=True)
    return worst_margin(rows.minimum_rigorous(box), asked.group[owner])


@pytest.mark.parametrize("undecided", [False, True])
@pytest.mark.parametrize("broken", [[], [0, 3], [0, 1, 2, 3, 4, 5]])
def test_what_is_broken_is_not_bounded_and_has_a_patch(broken, undecided, monkeypatch):
    parts, problem = a_problem_with(broken)
    asked, base = [], Bounder.base

    def spy(self, box, C, d, rigorous):
        asked.extend(box.lower.tolist())
        return base(self, box, C, d, rigorous)

    with monkeypatch.context() as patch:
        patch.setattr(Bounder, "base", spy)
        ground = cover(problem, parts.bounder, PropertyGuided(), undecided)
    whole = [i for i in range(6) if i not in broken]
    assert sorted(asked) == sorted(parts.properties.box.lower[whole].tolist())
    true = margins(parts, parts.properties.box, torch.arange(6))
    for i in range(6):
        if i in broken:
            assert ground.patch[i] >= 0 and ground.own[i] == ground.margin[i] == -torch.inf
            assert not ground.slope[i].any()
            continue
        assert torch.isclose(ground.own[i], true[i], rtol=1e-9, atol=1e-12)
        proved = bool(true[i] > 0)
        assert (ground.patch[i] >= 0) == (undecided and not proved)
        assert ground.margin[i] == (ground.own[i] if ground.patch[i] < 0 else -torch.inf)


def test_pieces_of_a_broken_box_are_bounded_each():
    """A counterexample lies in one piece of a box that was cut; the others may hold without."""
    parts, problem = a_problem_with([1])
    tree = SplitTree.roots(6)
    halves = parts.properties.box[[1]].split(torch.tensor([2]))
    tree.bisect(1, 2, float(halves[0].upper[0, 2]))
    keep = torch.tensor([0, 2, 3, 4, 5])
    whole = parts.properties.box[keep]
    box = type(whole)(
        torch.cat([whole.lower, halves[0].lower, halves[1].lower]),
        torch.cat([whole.upper, halves[0].upper, halves[1].upper]),
    )
    owner = torch.tensor([0, 2, 3, 4, 5, 1, 1])
    pieces = Pieces(tree, box, owner, torch.tensor([0, 2, 3, 4, 5, 6, 7]), torch.arange(7))
    ground = cover(evolve(problem, pieces=pieces), parts.bounder, PropertyGuided(), False)
    assert torch.allclose(ground.own, margins(parts, box, owner), rtol=1e-9, atol=1e-12)
    assert len(problem.properties) == 6 and tree.owner == [0, 1, 2, 3, 4, 5, 1, 1]
    served = ground.patch[5:] >= 0
    assert torch.equal(served, ~(ground.own[5:] > 0))


@given(st.floats(max_value=1e300), st.floats(0, 1e300))
def test_what_is_claimed_is_no_more_than_what_is_proved(margin, spare):
    both = torch.tensor([[margin], [spare]], dtype=torch.float64)
    least = float(modest(*both))
    assert margin / 2 <= least <= margin if margin > 0 else least == margin


def test_own_margins_are_those_without_any_patch():
    parts, problem = a_problem_with([0, 2, 5])
    ground = cover(problem, parts.bounder, PropertyGuided(), False)
    shards = ground.shards(parts.bounder.template)
    true = margins(parts, parts.properties.box, torch.arange(6))
    outcomes = [evolve(parts.outcome(), own=true[ground.owner[p]]) for p in shards.pieces]
    assert torch.allclose(own_margin(ground, shards, outcomes), true, rtol=1e-9, atol=1e-12)
