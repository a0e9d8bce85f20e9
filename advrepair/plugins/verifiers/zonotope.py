"""Zonotopes forwards for the ReLUs, back-substitution for the rows: fast where inputs are few."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from attrs import frozen

from advrepair.core.interfaces import BoundFn, Verifier
from advrepair.plugins.verifiers.deeppoly import DeepPoly

if TYPE_CHECKING:
    from torch import Tensor

    from advrepair.core.box import Box
    from advrepair.core.graph import Network
    from advrepair.core.rounding import Rounding
    from advrepair.core.types import LinearBound


@frozen
class Zonotope(Verifier):
    """Zonotopes for what ReLUs see, linear bounds of the outputs: fast where inputs are few.

    Singh et al., NeurIPS 2018 (DeepZ). A network with other operations than linear layers and
    ReLUs in a row is bounded as deeppoly does.
    """

    name: ClassVar[str] = "zonotope"
    differentiable: ClassVar[bool] = False
    batchable: ClassVar[bool] = False
    rigorous: ClassVar[bool] = True

    def prepare(self, network: Network, rounding: Rounding | None = None) -> BoundFn:
        """Bounds for one network; see :class:`~advrepair.core.interfaces.Verifier`.

        Raises UnsupportedNetworkError for an operation without a rule, by node name.
        """
        from advrepair.plugins.verifiers.sets import Forward, can_follow

        if not can_follow(network):
            return DeepPoly().prepare(network, rounding)

        def bound(params: Mapping[str, Tensor], box: Box, C: Tensor, d: Tensor) -> LinearBound:
            return Forward(network, params, box, "same", rounding).rows(C, d)

        return bound
