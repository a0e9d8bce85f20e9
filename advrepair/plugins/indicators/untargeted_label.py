"""One patch for every label."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from attrs import frozen

from advrepair.core.interfaces import Indicator

if TYPE_CHECKING:
    from advrepair.core.types import Assignment, PropertySet


@frozen
class UntargetedLabel(Indicator):
    """One patch for all properties that demand the same label."""

    name: ClassVar[str] = "untargeted-label"
    allocator: ClassVar[str] = "label-pair"

    def assign(self, properties: PropertySet) -> Assignment:
        """Patches in ascending order of the labels that occur, each named ``label 3``.

        Raises UsageError for a property without a label.
        """
        from advrepair.plugins.indicators.numbering import by_label

        return by_label(self.name, properties)
