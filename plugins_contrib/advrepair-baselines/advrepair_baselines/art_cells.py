"""Disjoint cells that owe what the boxes around them demand, and how they are bisected."""

from __future__ import annotations

import torch
from attrs import frozen
from torch import Tensor

from advrepair import Box, PropertySet


@frozen(eq=False)
class Cells:
    """Boxes that are trained on, [B], two of which have no more than faces in common.

    owed: bool [B,P], the properties whose boxes hold the cell. share: [B], of the cell that it
    was cut from, by volume. disjoint: whether the boxes were cut apart.
    """

    box: Box
    owed: Tensor
    share: Tensor
    disjoint: bool = True

    def __len__(self) -> int:
        return len(self.box)

    @classmethod
    def of(cls, properties: PropertySet, most: int) -> Cells:
        """Cells of the boxes; boxes that would need more than so many stay whole, and overlap.

        Every input of every box lies in a cell that owes the box's property: a cut leaves each
        point on one of its sides, faces on both.
        """
        whole = properties.box
        found = _apart(whole, max(most, len(whole)))
        box, owed = found or (whole, torch.eye(len(whole), dtype=torch.bool))
        share = torch.ones(len(box), dtype=torch.float64)
        return cls(box, owed, share, found is not None)

    def pairs(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """What some cells owe, cell by cell: places in index, and properties."""
        place, owed = self.owed[index].nonzero().T
        return place, owed

    def bisected(self, index: Tensor, dim: Tensor) -> Cells:
        """With some cells, index [T], halved along flat dimensions, dim [T]; halves come last."""
        rest = torch.ones(len(self), dtype=torch.bool)
        rest[index] = False
        low, high = self.box[index].split(dim)
        lower = torch.cat([self.box.lower[rest], low.lower, high.lower])
        upper = torch.cat([self.box.upper[rest], low.upper, high.upper])
        owed = torch.cat([self.owed[rest], self.owed[index], self.owed[index]])
        half = self.share[index] / 2
        share = torch.cat([self.share[rest], half, half])
        return Cells(Box(lower, upper), owed, share, self.disjoint)


def _apart(boxes: Box, most: int) -> tuple[Box, Tensor] | None:
    """Boxes cut where they overlap, and what each part owes; None if there would be too many.

    Boxes are added one by one. Of a cell that meets the new box the common part owes both, and
    the rest what it owed; what no cell has of the new box is a cell of its own.
    """
    cells: list[_Part] = []
    lower, upper = boxes.lower.flatten(1), boxes.upper.flatten(1)
    for number, (low, high) in enumerate(zip(lower, upper, strict=True)):
        new = _Part(low, high, frozenset([number]))
        fresh, kept = [new], list[_Part]()
        for cell in cells:
            if not cell.meets(new):
                kept.append(cell)
                continue
            kept += [*cell.outside(new), cell.inside(new)]
            fresh = [rest for part in fresh for rest in part.outside(cell)]
            if len(kept) + len(fresh) > most:
                return None
        cells = kept + fresh
    owed = torch.zeros(len(cells), len(boxes), dtype=torch.bool)
    for i, cell in enumerate(cells):
        owed[i, sorted(cell.owed)] = True
    shape = (len(cells), *boxes.input_shape)
    low, high = (torch.stack([getattr(c, end) for c in cells]) for end in ("lower", "upper"))
    return Box(low.view(shape), high.view(shape)), owed


@frozen(eq=False)
class _Part:
    """One cell: faces [S] each, and the properties that it owes."""

    lower: Tensor
    upper: Tensor
    owed: frozenset[int]

    def meets(self, other: _Part) -> bool:
        """Whether both have an inner point in common."""
        low, high = torch.maximum(self.lower, other.lower), torch.minimum(self.upper, other.upper)
        return bool((low < high).all())

    def inside(self, other: _Part) -> _Part:
        """What it has of the other, if they meet; it owes what both do."""
        low, high = torch.maximum(self.lower, other.lower), torch.minimum(self.upper, other.upper)
        return _Part(low, high, self.owed | other.owed)

    def outside(self, other: _Part) -> list[_Part]:
        """The rest of it, in slabs: one for each face of the other that lies inside."""
        if not self.meets(other):
            return [self]
        slabs, low, high = [], self.lower.clone(), self.upper.clone()
        for s in (low < other.lower).nonzero()[:, 0].tolist():
            end = high.clone()
            end[s] = other.lower[s]
            slabs.append(_Part(low.clone(), end, self.owed))
            low[s] = other.lower[s]
        for s in (high > other.upper).nonzero()[:, 0].tolist():
            begin = low.clone()
            begin[s] = other.upper[s]
            slabs.append(_Part(begin, high.clone(), self.owed))
            high[s] = other.upper[s]
        return slabs
