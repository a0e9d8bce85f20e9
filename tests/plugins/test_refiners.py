"""Where to split, and above all where not to."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from advrepair.core.interfaces import Refiner
from advrepair.core.types import Box
from advrepair.plugins.refiners import advrepair_components
from advrepair.plugins.refiners.gradient_width import GradientWidth
from advrepair.plugins.refiners.none import NoRefiner
from advrepair.plugins.refiners.widest import Widest

CUTTING = [GradientWidth(), Widest()]


@st.composite
def pieces(draw: st.DrawFn) -> tuple[Box, Tensor, Tensor]:
    """Boxes with zero-width and one-float-wide dimensions, margins and slopes with zeros."""
    count, size = draw(st.integers(0, 6)), draw(st.integers(1, 5))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    lower = torch.randn(count, 1, size, generator=generator)
    wide = lower + torch.rand(count, 1, size, generator=generator)
    kind = torch.randint(4, (count, 1, size), generator=generator)
    upper = torch.where(kind == 0, lower, wide)
    upper = torch.where(kind == 1, torch.nextafter(lower, wide + 1), upper)
    values = st.sampled_from([-math.inf, -2.0, -1.0, -0.0, 0.0, 1.0, math.nan])
    margin = torch.tensor(draw(st.lists(values, min_size=count, max_size=count)))
    slope = torch.randn(count, 1, size, generator=generator)
    slope[torch.rand(count, 1, size, generator=generator) < 0.5] = 0.0
    return Box(lower, upper), margin, slope


@settings(deadline=None)
@given(pieces(), st.integers(0, 7), st.sampled_from(CUTTING))
def test_a_plan_is_within_the_budget_and_every_cut_gets_on(
    given_pieces: tuple[Box, Tensor, Tensor], budget: int, refiner: Refiner
) -> None:
    box, margin, slope = given_pieces
    plan = refiner.choose(box, margin, slope, budget)
    assert len(plan.piece) == len(plan.dim) == len(set(plan.piece.tolist())) <= budget
    assert not (margin[plan.piece] > 0).any()
    parents = box[plan.piece]
    for half in parents.split(plan.dim):
        narrower = (half.upper - half.lower) < (parents.upper - parents.lower)
        assert narrower.flatten(1).any(1).all()


@settings(deadline=None)
@given(pieces(), st.integers(1, 7), st.sampled_from(CUTTING))
def test_nobody_left_out_is_worse_than_a_chosen_piece(
    given_pieces: tuple[Box, Tensor, Tensor], budget: int, refiner: Refiner
) -> None:
    box, margin, slope = given_pieces
    chosen = refiner.choose(box, margin, slope, budget).piece.tolist()
    everyone = refiner.choose(box, margin, slope, len(box)).piece.tolist()
    assert chosen == everyone[:budget]
    ranks = [-math.inf if math.isnan(m) else m for m in margin.tolist()]
    assert [(ranks[i], i) for i in everyone] == sorted((ranks[i], i) for i in everyone)


@settings(deadline=None)
@given(pieces(), st.integers(0, 2**31))
def test_a_negative_gradient_counts_like_a_positive_one(
    given_pieces: tuple[Box, Tensor, Tensor], seed: int
) -> None:
    box, margin, slope = given_pieces
    generator = torch.Generator().manual_seed(seed)
    sign = torch.where(torch.rand(slope.shape, generator=generator) < 0.5, -1.0, 1.0)
    plan = GradientWidth().choose(box, margin, slope, 3)
    flipped = GradientWidth().choose(box, margin, slope * sign, 3)
    assert plan.piece.tolist() == flipped.piece.tolist()
    assert plan.dim.tolist() == flipped.dim.tolist()


def one_piece(width: list[float]) -> Box:
    return Box(torch.zeros(1, len(width)), torch.tensor([width]))


@pytest.mark.parametrize(
    ("width", "slope", "dim"),
    [
        ([1.0, 2.0], [-3.0, 1.0], 0),  # 3 against 2, although the slope is negative
        ([1.0, 2.0], [1.0, 1.0], 1),
        ([0.0, 2.0], [9.0, 1.0], 1),
        ([1.0, 2.0, 2.0], [0.0, 0.0, 0.0], 1),  # flat: the widest, the first of equal ones
        ([0.0, 1.0, 2.0], [5.0, 0.0, 0.0], 2),  # flat wherever it can be cut
        ([1.0, 2.0], [math.nan, 0.1], 1),
        ([1.0, 2.0], [math.inf, 0.1], 0),
    ],
)
def test_gradient_width_cuts_where_slope_times_width_is_largest(
    width: list[float], slope: list[float], dim: int
) -> None:
    margin = torch.tensor([-1.0])
    plan = GradientWidth().choose(one_piece(width), margin, torch.tensor([slope]), 1)
    assert plan.dim.tolist() == [dim]


def test_widest_does_not_look_at_the_slope() -> None:
    slope = torch.tensor([[100.0, 0.0, 1.0]])
    plan = Widest().choose(one_piece([1.0, 3.0, 2.0]), torch.tensor([0.0]), slope, 5)
    assert (plan.piece.tolist(), plan.dim.tolist()) == ([0], [1])


@pytest.mark.parametrize("refiner", CUTTING)
def test_a_point_is_never_cut(refiner: Refiner) -> None:
    plan = refiner.choose(one_piece([0.0, 0.0]), torch.tensor([-1.0]), torch.ones(1, 2), 5)
    assert len(plan.piece) == 0


def test_none_never_splits() -> None:
    plan = NoRefiner().choose(one_piece([1.0]), torch.tensor([-1.0]), torch.ones(1, 1), 5)
    assert len(plan.piece) == len(plan.dim) == 0


def test_the_hook_brings_all_three() -> None:
    names = {component.name for component in advrepair_components()}
    assert names == {"gradient-width", "widest", "none"}
