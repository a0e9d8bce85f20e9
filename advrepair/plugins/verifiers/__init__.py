"""Verifiers that come with advrepair."""

from advrepair.core.hookspecs import hookimpl
from advrepair.core.interfaces import Component
from advrepair.plugins.verifiers.branch_and_bound import BranchAndBound
from advrepair.plugins.verifiers.deeppoly import DeepPoly
from advrepair.plugins.verifiers.interval import Interval
from advrepair.plugins.verifiers.zonotope import Zonotope


@hookimpl
def advrepair_components() -> tuple[type[Component], ...]:
    """The built-in verifiers."""
    return (BranchAndBound, DeepPoly, Interval, Zonotope)
