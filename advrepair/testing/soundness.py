"""Checks that a bound is a bound: nothing the network does is below it."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from advrepair.core.box import Box
from advrepair.core.interfaces import Verifier
from advrepair.core.rounding import UNIT64, Level, Rounding
from advrepair.core.types import LinearBound
from advrepair.testing.cases import Case, absorbing_case, standard_cases, tiny_cases
from advrepair.testing.oracle import Vector, can_evaluate, exact_minimum, exact_rows
from advrepair.testing.search import Rows, linear_rows, low_points, scatter
from advrepair.testing.trial import (
    Trial,
    nudged,
    reached,
    require,
    require_below,
    require_equal,
    trials,
)

_DEPLOYED: tuple[tuple[Level, torch.dtype], ...] = (
    ("deployed-float32", torch.float32),
    ("deployed-float64", torch.float64),
)


def check_no_point_beats_the_minimum(verifier: Verifier) -> None:
    """Samples, corners and a descent find no value below ``bound.minimum``."""
    for trial in trials(verifier, standard_cases()):
        what = "the bound is {have}, yet the network reaches {want}"
        require_below(trial.case, trial.minimum(), reached(trial.case), what)


def check_no_point_beats_the_line(verifier: Verifier) -> None:
    """``A.x + b <= C f(x) + d`` at every x, not only where the line is lowest.

    The core adds the lines of a network and a patch, so each must hold everywhere.
    """
    for trial in trials(verifier, standard_cases()):
        case, bound = trial.case, trial.bound()
        points = low_points(case, _gap(case, bound), seed=6)
        rows, line = case.rows(points), linear_rows(bound, points)
        index = (rows - line).argmin(1, keepdim=True)
        what = "the line is at {have} where the network is at {want}"
        line, rows = line.gather(1, index)[:, 0], rows.gather(1, index)[:, 0]
        require_below(case, line, rows, what)


def check_exact_minimum_is_not_beaten(verifier: Verifier) -> None:
    """The bound is at most the exact minimum, on networks small enough to know it."""
    for trial in trials(verifier, tiny_cases()):
        exact = [[float(value) for value in row] for row in _oracle(trial.case)]
        what = "the bound is {have}, yet the exact minimum is {want}"
        value = torch.tensor(exact, dtype=torch.float64)
        require_below(trial.case, trial.minimum(), value, what)


def check_point_box_is_exact(verifier: Verifier) -> None:
    """On a box of zero width the bound is the network's value, whatever the weights."""
    for trial in trials(verifier, standard_cases()):
        case = trial.case
        point = Case(case.name, case.network, Box(case.box.lower, case.box.lower), case.C, case.d)
        for weights in (case.params, nudged(case, seed=1)):
            y = case.network.apply_tensors(weights, point.box.lower)
            value = point.specified(y.unsqueeze(1))[:, 0]
            have = Trial(point, trial.function).minimum(weights)
            what = "on a box of zero width the bound is {have} and the network {want}"
            require_equal(case, have, value, what)


def check_rigorous_in_real_arithmetic(verifier: Verifier) -> None:
    """With Rounding("real") no exact value is below the rigorous minimum, by no margin."""
    if not verifier.rigorous:
        return
    for trial in trials(verifier, tiny_cases(), Rounding("real")):
        least = trial.minimum().tolist()
        pairs = zip(least, _oracle(trial.case), strict=True)
        for box, (bounds, exact) in enumerate(pairs):
            for bound, value in zip(bounds, exact, strict=True):
                require(
                    not bound > value,
                    f"{trial.case.name} network, box {box}: the rigorous bound {bound} is above "
                    f"the exact minimum, about {float(value)}",
                )
    rational = [case for case in standard_cases() if can_evaluate(case.network)]
    for trial in trials(verifier, rational, Rounding("real")):
        case = trial.case
        points = low_points(case, case.rows, seed=5)
        values, index = case.rows(points).min(1)
        # Where float64 says that a point beats the bound, rational arithmetic decides.
        for box, row in (trial.minimum() > values).nonzero().tolist():
            _require_below_exact(trial, box, points[box, index[box, row]])
    for trial in trials(verifier, [absorbing_case(UNIT64)], Rounding("real")):
        for box in range(len(trial.case.box)):
            _require_below_exact(trial, box, trial.case.box.lower[box])
            _require_below_exact(trial, box, trial.case.box.upper[box])


def check_rigorous_for_the_deployed_network(verifier: Verifier) -> None:
    """No evaluation in the deployed arithmetic is below the rigorous minimum."""
    if not verifier.rigorous:
        return
    for level, dtype in _DEPLOYED:
        cases = (*standard_cases(), absorbing_case(Rounding(level).unit))
        for trial in trials(verifier, cases, Rounding(level)):
            outputs = _deployed(trial.case, dtype)
            what = f"the {level} bound is {{have}}, yet the network computes {{want}}"
            values = trial.case.specified(outputs).amin(1)
            require_below(trial.case, trial.minimum(), values, what, tolerance=0.0)


def check_magnitude_of_rigorous_bounds(verifier: Verifier) -> None:
    """A rigorous bound says how large the outputs can be: ``|f(x)| <= magnitude``."""
    if not verifier.rigorous:
        return
    for level, dtype in _DEPLOYED:
        cases = (*standard_cases(), absorbing_case(Rounding(level).unit))
        for trial in trials(verifier, cases, Rounding(level)):
            magnitude = trial.bound().magnitude
            if magnitude is None:
                raise AssertionError(f"{trial.case.name} network: magnitude is None")
            largest = _deployed(trial.case, dtype).double().abs().amax(1)
            what = f"{level}: an output reaches {{have}}, magnitude is {{want}}"
            require_below(trial.case, largest, magnitude, what, tolerance=0.0)


def _gap(case: Case, bound: LinearBound) -> Rows:
    return lambda x: case.rows(x) - linear_rows(bound, x)


def _require_below_exact(trial: Trial, box: int, x: Tensor) -> None:
    """The rigorous bounds of a box are at most the exact values at one of its points."""
    case = trial.case
    exact = exact_rows(case.network, x, case.C[box], case.d[box])
    for row, (least, value) in enumerate(zip(trial.minimum()[box].tolist(), exact, strict=True)):
        require(
            not least > value,
            f"{case.name} network, box {box}, row {row}: the rigorous bound {least!r} is above "
            f"an exact value, about {float(value)!r}",
        )


@cache
def _oracle(case: Case) -> list[Vector]:
    return exact_minimum(case.network, case.box, case.C, case.d)


@cache
def _deployed(case: Case, dtype: torch.dtype) -> Tensor:
    """Outputs at many points as computed in dtype, in batches of three sizes, [B,N,K].

    A matrix product sums in another order for another batch, so sizes are worth a try.
    """
    weights = {name: t.to(dtype) for name, t in case.network.tensors.items()}
    points = torch.cat([scatter(case.box, 40, 16, seed=7), low_points(case, case.rows, seed=8)], 1)
    lower, upper = (face.to(dtype).unsqueeze(1) for face in (case.box.lower, case.box.upper))
    x = torch.minimum(torch.maximum(points.to(dtype), lower), upper)
    flat = x.flatten(0, 1)
    runs = []
    for count in (1, 7, len(flat)):
        parts = [case.network.apply_tensors(weights, part) for part in flat.split(count)]
        runs.append(torch.cat(parts).unflatten(0, x.shape[:2]))
    return torch.cat(runs, 1)
