"""Branch and bound: where it cuts, and that a mistake in it would be seen."""

from fractions import Fraction

import pytest
import torch
from torch import Tensor

from advrepair.core.box import Box
from advrepair.core.branches import Branch, BranchBound
from advrepair.core.graph import Network, Operation
from advrepair.core.rounding import Rounding
from advrepair.plugins.verifiers import branched
from advrepair.plugins.verifiers.branch_and_bound import BranchAndBound
from advrepair.plugins.verifiers.deeppoly import DeepPoly
from advrepair.testing.branches import (
    check_branches_hold_on_their_part,
    check_cuts_name_an_input_or_a_relu,
    check_rigorous_branches_hold_when_deployed,
)
from advrepair.testing.cases import standard_cases
from advrepair.testing.oracle import exact_rows

PLAIN = BranchAndBound()


def free(network: Network, count: int, rows: int) -> Branch:
    """A branch that knows nothing."""
    phase = torch.zeros(count, network.units, dtype=torch.int8)
    return Branch(phase, None, torch.zeros(count, rows, network.units, dtype=torch.float64))


def test_without_a_sign_it_is_deeppoly() -> None:
    for case in standard_cases():
        branch = free(case.network, len(case.box), case.C.shape[1])
        function = PLAIN.prepare_branches(case.network)
        found = function(case.params, case.box, case.C, case.d, branch)
        rows = DeepPoly().prepare(case.network)(case.params, case.box, case.C, case.d)
        torch.testing.assert_close(found.rows.A, rows.A, rtol=0, atol=0)
        torch.testing.assert_close(found.rows.b, rows.b, rtol=0, atol=0)
        assert found.gap.shape == (*case.d.shape, case.network.units)
        assert bool((found.gap >= 0).all()) and not bool(found.empty.any())


def test_gradients_reach_slopes_and_multipliers() -> None:
    case = standard_cases()[0]
    branch = free(case.network, len(case.box), case.C.shape[1])
    phase = branch.phase.clone()
    phase[:, ::2] = 1
    slope = torch.full(phase.shape, 0.5, dtype=torch.float64, requires_grad=True)
    multiplier = branch.multiplier.clone().requires_grad_()
    function = PLAIN.prepare_branches(case.network)
    found = function(case.params, case.box, case.C, case.d, Branch(phase, slope, multiplier))
    found.rows.minimum(case.box).sum().backward()
    assert slope.grad is not None and bool((slope.grad != 0).any())
    assert multiplier.grad is not None and bool((multiplier.grad[:, :, ::2] != 0).any())
    assert not bool((multiplier.grad[:, :, 1::2] != 0).any())  # no sign, no use


def test_a_sign_that_no_input_has_leaves_nothing() -> None:
    case = standard_cases()[0]
    branch = free(case.network, len(case.box), case.C.shape[1])
    function = PLAIN.prepare_branches(case.network)
    seen = 0
    for unit in range(case.network.units):
        for sign in (-1, 1):
            phase = torch.zeros_like(branch.phase)
            phase[:, unit] = sign
            found = function(
                case.params, case.box, case.C, case.d, Branch(phase, None, branch.multiplier)
            )
            seen += int(found.empty.sum())
    assert seen > len(case.box)  # of a point, one sign of every ReLU is nowhere


def wide(inputs: int) -> Box:
    return Box(torch.zeros(2, inputs).double(), torch.ones(2, inputs).double())


def test_where_it_cuts() -> None:
    A, gap = torch.zeros(2, 3).double(), torch.zeros(2, 4).double()
    A[0, 1], A[1, 2], gap[0, 3] = -2.0, 1.0, 0.5
    assert PLAIN.cut(wide(3), A, gap).tolist() == [1, 2]
    assert BranchAndBound(cuts="inputs").cut(wide(3), A, gap).tolist() == [1, 2]
    # The second piece has no unstable ReLU left: the rest is a matter of the input.
    assert BranchAndBound(cuts="relus").cut(wide(3), A, gap).tolist() == [3 + 3, 2]
    many = torch.zeros(2, 20).double()
    assert PLAIN.cut(wide(20), many, gap).tolist() == [20 + 3, 0]
    assert PLAIN.cut(wide(20), many, gap[:, :0]).tolist() == [0, 0]


def turned(branch: Branch) -> Branch:
    return Branch(branch.phase, branch.slope, -branch.multiplier)


def opposite(branch: Branch) -> Branch:
    return Branch(-branch.phase, branch.slope, branch.multiplier)


def everywhere(branch: Branch) -> Branch:
    known = torch.where(branch.phase == 0, 1, branch.phase).to(torch.int8)
    return Branch(known, branch.slope, 0 * branch.multiplier)


def steeper(branch: Branch) -> Branch:
    slope = None if branch.slope is None else branch.slope + 1
    return Branch(branch.phase, slope, branch.multiplier)


CHECKS = (check_branches_hold_on_their_part, check_rigorous_branches_hold_when_deployed)


@pytest.mark.parametrize(
    "bug, check",
    [(bug, check) for bug in (turned, opposite, everywhere) for check in CHECKS]
    + [(steeper, CHECKS[0])],  # its lines are wrong, but not where they are lowest
)
def test_a_planted_bug_is_caught(bug, check, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = branched.Branched

    def broken(*args, branch):
        return whole(*args, branch=bug(branch))

    monkeypatch.setattr(branched, "Branched", broken)
    with pytest.raises(AssertionError):
        check(PLAIN)


def test_a_part_called_empty_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = branched.Branched.bound

    def hasty(self, C: Tensor, d: Tensor) -> BranchBound:
        found = honest(self, C, d)
        return BranchBound(found.rows, found.gap, torch.ones_like(found.empty))

    monkeypatch.setattr(branched.Branched, "bound", hasty)
    for check in CHECKS:
        with pytest.raises(AssertionError, match="empty"):
            check(PLAIN)


def test_a_cut_beyond_the_last_relu_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    far = lambda self, box, A, gap: torch.full((len(box),), 10**6)  # noqa: E731
    monkeypatch.setattr(BranchAndBound, "cut", far)
    with pytest.raises(AssertionError, match=r"cut\(\) returned"):
        check_cuts_name_an_input_or_a_relu(PLAIN)


@pytest.mark.parametrize("level", ["real", "deployed-float64", "deployed-float32"])
def test_the_centre_of_an_affine_value_may_lie_outside_the_part(level) -> None:
    """Its rounding is that of the whole box, whatever the part that a ReLU beside it leaves.

    Found by an independent reader: sizes were cut down to the part, the centre was not.
    """
    count, many = 4096, 64
    big = torch.arange(count) < many
    weight = torch.where(big, 1.0, -1.0)[None]
    operations = [
        Operation("ra", "relu", ("input",), (count,)),
        Operation("y", "linear", ("input",), (1,), {"weight": "W"}),
        Operation("ry", "relu", ("y",), (1,)),
        Operation("za", "linear", ("ra",), (1,), {"weight": "Z"}),
        Operation("out", "add", ("ry", "za"), (1,)),
    ]
    network = Network(operations, {"W": weight, "Z": torch.zeros(1, count)}, (count,))
    delta = 2.0**-40 if level == "deployed-float32" else 2.0**-33
    lower = torch.where(big, -1.0, -0.98 * 2.0**-53)[None]
    upper = torch.where(big, delta, 0.0)[None]
    phase = torch.zeros(1, count + 1, dtype=torch.int8)
    phase[0, :many] = 1
    x, C = torch.where(big, upper, lower)[0], -torch.ones(1, 1, 1, dtype=torch.float64)
    largest = -exact_rows(network, x, C[0], torch.zeros(1))[0]
    d = torch.tensor([[float(largest)]], dtype=torch.float64)
    branch = Branch(phase, None, torch.zeros(1, 1, count + 1, dtype=torch.float64))
    function = PLAIN.prepare_branches(network, Rounding(level))
    params = {name: t.double() for name, t in network.tensors.items()}
    box = Box(lower.double(), upper.double())
    found = function(params, box, C, d, branch)
    exact = exact_rows(network, x, C[0], d[0])[0]
    assert Fraction(found.rows.minimum_rigorous(box).item()) <= exact
