"""Lower and upper ends of a value's units by back-substitution, in blocks that fit the cache.

The same bounds as :class:`~advrepair.plugins.verifiers.propagation.Propagation` finds step by
step, with the same account of errors; what differs is the order of work. Nothing here can be
differentiated or mapped.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from attrs import define, evolve, field
from torch import Tensor

from advrepair.core.box import Box
from advrepair.core.graph import INPUT, NON_AFFINE, Network, Operation
from advrepair.core.rounding import UNDERFLOW, UNIT64, Rounding, above
from advrepair.plugins.verifiers.counts import Counts
from advrepair.plugins.verifiers.parts import Block, in_parts, of_many, of_one, paired, slices
from advrepair.plugins.verifiers.transposed import Pull, spread, transposed
from advrepair.plugins.verifiers.windows import (
    Window,
    cut,
    flat,
    grown,
    numbers,
    tiles,
    whole,
    windows_below,
)

_BLOCK_BYTES = 2**20  # of the widest rows of a block: half of a core's own cache
_TILE = 64  # units of an image whose rows go back together, nearly
_LESS = 0.9  # what is left of the widest rows at most if tiles are worth it
_PART = 16  # of them of one box stay together
_MANY = 32  # rows of a block at least if it takes many boxes


@define(eq=False)
class _Rows:
    """Rows on their way back, of some boxes: [boxes or 1,rows,n] over each value they reached.

    windows: what of each value any row can meet; the rows are over those. parts: values
    [B,...,n] cut to them, by identity, shared by all blocks. linear: over values that are
    affine in the input, whose midpoints b has. merged: ReLUs over which a sum of rows is whose
    rounding is not in error yet.
    """

    block: Block
    windows: Mapping[str, Window]
    parts: dict[int, tuple[Tensor, Tensor]]
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
    _tiles: dict[int, Sequence[Mapping[str, Window]]] = field(factory=dict)
    _last: tuple[tuple[int, int], _Rows] | None = None

    def __attrs_post_init__(self) -> None:
        self._radius = flat(self.box.radius, self.network.input_shape)

    def tiles(self, index: int) -> list[Window]:
        """Parts of a value whose rows go back together; they follow from the shapes alone."""
        name = self.network.operations[index].name
        return [windows[name] for windows in self._windows(index)]

    def _windows(self, index: int) -> Sequence[Mapping[str, Window]]:
        """Of every tile what its rows meet; all is one tile unless the first one meets less."""
        if index not in self._tiles:
            below = self.network.operations[: index + 1]
            given, shape = (below, self.params, self.counts.shapes), below[-1].shape
            found = [windows_below(*given, tile) for tile in tiles(shape, _TILE)]
            full = windows_below(*given, whole(shape))
            few = self._widest(found[0]) <= _LESS * self._widest(full)
            self._tiles[index] = [*found] if few else [full]
        return self._tiles[index]

    def _widest(self, windows: Mapping[str, Window]) -> int:
        """Numbers of the widest row; those over what is affine in the input are shorter-lived."""
        known = windows.keys() - self.counts.shallow.keys()
        return max((numbers(self.counts.shapes[name], windows[name]) for name in known), default=1)

    def ends(self, index: int, at: int, lows: Tensor, highs: Tensor) -> tuple[Tensor, Tensor]:
        """Lower and upper ends of the units of a tile, by its number, [B,units] each.

        lows, highs: bool [B,units], ends that are asked; others may come out as NaN. Sound as
        :meth:`Propagation.back_substitute`. What is left out decides nothing about what is not.
        """
        windows, wanted = self._windows(index)[at], torch.stack([lows, highs], 2).flatten(1)
        if self._last is None or self._last[0] != (index, at):
            self._last = (index, at), self._head(index, windows)
        head = self._last[1]
        found = self._radius.new_full(wanted.shape, torch.nan)
        most = max(2, _BLOCK_BYTES // (self._radius.element_size() * self._widest(windows)))
        for block in self._blocks(index, wanted, most):
            block.put(found, self._least(index, head, block))
        low, high = found.unflatten(1, (-1, 2)).unbind(2)
        return low, -high

    def _blocks(self, index: int, wanted: Tensor, most: int) -> Iterator[Block]:
        """Which rows go back together; how they are chosen follows from the shapes alone."""
        if len(self._windows(index)) > 1 and most >= _MANY:
            return in_parts(wanted, _PART, min(most, _PART * len(wanted)))
        return (of_one if most < wanted.shape[1] else of_many)(wanted, most)

    def _head(self, index: int, windows: Mapping[str, Window]) -> _Rows:
        """Both rows of every unit of a tile down to the ReLUs, which all boxes share.

        b, error: [B,M]. pending, linear: [M,n]; of the highest ReLU both its signs, [2,M,n].
        """
        op = self.network.operations[index]
        units = numbers(op.shape, windows[op.name])
        eye = torch.eye(units, dtype=self._radius.dtype, device=self._radius.device)
        zero = self._radius.new_zeros(1, units)
        rows = _Rows(Block(slice(None), slice(0, 2 * units)), windows, {}, zero, zero)
        self._arrive(rows, op.name, eye.unsqueeze(0))
        for op in reversed(self.network.operations[: index + 1]):
            if op.kind not in NON_AFFINE:
                self._step(rows, op)
        b, error = (t.expand(len(self.box), -1) for t in (rows.b, rows.error))
        rows.b, rows.error = paired(b, -b, 1), paired(error, error, 1)
        for reached in (rows.pending, rows.linear):
            for name, A in reached.items():
                reached[name] = paired(A[0], -A[0], 0)
        # The highest ReLU gets rows from nowhere else: its sums are taken for all boxes at once.
        for op in reversed(self.network.operations[: index + 1]):
            if op.name in rows.pending:
                A = rows.pending[op.name]
                rows.pending[op.name] = torch.stack([A.relu(), A.clamp(max=0)])
                positive, negative = rows.pending[op.name][:, ::2]
                lines = self.counts.through(op, op.name in rows.merged)
                # [B,k,units]: both parts by what either sign takes along.
                up, down = (
                    [self._here(rows, op.name, along) @ part.T for part in (positive, negative)]
                    for along in (lines.positive, lines.negative)
                )
                met = paired(up[0] + down[1], -(up[1] + down[0]), 2)
                rows.add(met[:, 0], met[:, 1] if self.rounding else None)
                break
        return rows

    def _least(self, index: int, head: _Rows, block: Block) -> Tensor:
        """Lower ends of the rows of a block: [boxes,rows]."""
        some = _Rows(block, head.windows, head.parts, block.of(head.b), block.of(head.error))
        first = True
        for op in reversed(self.network.operations[: index + 1]):
            if op.kind in NON_AFFINE:
                if op.name in head.pending and first:
                    first = False
                    A = self._begun(op, head, some)
                    self._arrive(some, op.inputs[0], A, counted=True)
                    continue
                if op.name in head.pending:
                    A = block.over(head.pending[op.name])
                    self._merge(some, op.name, A if block.own else A.unsqueeze(0))
                    some.merged |= head.merged & {op.name}
                self._through_lines(some, op)
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
            A = some.block.over(head.linear[INPUT])
            A = A if some.block.own else A.unsqueeze(0)
            some.linear[INPUT] = _sum(some.linear.get(INPUT), A)
        kept = some.linear.get(INPUT)  # others read it too
        radius = self._here(some, INPUT, self._radius)
        spread = torch.zeros_like(some.b)
        wide = radius.shape[1] * some.b.shape[1] * spread.element_size()
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
        positive, negative = (some.block.over(part) for part in head.pending[op.name])
        lines = self.counts.through(op, op.name in head.merged)
        lower, upper = (self._here(some, op.name, t) for t in (lines.lower, lines.upper))
        if op.kind == "max_pool2d":
            return spread(op, (positive, negative), (lower, upper), some.windows)
        A = (positive * lower).addcmul_(negative, upper)
        return grown(A, op.shape, some.windows[op.name], some.windows[op.inputs[0]])

    def _here(self, rows: _Rows, name: str, value: Tensor) -> Tensor:
        """What rows meet of [B,...,n], of their boxes."""
        if id(value) not in rows.parts:  # kept with the value, so that no other one gets its id
            rows.parts[id(value)] = value, cut(value, self.counts.shapes[name], rows.windows[name])
        part, boxes = rows.parts[id(value)][1], rows.block.boxes
        return part[boxes] if isinstance(boxes, slice) else part.index_select(0, boxes)

    def _step(self, rows: _Rows, op: Operation) -> None:
        """Rows over the result of an affine operation as rows over its inputs."""
        if (A := rows.linear.pop(op.name, None)) is not None:
            source = op.inputs[0]
            rows.linear[source] = _sum(rows.linear.get(source), self._pull(rows, op, A))
        if (A := rows.pending.pop(op.name, None)) is not None:
            for source in op.inputs:
                if op.kind == "add":
                    over = grown(A, op.shape, rows.windows[op.name], rows.windows[source])
                else:
                    over = self._pull(rows, op, A)
                self._arrive(rows, source, over, counted=source in self.counts.absorbed)

    def _through_lines(self, rows: _Rows, op: Operation) -> None:
        A = rows.pending.pop(op.name, None)
        if A is None:
            return
        lines = self.counts.through(op, op.name in rows.merged)
        lower, upper, up, down = (
            self._here(rows, op.name, t)
            for t in (lines.lower, lines.upper, lines.positive, lines.negative)
        )
        A = A.expand(len(lower), -1, -1)  # all boxes share what only the head brought
        positive, negative = A.relu(), A.clamp(max=0)
        found = up @ positive.transpose(1, 2) + down @ negative.transpose(1, 2)
        rows.add(found[:, 0], found[:, 1] if self.rounding else None)
        if op.kind == "max_pool2d":
            A = spread(op, (positive, negative), (lower, upper), rows.windows)
        else:
            A = positive.mul_(lower).addcmul_(negative, upper)
            A = grown(A, op.shape, rows.windows[op.name], rows.windows[op.inputs[0]])
        self._arrive(rows, op.inputs[0], A, counted=True)

    def _arrive(self, rows: _Rows, name: str, A: Tensor, counted: bool = False) -> None:
        """Rows reach a value; counted: their constant and their error over it are, already."""
        count = self.counts.at(name)
        if not counted and count.constant is not None:
            rows.add(
                _dot(A, self._here(rows, name, count.constant)),
                rows.b.new_zeros(()),
            )
        if not counted and count.error is not None:
            rows.error = rows.error + _dot(A.abs(), self._here(rows, name, count.error))
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
            shape = self.counts.shapes[name]
            most = cut(flat(self.counts.sizes[name], shape), shape, rows.windows[name])
            most = most[rows.block.boxes]
            rows.error = rows.error + 2 * UNIT64 * _dot(total.abs(), most)

    def _pull(self, rows: _Rows, op: Operation, A: Tensor) -> Tensor:
        source = op.inputs[0]
        if op.name not in self._pulls:
            self._pulls[op.name] = transposed(op, self.params, self.counts.shapes[source])
        return self._pulls[op.name](A, rows.windows[op.name], rows.windows[source])


def _sum(before: Tensor | None, more: Tensor) -> Tensor:
    return more if before is None else before + more


def _dot(A: Tensor, value: Tensor) -> Tensor:
    """Rows [B or 1,M,n] times a value [B,n]: [B,M]."""
    if len(A) == 1:
        return value @ A[0].T
    # The library is three times as fast with the vector on the left.
    return (value.unsqueeze(1) @ A.transpose(1, 2)).squeeze(1)
