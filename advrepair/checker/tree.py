"""The tree of splits below every box, and the hints that it comes with."""

import numpy as np

from advrepair.checker.bounds import Pair
from advrepair.checker.files import Array, Tensors, Unsupported, demand


class Tree:
    """Node i < P is box i; a cut node has two children that share the cut, lower half first.

    A shared node is what a region of another property has of a box, and has no parent either.
    Behind the inputs, dimensions are the computed inputs of the ReLU units of N, then of the
    patch: some number at every input, so one half holds it. So the leaves below a box cover
    it. Raises Malformed unless the arrays are such a tree and its leaves are the pieces.
    """

    def __init__(self, arrays: Tensors, box: Pair, faces: Pair) -> None:
        """box: of the properties, faces: of the regions; each [.,S]."""
        self.box, self.faces, (boxes, inputs) = box, faces, box[0].shape
        tree = [arrays[f"tree.{name}"] for name in ("owner", "parent", "dim")]
        self.owner, self.parent, self.dim = np.stack(tree)
        self.piece, self.unit = arrays["multiplier.piece"], arrays["multiplier.unit"]
        self.cut, self.value = arrays["tree.cut"], arrays["multiplier.value"]
        self.slope, self.ending = arrays["tree.slope"], arrays["piece.slope"]
        pieces, self.units = arrays["piece.node"], self.slope.shape[1] + self.ending.shape[1]
        given = (*tree, pieces, self.piece, self.unit, self.slope, self.ending)
        demand([t.dtype.kind for t in given] == [*"iiiiiiuu"], "tree, piece, multiplier: dtypes")
        node, halved = np.arange(len(self.owner)), self.dim >= 0
        self.shared = np.full(len(node), -1)
        self.shared[arrays["shared.node"]] = arrays["shared.region"]
        known = (self.shared >= -1) & (self.shared < len(faces[0])) & (self.owner >= 0)
        known &= (self.owner < boxes) & ((node >= boxes) | (self.shared < 0))
        root = (node < boxes) | (self.shared >= 0)
        grown = np.where(root, self.parent == -1, (self.parent >= 0) & (self.parent < node))
        grown &= root | (self.owner == self.owner[self.parent])
        grown &= known & ((node >= boxes) | (self.owner == node))
        demand(grown.all() and len(node) >= boxes, "tree: it does not grow from the boxes")
        known = (self.dim >= -1) & (self.dim < inputs + self.units)
        known &= (self.dim < inputs) | (self.cut == 0)
        demand(known.all() and len(self.slope) == len(node), "tree: no such cut, or no slopes")
        halves = np.bincount(self.parent[~root], minlength=len(node))
        demand(np.array_equal(halves, 2 * halved), "tree: a cut without two halves")
        self.lower = np.isin(node, np.unique(self.parent, return_index=True)[1])
        leaves = np.array_equal(np.sort(pieces), (~halved).nonzero()[0])
        demand(leaves and len(self.ending) == len(pieces), "pieces: not the leaves, each once")
        known = (self.piece >= 0) & (self.piece < len(pieces)) & (self.unit >= 0)
        known &= (self.unit < self.units) & (np.isfinite(self.value) & (self.value >= 0)).all(1)
        demand(known.all(), "multiplier: not a number of at least 0 for a unit of a piece")

    def boxes(self, nodes: Array) -> Pair:
        """Faces of nodes, of inputs and units: those of their box, moved by every cut above."""
        free = np.full((len(nodes), self.units), np.inf)
        low = np.hstack([self.box[0][self.owner[nodes]], -free])
        high = np.hstack([self.box[1][self.owner[nodes]], free])
        nodes, row = nodes.copy(), np.arange(len(nodes))
        for _ in range(257):
            row = row[self.parent[nodes[row]] >= 0]
            if not len(row):
                here, inputs = self.shared[nodes] >= 0, self.box[0].shape[1]
                region = self.shared[nodes[here]]
                low[here, :inputs] = np.maximum(low[here, :inputs], self.faces[0][region])
                high[here, :inputs] = np.minimum(high[here, :inputs], self.faces[1][region])
                return low, high
            above, lower = self.parent[nodes[row]], self.lower[nodes[row]]
            dim, cut = self.dim[above], self.cut[above]
            high[row, dim] = np.minimum(high[row, dim], np.where(lower, cut, np.inf))
            low[row, dim] = np.maximum(low[row, dim], np.where(lower, -np.inf, cut))
            nodes[row] = above
        raise Unsupported("tree: deeper than 256")

    def homes(self, regions: Array) -> Array:
        """The region that every node lies in: the first of its own on the way up.

        regions: the node of each. Raises Malformed unless every box is one, and what lies inside
        a region stands before it.
        """
        own = np.full(len(self.owner), -1)
        known = regions.dtype.kind == "i" and ((regions >= 0) & (regions < len(own))).all()
        demand(known, "region: of no node")  # a negative one would name some node twice
        own[regions] = np.arange(len(regions))
        single = len({*regions.tolist()}) == len(regions) and (self.shared[regions] < 0).all()
        demand(single, "region: two of one node, or of a shared one")
        demand((own[: len(self.box[0])] >= 0).all(), "region: a box is none")
        home = np.where(self.shared >= 0, self.shared, own)
        for node, above in enumerate(self.parent.tolist()):
            if above >= 0:
                outer = home[above]
                demand(own[node] < outer, "region: it stands behind one that holds it")
                home[node] = outer if own[node] < 0 else own[node]
        return home

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
