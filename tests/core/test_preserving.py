"""A constant that mends what is open, changes few decisions, and counts only if proved."""

from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from problems import a_network, some_parts

from advrepair.core.attacking import Problem
from advrepair.core.constant import proved_patches
from advrepair.core.preserving import Decisions, needed, preserving_constant, propose, step
from advrepair.core.properties import demands
from advrepair.core.training import Trained
from advrepair.core.types import group_margin, worst_margin


def largest(outputs):
    return outputs.argmax(1)


def smallest(outputs):
    return outputs.argmin(1)


def none_known(outputs):
    return Decisions(torch.zeros(0, outputs), largest)


seeds = st.integers(0, 2**31)


def rows_and_groups(seed, pieces=4, rows=5, outputs=3):
    """Bounds, coefficients and groups; every group has a row, some rows only fill up."""
    noise = torch.Generator().manual_seed(seed)
    least = torch.randn(pieces, rows, generator=noise, dtype=torch.float64)
    C = torch.randn(1, rows, outputs, generator=noise).expand(pieces, -1, -1)
    group = torch.randint(-1, 3, (1, rows), generator=noise)
    known = group[group >= 0].unique()
    for number, old in enumerate(known.tolist()):
        group[group == old] = number
    return least, C, group.expand(pieces, -1)


@given(seeds, st.sampled_from([0.0, 0.1, 2.0]))
def test_after_the_constant_every_group_has_a_row_above_the_slack(seed, slack):
    least, C, group = rows_and_groups(seed)
    if not bool((group >= 0).any()):
        return
    value = preserving_constant(least, C, group, none_known(3), slack)
    if value is not None:
        assert value.shape == (3,) and value.dtype == torch.float64
        assert bool((worst_margin(least + C.double() @ value, group) > slack).all())


@given(seeds)
def test_what_holds_already_needs_nothing(seed):
    least, C, group = rows_and_groups(seed)
    if bool((group >= 0).any()):
        value = preserving_constant(least.abs() + 1, C, group, none_known(3), 0.0)
        assert value is not None and not bool(value.any())


def test_there_is_none_for_demands_that_exclude_each_other():
    C = torch.tensor([[[1.0, 0.0], [-1.0, 0.0]]])
    least, group = torch.tensor([[-1.0, -1.0]]), torch.tensor([[0, 1]])
    assert preserving_constant(least.double(), C, group, none_known(2), 0.0) is None


def test_a_row_without_a_coefficient_is_not_mended():
    C, group = torch.zeros(1, 1, 2), torch.tensor([[0]])
    assert preserving_constant(-torch.ones(1, 1).double(), C, group, none_known(2), 0.0) is None


def test_the_output_is_moved_whose_move_changes_no_decision():
    """y0 > y1 is demanded; decisions are for the smallest, which is never output 0."""
    C, group = torch.tensor([[[1.0, -1.0, 0.0]]]), torch.tensor([[0]])
    outputs = torch.tensor([[3.0, 1.0, 2.0], [4.0, 1.5, 1.0], [5.0, 1.1, 1.2]])
    least = torch.tensor([[-2.0]]).double()
    known = Decisions(outputs, smallest)
    value = preserving_constant(least, C, group, known, 0.0)
    assert value is not None and known.changed(value) == 0.0
    assert float(value[0]) > 0 and not bool(value[1:].any())
    # Decisions for the largest, which is never output 1, say the opposite.
    other = torch.tensor([[2.0, -4.0, 3.0], [3.1, -4.5, 3.0]])
    known = Decisions(other, largest)
    value = preserving_constant(least, C, group, known, 0.0)
    assert value is not None and known.changed(value) == 0.0
    assert float(value[1]) < 0 and not bool(value[[0, 2]].any())


def test_changed_is_the_share_of_decisions_that_differ():
    known = Decisions(torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 5.0], [0.1, 0.0]]), largest)
    assert known.changed(torch.tensor([0.0, 0.5])) == 0.25
    assert known.changed(torch.tensor([0.0, 1.5])) == 0.5
    assert known.changed(torch.zeros(2)) == 0.0
    assert none_known(2).changed(torch.ones(2)) == 0.0


def test_inside_are_the_samples_that_lie_in_some_box():
    parts = some_parts()
    box = parts.properties.box[torch.tensor([0, 2])]
    x = torch.cat([box.lower, box.upper, box.upper + 0.5, box.center])
    known = Decisions(torch.arange(8.0)[:, None], largest).inside(x, box)
    first = box.first(x)
    assert known.outputs[:, 0].tolist() == (first >= 0).nonzero()[:, 0].float().tolist()
    assert len(known.outputs) >= 6


@given(seeds)
def test_needed_is_the_shortest_length_of_any_row_of_a_group(seed):
    least, C, group = rows_and_groups(seed)
    if not bool((group >= 0).any()):
        return
    rate = C[..., 0].double()
    found = needed(least, rate, group, 0.5)
    for piece in range(len(least)):
        for number in range(int(group.max()) + 1):
            lengths = []
            for row in (group[piece] == number).nonzero()[:, 0].tolist():
                have, gain = (Fraction(float(t[piece, row])) for t in (least, rate))
                if have > Fraction(1, 2):
                    lengths.append(Fraction(0))
                elif gain > 0:
                    lengths.append((Fraction(1, 2) - have) / gain)
            want = float(min(lengths)) if lengths else float("inf")
            assert float(found[piece, number]) == pytest.approx(want, rel=1e-12)


@given(seeds)
def test_a_step_mends_what_it_says(seed):
    least, C, group = rows_and_groups(seed)
    if not bool((group >= 0).any()):
        return
    rate = C[..., 1].double()
    before = group_margin(least, group)
    length, mended = step(least, rate, group, 0.0)
    after = group_margin(least + length * rate, group)
    assert length >= 0
    assert mended == 0 or bool((before <= 0).any())
    fixed = (before <= 0) & (after > 0)
    # A row that loses on the way may open a group again, but not one of those that are mended.
    can = torch.isfinite(needed(least, rate, group, 0.0)) & (before <= 0)
    assert int(can.sum()) == mended and bool(fixed[can].all())


def a_demand(network, share=0.3, rows=((1.0, -1.0, 0, 0),)):
    """On two boxes rows of the outputs are above what a share of the inputs misses."""
    lower = torch.tensor([[0.1] * 6, [0.5] * 6])
    x = torch.rand(500, 6, generator=torch.Generator().manual_seed(0))
    C = torch.tensor(rows).expand(2, -1, -1)
    with torch.no_grad():
        d = -torch.quantile(network(x) @ C[0].T, share, 0).expand(2, -1)
    group = torch.arange(len(rows)).expand(2, -1)
    return demands(lower, lower + 0.3, C, d.contiguous(), group.contiguous())


def proposed(rows, samples=50):
    network = a_network()
    asked = a_demand(network, rows=rows)
    problem = Problem(asked, asked.center, torch.full((2,), -1))
    parts = some_parts(problem, network)
    x = torch.rand(samples, 6, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        known = Decisions(network(x), largest)
    result = Trained.nothing_yet(len(parts.repaired.bank))
    propose(parts.bank, parts.worklist, parts.bounder, (x, known), result)
    return parts, result


def test_what_is_settled_is_proved_with_the_weights_that_are_stored():
    parts, result = proposed(((1.0, -1.0, 0.0, 0.0),))
    assert bool(result.settled.all())
    patches = torch.arange(len(result.settled))
    batch = parts.worklist.batch(patches, rigorous=True)
    margins = parts.bounder.margins(parts.repaired.bank.stack, batch)
    assert bool(proved_patches(margins, batch.group, batch.real).all())
    noise = torch.Generator().manual_seed(5)
    box = parts.properties.box
    for _ in range(50):
        x = box.clamp(box.lower + torch.rand(box.lower.shape, generator=noise) * 0.3)
        with torch.no_grad():
            assert not bool(parts.properties.violated(parts.repaired(x)).any())


def test_what_cannot_be_mended_by_a_constant_is_left():
    parts, result = proposed(((1.0, 0.0, 0.0, 0.0), (-1.0, 0.0, 0.0, 0.0)))
    assert not bool(result.settled.any())
    assert not bool(parts.repaired.bank.stack["linear0.bias"].any())


def test_patches_of_labels_are_left_to_the_training():
    parts = some_parts()
    result = Trained.nothing_yet(len(parts.repaired.bank))
    x = parts.properties.center
    known = Decisions(parts.repaired.base(x), largest)
    propose(parts.bank, parts.worklist, parts.bounder, (x, known), result)
    assert not bool(result.settled.any())
