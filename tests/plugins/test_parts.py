"""Blocks hold every row that is asked for, and have one shape."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from advrepair.plugins.verifiers.parts import of_all, of_many, of_one, slices


@given(st.integers(0, 40), st.integers(1, 50))
def test_slices_cover_a_range_and_have_one_length(count: int, length: int) -> None:
    found = [torch.arange(count)[part] for part in slices(count, length)]
    assert sorted({int(i) for part in found for i in part}) == list(range(count))
    assert len({len(part) for part in found}) <= 1
    assert all(len(part) <= length for part in found)


@pytest.mark.parametrize("blocks", [of_one, of_many])
@given(
    boxes=st.integers(1, 9),
    rows=st.integers(1, 70),
    most=st.integers(2, 200),
    share=st.sampled_from((0.0, 0.1, 0.4, 0.8, 1.0)),
    seed=st.integers(0, 99),
)
def test_blocks_hold_every_wanted_row(blocks, boxes, rows, most, share, seed) -> None:
    generator = torch.Generator().manual_seed(seed)
    values = torch.rand(boxes, rows, dtype=torch.float64, generator=generator)
    wanted = torch.rand(boxes, rows, generator=generator) < share
    wanted[0] |= share > 0.3  # one box as a whole among others
    found = torch.full_like(values, torch.nan)
    shapes = set()
    for block in blocks(wanted, most):
        have = block.of(values)
        shapes.add((block.own, tuple(have.shape)))
        block.put(found, have)
    assert torch.equal(found[wanted], values[wanted])
    assert bool((found.isnan() | (found == values)).all())
    if blocks is of_many:
        assert len({own for own, _ in shapes}) == len(shapes)


def test_a_box_alone_among_wanted_ones_goes_back_in_the_same_shape() -> None:
    every = torch.ones(40, 6, dtype=torch.bool)
    some = every.clone()
    some[3:, 2:] = False
    shapes = [
        {block.of(torch.zeros(40, 6)).shape for block in of_many(wanted, 24) if not block.own}
        for wanted in (every, some)
    ]
    assert shapes[0] == shapes[1]
    assert shapes[0] == {block.of(torch.zeros(40, 6)).shape for block in of_all(40, 6, 24)}
