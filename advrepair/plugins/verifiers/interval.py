"""Interval bound propagation: the cheapest sound bounds, and the loosest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from attrs import frozen

from advrepair.core.interfaces import BoundFn, Verifier

if TYPE_CHECKING:
    from torch import Tensor

    from advrepair.core.box import Box
    from advrepair.core.graph import Network
    from advrepair.core.rounding import Rounding
    from advrepair.core.types import LinearBound


@frozen
class Interval(Verifier):
    """Interval arithmetic forwards; constants only, A = 0 (IBP).

    Gowal et al., arXiv 1810.12715. The rows of C are merged into a final linear layer.
    """

    name: ClassVar[str] = "interval"
    differentiable: ClassVar[bool] = True
    batchable: ClassVar[bool] = True
    rigorous: ClassVar[bool] = True

    def prepare(self, network: Network, rounding: Rounding | None = None) -> BoundFn:
        """Bounds for one network; see :class:`~advrepair.core.interfaces.Verifier`.

        Raises UnsupportedNetworkError for an operation without a rule, by node name.
        """
        from advrepair.plugins.verifiers.affine import check_supported
        from advrepair.plugins.verifiers.interval_arithmetic import propagate
        from advrepair.plugins.verifiers.interval_rigorous import enclose

        check_supported(network, self.name)

        def rigorous(params: Mapping[str, Tensor], box: Box, C: Tensor, d: Tensor) -> LinearBound:
            assert rounding is not None
            return enclose(network, params, box, C, d, rounding)

        def bound(params: Mapping[str, Tensor], box: Box, C: Tensor, d: Tensor) -> LinearBound:
            return propagate(network, params, box, C, d)

        return bound if rounding is None else rigorous
