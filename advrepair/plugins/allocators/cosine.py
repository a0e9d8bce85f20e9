"""The paper's allocation: the most similar repaired inputs of the same label."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from attrs import frozen

from advrepair.core.interfaces import Allocator, OperatorList
from advrepair.core.options import option

if TYPE_CHECKING:
    from torch import Tensor

    from advrepair.core.types import Centres


@frozen
class Cosine(Allocator):
    """Patches of the repaired inputs with the same label and most similar logits."""

    name: ClassVar[str] = "cosine"
    top: int = option(10, "how many repaired inputs lend their patch", at_least=1)

    def allocate(self, x: Tensor, logits: Tensor, centres: Centres) -> Tensor:
        """Patches of each query: bool [N,Q]; none where no repaired input has its label.

        x: [N,*S], not looked at. logits: [N,K].
        """
        from advrepair.plugins.allocators.similarity import most_similar

        return centres.to_patches(most_similar(logits, centres, self.top))

    def write(self, to: OperatorList, x: str, logits: str, centres: Centres) -> str:
        """As operators: bool [N,Q]; the same products and sums, in the same order."""
        from advrepair.plugins.allocators.similarity import write_most_similar

        return write_most_similar(to, logits, centres, self._kept(centres))

    def most(self, centres: Centres) -> int:
        """As many as there are repaired inputs that lend theirs."""
        return min(self._kept(centres), centres.patches)

    def _kept(self, centres: Centres) -> int:
        return min(self.top, len(centres.label))
