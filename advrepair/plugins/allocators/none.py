"""No allocation: outside the repaired boxes nothing changes."""

from typing import ClassVar

import torch
from attrs import frozen
from torch import Tensor

from advrepair.core.interfaces import Allocator, OperatorList
from advrepair.core.types import Centres


@frozen
class NoAllocator(Allocator):
    """No patch: outside the repaired boxes the network stays as it was."""

    name: ClassVar[str] = "none"

    def allocate(self, x: Tensor, logits: Tensor, centres: Centres) -> Tensor:
        """Nothing for any query: bool [N,Q]."""
        return torch.zeros(len(x), centres.patches, dtype=torch.bool, device=x.device)

    def write(self, to: OperatorList, x: str, logits: str, centres: Centres) -> str:
        """One row of nothing, whatever the query."""
        return to.constant(torch.zeros(1, centres.patches, dtype=torch.bool))

    def most(self, centres: Centres) -> int:
        """0."""
        return 0
