import pytest

from advrepair.testing import CHECKS
from advrepair_example_verifier import Mine


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_mine(check):
    check(Mine())
