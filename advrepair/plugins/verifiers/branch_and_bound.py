"""Branch and bound on top of DeepPoly: decides what its bounds leave open."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from attrs import frozen

from advrepair.core.interfaces import BranchBoundFn, CompleteVerifier
from advrepair.core.options import option
from advrepair.plugins.verifiers.deeppoly import DeepPoly

if TYPE_CHECKING:
    from torch import Tensor

    from advrepair.core.box import Box
    from advrepair.core.branches import Branch, BranchBound
    from advrepair.core.graph import Network
    from advrepair.core.rounding import Rounding

_FEW_INPUTS = 16


@frozen
class BranchAndBound(DeepPoly, CompleteVerifier):
    """DeepPoly, and cuts of inputs or of ReLU signs where it does not do; complete.

    Bunel et al., arXiv 1909.06588; multipliers as in Wang et al., arXiv 2103.06624.
    """

    name: ClassVar[str] = "branch-and-bound"

    cuts: str = option(
        "auto",
        f"what is cut; auto: inputs if there are at most {_FEW_INPUTS}, else signs of ReLU inputs",
        choices=("auto", "inputs", "relus"),
    )
    pieces: int = option(4000, "pieces of a property, at most", at_least=1)
    steps: int = option(
        20, "steps of ascent on slopes and multipliers of a piece with known signs", at_least=0
    )

    def prepare_branches(self, network: Network, rounding: Rounding | None = None) -> BranchBoundFn:
        """Bounds of parts of boxes; see :class:`~advrepair.core.interfaces.CompleteVerifier`."""
        from advrepair.plugins.verifiers.affine import check_supported
        from advrepair.plugins.verifiers.branched import Branched

        check_supported(network, self.name)
        slope = self.lower_slope

        def bound(
            params: Mapping[str, Tensor], box: Box, C: Tensor, d: Tensor, branch: Branch
        ) -> BranchBound:
            state = Branched(network, params, box, slope, rounding, branch=branch)
            return state.bound(C, d)

        return bound

    def cut(self, box: Box, A: Tensor, gap: Tensor) -> Tensor:
        """The input that moves the row most, or the ReLU whose line costs it most."""
        from advrepair.plugins.verifiers.branched import best_cut

        few = math.prod(box.input_shape) <= _FEW_INPUTS
        return best_cut(box, A, gap, self.cuts == "relus" or (self.cuts == "auto" and not few))
