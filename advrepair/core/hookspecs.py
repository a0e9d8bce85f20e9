"""The one hook."""

from collections.abc import Iterable

import pluggy

from advrepair.core.interfaces import Component

PROJECT = "advrepair"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def advrepair_components() -> Iterable[type[Component]]:
    """Component classes this plugin brings; the base class says the kind."""
    return ()
