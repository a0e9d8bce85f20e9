"""Verification says what the exact oracle says, or that it does not know."""

from __future__ import annotations

import time
from fractions import Fraction
from functools import cache
from typing import ClassVar

import pytest
import torch
from attrs import evolve, frozen
from hypothesis import example, given, settings
from hypothesis import strategies as st

from advrepair.core.bounding import Bounder
from advrepair.core.box import Box
from advrepair.core.errors import SoundnessError
from advrepair.core.graph import INPUT, Network, Operation
from advrepair.core.patching import patch_template
from advrepair.core.properties import demands
from advrepair.core.refuting import thin
from advrepair.core.rounding import Rounding
from advrepair.core.specified import from_specifications
from advrepair.core.types import LinearBound, PropertySet
from advrepair.core.verifying import SHARES, Answer, Outcome, Reason, Verification
from advrepair.core.violations import inner
from advrepair.core.vnnlib import read_vnnlib
from advrepair.plugins.attacks.pgd import Pgd
from advrepair.plugins.verifiers.branch_and_bound import BranchAndBound
from advrepair.plugins.verifiers.deeppoly import DeepPoly
from advrepair.plugins.verifiers.zonotope import Zonotope
from advrepair.testing.cases import make_case
from advrepair.testing.networks import tiny
from advrepair.testing.oracle import exact_minimum

LEVELS = ("real", "deployed-float32", "deployed-float64")


def job(
    function, network=None, level="deployed-float32", verifier=None, pieces=20_000, template=None
):
    """A verification, with the zonotope verifier."""
    network = network or function
    verifier = verifier or Zonotope()
    patch = template or patch_template(network, ())
    bounder = Bounder(network, patch, DeepPoly(), verifier, Rounding(level), 2**31)
    return Verification(function, bounder, Pgd(), pieces)


def answered(function, asked: PropertySet, deadline=None, **how) -> Answer:
    told = []
    answer = job(function, **how).answer(asked, deadline, told.append)
    assert 0 <= sum(told) <= SHARES
    return answer


def shifted_case(seed: int, inputs: int, above: bool) -> tuple[Network, PropertySet, float]:
    """A wide box, and a row whose exact minimum lies a hundredth above or below zero."""
    case = make_case("tiny", tiny(seed, inputs), ("wide",), 1, seed)
    exact = float(exact_minimum(case.network, case.box, case.C, case.d)[0][0])
    scale = 1e-2 * (1 + abs(exact))
    d = case.d - exact + (scale if above else -scale)
    box = Box(case.box.lower.float(), case.box.upper.float())
    group = torch.zeros(d.shape, dtype=torch.long)
    keep = torch.arange(1)  # of the rows the first
    asked = demands(box.lower, box.upper, case.C[:, keep], d[:, keep], group[:, keep])
    return case.network, asked, scale


def breaks(function, asked: PropertySet, x: torch.Tensor) -> bool:
    with torch.no_grad():
        return bool(asked.violated(function(x[None]))[0])


@settings(max_examples=40)
@given(st.integers(0, 10**6), st.integers(1, 2), st.booleans(), st.sampled_from(LEVELS))
@example(3, 2, True, "real")
def test_it_says_what_the_oracle_knows(seed, inputs, above, level):
    network, asked, scale = shifted_case(seed, inputs, above)
    answer = answered(network, asked, level=level)
    if above:
        assert answer.outcome is Outcome.HOLDS
        assert 0 < answer.margin <= scale * (1 + 1e-6) and answer.share == 1
        assert answer.x is None and answer.reason is None
    else:
        assert answer.outcome is Outcome.VIOLATED
        assert bool(inner(asked.box).to(answer.x.dtype).holds(answer.x[None])[0])
        wide = tiny(seed, inputs).to(answer.x.dtype)
        assert breaks(wide, asked, answer.x) and answer.margin <= 0
        assert torch.equal(answer.y, wide(answer.x[None])[0].detach())


@settings(max_examples=20)
@given(st.integers(0, 10**6), st.sampled_from(LEVELS))
def test_the_least_value_itself_is_never_proved_away(seed, level):
    """A demand that fails by nothing at one point must not hold at level real."""
    case = make_case("tiny", tiny(seed, 1), ("wide",), 1, seed)
    exact = exact_minimum(case.network, case.box, case.C, case.d)[0][0]
    down = float(exact)
    if Fraction(down) < exact:
        down = float(torch.tensor(down).double().nextafter(torch.tensor(torch.inf).double()))
    box = case.box
    one = torch.zeros(1, 1, dtype=torch.long)
    d = case.d[:, :1] - down
    asked = demands(box.lower.float(), box.upper.float(), case.C[:, :1], d, one)
    if Fraction(float(d[0, 0])) + exact - Fraction(float(case.d[0, 0])) <= 0:
        assert answered(case.network, asked, level=level, pieces=2000).outcome is not Outcome.HOLDS


def sloped() -> Network:
    """y = x0 + x1, and a second output that is 0."""
    tensors = {"w": torch.tensor([[1.0, 1.0], [0.0, 0.0]])}
    return Network([Operation("y", "linear", (INPUT,), (2,), {"weight": "w"})], tensors, (2,))


def from_text(folder, network: Network, first: str, second: str, output: str) -> PropertySet:
    lines = [f"(declare-const {name} Real)" for name in ("X_0", "X_1", "Y_0", "Y_1")]
    for i, ends in enumerate((first, second)):
        low, high = ends.split()
        lines += [f"(assert (>= X_{i} {low}))", f"(assert (<= X_{i} {high}))"]
    (folder / "p.vnnlib").write_text("\n".join([*lines, f"(assert {output})"]))
    read = read_vnnlib(folder / "p.vnnlib")
    return from_specifications([read], (2,), 2, network.dtype)


@pytest.mark.parametrize("level", LEVELS)
def test_a_counterexample_lies_in_the_exact_region(tmp_path, level):
    """None of these faces is a float; the demand breaks in a corner only."""
    asked = from_text(tmp_path, sloped(), "0.1 0.7", "0.3 0.9", "(<= Y_0 0.400001)")
    answer = answered(sloped(), asked, level=level)
    assert answer.outcome is Outcome.VIOLATED
    first, second = (Fraction(float(v)) for v in answer.x)
    assert Fraction(1, 10) <= first <= Fraction(7, 10) and Fraction(3, 10) <= second
    assert first + second <= Fraction("0.400001") and not thin(asked.box)


@pytest.mark.parametrize("level", LEVELS)
def test_what_breaks_only_outside_the_exact_region_is_not_violated(tmp_path, level):
    """The box is rounded outward: only its faces break this demand."""
    asked = from_text(tmp_path, sloped(), "0.1 0.7", "0.3 0.9", "(<= Y_0 0.4)")
    low = asked.box.lower[0].double().sum()
    assert low < 0.4
    asked = evolve(asked, d=asked.d * 0 - float(low) - 1e-12)
    assert answered(sloped(), asked, level=level, pieces=3000).outcome is Outcome.UNKNOWN


def test_a_region_without_floats_uses_those_beside_it(tmp_path):
    asked = from_text(tmp_path, sloped(), "0.1 0.1", "0.25 0.25", "(>= Y_0 0)")
    answer = answered(sloped(), asked)
    assert answer.outcome is Outcome.VIOLATED and thin(asked.box) == [0]


def test_groups(tmp_path):
    """y0 > 0.3 or y1 > 0 holds on one box and not on the other."""
    C = torch.eye(2)[None].expand(2, 2, 2).contiguous()
    d = torch.tensor([[-0.3, 0.0]]).expand(2, 2).contiguous()
    lower, upper = torch.tensor([[0.2, 0.2], [0.1, 0.1]]), torch.ones(2, 2)
    either = demands(lower, upper, C, d, torch.zeros(2, 2, dtype=torch.long))
    both = demands(lower, upper, C, d, torch.arange(2).expand(2, 2))
    at = [torch.tensor([i]) for i in range(2)]
    assert answered(sloped(), either[at[0]]).outcome is Outcome.HOLDS
    assert answered(sloped(), either[at[1]]).outcome is Outcome.VIOLATED
    assert answered(sloped(), both[at[0]]).outcome is Outcome.VIOLATED


@cache
def hard() -> tuple[Network, PropertySet]:
    """Holds, and takes some cuts."""
    for seed in range(100):
        network, asked, _ = shifted_case(seed, 2, True)
        if answered(network, asked).pieces > 60:
            return network, asked
    raise AssertionError("no case needs cuts")


def test_a_budget_ends_it_without_a_proof():
    network, asked = hard()
    for pieces in (1, 2, 5, 30):
        answer = answered(network, asked, pieces=pieces)
        assert answer.outcome is Outcome.UNKNOWN and answer.reason is Reason.PIECES
        assert answer.pieces <= pieces and 0 <= answer.share < 1


def test_time_ends_it_without_a_proof():
    network, asked = hard()
    answer = answered(network, asked, deadline=time.perf_counter() - 1)
    assert answer.outcome is Outcome.UNKNOWN and answer.reason is Reason.TIMEOUT


def test_the_same_seed_gives_the_same_answer():
    network, asked = hard()
    first, second = (answered(network, asked) for _ in range(2))
    assert (first.margin, first.pieces) == (second.margin, second.pieces)


@frozen
class Silent(Zonotope):
    """Knows nothing: NaN."""

    name: ClassVar[str] = "silent"
    value: float = float("nan")

    def prepare(self, network, rounding=None):
        """As Zonotope."""
        known = super().prepare(network, rounding)

        def bound(params, box, C, d):
            rows = known(params, box, C, d)
            b = torch.full_like(rows.b, self.value)
            return LinearBound(rows.A * 0, b, rows.magnitude, rows.slope, None)

        return bound


def test_not_a_number_proves_nothing():
    network, asked = hard()
    answer = answered(network, asked, verifier=Silent(), pieces=200)
    assert answer.outcome is Outcome.UNKNOWN and answer.share == 0


def test_a_bound_that_an_input_refutes_is_an_error():
    network, asked, _ = shifted_case(3, 2, False)
    with pytest.raises(SoundnessError, match="is proved at an input that breaks it"):
        answered(network, asked, verifier=Silent(1.0))


def test_the_front_is_cut_from_its_end_where_it_is_long(monkeypatch):
    from advrepair.core import verifying

    network, asked = hard()
    monkeypatch.setattr(verifying, "_FRONT", 3)
    monkeypatch.setattr(verifying, "_AT_ONCE", 2)
    answer = answered(network, asked)
    assert answer.outcome is Outcome.HOLDS and answer.share == 1


@settings(max_examples=15)
@given(st.integers(0, 10**6), st.booleans(), st.sampled_from(["inputs", "relus"]))
def test_a_complete_verifier_is_asked(seed, above, cuts):
    network, asked, _ = shifted_case(seed, 2, above)
    answer = answered(network, asked, verifier=BranchAndBound(cuts=cuts, pieces=3000))
    assert answer.outcome is (Outcome.HOLDS if above else Outcome.VIOLATED)
