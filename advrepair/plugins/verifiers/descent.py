"""Lower and upper ends of a value's units by back-substitution, in blocks that fit the cache.

The same bounds as :class:`~advrepair.plugins.verifiers.propagation.Propagation` finds step by
step, with the same account of errors; what differs is the order of work. It serves plain calls
only: nothing here can be differentiated or mapped.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from attrs import define, field
from torch import Tensor

from advrepair.core.box import Box
from advrepair.core.graph import INPUT, Network, Operation, size
from advrepair.core.rounding import UNDERFLOW, UNIT64, Rounding, above
from advrepair.plugins.verifiers.counts import Counts
from advrepair.plugins.verifiers.transposed import (
    Band,
    Pull,
    bands_below,
    cut,
    flat,
    grown,
    lines_of,
    transposed,
    unflat,
)

_BLOCK_BYTES = 2**20  # of the widest rows of a block: half of a core's own cache


@define(eq=False)
class _Rows:
    """Rows on their way back, of some boxes: [boxes or 1,M,n] over each value they reached.

    bands: the lines of each value that any row can meet; the rows are over those. linear:
    over values that are affine in the input, whose midpoints b has. merged: ReLUs over which
    a sum of rows is whose rounding is not in error yet.
    """

    boxes: slice
    bands: Mapping[str, Band]
    b: Tensor
    error: Tensor
    pending: dict[str, Tensor] = field(factory=dict)
    linear: dict[str, Tensor] = field(factory=dict)
    merged: set[str] = field(factory=set)

    def add(self, constant: Tensor, error: Tensor | None) -> None:
        """Enlarge the constant, which rounds, and the error."""
        self.b = self.b + constant
        if error is not None:
            self.error = self.error + error + 2 * UNIT64 * self.b.abs()


@define(eq=False)
class Descent:
    """Back-substitution in one call, whose relaxations, sums and sizes grow meanwhile."""

    network: Network
    params: Mapping[str, Tensor]
    box: Box
    rounding: Rounding | None
    counts: Counts
    _radius: Tensor = field(init=False)
    _pulls: dict[str, Pull] = field(factory=dict)
    _known_bands: dict[tuple[int, Band], Mapping[str, Band]] = field(factory=dict)

    def __attrs_post_init__(self) -> None:
        self._radius = flat(self.box.radius, self.network.input_shape)

    def selective(self, index: int) -> bool:
        """Whether a box's rows fill blocks of their own, so that it pays to leave some out.

        It follows from the shapes alone.
        """
        return self._block(index) < 2 * size(self.network.operations[index].shape)

    def ends(self, index: int, wanted: Tensor | None) -> tuple[Tensor, Tensor]:
        """Lower and upper ends of a value's units, [B,*shape] each.

        wanted: bool [B,*shape], units whose ends are asked; the others may come out as NaN.
        Sound as :meth:`Propagation.back_substitute`, and with the same slopes. What is left
        out decides nothing about what is not.
        """
        op = self.network.operations[index]
        units, block = size(op.shape), max(1, self._block(index) // 2)
        head = self._head(index, units)
        found = self._radius.new_full((2, len(self.box), units), torch.nan)
        if wanted is None:
            for boxes in _slices(len(self.box), max(2, block // units)):
                least = self._least(index, head, boxes, slice(None))
                found[:, boxes] = least.unflatten(1, (2, units)).transpose(0, 1)
        else:
            for box, keep in enumerate(flat(wanted, op.shape)):
                for some in self._parts(keep, block):
                    least = self._least(index, head, slice(box, box + 1), some)
                    found[:, box, some] = least.view(2, -1)
        return unflat(found[0], op.shape), unflat(-found[1], op.shape)

    @staticmethod
    def _parts(keep: Tensor, block: int) -> Iterator[slice | Tensor]:
        """The units to keep, or all where nearly all are: so many at a time.

        Every part has the same length, so that no row's bits depend on how many there are.
        """
        chosen, units = keep.nonzero().squeeze(1), len(keep)
        if units >= block and 4 * len(chosen) >= 3 * units:
            yield from _slices(units, block)
            return
        for part in chosen.split(block) if len(chosen) else ():
            yield torch.cat([part, part[-1:].expand(block - len(part))])

    def _block(self, index: int) -> int:
        """Rows of a block."""
        below = self.network.operations[: index + 1]
        widest = max(size(self.network.input_shape), *(size(op.shape) for op in below))
        return max(1, _BLOCK_BYTES // (self._radius.element_size() * widest))

    def _head(self, index: int, units: int) -> _Rows:
        """Rows of every unit down to the ReLUs, which all boxes share; b, error: [B,2,units].

        Second in b and error are the units' negations.
        """
        op = self.network.operations[index]
        eye = torch.eye(units, dtype=self._radius.dtype, device=self._radius.device)
        zero = self._radius.new_zeros(1, units)
        rows = _Rows(slice(None), self._bands(index, slice(None)), zero, zero)
        self._arrive(rows, op.name, eye.unsqueeze(0))
        for op in reversed(self.network.operations[: index + 1]):
            if op.kind != "relu":
                self._step(rows, op)
        b, error = (t.expand(len(self.box), -1) for t in (rows.b, rows.error))
        rows.b, rows.error = torch.stack([b, -b], 1), torch.stack([error, error], 1)
        # The highest ReLU gets rows from nowhere else: its sums are taken for all boxes at once.
        for op in reversed(self.network.operations[: index + 1]):
            if op.name in rows.pending:
                A = rows.pending[op.name][0]
                signed = torch.stack([A.relu(), A.clamp(max=0)])
                rows.pending[op.name] = signed
                lines = self.counts.through(op, op.name in rows.merged)
                # [2,B,units,k]: both parts by what either sign takes along.
                up, down = (
                    torch.einsum("smn,bkn->sbmk", signed, along)
                    for along in (lines.positive, lines.negative)
                )
                met = torch.stack([up[0] + down[1], -(up[1] + down[0])], 1)
                rows.add(met[..., 0], met[..., 1] if self.rounding else None)
                break
        return rows

    def _least(self, index: int, head: _Rows, boxes: slice, units: slice | Tensor) -> Tensor:
        """Lower ends of units and of their negations, for some boxes: [boxes,M], M twice units."""
        b, error = (t[boxes][:, :, units].flatten(1) for t in (head.b, head.error))
        some = _Rows(boxes, self._bands(index, units), b, error)
        first = True
        for op in reversed(self.network.operations[: index + 1]):
            if op.kind != "relu":
                self._step(some, op)
            elif op.name in head.pending and first:
                first = False
                A = self._begun(op, head, some, units)
                self._arrive(some, op.inputs[0], A, counted=True)
            else:
                if op.name in head.pending:
                    A = head.pending[op.name][:, units]
                    self._merge(some, op.name, _both(self._cut(some, op.name, A)))
                    some.merged |= head.merged & {op.name}
                self._through_relu(some, op)
        if INPUT in head.linear:
            A = _both(self._cut(some, INPUT, head.linear[INPUT][:, units]))
            some.linear[INPUT] = _sum(some.linear.get(INPUT), A)
        spread = torch.zeros_like(some.b)
        if INPUT in some.linear:
            radius = self._cut(some, INPUT, self._radius[boxes])
            spread = _dot(some.linear[INPUT].abs_(), radius)
        lowest = some.b - spread
        if self.rounding:
            total = above(some.error + 4 * UNIT64 * some.b.abs()) + UNDERFLOW
            lowest = lowest - total - above(4 * UNIT64 * spread)
        return lowest

    def _begun(self, op: Operation, head: _Rows, some: _Rows, units: slice | Tensor) -> Tensor:
        """Rows of the highest ReLU, and of the negated ones, over its input: [boxes,M,n]."""
        positive, negative = self._cut(some, op.name, head.pending[op.name])[:, units]
        lines = self.counts.through(op, op.name in head.merged)
        lower, upper = (self._cut(some, op.name, t[some.boxes]) for t in (lines.lower, lines.upper))
        count = len(positive)
        A = positive.new_empty(len(lower), 2 * count, positive.shape[1])
        torch.mul(positive, lower, out=A[:, :count]).addcmul_(negative, upper)
        torch.mul(negative, -lower, out=A[:, count:]).addcmul_(positive, -upper)
        return grown(A, op.shape, some.bands[op.name], some.bands[op.inputs[0]])

    def _bands(self, index: int, units: slice | Tensor) -> Mapping[str, Band]:
        """Lines of every value that these units of one can depend on."""
        below = self.network.operations[: index + 1]
        shape = below[-1].shape
        lines = lines_of(shape)
        first, last = 0, size(shape) - 1
        if isinstance(units, Tensor):
            first, last = int(units.min()), int(units.max())
        elif units != slice(None):
            first, last = units.start, units.stop - 1
        each = size(shape) // lines
        band = (first // each, last // each + 1)
        if (index, band) not in self._known_bands:
            found = bands_below(below, self.params, self.counts.shapes, band)
            self._known_bands[index, band] = found
        return self._known_bands[index, band]

    def _cut(self, rows: _Rows, name: str, value: Tensor) -> Tensor:
        return cut(value, self.counts.shapes[name], rows.bands[name])

    def _step(self, rows: _Rows, op: Operation) -> None:
        """Rows over the result of an operation, not a ReLU, as rows over its inputs."""
        if (A := rows.linear.pop(op.name, None)) is not None:
            source = op.inputs[0]
            rows.linear[source] = _sum(rows.linear.get(source), self._pull(rows, op, A))
        if (A := rows.pending.pop(op.name, None)) is not None:
            for source in op.inputs:
                if op.kind == "add":
                    over = grown(A, op.shape, rows.bands[op.name], rows.bands[source])
                else:
                    over = self._pull(rows, op, A)
                self._arrive(rows, source, over, counted=source in self.counts.absorbed)

    def _through_relu(self, rows: _Rows, op: Operation) -> None:
        A = rows.pending.pop(op.name, None)
        if A is None:
            return
        lines = self.counts.through(op, op.name in rows.merged)
        positive, negative = A.relu(), A.clamp(max=0)
        lower, upper, up, down = (
            self._cut(rows, op.name, t[rows.boxes])
            for t in (lines.lower, lines.upper, lines.positive, lines.negative)
        )
        found = up @ positive.transpose(1, 2) + down @ negative.transpose(1, 2)
        rows.add(found[:, 0], found[:, 1] if self.rounding else None)
        A = positive.mul_(lower).addcmul_(negative, upper)
        A = grown(A, op.shape, rows.bands[op.name], rows.bands[op.inputs[0]])
        self._arrive(rows, op.inputs[0], A, counted=True)

    def _arrive(self, rows: _Rows, name: str, A: Tensor, counted: bool = False) -> None:
        """Rows reach a value; counted: their constant and their error over it are, already."""
        count = self.counts.at(name)
        if not counted and count.constant is not None:
            rows.add(
                _dot(A, self._cut(rows, name, count.constant[rows.boxes])), rows.b.new_zeros(())
            )
        if not counted and count.error is not None:
            rows.error = rows.error + _dot(A.abs(), self._cut(rows, name, count.error[rows.boxes]))
        if name in self.counts.shallow:
            rows.linear[name] = _sum(rows.linear.get(name), A)
        else:
            self._merge(rows, name, A)

    def _merge(self, rows: _Rows, name: str, A: Tensor) -> None:
        if name not in rows.pending:
            rows.pending[name] = A
            return
        rows.pending[name] = total = rows.pending[name] + A
        if self.rounding and name in self.counts.relaxed:
            rows.merged.add(name)
        elif self.rounding:
            most = self._cut(
                rows, name, flat(self.counts.sizes[name], self.counts.shapes[name])[rows.boxes]
            )
            rows.error = rows.error + 2 * UNIT64 * _dot(total.abs(), most)

    def _pull(self, rows: _Rows, op: Operation, A: Tensor) -> Tensor:
        source = op.inputs[0]
        if op.name not in self._pulls:
            self._pulls[op.name] = transposed(op, self.params, self.counts.shapes[source])
        return self._pulls[op.name](A, rows.bands[op.name], rows.bands[source])


def _slices(count: int, length: int) -> Iterator[slice]:
    """Ranges of one length that cover 0..count-1; the last one may overlap the one before it."""
    length = min(length, count)
    for start in range(0, count, max(1, length)):
        start = min(start, count - length)
        yield slice(start, start + length)


def _sum(before: Tensor | None, more: Tensor) -> Tensor:
    return more if before is None else before + more


def _both(A: Tensor) -> Tensor:
    return torch.cat([A, -A], 1)


def _dot(A: Tensor, value: Tensor) -> Tensor:
    """Rows [B or 1,M,n] times a value [B,n]: [B,M]."""
    if len(A) == 1:
        return value @ A[0].T
    # The library is three times as fast with the vector on the left.
    return (value.unsqueeze(1) @ A.transpose(1, 2)).squeeze(1)
