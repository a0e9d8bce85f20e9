"""A share, and the interval around it."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from advrepair.core.statistics import Share


@pytest.mark.parametrize(
    "hits, count, low, high",
    # Newcombe, 10.1002/(SICI)1097-0258(19980430)17:8<857::AID-SIM777>3.0.CO;2-E, table I.
    [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_intervals_of_the_literature(hits, count, low, high):
    assert Share(hits, count).interval == pytest.approx((low, high), abs=5e-5)


def test_nothing_has_no_share():
    assert Share(0, 0).value is None and Share(0, 0).interval is None


@given(st.integers(1, 10**6), st.data())
def test_it_holds_the_share_and_shrinks_with_the_count(count, data):
    hits = data.draw(st.integers(0, count))
    low, high = Share(hits, count).interval
    assert 0 <= low <= hits / count <= high <= 1
    wider = Share(4 * hits, 4 * count).interval
    assert wider[1] - wider[0] < high - low
    assert math.isclose(Share(count - hits, count).interval[0], 1 - high, abs_tol=1e-12)
