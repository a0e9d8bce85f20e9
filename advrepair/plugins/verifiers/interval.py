"""Interval bound propagation: the cheapest sound bounds, and the loosest."""

from collections.abc import Mapping
from typing import ClassVar

from attrs import frozen
from torch import Tensor

from advrepair.core.box import Box
from advrepair.core.graph import INPUT, STEPS, Network
from advrepair.core.interfaces import BoundFn, Verifier
from advrepair.core.rounding import Rounding
from advrepair.core.types import LinearBound
from advrepair.plugins.verifiers.affine import check_supported, without_bias


@frozen
class Interval(Verifier):
    """Interval arithmetic forwards; constants only, A = 0 (IBP).

    Gowal et al., arXiv 1810.12715. The rows of C are merged into a final linear layer.
    """

    name: ClassVar[str] = "interval"
    differentiable: ClassVar[bool] = True
    batchable: ClassVar[bool] = True
    rigorous: ClassVar[bool] = False

    def prepare(self, network: Network, rounding: Rounding | None = None) -> BoundFn:
        """Bounds for one network; see :class:`~advrepair.core.interfaces.Verifier`.

        Raises UnsupportedNetworkError for an operation without a rule, by node name.
        """
        check_supported(network, self.name)

        def bound(params: Mapping[str, Tensor], box: Box, C: Tensor, d: Tensor) -> LinearBound:
            return _propagate(network, params, box, C, d)

        return bound


def _propagate(
    network: Network, params: Mapping[str, Tensor], box: Box, C: Tensor, d: Tensor
) -> LinearBound:
    """Sound: each step maps the interval c ± r to f(c) ± |f|(r), up to rounding."""
    absolute = {name: tensor.abs() for name, tensor in params.items()}
    center, radius = {INPUT: box.center}, {INPUT: box.radius}
    last = network.operations[-1]
    for op in network.operations if last.kind != "linear" else network.operations[:-1]:
        step = STEPS[op.kind]
        centers, radii = [center[n] for n in op.inputs], [radius[n] for n in op.inputs]
        if op.kind == "relu":
            low, high = (centers[0] - radii[0]).clamp(min=0), (centers[0] + radii[0]).clamp(min=0)
            center[op.name], radius[op.name] = (low + high) / 2, (high - low) / 2
        else:
            center[op.name] = step(op, params, centers)
            radius[op.name] = step(without_bias(op), absolute, radii)
    rows, b, source = C, d, last.name
    if last.kind == "linear":
        rows, source = C @ params[last.tensors["weight"]], last.inputs[0]
        b = d + C @ params[last.tensors["bias"]] if "bias" in last.tensors else d
    c, r = center[source].unsqueeze(-1), radius[source].unsqueeze(-1)
    lower = (rows @ c - rows.abs() @ r).squeeze(-1) + b
    # Constants only: a zero A without memory of its own.
    zero = box.lower.new_zeros(()).expand(*lower.shape, *box.lower.shape[1:])
    return LinearBound(zero, lower)
