"""Activations to sixty digits, and intervals to try their lines on."""

from __future__ import annotations

import mpmath
import torch
from hypothesis import strategies as st

from advrepair.plugins.verifiers.curves import CURVES
from advrepair.plugins.verifiers.relaxations import Relaxation

mpmath.mp.dps = 60
EXTREMES = [0.0, 5e-324, 1e-300, 1e-20, 1e-8, 1e-3, 1.0, 1.4142135623730951, 8.0, 40.0, 1e5, 1e120]
ends = st.one_of(
    st.sampled_from([*EXTREMES, *(-x for x in EXTREMES)]), st.floats(-6, 6), st.floats(-60, 60)
)
widths = st.one_of(st.just(0.0), st.floats(-45, 6).map(lambda power: 2.0**power))
kinds = st.sampled_from(sorted(CURVES))


def exact(kind: str, x: mpmath.mpf) -> mpmath.mpf:
    """The function itself."""
    return {
        "tanh": lambda: mpmath.tanh(x),
        "sigmoid": lambda: 1 / (1 + mpmath.exp(-x)),
        "erf": lambda: mpmath.erf(x),
        # By erfc, so that nothing cancels.
        "gelu": lambda: x * mpmath.erfc(-x / mpmath.sqrt(2)) / 2,
    }[kind]()


def doubles(lower: float, upper: float) -> tuple[torch.Tensor, torch.Tensor]:
    return tuple(torch.tensor([[end]], dtype=torch.float64) for end in (lower, upper))  # type: ignore[return-value]


def grid(lower: float, upper: float) -> list[mpmath.mpf]:
    """The ends, points between them, and where a curve may be at its worst."""
    low, high = mpmath.mpf(lower), mpmath.mpf(upper)
    inside = [low + (high - low) * i / 24 for i in range(25)]
    special = [mpmath.mpf(x) for x in (0, 1, -1, "1.41421356", "-1.41421356", "-0.7518")]
    return [*inside, *(x for x in special if low <= x <= high)]


def numbers(lines: Relaxation) -> list[mpmath.mpf]:
    parts = (lines.lower_slope, lines.lower_offset, lines.upper_slope, lines.offset)
    return [mpmath.mpf(part.item()) for part in parts]
