"""One patch for every pair of a label and the label an attack turns it into."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from attrs import frozen

from advrepair.core.interfaces import Indicator

if TYPE_CHECKING:
    from advrepair.core.types import Assignment, PropertySet


@frozen
class TargetedLabel(Indicator):
    """One patch for all properties with the same label and attacked label."""

    name: ClassVar[str] = "targeted-label"
    allocator: ClassVar[str] = "label-pair"

    def assign(self, properties: PropertySet) -> Assignment:
        """Patches in ascending order of the pairs that occur, each named ``label 3 over 8``.

        Raises UsageError for a property without a label or without an attacked label.
        """
        from advrepair.plugins.indicators.numbering import by_label_and_target

        return by_label_and_target(self.name, properties)
