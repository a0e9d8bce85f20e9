"""No allocation: outside the repaired boxes nothing changes."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from attrs import frozen

from advrepair.core.interfaces import Allocator, OperatorList

if TYPE_CHECKING:
    from torch import Tensor

    from advrepair.core.types import Centres


@frozen
class NoAllocator(Allocator):
    """No patch: outside the repaired boxes the network stays as it was."""

    name: ClassVar[str] = "none"

    def allocate(self, x: Tensor, logits: Tensor, centres: Centres) -> Tensor:
        """Nothing for any query: bool [N,Q]."""
        import torch

        return torch.zeros(len(x), centres.patches, dtype=torch.bool, device=x.device)

    def write(self, to: OperatorList, x: str, logits: str, centres: Centres) -> str:
        """One row of nothing, whatever the query."""
        import torch

        return to.constant(torch.zeros(1, centres.patches, dtype=torch.bool))

    def most(self, centres: Centres) -> int:
        """0."""
        return 0
