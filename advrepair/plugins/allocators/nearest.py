"""Allocation by distance in the input."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from attrs import frozen

from advrepair.core.interfaces import Allocator, OperatorList
from advrepair.core.options import option

if TYPE_CHECKING:
    from torch import Tensor

    from advrepair.core.types import Centres


@frozen
class Nearest(Allocator):
    """The patch of the nearest repaired input with the same label (L-infinity)."""

    name: ClassVar[str] = "nearest"
    within: float = option(0.0, "farthest distance, in input units; 0: any", at_least=0)

    def allocate(self, x: Tensor, logits: Tensor, centres: Centres) -> Tensor:
        """Patches of each query: bool [N,Q]; of equally near ones the first.

        x: [N,*S]; one with a NaN is near nothing. logits: [N,K].
        """
        from advrepair.plugins.allocators.distance import nearest_of_label

        return centres.to_patches(nearest_of_label(x, logits, centres, self.within))

    def write(self, to: OperatorList, x: str, logits: str, centres: Centres) -> str:
        """As operators: bool [N,Q]; the same differences, so the same nearest one."""
        from advrepair.plugins.allocators.distance import write_nearest

        return write_nearest(to, x, logits, centres, self.within)

    def most(self, centres: Centres) -> int:
        """1."""
        return 1
