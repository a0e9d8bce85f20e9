"""The paper's allocation in a feature space, with the sign of its product put right."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from attrs import frozen

from advrepair.core.interfaces import Allocator, OperatorList
from advrepair.core.options import option

if TYPE_CHECKING:
    from torch import Tensor

    from advrepair.core.types import Centres


@frozen
class FeatureCosine(Allocator):
    """Patches of the repaired inputs with the same label that are near and similar.

    Near and similar in what patches see: features f with ``patch.at``, else the input. Those
    with the least ``|f - f_i| (2 - cos(f, f_i))`` lend their patch: of equally similar ones the
    nearer, of equally near ones the more similar. Section 3.4 of arXiv 2404.01642 takes those
    with the *most* ``cos(f, f_i) |f - f_i|``. Of two that are equally similar that is the
    farther one, while its text asks for a small distance; so its sign is an error.
    """

    name: ClassVar[str] = "feature-cosine"
    top: int = option(10, "how many repaired inputs lend their patch", at_least=1)

    def allocate(self, x: Tensor, logits: Tensor, centres: Centres) -> Tensor:
        """Patches of each query: bool [N,Q]; of equally close ones the first.

        x: [N,*S]; one with a NaN is near nothing. logits: [N,K].
        """
        from advrepair.plugins.allocators.closeness import closest

        return centres.to_patches(closest(x, logits, centres, self.top))

    def write(self, to: OperatorList, x: str, logits: str, centres: Centres) -> str:
        """As operators: bool [N,Q]; the same numbers, so the same closest ones."""
        from advrepair.plugins.allocators.closeness import write_closest

        return write_closest(to, x, logits, centres, self._kept(centres))

    def most(self, centres: Centres) -> int:
        """As many as there are repaired inputs that lend theirs."""
        return min(self._kept(centres), centres.patches)

    def _kept(self, centres: Centres) -> int:
        return min(self.top, len(centres.label))
