"""Rounding bounds against rational arithmetic."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from numpy.typing import NDArray

from advrepair.core.rounding import UNIT64, Level, Rounding, above, gamma, round_down, round_up
from advrepair.core.types import Box

UNIT32 = 2.0**-24
float32s = st.floats(width=32, allow_nan=False, allow_infinity=False)
moderate = st.floats(-(2.0**50), 2.0**50, width=32)
orders = st.sampled_from(["given", "shuffled", "rising", "pairwise", "lanes"])


def _summed(terms: NDArray[np.float32], order: str, seed: int) -> np.float32:
    """A float32 sum as a library may take it."""
    if order == "pairwise":
        while len(terms) > 1:
            if len(terms) % 2:
                terms = np.append(terms, np.float32(0))
            terms = terms[::2] + terms[1::2]
        return np.float32(terms[0])
    if order == "lanes":
        lanes = [_summed(terms[i::4], "given", seed) for i in range(4)]
        return _summed(np.array(lanes, dtype=np.float32), "given", seed)
    if order == "shuffled":
        terms = np.random.default_rng(seed).permutation(terms)
    elif order == "rising":
        terms = terms[np.argsort(np.abs(terms))]
    total = np.float32(0)
    for term in terms:
        total = np.float32(total + term)
    return total


@given(st.lists(st.tuples(moderate, moderate), min_size=1, max_size=60), orders, st.integers(0, 99))
@example([(1.0, 1.0)] + [(1.0, 0.99 * UNIT32)] * 59, "given", 0)  # every term is lost
@example([(1e-30, 1e-30)] * 40, "given", 0)  # every product underflows
def test_a_float32_dot_product_errs_at_most_by_gamma(
    pairs: list[tuple[float, float]], order: str, seed: int
) -> None:
    left, right = (np.array(column, dtype=np.float32) for column in zip(*pairs, strict=True))
    computed = Fraction(float(_summed(left * right, order, seed)))
    products = [Fraction(float(a)) * Fraction(float(b)) for a, b in zip(left, right, strict=True)]
    error, absolute = abs(computed - sum(products)), sum(abs(p) for p in products)
    count, rounding = len(pairs), Rounding("deployed-float32")
    underflow = Fraction(rounding.absolute(count))
    assert error <= Fraction(gamma(count, UNIT32)) * absolute + underflow
    assert error <= Fraction(rounding.relative(count, 0)) * absolute + underflow


@given(st.integers(1, 500), st.integers(0, 2**31))
def test_a_float64_matrix_product_errs_at_most_by_gamma(terms: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    left, right = torch.randn(2, terms, generator=generator, dtype=torch.float64)
    products = [
        Fraction(a) * Fraction(b) for a, b in zip(left.tolist(), right.tolist(), strict=True)
    ]
    allowed = Fraction(gamma(terms)) * sum(abs(p) for p in products)
    assert abs(Fraction((left @ right).item()) - sum(products)) <= allowed


def test_gamma_grows_and_then_says_nothing() -> None:
    assert gamma(0) == 0.0
    assert gamma(1) >= UNIT64 and gamma(100, UNIT32) > 100 * UNIT32
    assert gamma(2**23, UNIT32) == math.inf


@pytest.mark.parametrize("level", ["real", "deployed-float32", "deployed-float64"])
def test_our_own_error_counts_at_every_level(level: Level) -> None:
    rounding = Rounding(level)
    assert rounding.relative(10, 20) >= gamma(20) + (gamma(10, rounding.unit) or 0.0)
    assert rounding.relative(20, 20) >= rounding.relative(10, 20)
    assert rounding.absolute(10) > 0.0


@given(st.lists(st.floats(0, 1e300), min_size=1, max_size=50))
def test_above_covers_the_rounding_of_a_sum(terms: list[float]) -> None:
    total = above(torch.tensor(terms, dtype=torch.float64).sum())
    assert total.item() >= sum(Fraction(term) for term in terms)


@given(st.floats(allow_nan=False, allow_infinity=False))
@example(0.1)
@example(-0.0)
@example(1e-46)
@example(-3.5e38)
def test_round_down_and_up_enclose(value: float) -> None:
    exact = torch.tensor([value], dtype=torch.float64)
    low, high = round_down(exact, torch.float32), round_up(exact, torch.float32)
    assert low.dtype is high.dtype is torch.float32
    assert low.double().item() <= value <= high.double().item()
    if low.item() != high.item():
        assert torch.nextafter(low, high).equal(high)
    else:
        assert low.double().item() == value


@given(float32s.filter(lambda x: abs(x) < 1e30), st.floats(1e-9, 1e3), st.booleans())
@example(0.3, 0.1, True)
@example(0.0, 8 / 255, True)
@example(16777216.0, 0.5, False)
@example(1.0, 1e-9, False)
def test_a_box_holds_what_float32_computes(x: float, epsilon: float, clipped: bool) -> None:
    clip = (0.0, 1.0) if clipped else None
    x = min(max(x, 0.0), 1.0) if clipped else x
    center = torch.tensor([[x]], dtype=torch.float32)
    x, box = center.item(), Box.around(center, epsilon, clip)
    for moved in (center - epsilon, center + epsilon, center):
        moved = moved.clamp(0.0, 1.0) if clipped else moved
        assert box.holds(moved).item()
    low, high = Fraction(box.lower.item()), Fraction(box.upper.item())
    exact = Fraction(x) - Fraction(epsilon), Fraction(x) + Fraction(epsilon)
    if clipped:
        exact = max(exact[0], Fraction(0)), min(exact[1], Fraction(1))
    assert low <= exact[0] and exact[1] <= high  # the real ball, too
    below = torch.nextafter(box.lower, torch.tensor(-torch.inf))
    beyond = torch.nextafter(box.upper, torch.tensor(torch.inf))
    assert not box.holds(below).item() and not box.holds(beyond).item()


@given(st.floats(-1.0, 1.0, width=32), st.floats(1e-6, 0.5))
def test_a_box_is_at_most_a_few_floats_too_wide(x: float, epsilon: float) -> None:
    box = Box.around(torch.tensor([[x]], dtype=torch.float32), epsilon)
    slack = Fraction(4 * UNIT32) * (abs(Fraction(x)) + Fraction(epsilon))
    assert Fraction(box.lower.item()) >= Fraction(x) - Fraction(epsilon) - slack
    assert Fraction(box.upper.item()) <= Fraction(x) + Fraction(epsilon) + slack
