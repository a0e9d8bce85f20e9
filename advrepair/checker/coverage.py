"""Which boxes the claims are about: the tree of splits, and which box wins where two overlap."""

import numpy as np

from advrepair.checker.bounds import Box
from advrepair.checker.files import Array, Tensors, Unsupported, demand

_DEEPEST = 256


class Tree:
    """Node i < P is box i; a cut node has two children that share the cut, lower half first.

    So the leaves below a box cover it. Raises Malformed unless the arrays are such a tree
    and ``piece.node`` lists its leaves, each once.
    """

    def __init__(self, arrays: Tensors, box: Box) -> None:
        self.box, (boxes, inputs) = box, box[0].shape
        self.owner, self.parent, self.dim, self.cut = (
            arrays[f"tree.{name}"] for name in ("owner", "parent", "dim", "cut")
        )
        kinds = [each.dtype.str for each in (self.owner, self.parent, self.dim, self.cut)]
        demand(kinds == ["<i8", "<i8", "<i8", "<f8"], "tree: dtypes")
        child, above = np.arange(boxes, len(self.owner)), self.parent[boxes:]
        roots = np.array_equal(self.owner[:boxes], np.arange(boxes))
        demand(
            roots and (self.parent[:boxes] == -1).all(), "tree: it does not begin with the boxes"
        )
        demand(((above >= 0) & (above < child)).all(), "tree: a parent after its child")
        demand((self.owner[above] == self.owner[boxes:]).all(), "tree: a child of another box")
        demand(((self.dim >= -1) & (self.dim < inputs)).all(), "tree: no such dimension")
        children = np.bincount(above, minlength=len(self.owner))
        demand(np.array_equal(children, 2 * (self.dim >= 0)), "tree: a cut without two halves")
        first = np.full(len(self.owner), len(self.owner))
        np.minimum.at(first, above, child)
        self.lower_half = np.append(np.zeros(boxes, bool), first[above] == child)
        leaves, cuts = (self.dim < 0).nonzero()[0], (self.dim >= 0).nonzero()[0]
        listed = np.sort(arrays["piece.node"])
        demand(np.array_equal(listed, leaves), "pieces: not the leaves of the tree, each once")
        for part in np.array_split(cuts, 1 + len(cuts) // 256):
            low, high = (face[np.arange(len(part)), self.dim[part]] for face in self.boxes(part))
            inside = (low <= self.cut[part]) & (self.cut[part] <= high)
            demand(inside.all(), f"tree: the cut of node {part[~inside][:1]} lies outside it")

    def boxes(self, nodes: Array) -> Box:
        """Faces of nodes: those of their box, moved by every cut above them."""
        low, high = (face[self.owner[nodes]] for face in self.box)
        row = np.arange(len(nodes))
        for _ in range(_DEEPEST):
            inner = self.parent[nodes] >= 0
            if not inner.any():
                return low, high
            nodes, row = nodes[inner], row[inner]
            above, half = self.parent[nodes], self.lower_half[nodes]
            dim, cut = self.dim[above], self.cut[above]
            high[row, dim] = np.where(half, np.minimum(high[row, dim], cut), high[row, dim])
            low[row, dim] = np.where(half, low[row, dim], np.maximum(low[row, dim], cut))
            nodes = above
        raise Unsupported(f"tree: deeper than {_DEEPEST}")


def overlapping(box: Box, index: int) -> Array:
    """Earlier boxes that share a point with box index; 32 coordinates are compared at a time."""
    (low, high), found = box, np.arange(index)
    for at in range(0, low.shape[1], 32):
        part = slice(at, at + 32)
        meet = (low[found, part] <= high[index, part]) & (low[index, part] <= high[found, part])
        found = found[meet.all(1)]
    return found
