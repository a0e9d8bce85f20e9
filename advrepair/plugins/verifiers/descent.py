"""Lower and upper ends of a value's units by back-substitution, in blocks that fit the cache.

The same bounds as :class:`~advrepair.plugins.verifiers.propagation.Propagation` finds step by
step, with the same account of errors; what differs is the order of work. Nothing here can be
differentiated or mapped.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from attrs import define, evolve, field
from torch import Tensor

from advrepair.core.box import Box
from advrepair.core.graph import INPUT, Network, Operation, size
from advrepair.core.rounding import UNDERFLOW, UNIT64, Rounding, above
from advrepair.plugins.verifiers.counts import Counts
from advrepair.plugins.verifiers.parts import Block, of_many, of_one, slices
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
    """Rows on their way back, of some boxes: [boxes or 1,rows,n] over each value they reached.

    bands: the lines of each value that any row can meet; the rows are over those. linear:
    over values that are affine in the input, whose midpoints b has. merged: ReLUs over which
    a sum of rows is whose rounding is not in error yet.
    """

    block: Block
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
        """Whether a box's rows fill blocks of their own. It follows from the shapes alone."""
        return self._block(index) < 2 * size(self.network.operations[index].shape)

    def ends(self, index: int, lows: Tensor, highs: Tensor) -> tuple[Tensor, Tensor]:
        """Lower and upper ends of a value's units, [B,*shape] each.

        lows, highs: bool [B,*shape], ends that are asked; others may come out as NaN. Sound as
        :meth:`Propagation.back_substitute`. What is left out decides nothing about what is not.
        """
        shape, most = self.network.operations[index].shape, self._block(index)
        wanted = torch.stack([flat(lows, shape), flat(highs, shape)], 2).flatten(1)
        head = self._head(index, size(shape))
        found = self._radius.new_full(wanted.shape, torch.nan)
        for block in (of_one if self.selective(index) else of_many)(wanted, most):
            block.put(found, self._least(index, head, block))
        low, high = found.unflatten(1, (-1, 2)).unbind(2)
        return unflat(low, shape), unflat(-high, shape)

    def _block(self, index: int) -> int:
        """Rows of a block; those over what is affine in the input are shorter-lived."""
        below = self.network.operations[: index + 1]
        sizes = [size(op.shape) for op in below if op.name not in self.counts.shallow]
        return max(2, _BLOCK_BYTES // (self._radius.element_size() * max(sizes)))

    def _head(self, index: int, units: int) -> _Rows:
        """Both rows of every unit down to the ReLUs, which all boxes share.

        b, error: [B,M]. pending, linear: [M,n]; of the highest ReLU both its signs, [2,M,n].
        """
        op = self.network.operations[index]
        eye = torch.eye(units, dtype=self._radius.dtype, device=self._radius.device)
        zero = self._radius.new_zeros(1, units)
        # Over whole values, also where a stride leaves out the last lines.
        whole = {name: (0, lines_of(shape)) for name, shape in self.counts.shapes.items()}
        rows = _Rows(Block(slice(None), slice(0, 2 * units)), whole, zero, zero)
        self._arrive(rows, op.name, eye.unsqueeze(0))
        for op in reversed(self.network.operations[: index + 1]):
            if op.kind != "relu":
                self._step(rows, op)
        b, error = (t.expand(len(self.box), -1) for t in (rows.b, rows.error))
        rows.b, rows.error = _paired(b, -b, 1), _paired(error, error, 1)
        for reached in (rows.pending, rows.linear):
            for name, A in reached.items():
                reached[name] = _paired(A[0], -A[0], 0)
        # The highest ReLU gets rows from nowhere else: its sums are taken for all boxes at once.
        for op in reversed(self.network.operations[: index + 1]):
            if op.name in rows.pending:
                A = rows.pending[op.name]
                rows.pending[op.name] = torch.stack([A.relu(), A.clamp(max=0)])
                positive, negative = (part[::2] for part in rows.pending[op.name])
                lines = self.counts.through(op, op.name in rows.merged)
                # [B,k,units]: both parts by what either sign takes along.
                up, down = (
                    [along @ part.T for part in (positive, negative)]
                    for along in (lines.positive, lines.negative)
                )
                met = _paired(up[0] + down[1], -(up[1] + down[0]), 2)
                rows.add(met[:, 0], met[:, 1] if self.rounding else None)
                break
        return rows

    def _least(self, index: int, head: _Rows, block: Block) -> Tensor:
        """Lower ends of the rows of a block: [boxes,rows]."""
        bands = self._bands(index, slice(None) if block.own else block.rows)
        some = _Rows(block, bands, block.of(head.b), block.of(head.error))
        first = True
        for op in reversed(self.network.operations[: index + 1]):
            if op.kind == "relu":
                if op.name in head.pending and first:
                    first = False
                    A = self._begun(op, head, some)
                    self._arrive(some, op.inputs[0], A, counted=True)
                    continue
                if op.name in head.pending:
                    A = self._cut(some, op.name, head.pending[op.name])[block.rows]
                    self._merge(some, op.name, A if block.own else A.unsqueeze(0))
                    some.merged |= head.merged & {op.name}
                self._through_relu(some, op)
            elif op.name in some.pending:
                self._step(some, op)
        spread = self._spread(index, head, some)
        lowest = some.b - spread
        if self.rounding:
            total = above(some.error + 4 * UNIT64 * some.b.abs()) + UNDERFLOW
            lowest = lowest - total - above(4 * UNIT64 * spread)
        return lowest

    def _spread(self, index: int, head: _Rows, some: _Rows) -> Tensor:
        """How far rows over what is affine in the input vary: [boxes,rows]."""
        if INPUT in head.linear:
            A = self._cut(some, INPUT, head.linear[INPUT])[some.block.rows]
            A = A if some.block.own else A.unsqueeze(0)
            some.linear[INPUT] = _sum(some.linear.get(INPUT), A)
        kept = some.linear.get(INPUT)  # others read it too
        radius = self._cut(some, INPUT, self._radius[some.block.boxes])
        spread = torch.zeros_like(some.b)
        wide = size(self.network.input_shape) * some.b.shape[1] * spread.element_size()
        # These rows are of no use but for their sums: a few boxes at a time.
        for part in slices(len(spread), max(2, _BLOCK_BYTES // wide)):
            linear = {name: A[part] if len(A) > 1 else A for name, A in some.linear.items()}
            rows = evolve(some, linear=linear, pending={})
            for op in reversed(self.network.operations[: index + 1]):
                if op.name in rows.linear:
                    self._step(rows, op)
            if (over := rows.linear.get(INPUT)) is not None:
                over = over.abs() if kept is not None else over.abs_()
                spread[part] = _dot(over, radius[part])
        return spread

    def _begun(self, op: Operation, head: _Rows, some: _Rows) -> Tensor:
        """Rows of the highest ReLU over its input: [boxes,rows,n]."""
        parts = self._cut(some, op.name, head.pending[op.name])
        positive, negative = (part[some.block.rows] for part in parts)
        lines = self.counts.through(op, op.name in head.merged)
        lower, upper = (
            self._cut(some, op.name, t[some.block.boxes]) for t in (lines.lower, lines.upper)
        )
        A = (positive * lower).addcmul_(negative, upper)
        return grown(A, op.shape, some.bands[op.name], some.bands[op.inputs[0]])

    def _bands(self, index: int, rows: slice | Tensor) -> Mapping[str, Band]:
        """Lines of every value that these rows can depend on."""
        below = self.network.operations[: index + 1]
        shape = below[-1].shape
        lines = lines_of(shape)
        first, last = 0, size(shape) - 1
        if lines > 1 and isinstance(rows, Tensor):
            first, last = int(rows.min()) // 2, int(rows.max()) // 2
        elif isinstance(rows, slice) and rows != slice(None):
            first, last = rows.start // 2, (rows.stop - 1) // 2
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
        lower, upper, up, down = (
            self._cut(rows, op.name, t[rows.block.boxes])
            for t in (lines.lower, lines.upper, lines.positive, lines.negative)
        )
        A = A.expand(len(lower), -1, -1)  # all boxes share what only the head brought
        positive, negative = A.relu(), A.clamp(max=0)
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
                _dot(A, self._cut(rows, name, count.constant[rows.block.boxes])),
                rows.b.new_zeros(()),
            )
        if not counted and count.error is not None:
            rows.error = rows.error + _dot(
                A.abs(), self._cut(rows, name, count.error[rows.block.boxes])
            )
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
                rows,
                name,
                flat(self.counts.sizes[name], self.counts.shapes[name])[rows.block.boxes],
            )
            rows.error = rows.error + 2 * UNIT64 * _dot(total.abs(), most)

    def _pull(self, rows: _Rows, op: Operation, A: Tensor) -> Tensor:
        source = op.inputs[0]
        if op.name not in self._pulls:
            self._pulls[op.name] = transposed(op, self.params, self.counts.shapes[source])
        return self._pulls[op.name](A, rows.bands[op.name], rows.bands[source])


def _sum(before: Tensor | None, more: Tensor) -> Tensor:
    return more if before is None else before + more


def _paired(first: Tensor, second: Tensor, axis: int) -> Tensor:
    """Both, by turns along an axis."""
    return torch.stack([first, second], axis + 1).flatten(axis, axis + 1)


def _dot(A: Tensor, value: Tensor) -> Tensor:
    """Rows [B or 1,M,n] times a value [B,n]: [B,M]."""
    if len(A) == 1:
        return value @ A[0].T
    # The library is three times as fast with the vector on the left.
    return (value.unsqueeze(1) @ A.transpose(1, 2)).squeeze(1)
