"""The conformance kit finds planted bugs, and finds none in the verifiers we ship."""

import subprocess
import sys
from collections.abc import Mapping

import pytest
import torch
from attrs import evolve, frozen
from planted import BUGS, SUBTLE, Textbook, changed
from torch import Tensor

from advrepair.core.errors import UnsupportedNetworkError
from advrepair.core.graph import NON_AFFINE, Network
from advrepair.core.interfaces import BoundFn, Verifier
from advrepair.core.rounding import Rounding
from advrepair.core.types import Box, LinearBound
from advrepair.plugins.verifiers.branch_and_bound import BranchAndBound
from advrepair.plugins.verifiers.deeppoly import DeepPoly
from advrepair.plugins.verifiers.interval import Interval
from advrepair.plugins.verifiers.relaxations import SLOPES
from advrepair.plugins.verifiers.staged import Staged
from advrepair.testing import CHECKS, Check, conformance
from advrepair.testing.cases import standard_cases
from advrepair.testing.contract import (
    check_other_operations_are_refused_or_bounded,
    check_unknown_operation_is_refused,
)
from advrepair.testing.trial import Trial

HONEST = [*(DeepPoly(lower_slope=slope) for slope in SLOPES), Interval(), BranchAndBound()]

# What each bug is at least caught by; more checks may see it.
CAUGHT_BY = {
    "swapped slopes": "check_no_point_beats_the_minimum",
    "missing intercept": "check_exact_minimum_is_not_beaten",
    "wrong slope on dead neurons": "check_no_point_beats_the_minimum",
    "wrong corner": "check_no_point_beats_the_minimum",
    "shrunk intermediate bounds": "check_no_point_beats_the_line",
    "first box for the whole batch": "check_each_box_stands_alone",
    "NaN becomes zero": "check_nan_is_never_a_proof",
    "detached graph": "check_gradient_is_the_slope",
    "lower slope of dead neurons": "check_point_box_is_exact",
    "intercept too small by 0.1 %": "check_no_point_beats_the_line",
    "first specification for all": "check_each_box_stands_alone",
    "intermediate bounds detached": "check_gradient_is_the_slope",
    "rounding ignored": "check_rigorous_for_the_deployed_network",
}


@pytest.mark.parametrize("verifier", HONEST, ids=str)
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_the_verifiers_we_ship_pass(check: Check, verifier: Verifier) -> None:
    check(verifier)


@pytest.mark.parametrize("name", [*BUGS, *SUBTLE])
def test_a_planted_bug_is_caught(name: str) -> None:
    check = next(check for check in CHECKS if check.__name__ == CAUGHT_BY[name])
    with pytest.raises(AssertionError) as caught:
        check((BUGS | SUBTLE)[name])
    assert str(caught.value) and "\n" not in str(caught.value)


def test_the_textbook_itself_passes_and_agrees_with_ours() -> None:
    assert conformance(Textbook()) == []
    for case in standard_cases():
        if {op.kind for op in case.network.operations} == {"linear", "relu"}:
            book = Trial(case, Textbook().prepare(case.network)).minimum()
            ours = Trial(case, DeepPoly().prepare(case.network)).minimum()
            torch.testing.assert_close(ours, book, rtol=1e-9, atol=1e-9)


def test_a_verifier_that_never_knows_is_not_called_unsound() -> None:
    ignorant = changed(lambda bound: LinearBound(bound.A * 0, bound.b * 0 - torch.inf))
    failed = dict(conformance(Textbook(around=ignorant)))
    assert not any("beat" in name or "numbers" in name for name in failed)
    assert "check_point_box_is_exact" in failed


class _Overtaken(Staged):
    """Takes the size of the last layer from the first stage, where it was another one."""

    def hidden(self, params: Mapping[str, Tensor], box: Box) -> dict[str, Tensor]:
        known = self(params, box, *_nothing(self.network, box))
        size = known.b if known.magnitude is None else known.magnitude
        return {**super().hidden(params, box), "last": size}

    def onward(
        self,
        params: Mapping[str, Tensor],
        box: Box,
        hidden: Mapping[str, Tensor],
        C: Tensor,
        d: Tensor,
    ) -> LinearBound:
        bound = super().onward(params, box, hidden, C, d)
        return bound if bound.magnitude is None else evolve(bound, magnitude=hidden["last"])


def _nothing(network: Network, box: Box) -> tuple[Tensor, Tensor]:
    C = box.lower.new_zeros(len(box), 1, network.outputs)
    return C, C[:, :, 0]


@frozen(eq=False)
class _Stale(DeepPoly):
    """DeepPoly with that bug."""

    def prepare(self, network: Network, rounding: Rounding | None = None) -> BoundFn:
        super().prepare(network, rounding)
        return _Overtaken(network, self.lower_slope, rounding)


def test_what_stages_keep_too_long_is_caught() -> None:
    reason = "magnitude differs between two stages and one"
    failed = dict(conformance(_Stale()))
    assert list(failed) == ["check_two_stages_are_one"]
    assert reason in failed["check_two_stages_are_one"]


@frozen(eq=False)
class _Careless(DeepPoly):
    """Accepts everything and fails later; of functions it bounds ReLUs alone."""

    def prepare(self, network: Network, rounding: Rounding | None = None) -> BoundFn:
        def bound(params: Mapping[str, Tensor], box: Box, C: Tensor, d: Tensor) -> LinearBound:
            if other := [op for op in network.operations if op.kind in NON_AFFINE - {"relu"}]:
                raise UnsupportedNetworkError(f"node {other[0].name!r}: no rule")
            return DeepPoly().prepare(network, rounding)(params, box, C, d)

        return bound


@pytest.mark.parametrize(
    "check", [check_unknown_operation_is_refused, check_other_operations_are_refused_or_bounded]
)
def test_an_unknown_operation_must_be_refused_before_the_call(check: Check) -> None:
    with pytest.raises((AssertionError, UnsupportedNetworkError)):
        check(_Careless())


def test_the_plain_checks_need_no_test_library() -> None:
    code = (
        "import sys; sys.modules['pytest'] = sys.modules['hypothesis'] = None\n"
        "import advrepair.testing"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
