"""Specifications of files as properties of a network."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from math import gcd, inf, lcm, nextafter, prod

import torch
from torch import Tensor

from advrepair.core.errors import UsageError
from advrepair.core.formulas import Row
from advrepair.core.properties import demands
from advrepair.core.rounding import round_up
from advrepair.core.specification import Specification
from advrepair.core.types import PropertySet


def from_specifications(
    specifications: Sequence[Specification],
    input_shape: Sequence[int],
    outputs: int,
    dtype: torch.dtype,
) -> PropertySet:
    """One property for each region of some specifications, for a network.

    Names are those of the files, with the number of the region where there are several:
    ``prop_2``, ``prop_6[1]``. Input ``X_i`` is coordinate i of the flattened input.

    Sound: faces are rounded outward to the network's dtype, so that the box holds every real
    input of its region, and whatever such an input becomes when it is rounded to the dtype.
    Rows are float64 and demand what the file demands, or a little more: coefficients that
    float64 cannot hold are multiplied, with their constant, by one positive number that makes
    all of them exact; the constant is then rounded down, by less than its last bit.

    input_shape: *S. outputs: K. dtype: the network's.
    Raises UsageError if inputs or outputs differ in number, for a bound too large for dtype,
    and for a row whose coefficients need more digits than float64 has.
    """
    lower, upper, rows, names = [], [], [], []
    for each in specifications:
        _check(each, input_shape, outputs)
        for i, region in enumerate(each.regions):
            name = each.name if len(each.regions) == 1 else f"{each.name}[{i}]"
            names.append(name)
            lower.append(0 - _above([-value for value in region.lower], dtype))  # no -0.0
            upper.append(_above(region.upper, dtype))
            if not bool((lower[-1].isfinite() & upper[-1].isfinite()).all()):
                raise UsageError(f"{each.source}: {name}: a bound is too large for {dtype}")
            rows.append(
                [(g, *_exact(each, row)) for g, group in enumerate(region.groups) for row in group]
            )
    if not rows:
        raise UsageError("no specification was given; name at least one file")
    most = max(map(len, rows))
    C = torch.zeros(len(rows), most, outputs, dtype=torch.float64)
    d = torch.zeros(len(rows), most, dtype=torch.float64)
    group = torch.full((len(rows), most), -1)
    for p, mine in enumerate(rows):
        for m, (g, coefficients, constant) in enumerate(mine):
            C[p, m], d[p, m] = torch.tensor(coefficients, dtype=torch.float64), constant
            group[p, m] = g
    shape = (len(rows), *input_shape)
    return demands(
        torch.stack(lower).view(shape), torch.stack(upper).view(shape), C, d, group, names
    )


def _check(specification: Specification, input_shape: Sequence[int], outputs: int) -> None:
    size = prod(input_shape)
    if specification.inputs != size:
        shape = ",".join(map(str, input_shape))
        raise UsageError(
            f"{specification.source}: declares {specification.inputs} inputs, the network takes "
            f"{size} ({shape}); use the specification of this network"
        )
    if specification.outputs != outputs:
        raise UsageError(
            f"{specification.source}: declares {specification.outputs} outputs, the network has "
            f"{outputs}; use the specification of this network"
        )


def _above(values: Sequence[Fraction], dtype: torch.dtype) -> Tensor:
    """Smallest numbers of dtype that are >= the values; infinite if there is none."""
    return round_up(torch.tensor([-_below(-v) for v in values], dtype=torch.float64), dtype)


def _below(value: Fraction) -> float:
    """Largest float64 that is <= value."""
    try:
        near = float(value)
    except OverflowError:
        return -inf if value < 0 else nextafter(inf, 0)
    return nextafter(near, -inf) if Fraction(near) > value else near


def _is_exact(value: Fraction) -> bool:
    try:
        return Fraction(float(value)) == value
    except OverflowError:
        return False


def _exact(specification: Specification, row: Row) -> tuple[list[float], float]:
    """Coefficients and constant as float64 numbers that demand what the row does, or more."""
    coefficients, factor = row.coefficients, Fraction(1)
    if not all(map(_is_exact, coefficients)):
        whole = lcm(*(c.denominator for c in coefficients))
        common = gcd(*(int(c * whole) for c in coefficients))
        factor = Fraction(whole, common)
        # The scale of a row is that of its margin: a power of two brings it back.
        bits = factor.numerator.bit_length() - factor.denominator.bit_length()
        factor /= Fraction(2) ** bits
    scaled = [factor * c for c in coefficients]
    constant = _below(factor * row.constant)
    if not all(map(_is_exact, scaled)) or constant == -inf:
        raise UsageError(
            f"{specification.source}:{':'.join(str(n) for n in row.at if n)}: the numbers before "
            "the outputs have more digits than float64 keeps; write them with fewer"
        )
    return [float(c) for c in scaled], constant
