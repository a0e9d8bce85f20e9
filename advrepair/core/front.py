"""What is known of the features of an input box: bounds of the layers before the patches'."""

from __future__ import annotations

from typing import Any

import torch
from attrs import define, field
from torch import Tensor

from advrepair.core.box import Box
from advrepair.core.errors import PluginError
from advrepair.core.graph import Network, size
from advrepair.core.interfaces import BoundFn, Verifier
from advrepair.core.rounding import Rounding, round_down, round_up

_BYTES = 2**28  # of a chunk
_ROWS = 2**22  # numbers of the rows that are asked about together, for one box


@define(eq=False)
class Front:
    """Boxes around the features of input boxes. verifier: a rigorous one."""

    network: Network
    verifier: Verifier
    rounding: Rounding
    proved: bool = field(default=True, init=False)
    _bound: BoundFn = field(init=False)

    def __attrs_post_init__(self) -> None:
        if not self.verifier.rigorous:
            raise PluginError(
                f"verifier {self.verifier.name!r} is not rigorous: choose another --set plan.front"
            )
        self._bound = self.verifier.prepare(self.network, self.rounding)

    def __reduce__(self) -> tuple[type[Front], tuple[Any, ...]]:
        """Pickled without what the verifier prepared: it is prepared again."""
        return type(self), (self.network, self.verifier, self.rounding)

    def box(self, box: Box) -> Box:
        """Faces [B,D] between which the deployed features of every input lie.

        Sound: the rows e_d and -e_d of the features are bounded rigorously; one is the lower
        face, the other the upper one with its sign turned, and both are rounded outward to the
        network's dtype. A face that is not known is infinite.
        """
        width, inputs = self.network.outputs, size(self.network.input_shape)
        params = {name: t.double() for name, t in self.network.tensors.items()}
        several = max(1, _ROWS // (2 * (width + inputs)))
        eye = torch.eye(width, dtype=torch.float64)
        parts: list[tuple[Tensor, Tensor]] = []
        with torch.no_grad():
            for index in torch.arange(len(box)).split(self._at_once(min(several, width))):
                given, lower, upper = box[index].to(torch.float64), [], []
                for rows in eye.split(several):
                    C = torch.cat([rows, -rows]).expand(len(index), -1, -1)
                    bound = self._bound(params, given, C, C.new_zeros(C.shape[:2]))
                    least = bound.minimum_rigorous(given).nan_to_num(-torch.inf)
                    first, second = least.split(len(rows), 1)
                    lower.append(first)
                    upper.append(-second)
                parts.append((torch.cat(lower, 1), torch.cat(upper, 1)))
        low, high = (torch.cat(each) for each in zip(*parts, strict=True))
        dtype = self.network.dtype
        return Box(round_down(low, dtype), round_up(high, dtype))

    def _at_once(self, rows: int) -> int:
        """Boxes in a chunk."""
        values = max([size(op.shape) for op in self.network.operations])
        asked = rows * (self.network.outputs + size(self.network.input_shape))
        each = 8 * (12 * values + 6 * asked)
        return max(1, _BYTES // each)
