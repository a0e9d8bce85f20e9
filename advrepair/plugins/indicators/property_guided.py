"""One patch for every property."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from attrs import frozen

from advrepair.core.interfaces import Indicator

if TYPE_CHECKING:
    from advrepair.core.types import Assignment, PropertySet


@frozen
class PropertyGuided(Indicator):
    """A patch of its own for every property; best when there are few properties."""

    name: ClassVar[str] = "property-guided"
    allocator: ClassVar[str] = "cosine"

    def assign(self, properties: PropertySet) -> Assignment:
        """Patch i serves property i and bears its name."""
        from advrepair.plugins.indicators.numbering import one_each

        return one_each(properties)
