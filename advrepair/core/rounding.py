"""How far a computed number may lie from the exact one.

Two arithmetics meet in a certificate. *Ours*: every bound is computed in float64, so each
sum of products carries an error of at most ``gamma(k) = k u / (1 - k u)`` of the sum of
absolute products (Higham, *Accuracy and Stability of Numerical Algorithms*, 3.1), in any
order of summation and with or without fused multiply-add. *The deployed one*: the network
as it runs, in float32 or float64, errs by the same law with its own unit ``u``.

Both errors are subtracted from every lower bound; ``docs/soundness.md`` has the proof.
"""

from typing import Literal

import torch
from attrs import frozen
from torch import Tensor

Level = Literal["real", "deployed-float32", "deployed-float64"]

UNIT64 = 2.0**-53
# A product of ours that underflows is off by at most 2^-1074, and stands before a value below
# 2^500: all such products of one row together, 2^100 of them, change it by less than this.
UNDERFLOW = 2.0**-400
# Eight units in the last place of a result near its scale.
UNITS_OF_FUNCTIONS = 16
_SUBNORMAL64 = 2.0**-1074


def gamma(terms: int, unit: float = UNIT64) -> float:
    """Relative error of a sum of ``terms`` products in arithmetic with the given unit."""
    if terms * unit >= 0.5:
        return float("inf")  # no statement is possible; an infinite error proves nothing
    return terms * unit / (1.0 - terms * unit)


@frozen
class Rounding:
    """Which arithmetic a bound speaks about.

    level: ``real`` for the exact function of the stored weights, ``deployed-...`` for the
        function as computed at inference in that floating-point format.
    """

    level: Level = "real"

    @property
    def unit(self) -> float:
        """Unit roundoff of the deployed arithmetic; 0 at level ``real``."""
        return {"real": 0.0, "deployed-float32": 2.0**-24, "deployed-float64": UNIT64}[self.level]

    @property
    def subnormal(self) -> float:
        """Largest absolute error of one product that underflows, deployed arithmetic."""
        return {"real": 0.0, "deployed-float32": 2.0**-149, "deployed-float64": _SUBNORMAL64}[
            self.level
        ]

    def function(self, scale: Tensor) -> Tensor:
        """What a deployed tanh, sigmoid, erf or GELU errs by, absolutely; an assumption.

        scale: of its results: 1, or for GELU the size of its input. docs/soundness.md says what
        torch and onnxruntime were seen to err by.
        """
        return UNITS_OF_FUNCTIONS * (self.unit * scale + self.subnormal)

    def overflowing(self, total: Tensor) -> Tensor:
        """Sums of absolute terms, infinite where they are too large for a proof.

        In the deployed format some order of summation may overflow to an infinity or a NaN.
        In our own, values up to 2^500 keep what underflow loses in a coefficient below
        UNDERFLOW; see there.
        """
        largest = 2.0**126 if self.level == "deployed-float32" else 2.0**500
        return torch.where(total < largest, total, torch.inf)

    def relative(self, fan_in: int, ours: int) -> float:
        """Error per unit of absolute value: deployed sum of fan_in, plus our own of ours."""
        deployed = gamma(fan_in + 2, self.unit) if self.unit else 0.0
        return deployed + gamma(ours + 4)

    def absolute(self, fan_in: int) -> float:
        """Error that does not scale: products that underflow in the deployed sum."""
        return (fan_in + 2) * self.subnormal + (fan_in + 2) * _SUBNORMAL64


def above(error: Tensor) -> Tensor:
    """Enlarge a sum of non-negative float64 numbers so that it covers its own rounding."""
    return error * (1.0 + 2.0**-20) + 2.0**-1000


def round_down(value: Tensor, dtype: torch.dtype) -> Tensor:
    """Largest number of ``dtype`` that is <= value (float64)."""
    near = value.to(dtype)
    low = torch.nextafter(near, torch.full_like(near, -torch.inf))
    return torch.where(near.double() > value, low, near)


def round_up(value: Tensor, dtype: torch.dtype) -> Tensor:
    """Smallest number of ``dtype`` that is >= value (float64)."""
    return -round_down(-value, dtype)
