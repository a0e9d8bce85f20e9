"""Searches for counterexamples."""

from advrepair.core.hookspecs import hookimpl
from advrepair.core.interfaces import Component
from advrepair.plugins.attacks.autoattack import AutoAttack
from advrepair.plugins.attacks.pgd import Pgd


@hookimpl
def advrepair_components() -> tuple[type[Component], ...]:
    """The attacks."""
    return (Pgd, AutoAttack)
