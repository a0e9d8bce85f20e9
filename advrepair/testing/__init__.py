"""Tests for components that others write; needs ``pip install advrepair[testing]`` in part.

:func:`conformance` tells what is wrong with a verifier; :data:`CHECKS` are the single
checks, for ``pytest.mark.parametrize``. Neither needs more than advrepair itself. Random
networks, boxes and specifications for Hypothesis are in ``advrepair.testing.strategies``,
which needs the extra.
"""

from advrepair.testing.conformance import CHECKS, Check, conformance

__all__ = ["CHECKS", "Check", "conformance"]
