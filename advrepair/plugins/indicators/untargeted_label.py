"""One patch for every label."""

from typing import ClassVar

from attrs import frozen

from advrepair.core.interfaces import Indicator
from advrepair.core.types import Assignment, PropertySet
from advrepair.plugins.indicators.labelled import number_labels


@frozen
class UntargetedLabel(Indicator):
    """One patch for all properties that demand the same label."""

    name: ClassVar[str] = "untargeted-label"
    allocator: ClassVar[str] = "label-pair"

    def assign(self, properties: PropertySet) -> Assignment:
        """Patches in ascending order of the labels that occur, each named ``label 3``.

        Raises UsageError for a property without a label.
        """
        labels, patch = number_labels(self.name, properties, {"label": properties.label})
        return Assignment(patch, tuple(f"label {label}" for (label,) in labels))
