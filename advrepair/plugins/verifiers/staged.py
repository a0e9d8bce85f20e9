"""Back-substitution in two stages: what lies below the last layer, and the rows through it."""

from __future__ import annotations

from collections.abc import Mapping

from attrs import define
from torch import Tensor

from advrepair.core.box import Box
from advrepair.core.graph import INPUT, NON_AFFINE, Network
from advrepair.core.interfaces import StagedBoundFn
from advrepair.core.rounding import Rounding
from advrepair.core.types import LinearBound
from advrepair.plugins.verifiers.propagation import Propagation
from advrepair.plugins.verifiers.relaxations import Relaxation

_LINES = ("lower_slope", "upper_slope", "offset", "lower_offset")


@define(eq=False)
class Staged(StagedBoundFn):
    """Linear bounds of one network, of which the last operation is the last layer."""

    network: Network
    slope: str
    rounding: Rounding | None

    def __call__(self, params: Mapping[str, Tensor], box: Box, C: Tensor, d: Tensor) -> LinearBound:
        """Rows of ``C f(x) + d``; see :class:`~advrepair.core.interfaces.BoundFn`."""
        return self._call(params, box).rows(C, d)

    def hidden(self, params: Mapping[str, Tensor], box: Box) -> Mapping[str, Tensor]:
        """Lines around every function; with rounding also the sizes and sums of every value."""
        call, last = self._call(params, box), self.network.operations[-1].name
        call.relax_all()
        found = {
            f"{kind} {name}": line
            for name, lines in call.relaxed.items()
            for kind in _LINES
            if name != last and (line := getattr(lines, kind)) is not None
        }
        for kind, known in (("sizes", call.sizes), ("sums", call.sums)):
            found |= {f"{kind} {n}": t for n, t in known.items() if n not in (INPUT, last)}
        return found

    def onward(
        self,
        params: Mapping[str, Tensor],
        box: Box,
        hidden: Mapping[str, Tensor],
        C: Tensor,
        d: Tensor,
    ) -> LinearBound:
        """The same rows, from the lines, sizes and sums of :meth:`hidden`.

        Sound: none of these depends on the last layer, so they are what ``__call__`` would
        find again; the last layer is measured anew, and the rows go back as they do there.
        """
        call = self._call(params, box)
        for op in self.network.operations[:-1]:
            if op.kind in NON_AFFINE:
                known = {kind: f"{kind} {op.name}" for kind in _LINES}
                lines = {kind: hidden[key] for kind, key in known.items() if key in hidden}
                call.relaxed[op.name] = Relaxation(**lines)
        if self.rounding:
            for op in self.network.operations[:-1]:
                call.sizes[op.name] = hidden[f"sizes {op.name}"]
                call.sums[op.name] = hidden[f"sums {op.name}"]
            call.measure(self.network.operations[-1], self.rounding)
        return call.back_substitute(len(self.network.operations) - 1, C, d)

    def _call(self, params: Mapping[str, Tensor], box: Box) -> Propagation:
        return Propagation(self.network, params, box, self.slope, self.rounding)
