"""Where to split a piece that could not be proved; section 3.2 of arXiv 2404.01642."""

from advrepair.core.hookspecs import hookimpl
from advrepair.core.interfaces import Component
from advrepair.plugins.refiners.gradient_width import GradientWidth
from advrepair.plugins.refiners.none import NoRefiner
from advrepair.plugins.refiners.widest import Widest


@hookimpl
def advrepair_components() -> tuple[type[Component], ...]:
    """The refiners."""
    return (GradientWidth, Widest, NoRefiner)
