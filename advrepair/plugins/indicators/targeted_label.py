"""One patch for every pair of a label and the label an attack turns it into."""

from typing import ClassVar

from attrs import frozen

from advrepair.core.interfaces import Indicator
from advrepair.core.types import Assignment, PropertySet
from advrepair.plugins.indicators.labelled import number_labels


@frozen
class TargetedLabel(Indicator):
    """One patch for all properties with the same label and attacked label."""

    name: ClassVar[str] = "targeted-label"
    allocator: ClassVar[str] = "label-pair"

    def assign(self, properties: PropertySet) -> Assignment:
        """Patches in ascending order of the pairs that occur, each named ``label 3 over 8``.

        Raises UsageError for a property without a label or without an attacked label.
        """
        pair = {"label": properties.label, "target": properties.target}
        pairs, patch = number_labels(self.name, properties, pair)
        return Assignment(patch, tuple(f"label {label} over {target}" for label, target in pairs))
