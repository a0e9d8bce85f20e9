"""Bounds of N + P_j: rows of the frozen network once per box, rows of the patch each epoch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from attrs import define, evolve, field
from torch import Tensor

from advrepair.core.batches import Batch, Hidden, hidden_layers, patch_rows
from advrepair.core.box import Box, dot
from advrepair.core.devices import CPU, moved, on
from advrepair.core.errors import PluginError, UsageError
from advrepair.core.front import Front
from advrepair.core.graph import Network, size
from advrepair.core.interfaces import BoundFn, StagedBoundFn, Verifier
from advrepair.core.patching import Stack
from advrepair.core.rounding import Rounding, above, gamma
from advrepair.core.sampling import SampledFront
from advrepair.core.types import LinearBound

_CACHE_BYTES = 2**24  # chunks near the cache's size run faster than chunks near the memory's
_FEW = 8  # boxes in a chunk, unless they are large: one at a time is slow for other reasons
_LEAST = 16  # to which fewer are filled up: small batches compute otherwise, on some processors
_LARGE_BYTES = 2**30
# What all boxes share is worked out once a chunk, so many boxes are better, if they are not wide.
_MANY = 512
_WIDE_BYTES = 2**28


def bytes_per_box(network: Network, rows: int) -> int:
    """Working memory of bounding one box by back-substitution, in bytes (an estimate)."""
    widest = inputs = size(network.input_shape)
    most = rows * inputs
    first, bounded = True, network.bounded()
    for op in network.operations:
        if op.name in bounded:
            units = 0 if first else 2 * bounded[op.name]  # the first layer is bounded forwards
            most, first = max(most, units * widest), False
        widest = max(widest, size(op.shape))
    return 3 * 8 * most


def bytes_of_rows(template: Network, rows: int, boxes: int) -> int:
    """The largest array of one patch in training: its rows over the input, in bytes."""
    widest = max((2 * size(op.shape) for op in template.operations if op.kind == "relu"), default=0)
    return 4 * size(template.input_shape) * boxes * max(rows, widest)


def bytes_per_patch(template: Network, rows: int, boxes: int) -> int:
    """Working memory of training one patch on so many boxes, in bytes (an estimate)."""
    return 4 * 12 * template.parameters_count + 10 * bytes_of_rows(template, rows, boxes)


def chunks(count: int, each: int, memory: int) -> list[Tensor]:
    """Index ranges of 0..count-1 near the size of the cache, or of many boxes.

    The last bits of a result may depend on the chunk it was computed in. So the size follows
    from the shapes alone, and never from the memory at hand.
    Raises UsageError if the memory does not hold a chunk.
    """
    each = max(1, each)
    shared = min(_MANY, _WIDE_BYTES // each)
    most = max(1, _CACHE_BYTES // each, shared, min(_FEW, _LARGE_BYTES // each))
    most = min(most, max(1, count))
    # Of one size, so that filling up the last costs little: of a few boxes rather more.
    parts = max(1, count // most if most <= _FEW else -(-count // most))
    return list(torch.arange(count).split(fitting(max(1, -(-count // parts)), each, memory)))


def fitting(most: int, each: int, memory: int) -> int:
    """The number itself; raises UsageError if so many do not fit the memory, in bytes."""
    if most * each > memory:
        raise UsageError(
            f"run.memory is {memory / 2**30:.3g} GiB: this network needs "
            f"{most * each / 2**30:.3g} GiB at a time; raise it"
        )
    return most


def padded(index: Tensor, length: int) -> Tensor:
    """The index, its last entry repeated up to length.

    Every chunk has one shape then. Very small batches take other paths through the linear
    algebra library than any larger one.
    """
    return torch.cat([index, index[-1:].expand(length - len(index))])


@define(eq=False)
class Bounder:
    """Bounds for one repair: the verifier for training, the certifier for the proof.

    memory: budget of a chunk, in bytes. device: where rows of N are computed; what comes in
    and what goes out lies where it did. front: where patches see features, the layers before
    these; network is the tail behind it then, and boxes are those of :meth:`seen`.
    """

    network: Network
    template: Network
    verifier: Verifier
    certifier: Verifier
    rounding: Rounding
    memory: int
    device: torch.device = CPU
    front: Front | SampledFront | None = None
    _functions: dict[str, BoundFn] = field(factory=dict, init=False)
    _there: Bounder | None = field(default=None, init=False)

    def __attrs_post_init__(self) -> None:
        if not self.certifier.rigorous:
            raise PluginError(
                f"verifier {self.certifier.name!r} is not rigorous and cannot state a "
                "certificate; choose another --certifier"
            )
        self._functions = {
            "base": self.verifier.prepare(self.network),
            "patch": self.verifier.prepare(self.template),
            "base rigorous": self.certifier.prepare(self.network, self.rounding),
            "patch rigorous": self.certifier.prepare(self.template, self.rounding),
        }

    def __reduce__(self) -> tuple[type[Bounder], tuple[Any, ...]]:
        """Pickled without what the verifiers prepared: it is prepared again."""
        parts = (self.network, self.template, self.verifier, self.certifier, self.rounding)
        return Bounder, (*parts, self.memory, self.device, self.front)

    def there(self) -> Bounder:
        """The same with its networks on the device, for what lies there, too; made once."""
        if self._there is None:
            self._there = moved(evolve(self, device=CPU), self.device)
        return self._there

    @property
    def one_verifier(self) -> bool:
        """Whether the proof's rows can serve the training too."""
        return self.verifier == self.certifier

    @property
    def proved(self) -> bool:
        """Whether boxes of features are proved, or only sampled."""
        return self.front is None or self.front.proved

    def seen(self, box: Box) -> Box:
        """Boxes of what patches see of inputs in a box: the box itself, or of the features.

        Sound: see :meth:`~advrepair.core.front.Front.box`; but not where :attr:`proved` is false.
        """
        return box if self.front is None else self.front.box(box)

    def base(self, box: Box, C: Tensor, d: Tensor, rigorous: bool) -> LinearBound:
        """Rows of N on each box, [B,M,*S]: float64 if rigorous, else the network's dtype.

        Sound: each chunk is one call of the verifier, and a box's rows use that box only.
        """
        if self.device != CPU:
            with on(self.device):
                asked = moved((box, C, d), self.device)
                found = self.there().base(*asked, rigorous=rigorous)
            return moved(found, box.lower.device)
        dtype = torch.float64 if rigorous else self.network.dtype
        function = self._functions["base rigorous" if rigorous else "base"]
        params = {name: t.to(dtype) for name, t in self.network.tensors.items()}
        parts = []
        with torch.no_grad():
            each = bytes_per_box(self.network, C.shape[1])
            parted = chunks(len(box), each, self.memory)
            length = max(len(parted[0]), 2, min(_LEAST, _LARGE_BYTES // each))
            for index in parted:
                full = padded(index, length)
                part = box[full].to(dtype)
                found = function(params, part, C[full].to(dtype), d[full].to(dtype))
                parts.append(found[: len(index)])
        return joined(parts)

    def patched(self, stack: Stack, batch: Batch) -> LinearBound:
        """Rows of P_j on its pieces, [q*B,M,*S], for training (differentiable)."""
        return self._patch_rows(False, stack, batch)

    def margins(self, stack: Stack, batch: Batch) -> Tensor:
        """Lower bounds of every row of N + P_j, [q*B,M]; see :meth:`proofs`."""
        return self.proofs(stack, batch)[0]

    def proofs(self, stack: Stack, batch: Batch) -> tuple[Tensor, Tensor]:
        """Rigorous bounds of every row of N + P_j, [q*B,M], and the patch's slopes, [q*B,U].

        batch must hold float64 rows with their magnitude. Sound as :meth:`least`.
        """
        stack = {name: t.double() for name, t in stack.items()}
        with torch.no_grad():
            patch = self._patch_rows(True, stack, batch)
            least = self.least(batch.rows, patch, batch.C, batch.box)
        return least, slopes_of(patch, self.template)

    def least(self, base: LinearBound, patch: LinearBound, C: Tensor, box: Box) -> Tensor:
        """Lower bounds of N + P_j from rigorous bounds of both, [B,M], in exact arithmetic.

        Sound: the deployed sum N + P_j is rounded once, by at most unit * (|N| + |P_j|) in
        each output, which is subtracted through |C|; the row is minimised rigorously.
        """
        if base.magnitude is None or patch.magnitude is None:
            raise PluginError(f"verifier {self.certifier.name!r} returned no magnitude")
        total = self.rounding.overflowing(base.magnitude + patch.magnitude)
        error = above(dot(C.abs().double(), self.rounding.relative(2, 4) * total))
        return (base + patch).minimum_rigorous(box) - error

    def shifted(self, own: Tensor, base: LinearBound, C: Tensor, value: Tensor) -> Tensor:
        """Lower bounds of N plus a constant, [B,M], in exact arithmetic.

        own: [B,M], rigorous lower bounds of the rows of N. base: the rows; only their magnitude
        is used. value: [B,K], float64. Sound: the row moves by C value, of whose K products
        and sums gamma(K + 4) is subtracted; the deployed sum is rounded as in :meth:`least`.
        """
        if base.magnitude is None:
            raise PluginError(f"verifier {self.certifier.name!r} returned no magnitude")
        C, size = C.double(), value.abs()
        total = self.rounding.overflowing(base.magnitude + size)
        error = dot(C.abs(), self.rounding.relative(2, 4) * total)
        ours = gamma(C.shape[2] + 4) * (dot(C.abs(), size) + own.abs())
        return own + dot(C, value) - above(error + ours)

    def with_hidden(self, stack: Stack, batch: Batch) -> Batch:
        """The batch with what is known about the patches below their last layers, if anything.

        It holds until weights below the last layer change. Where one verifier trains and
        proves, the rigorous bounds serve the training, too.
        """
        functions = [self._functions[kind] for kind in ("patch", "patch rigorous")]
        training, proof = functions
        dtype = self.network.dtype
        if not self.template.units or not isinstance(training, StagedBoundFn):
            return batch
        with torch.no_grad():
            if not self.one_verifier or not isinstance(proof, StagedBoundFn):
                found = hidden_layers(training, stack, batch, self.verifier.batchable)
                return evolve(batch, hidden=Hidden(found, None))
            double = {name: t.double() for name, t in stack.items()}
            rigorous = hidden_layers(proof, double, batch, self.certifier.batchable)
        return evolve(batch, hidden=Hidden({n: t.to(dtype) for n, t in rigorous.items()}, rigorous))

    def _patch_rows(self, rigorous: bool, stack: Stack, batch: Batch) -> LinearBound:
        function = self._functions["patch rigorous" if rigorous else "patch"]
        verifier = self.certifier if rigorous else self.verifier
        hidden = batch.hidden
        known = None if hidden is None else hidden.proof if rigorous else hidden.training
        return patch_rows(function, stack, batch, known, verifier.batchable)


def joined(parts: Sequence[LinearBound]) -> LinearBound:
    """Bounds of boxes one after the other; what one part lacks, the whole lacks."""
    return LinearBound(
        torch.cat([part.A for part in parts]),
        torch.cat([part.b for part in parts]),
        _joined([part.magnitude for part in parts]),
        _joined([part.slope for part in parts]),
        _joined([part.influence for part in parts]),
        _joined([part.error for part in parts]),
    )


def slopes_of(bound: LinearBound, network: Network) -> Tensor:
    """Slopes for a certificate, uint8 [B,U]; 0, which is as sound, from who does not say."""
    if bound.slope is None:
        return torch.zeros(len(bound.b), network.units, dtype=torch.uint8)
    if tuple(bound.slope.shape) != (len(bound.b), network.units):
        raise PluginError(f"a verifier returned slopes of shape {tuple(bound.slope.shape)}")
    return bound.slope


def _joined(parts: list[Tensor | None]) -> Tensor | None:
    return torch.cat([p for p in parts if p is not None]) if None not in parts else None
