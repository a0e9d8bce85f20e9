"""Interval arithmetic: equal to the reference, never above the truth, looser than DeepPoly."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from reference import NAMES, load

from advrepair.core.rounding import Rounding
from advrepair.plugins.verifiers.deeppoly import DeepPoly
from advrepair.plugins.verifiers.interval import Interval
from advrepair.testing.cases import Case
from advrepair.testing.oracle import exact_minimum
from advrepair.testing.search import low_points
from advrepair.testing.strategies import cases, seeds, tiny_networks
from advrepair.testing.trial import Trial, require_below, require_equal

ROUNDINGS = (Rounding("real"), Rounding("deployed-float32"), Rounding("deployed-float64"))


@pytest.mark.parametrize("name", NAMES)
def test_it_equals_the_reference(name: str) -> None:
    reference = load(name)
    function = Interval().prepare(reference.network)
    bound = function(reference.params, reference.box, reference.C, reference.d)
    least = bound.minimum(reference.box)
    torch.testing.assert_close(-least, reference.arrays["ub_IBP_f64"], rtol=1e-9, atol=1e-9)
    assert bool((least <= reference.attack + 1e-12).all())


@given(cases(), seeds)
def test_no_point_is_below_the_bound(case: Case, seed: int) -> None:
    bound = Trial(case, Interval().prepare(case.network)).bound()
    assert not bound.A.any()
    reached = case.rows(low_points(case, case.rows, seed)).amin(1).detach()
    require_below(case, bound.b, reached, "bound {have}, reached {want}")


@given(cases(), seeds, st.sampled_from(ROUNDINGS))
def test_no_point_is_below_the_rigorous_bound(case: Case, seed: int, rounding: Rounding) -> None:
    bound = Trial(case, Interval().prepare(case.network, rounding)).bound()
    assert not bound.A.any()
    reached = case.rows(low_points(case, case.rows, seed)).amin(1).detach()
    require_below(case, bound.b, reached, "bound {have}, reached {want}")
    loose = Trial(case, Interval().prepare(case.network)).bound()
    assert bool((bound.b <= loose.b + 1e-9 * (1 + loose.b.abs())).all())


@given(cases(kinds=("point",)))
def test_a_point_box_is_exact(case: Case) -> None:
    value = case.rows(case.box.lower.unsqueeze(1))[:, 0]
    have = Trial(case, Interval().prepare(case.network)).minimum()
    require_equal(case, have, value, "bound {have}, value {want}")


@given(cases(tiny_networks()))
def test_the_exact_minimum_is_not_beaten(case: Case) -> None:
    exact = exact_minimum(case.network, case.box, case.C, case.d)
    value = torch.tensor([[float(v) for v in row] for row in exact], dtype=torch.float64)
    least = Trial(case, Interval().prepare(case.network)).minimum()
    require_below(case, least, value, "bound {have}, exact minimum {want}")


def test_on_the_reference_deeppoly_is_never_looser_on_average() -> None:
    reference = load(NAMES[0])
    arguments = (reference.params, reference.box, reference.C, reference.d)
    loose = Interval().prepare(reference.network)(*arguments).minimum(reference.box)
    tight = DeepPoly().prepare(reference.network)(*arguments).minimum(reference.box)
    assert tight.mean() > loose.mean()
