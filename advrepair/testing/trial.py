"""Run a verifier on cases, and say in one line what it got wrong."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache

import torch
from attrs import evolve, frozen
from torch import Tensor

from advrepair.core.box import Box
from advrepair.core.errors import UnsupportedNetworkError
from advrepair.core.interfaces import BoundFn, Verifier
from advrepair.core.rounding import Rounding
from advrepair.core.types import LinearBound
from advrepair.testing.cases import Case
from advrepair.testing.search import low_points

TOLERANCE = 1e-9  # of float64 bounds, relative to 1 + |value|


@frozen(eq=False)
class Trial:
    """A verifier made ready for a case."""

    case: Case
    function: BoundFn
    rigorous: bool = False

    def bound(self, params: dict[str, Tensor] | None = None) -> LinearBound:
        """Bounds in float64 with the case's own weights, or others."""
        case = self.case
        return self.function(case.params if params is None else params, case.box, case.C, case.d)

    def minimum(self, params: dict[str, Tensor] | None = None) -> Tensor:
        """Lower bound of every row, [B,M]."""
        return minimum(self.bound(params), self.case.box, self.rigorous)


def minimum(bound: LinearBound, box: Box, rigorous: bool) -> Tensor:
    """Lower bound of every row, [B,M], in exact arithmetic if rigorous."""
    return bound.minimum_rigorous(box) if rigorous else bound.minimum(box)


def trials(
    verifier: Verifier, cases: Sequence[Case], rounding: Rounding | None = None
) -> Iterator[Trial]:
    """The cases whose network the verifier accepts; fully connected ones it has to."""
    for case in cases:
        try:
            function = verifier.prepare(case.network, rounding)
        except UnsupportedNetworkError as error:
            affine = {"linear", "relu"}
            require(
                any(op.kind not in affine for op in case.network.operations),
                f"{case.name}: prepare() refuses a fully connected ReLU network: {error}",
            )
            continue
        yield Trial(case, function, rigorous=rounding is not None)


def roundings(verifier: Verifier) -> tuple[Rounding | None, ...]:
    """Plain bounds, and rigorous ones if the verifier claims them."""
    return (None, Rounding("real")) if verifier.rigorous else (None,)


@cache
def reached(case: Case) -> Tensor:
    """The least value of every row that a search finds in each box, [B,M]."""
    return case.rows(low_points(case, case.rows, seed=5)).amin(1).detach()


def nudged(case: Case, seed: int) -> dict[str, Tensor]:
    """Other weights for the same network, as a patch has them after a training step."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: t + 0.1 * torch.randn(t.shape, generator=generator, dtype=t.dtype)
        for name, t in case.params.items()
    }


def rearranged(case: Case, index: Tensor) -> Case:
    """The same case with boxes chosen by index."""
    return evolve(case, box=case.box[index], C=case.C[index], d=case.d[index])


def require(holds: bool, reason: str) -> None:
    """Raises AssertionError with the reason unless it holds."""
    if not holds:
        raise AssertionError(reason)


def require_below(
    case: Case, bound: Tensor, value: Tensor, what: str, tolerance: float = TOLERANCE
) -> None:
    """Bounds are at most the values, [B,M] each; a NaN proves nothing and passes."""
    excess = bound - value - tolerance * (1 + value.abs())
    _require_none(case, excess.nan_to_num(-torch.inf, torch.inf) > 0, bound, value, what)


def require_equal(case: Case, have: Tensor, want: Tensor, what: str) -> None:
    """Two ways to the same bounds, [B,M] each, agree up to rounding."""
    same = torch.isclose(have, want, rtol=TOLERANCE, atol=TOLERANCE, equal_nan=True)
    _require_none(case, ~same, have, want, what)


def _require_none(case: Case, wrong: Tensor, have: Tensor, want: Tensor, what: str) -> None:
    if bool(wrong.any()):
        box, row = wrong.nonzero()[0].tolist()
        raise AssertionError(
            f"{case.name} network, box {box}, row {row}: "
            f"{what.format(have=have[box, row].item(), want=want[box, row].item())}"
        )
