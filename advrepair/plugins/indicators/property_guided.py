"""One patch for every property."""

from typing import ClassVar

import torch
from attrs import frozen

from advrepair.core.interfaces import Indicator
from advrepair.core.types import Assignment, PropertySet


@frozen
class PropertyGuided(Indicator):
    """A patch of its own for every property; best when there are few properties."""

    name: ClassVar[str] = "property-guided"
    allocator: ClassVar[str] = "cosine"

    def assign(self, properties: PropertySet) -> Assignment:
        """Patch i serves property i and bears its name."""
        patch = torch.arange(len(properties), device=properties.label.device)
        return Assignment(patch, properties.names)
