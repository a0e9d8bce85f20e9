"""Which rows of which boxes go back together: blocks of parts that have one shape.

A value's rows are numbered 2 i for unit i, of which the lower end is asked, and 2 i + 1 for its
negation, of which the lower end is that of the upper.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from attrs import frozen
from torch import Tensor

_PART = 16  # rows of one box that stay together where a block holds many boxes
_FEW = 2048  # rows of a block at most if what it lacks is filled up


@frozen(eq=False)
class Block:
    """Rows of some boxes; a box may come more than once.

    boxes: a range, or numbers. rows: the same of every box; or of each its own, [boxes,rows].
    """

    boxes: slice | Tensor
    rows: slice | Tensor

    @property
    def own(self) -> bool:
        """Whether every box has rows of its own."""
        return isinstance(self.rows, Tensor) and self.rows.dim() == 2

    def of(self, values: Tensor) -> Tensor:
        """What belongs to the block of [B,M]: [boxes,rows]."""
        if isinstance(self.rows, Tensor) and isinstance(self.boxes, Tensor):
            rows = self.rows if self.rows.dim() == 2 else self.rows.unsqueeze(0)
            return values[self.boxes.unsqueeze(1), rows]
        return values[self.boxes][:, self.rows]

    def over(self, A: Tensor) -> Tensor:
        """The block's of rows [M,n] that all boxes share: [rows,n] or [boxes,rows,n]."""
        if not isinstance(self.rows, Tensor):
            return A[self.rows]
        return A.index_select(0, self.rows.flatten()).view(*self.rows.shape, -1)

    def put(self, values: Tensor, found: Tensor) -> None:
        """Write the block's results [boxes,rows] into [B,M]; what is there twice is the same."""
        if isinstance(self.rows, Tensor) and isinstance(self.boxes, Tensor):
            rows = self.rows if self.rows.dim() == 2 else self.rows.unsqueeze(0)
            values[self.boxes.unsqueeze(1), rows] = found
        else:
            values[self.boxes, self.rows] = found


def of_all(boxes: int, rows: int, most: int) -> Iterator[Block]:
    """Every row of every box; most: rows of a block."""
    for some in slices(boxes, max(2, most // rows)):
        yield Block(some, slice(0, rows))


def of_one(wanted: Tensor, most: int) -> Iterator[Block]:
    """Wanted rows, bool [B,M], one box at a time; all of a box where nearly all are wanted.

    Neighbours stay together, so that the rows of a block meet few lines of an image. How many
    rows a product has follows from its box alone, so that its bits do too.
    """
    rows, counts = wanted.shape[1], wanted.sum(1).tolist()
    nearly = [4 * count >= 3 * rows for count in counts]
    for some in slices(rows, most):  # the same rows of one box after the other are in the cache
        yield from (Block(slice(i, i + 1), some) for i, whole in enumerate(nearly) if whole)
    for box, keep in enumerate(wanted):
        if counts[box] and not nearly[box]:
            for part in keep.nonzero().squeeze(1).split(most):
                length = min(most, -(-len(part) // _PART) * _PART)
                yield Block(slice(box, box + 1), filled(part, length))


def of_many(wanted: Tensor, most: int) -> Iterator[Block]:
    """Wanted rows, bool [B,M], of many boxes at a time; all of a box if nearly all are wanted.

    All blocks of either kind have one shape, so that no row's bits depend on other boxes.
    """
    rows, counts, most = wanted.shape[1], wanted.sum(1), min(most, _FEW)
    nearly = 4 * counts >= 3 * rows
    whole = nearly.nonzero().squeeze(1)
    if len(whole) == len(wanted):
        yield from of_all(len(wanted), rows, most)
        return
    at_once = max(2, min(len(wanted), most // rows))
    for some in whole.split(at_once) if len(whole) else ():
        yield Block(filled(some, at_once), slice(0, rows))
    yield from in_parts(wanted & ~nearly.unsqueeze(1), _PART, most)


def in_parts(wanted: Tensor, length: int, most: int) -> Iterator[Block]:
    """Wanted rows, bool [B,M], of many boxes at a time, of each only those, so many a part.

    All blocks have one shape, so that no row's bits depend on other boxes.
    """
    length = min(length, wanted.shape[1])
    boxes, own = _parts(wanted, length)
    at_once = max(2, most // length)
    for start in range(0, len(boxes), at_once):
        some = slice(start, start + at_once)
        yield Block(filled(boxes[some], at_once), filled(own[some], at_once))


def _parts(wanted: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """Every box's wanted rows, so many at a time: boxes [parts], rows [parts,length].

    The last of a box's rows fill up its last part.
    """
    counts = wanted.sum(1)
    order = (~wanted).to(torch.uint8).argsort(dim=1, stable=True)  # those that are wanted first
    parts = -(-counts // length)
    boxes = torch.arange(len(wanted), device=wanted.device).repeat_interleave(parts)
    first = (parts.cumsum(0) - parts)[boxes]
    number = torch.arange(len(boxes), device=wanted.device) - first
    place = number.unsqueeze(1) * length + torch.arange(length, device=wanted.device)
    return boxes, order[boxes.unsqueeze(1), place.minimum(counts[boxes].unsqueeze(1) - 1)]


def paired(first: Tensor, second: Tensor, axis: int) -> Tensor:
    """What belongs to rows 2 i and what to rows 2 i + 1, by turns along an axis."""
    return torch.stack([first, second], axis + 1).flatten(axis, axis + 1)


def slices(count: int, length: int) -> Iterator[slice]:
    """Ranges of one length that cover 0..count-1; the last one may overlap the one before it."""
    pieces = -(-count // max(1, length))
    length = -(-count // max(1, pieces))  # no longer than it has to be
    for start in range(0, count, max(1, length)):
        start = min(start, count - length)
        yield slice(start, start + length)


def filled(index: Tensor, length: int) -> Tensor:
    """The index, its last entry repeated up to length."""
    return torch.cat([index, index[-1:].expand(length - len(index), *index.shape[1:])])
