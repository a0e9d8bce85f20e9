"""Whole repair methods, side by side in ``advrepair compare``."""

from advrepair.core.hookspecs import hookimpl
from advrepair.core.interfaces import Component
from advrepair.plugins.methods.advrepair import Advrepair
from advrepair.plugins.methods.cap import Cap
from advrepair.plugins.methods.constant_bias import ConstantBias
from advrepair.plugins.methods.none import NoMethod


@hookimpl
def advrepair_components() -> tuple[type[Component], ...]:
    """The methods."""
    return (Advrepair, Cap, ConstantBias, NoMethod)
