"""Check of bounds in two stages: they are the bounds in one, whatever the last layer."""

from __future__ import annotations

from torch import Tensor

from advrepair.core.interfaces import StagedBoundFn, Verifier
from advrepair.core.types import LinearBound
from advrepair.testing.cases import Case, standard_cases
from advrepair.testing.trial import (
    Trial,
    minimum,
    nudged,
    require,
    require_equal,
    roundings,
    trials,
)


def check_two_stages_are_one(verifier: Verifier) -> None:
    """What was found below the last layer gives the bound of one call for any last layer."""
    for rounding in roundings(verifier):
        for trial in trials(verifier, standard_cases(), rounding):
            case, function = trial.case, trial.function
            if not isinstance(function, StagedBoundFn):
                continue
            if case.network.operations[-1].kind != "linear":
                continue
            hidden = function.hidden(case.params, case.box)
            for params in (case.params, _other_end(case)):
                bound = function.onward(params, case.box, hidden, case.C, case.d)
                _require_same(trial, bound, trial.bound(params))


def _other_end(case: Case) -> dict[str, Tensor]:
    """The weights of a case with others in the last layer."""
    last = set(case.network.operations[-1].tensors.values())
    other = nudged(case, seed=2)
    return {name: 3 * other[name] if name in last else t for name, t in case.params.items()}


def _require_same(trial: Trial, bound: LinearBound, whole: LinearBound) -> None:
    case, rigorous = trial.case, trial.rigorous
    have, want = (minimum(each, case.box, rigorous) for each in (bound, whole))
    require_equal(case, have, want, "in two stages the bound is {have}, in one {want}")
    for part in ("magnitude", "slope"):
        one, other = getattr(bound, part), getattr(whole, part)
        same = one is other if one is None or other is None else bool(one.allclose(other))
        require(same, f"{case.name} network: {part} differs between two stages and one")
