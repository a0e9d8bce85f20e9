"""Boxes, bounds and properties against what their words mean, computed the slow way."""

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor

from advrepair.core.errors import UsageError
from advrepair.core.types import (
    Box,
    LinearBound,
    PropertySet,
    group_margin,
    worst_margin,
)

seeds = st.integers(0, 2**31 - 1)
coarse = st.sampled_from([-2.0, -1.0, -0.0, 0.0, 1.0, 2.0])  # faces touch often


@st.composite
def boxes(draw: st.DrawFn, size: int, least: int, most: int = 6) -> Box:
    count = draw(st.integers(least, most))
    ends = draw(st.lists(st.tuples(coarse, coarse), min_size=count * size, max_size=count * size))
    lower = torch.tensor([min(pair) for pair in ends]).view(count, size)
    upper = torch.tensor([max(pair) for pair in ends]).view(count, size)
    return Box(lower, upper)


@st.composite
def two(draw: st.DrawFn) -> tuple[Box, Box]:
    size = draw(st.integers(1, 30))  # more than the coordinates that are probed first
    return draw(boxes(size, least=1)), draw(boxes(size, least=0))


def _share_a_point(one: Box, i: int, other: Box, j: int) -> bool:
    sides = zip(one.lower[i], one.upper[i], other.lower[j], other.upper[j], strict=True)
    return all(a <= d and c <= b for a, b, c, d in sides)


@given(two())
def test_meets_is_every_pair_that_shares_a_point(pair: tuple[Box, Box]) -> None:
    mine, other = pair
    want = [
        [i, j]
        for i in range(len(other))
        for j in range(len(mine))
        if _share_a_point(other, i, mine, j)
    ]
    assert mine.meets(other).tolist() == want


@given(two())
def test_first_is_the_first_box_that_holds_the_point(pair: tuple[Box, Box]) -> None:
    mine, points = pair[0], pair[1].lower
    want = [
        next((j for j in range(len(mine)) if _share_a_point(mine, j, Box(points, points), i)), -1)
        for i in range(len(points))
    ]
    assert mine.first(points).tolist() == want


def test_many_points_and_boxes_meet_as_one_by_one() -> None:
    generator = torch.Generator().manual_seed(0)
    center = torch.rand(60, 40, generator=generator)
    box = Box.around(center, 0.05)
    x = center.repeat(50, 1) + 0.055 * (2 * torch.rand(3000, 40, generator=generator) - 1)
    inside = (box.lower <= x[:, None]) & (x[:, None] <= box.upper)
    want = torch.where(inside.all(2).any(1), inside.all(2).int().argmax(1), -1)
    assert box.first(x).equal(want)
    assert 0 < (want >= 0).sum() < len(want)


def test_a_face_belongs_to_the_box_and_zero_has_no_sign() -> None:
    box = Box(torch.tensor([[0.0, -1.0]]), torch.tensor([[1.0, -0.0]]))
    on = torch.tensor([[-0.0, 0.0], [1.0, -1.0], [0.0, -1.0]])
    assert box.first(on).tolist() == [0, 0, 0]
    outside = torch.tensor([[-1e-45, 0.0], [1.0, 1e-45], [math.nan, 0.0]])
    assert box.first(outside).tolist() == [-1, -1, -1]


@pytest.mark.parametrize("lower", [2.0, math.nan])
def test_a_box_from_outside_is_checked(lower: float) -> None:
    with pytest.raises(UsageError, match="box"):
        Box.checked(torch.tensor([[lower]]), torch.tensor([[1.0]]))


@given(st.lists(st.tuples(st.floats(width=32, allow_nan=False), st.floats(0, 1)), min_size=1))
def test_halves_share_the_cut_and_cover_the_box(pairs: list[tuple[float, float]]) -> None:
    lower = torch.tensor([[low, low] for low, _ in pairs]).clamp(-1e37, 1e37)
    upper = lower + torch.tensor([[width, 1.0] for _, width in pairs])
    dim = torch.arange(len(pairs)) % 2
    low, high = Box(lower, upper).split(dim)
    other = (1 - dim)[:, None]
    for half in (low, high):
        assert half.lower.gather(1, other).equal(lower.gather(1, other))
        assert half.upper.gather(1, other).equal(upper.gather(1, other))
        assert bool((half.lower <= half.upper).all())
    assert low.lower.equal(lower) and high.upper.equal(upper)
    assert low.upper.gather(1, dim[:, None]).equal(high.lower.gather(1, dim[:, None]))


@st.composite
def bounds(draw: st.DrawFn) -> tuple[LinearBound, Box]:
    generator = torch.Generator().manual_seed(draw(seeds))
    count, rows, size = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.integers(1, 5))

    def numbers(*shape: int) -> Tensor:
        spread = 10.0 ** draw(st.integers(-12, 12))
        return spread * torch.randn(*shape, generator=generator, dtype=torch.float64)

    lower = numbers(count, size)
    width = numbers(count, size).abs() * draw(st.sampled_from([0.0, 1e-9, 1.0]))
    box = Box(lower, lower + width)
    return LinearBound(numbers(count, rows, size), numbers(count, rows)), box


def _exact_minimum(bound: LinearBound, box: Box, i: int, row: int) -> Fraction:
    total = Fraction(bound.b[i, row].item())
    for a, low, high in zip(bound.A[i, row], box.lower[i], box.upper[i], strict=True):
        ends = [Fraction(a.item()) * Fraction(end.item()) for end in (low, high)]
        total += min(ends)
    return total


@given(bounds())
def test_the_minimum_is_the_one_over_the_corners(drawn: tuple[LinearBound, Box]) -> None:
    bound, box = drawn
    least, rigorous = bound.minimum(box), bound.minimum_rigorous(box)
    far = torch.maximum(box.lower.abs(), box.upper.abs())
    scale = (bound.A.abs() @ far.unsqueeze(2)).squeeze(2) + bound.b.abs()
    for i, row in torch.ones_like(least).nonzero().tolist():
        exact = _exact_minimum(bound, box, i, row)
        slack = Fraction(scale[i, row].item()) * Fraction(1, 2**44)
        assert abs(Fraction(least[i, row].item()) - exact) <= slack
        assert exact - slack <= Fraction(rigorous[i, row].item()) <= exact


def test_a_rigorous_minimum_survives_sums_that_lose_every_term() -> None:
    size = 1000
    A = torch.full((1, 2, size), 0.99 * 2.0**-53, dtype=torch.float64)
    A[0, :, 0] = 1.0
    A[0, 1] *= -1
    bound = LinearBound(A, torch.zeros(1, 2, dtype=torch.float64))
    box = Box(torch.ones(1, size).double(), torch.ones(1, size).double())
    for row in (0, 1):
        least = Fraction(bound.minimum_rigorous(box)[0, row].item())
        assert least <= _exact_minimum(bound, box, 0, row)


def test_a_rigorous_minimum_wants_float64() -> None:
    bound = LinearBound(torch.zeros(1, 1, 2), torch.zeros(1, 1))
    with pytest.raises(UsageError, match="float64"):
        bound.minimum_rigorous(Box(torch.zeros(1, 2), torch.ones(1, 2)))


values = st.sampled_from([-math.inf, -1.0, -0.0, 0.0, 1e-300, 1.0, math.inf])


@st.composite
def margins(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """Margins of M rows and their groups; a property has at least one row."""
    count, rows = draw(st.integers(1, 4)), draw(st.integers(1, 5))
    margin = [draw(st.lists(values, min_size=rows, max_size=rows)) for _ in range(count)]
    group = []
    for _ in range(count):
        used = draw(st.lists(st.integers(0, 3), min_size=1, max_size=rows))
        group.append(used + [-1] * (rows - len(used)))
    return torch.tensor(margin, dtype=torch.float64), torch.tensor(group)


@given(margins())
@example((torch.tensor([[-1.0, 1.0]]).double(), torch.tensor([[0, 1]])))
def test_a_group_is_as_good_as_its_best_row(drawn: tuple[Tensor, Tensor]) -> None:
    margin, group = drawn
    count = int(group.max()) + 1
    want = [
        [
            max((m for m, g in zip(row, own, strict=True) if g == index), default=math.inf)
            for index in range(count)
        ]
        for row, own in zip(margin.tolist(), group.tolist(), strict=True)
    ]
    assert group_margin(margin, group).tolist() == want
    assert worst_margin(margin, group).tolist() == [min(row) for row in want]


def test_padding_and_nan_prove_nothing() -> None:
    group = torch.tensor([[0, -1], [0, 1], [0, 0]])
    margin = torch.tensor([[-1.0, 9.0], [math.nan, 1.0], [math.nan, -1.0]]).double()
    assert not bool((worst_margin(margin, group) > 0).any())


def _argmax_is_zero(x: Tensor) -> PropertySet:
    """Output 0 of three is the largest, on a box around each row of x."""
    count = len(x)
    C = torch.tensor([[1.0, -1.0, 0.0], [1.0, 0.0, -1.0]]).expand(count, 2, 3)
    return PropertySet(
        box=Box(x, x),
        C=C,
        d=torch.zeros(count, 2),
        group=torch.tensor([[0, 1]]).expand(count, 2),
        label=torch.zeros(count, dtype=torch.long),
        target=torch.full((count,), -1),
        center=x,
        names=tuple(f"property {i}" for i in range(count)),
    )


def test_a_tie_and_a_nan_break_a_property() -> None:
    nan, inf = math.nan, math.inf
    y = torch.tensor([[1.0, 0, 0], [1, 1, 0], [0, 1, 0], [nan, 0, 0], [1, nan, 0], [inf, inf, 0]])
    violated = _argmax_is_zero(torch.zeros(6, 2)).violated(y).tolist()
    assert violated == [False, True, True, True, True, True]


def test_a_difference_that_float32_would_lose_counts() -> None:
    up = torch.nextafter(torch.tensor(1.0), torch.tensor(2.0)).item()
    y = torch.tensor([[up, 1.0, 0.0], [1e-45, 0.0, -1.0], [1e30, 1e-30, 0.0]])
    assert not _argmax_is_zero(torch.zeros(3, 2)).violated(y).any()


def test_properties_of_the_wrong_shape_are_refused() -> None:
    good = _argmax_is_zero(torch.zeros(2, 2))
    with pytest.raises(UsageError, match="d has shape"):
        PropertySet(
            good.box,
            good.C,
            good.d[:, :1],
            good.group,
            good.label,
            good.target,
            good.center,
            good.names,
        )


def test_a_property_is_called_by_its_content() -> None:
    both = _argmax_is_zero(torch.tensor([[0.0, 1.0], [2.0, 3.0]]))
    alone = both[torch.tensor([1])]
    assert both.identifiers()[1] == alone.identifiers()[0] != both.identifiers()[0]
