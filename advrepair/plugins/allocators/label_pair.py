"""Allocation by the two leading labels: natural for the label indicators."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from attrs import frozen

from advrepair.core.interfaces import Allocator, OperatorList
from advrepair.core.options import option

if TYPE_CHECKING:
    from torch import Tensor

    from advrepair.core.types import Centres


@frozen
class LabelPair(Allocator):
    """All patches whose (label, attacked label) are the query's top two classes."""

    name: ClassVar[str] = "label-pair"
    fallback: bool = option(True, "without such a pair, take all patches of the label")

    def allocate(self, x: Tensor, logits: Tensor, centres: Centres) -> Tensor:
        """Patches of each query: bool [N,Q].

        This is the rule of the paper's released code; the paper's text has ``cosine``.

        x: [N,*S], not looked at. logits: [N,K].
        """
        from advrepair.plugins.allocators.pairs import same_pair

        return centres.to_patches(same_pair(logits, centres, self.fallback))

    def write(self, to: OperatorList, x: str, logits: str, centres: Centres) -> str:
        """As operators: bool [N,Q]."""
        from advrepair.plugins.allocators.pairs import write_same_pair

        return write_same_pair(to, logits, centres, self.fallback)

    def most(self, centres: Centres) -> int:
        """Patches of the label, or of the pair, that has the most."""
        from advrepair.plugins.allocators.pairs import most_of_a_pair

        return most_of_a_pair(centres, self.fallback)
