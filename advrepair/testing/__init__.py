"""Tests for components that others write; needs ``pip install advrepair[testing]`` in part.

:func:`conformance` tells what is wrong with a verifier; :data:`CHECKS` are the single
checks, for ``pytest.mark.parametrize``. :data:`METHOD_CHECKS` are those for repair methods, and
:func:`tiny_task` and :func:`digits_task` give such a method something to repair. None of them
needs more than advrepair itself. Random networks, boxes and specifications for Hypothesis are in
``advrepair.testing.strategies``, which needs the extra.
"""

from advrepair.testing.conformance import CHECKS, Check, conformance
from advrepair.testing.methods import METHOD_CHECKS, MethodCheck
from advrepair.testing.tasks import digits_task, digits_test_images, tiny_task

__all__ = [
    "CHECKS",
    "METHOD_CHECKS",
    "Check",
    "MethodCheck",
    "conformance",
    "digits_task",
    "digits_test_images",
    "tiny_task",
]
