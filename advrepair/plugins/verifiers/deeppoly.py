"""DeepPoly by back-substitution: linear bounds in the inputs, all intermediate ones too."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from attrs import frozen

from advrepair.core.interfaces import BoundFn, Verifier
from advrepair.core.options import option

if TYPE_CHECKING:
    from advrepair.core.graph import Network
    from advrepair.core.rounding import Rounding


@frozen
class DeepPoly(Verifier):
    """Linear bounds by back-substitution through every layer (DeepPoly, CROWN).

    Singh et al., POPL 2019, 10.1145/3290354; Zhang et al., arXiv 1811.00866.
    """

    name: ClassVar[str] = "deeppoly"
    differentiable: ClassVar[bool] = True
    batchable: ClassVar[bool] = True
    rigorous: ClassVar[bool] = True

    lower_slope: str = option(
        "area",
        "slope below an unstable ReLU; area is DeepPoly's own choice",
        choices=("area", "zero", "one", "same"),
    )

    def prepare(self, network: Network, rounding: Rounding | None = None) -> BoundFn:
        """Bounds for one network; see :class:`~advrepair.core.interfaces.Verifier`.

        Raises UnsupportedNetworkError for an operation without a rule, by node name.
        """
        from advrepair.plugins.verifiers.affine import check_supported
        from advrepair.plugins.verifiers.staged import Staged

        check_supported(network, self.name)
        return Staged(network, self.lower_slope, rounding)
