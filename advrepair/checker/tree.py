"""The tree of splits below every box, and the hints that it comes with."""

import numpy as np

from advrepair.checker.bounds import Box
from advrepair.checker.files import Array, Tensors, Unsupported, demand


class Tree:
    """Node i < P is box i; a cut node has two children that share the cut, lower half first.

    Behind the inputs, dimensions are the computed inputs of the ReLU units of N, then of the
    patch: some number at every input, so one half holds it. So the leaves below a box cover
    it. Raises Malformed unless the arrays are such a tree and its leaves are the pieces.
    """

    def __init__(self, arrays: Tensors, box: Box) -> None:
        self.box, (boxes, inputs) = box, box[0].shape
        self.owner, self.parent, self.dim, self.cut, self.slope = (
            arrays[f"tree.{name}"] for name in ("owner", "parent", "dim", "cut", "slope")
        )
        self.piece, self.unit, self.value = (
            arrays[f"multiplier.{name}"] for name in ("piece", "unit", "value")
        )
        self.ending, pieces = arrays["piece.slope"], arrays["piece.node"]
        nodes, self.units = len(self.owner), self.slope.shape[1] + self.ending.shape[1]
        whole = (self.owner, self.parent, self.dim, self.piece, self.unit, pieces)
        dtypes = {each.dtype for each in whole} == {np.dtype(int)} and self.cut.dtype == float
        dtypes = dtypes and self.slope.dtype == self.ending.dtype == np.uint8
        demand(dtypes and self.value.dtype.kind == "f", "tree, piece, multiplier: dtypes")
        child, above, halved = np.arange(boxes, nodes), self.parent[boxes:], self.dim >= 0
        roots = np.array_equal(self.owner[:boxes], np.arange(boxes))
        roots = roots and (self.parent[:boxes] == -1).all()
        demand(roots, "tree: it does not begin with the boxes")
        grown = (above >= 0) & (above < child) & (self.owner[above] == self.owner[boxes:])
        demand(grown.all(), "tree: a parent after its child, or in another box")
        known = (self.dim >= -1) & (self.dim < inputs + self.units)
        known &= (self.dim < inputs) | (self.cut == 0)
        demand(known.all() and len(self.slope) == nodes, "tree: no such cut, or no slopes")
        halves = np.array_equal(np.bincount(above, minlength=nodes), 2 * halved)
        demand(halves, "tree: a cut without two halves")
        self.first = np.full(nodes, nodes)  # child of every node
        np.minimum.at(self.first, above, child)
        leaves = np.array_equal(np.sort(pieces), (~halved).nonzero()[0])
        demand(leaves and len(self.ending) == len(pieces), "pieces: not the leaves, each once")
        known = (self.piece >= 0) & (self.piece < len(pieces)) & (self.unit >= 0)
        demand((known & (self.unit < self.units)).all(), "multiplier: no such piece or unit")
        sound = np.isfinite(self.value) & (self.value >= 0)
        demand(sound.all(), "multiplier: not a number of at least 0")

    def boxes(self, nodes: Array) -> Box:
        """Faces of nodes, of inputs and units: those of their box, moved by every cut above."""
        free = np.full((len(nodes), self.units), np.inf)
        low = np.hstack([self.box[0][self.owner[nodes]], -free])
        high = np.hstack([self.box[1][self.owner[nodes]], free])
        row = np.arange(len(nodes))
        for _ in range(256):
            inner = self.parent[nodes] >= 0
            if not inner.any():
                return low, high
            nodes, row = nodes[inner], row[inner]
            above = self.parent[nodes]
            dim, cut, lower = self.dim[above], self.cut[above], self.first[above] == nodes
            high[row, dim] = np.minimum(high[row, dim], np.where(lower, cut, np.inf))
            low[row, dim] = np.maximum(low[row, dim], np.where(lower, -np.inf, cut))
            nodes = above
        raise Unsupported("tree: deeper than 256")

    def hints(self, nodes: Array, pieces: Array) -> tuple[Array, Array]:
        """Slopes [B,units] of N for nodes and of patches for pieces; multipliers [B,M,units].

        Where a multiplier is given twice, either is sound.
        """
        found = np.zeros((len(pieces), self.value.shape[1], self.units))
        place = np.full(len(self.ending), -1)
        place[pieces] = np.arange(len(pieces))
        here = place[self.piece] >= 0
        found[place[self.piece[here]], :, self.unit[here]] = self.value[here]
        return np.hstack([self.slope[nodes], self.ending[pieces]]) / 255, found
