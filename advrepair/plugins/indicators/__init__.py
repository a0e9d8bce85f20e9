"""Which patch serves which property; section 3.1 of arXiv 2404.01642."""

from advrepair.core.hookspecs import hookimpl
from advrepair.core.interfaces import Component
from advrepair.plugins.indicators.property_guided import PropertyGuided
from advrepair.plugins.indicators.targeted_label import TargetedLabel
from advrepair.plugins.indicators.untargeted_label import UntargetedLabel


@hookimpl
def advrepair_components() -> tuple[type[Component], ...]:
    """The indicators."""
    return (PropertyGuided, UntargetedLabel, TargetedLabel)
