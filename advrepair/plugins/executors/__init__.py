"""Where the independent parts of a repair are worked on."""

from advrepair.core.hookspecs import hookimpl
from advrepair.core.interfaces import Component
from advrepair.plugins.executors.in_process import InProcess


@hookimpl
def advrepair_components() -> tuple[type[Component], ...]:
    """The executors."""
    return (InProcess,)
