"""The proof of a whole repair: what the shards prove, put together."""

from __future__ import annotations

import copy
from itertools import pairwise

import torch
from attrs import define
from torch import Tensor

from advrepair.core.box import Box
from advrepair.core.branching import Decision
from advrepair.core.covering import Cover, Shards
from advrepair.core.layout import SplitTree
from advrepair.core.shards import Outcome


@define(eq=False)
class Proof:
    """Pieces that cover every box, the margin of each, and what it takes to find it again.

    tree: R nodes, of which the W pieces are the leaves. slope: uint8 [R,U], below the ReLUs of
    N. owner, node, patch, margin: [W]; a margin <= 0 or NaN proves nothing; patch -1 is N
    alone. patch_slope: uint8 [W,U], of that patch. multipliers: of a leaf, units of N and then
    of its patch, [.], and float32 [.,M]; see :class:`~advrepair.core.branches.Branch`.
    """

    cover: Cover
    tree: SplitTree
    slope: Tensor
    owner: Tensor
    node: Tensor
    patch: Tensor
    margin: Tensor
    patch_slope: Tensor
    multipliers: dict[int, tuple[Tensor, Tensor]]

    @classmethod
    def joined(cls, shards: Shards, outcomes: list[Outcome], units: int) -> Proof:
        """The outcomes of all shards, and what N proves alone. units: U of a patch.

        Sound: the leaves of a shard's tree cover the pieces it began with, and these are the
        pieces of the cover that have a patch.
        """
        cover = shards.cover
        tree, alone = copy.deepcopy(cover.tree), (cover.patch < 0).nonzero()[:, 0]
        parts = [
            (
                cover.node[alone],
                cover.patch[alone],
                cover.margin[alone],
                torch.zeros(len(alone), units, dtype=torch.uint8),
            )
        ]
        slope = [cover.slope]
        for pieces, outcome in zip(shards.pieces, outcomes, strict=True):
            begun = len(pieces)
            node = torch.cat([cover.node[pieces], _grow(tree, cover.node[pieces], outcome.tree)])
            slope[0][node[:begun]] = outcome.slope[:begun]
            slope.append(outcome.slope[begun:])
            patch = _carried(cover.patch[pieces], outcome.tree)[outcome.node]
            parts.append((node[outcome.node], patch, outcome.margin, outcome.patch_slope))
        node, patch, margin, used = (torch.cat(part) for part in zip(*parts, strict=True))
        order = node.argsort()
        node = node[order]
        owner = torch.tensor(tree.owner, dtype=torch.long)[node]
        return cls(
            cover,
            tree,
            torch.cat(slope),
            owner,
            node,
            patch[order],
            margin[order],
            used[order],
            {},
        )

    def box(self, pieces: Tensor) -> Box:
        """The boxes of some pieces, [.]: those of the cover, cut as the tree says."""
        start = {node: row for row, node in enumerate(self.cover.node.tolist())}
        lower, upper = [], []
        for node in self.node[pieces].tolist():
            above = [node]
            while above[-1] not in start:
                above.append(self.tree.parent[above[-1]])
            whole = self.cover.box[start[above[-1]] : start[above[-1]] + 1]
            low, high = whole.lower.flatten().clone(), whole.upper.flatten().clone()
            for child, parent in reversed(list(pairwise(above))):  # the last cut is the closest
                dim, cut = self.tree.dim[parent], self.tree.cut[parent]
                (high if self.tree.first(child) else low)[dim] = cut
            lower.append(low.view(self.cover.box.input_shape))
            upper.append(high.view(self.cover.box.input_shape))
        return Box(torch.stack(lower), torch.stack(upper))

    def least(self, properties: int) -> Tensor:
        """Margin of every property, the least over its pieces: [P]."""
        start = torch.full((properties,), torch.inf, dtype=torch.float64)
        return start.scatter_reduce(0, self.owner, self.margin.nan_to_num(-torch.inf), "amin")

    def graft(self, pieces: Tensor, found: Decision) -> None:
        """Replace some pieces, [.], by the leaves of the trees that a search grew on them."""
        leaves, units = found.leaves, self.slope.shape[1]
        if leaves is None:
            return
        nodes, rows = self.node[pieces].tolist(), [self.slope]
        self.slope[self.node[pieces]] = found.slope[: len(pieces), :units]
        nodes += [-1] * (len(found.tree.owner) - len(nodes))
        for i, children in enumerate(found.tree.children()):
            if children:
                halves = self.tree.bisect(nodes[i], found.tree.dim[i], found.tree.cut[i])
                for child, half in zip(children, halves, strict=True):
                    nodes[child] = half
                rows.append(found.slope[children, :units])
        self.slope = torch.cat(rows)
        node = torch.tensor(nodes)[leaves.node]
        keep = torch.ones(len(self.owner), dtype=torch.bool)
        keep[pieces] = False
        self.owner = torch.cat([self.owner[keep], torch.tensor(self.tree.owner)[node]])
        self.patch = torch.cat([self.patch[keep], self.patch[pieces[:1]].expand(len(node))])
        self.node = torch.cat([self.node[keep], node])
        self.margin = torch.cat([self.margin[keep], leaves.margin])
        self.patch_slope = torch.cat([self.patch_slope[keep], leaves.slope[:, units:]])
        for leaf, values_ in zip(node.tolist(), leaves.multiplier, strict=True):
            if len(used := (values_ != 0).any(0).nonzero()[:, 0]):
                self.multipliers[leaf] = (used, values_[:, used].T)


def _grow(tree: SplitTree, roots: Tensor, grown: SplitTree) -> Tensor:
    """Repeat in a tree the cuts below some of its leaves; the nodes this adds, in their order."""
    nodes, begun = roots.tolist(), len(roots)
    for up in grown.parent[begun::2]:  # halves stand side by side
        nodes += tree.bisect(nodes[up], grown.dim[up], grown.cut[up])
    return torch.tensor(nodes[begun:], dtype=torch.long)


def _carried(start: Tensor, tree: SplitTree) -> Tensor:
    """What is said of the first nodes of a tree, said of all of them: each has its parent's."""
    values = start.tolist()
    for up in tree.parent[len(start) :]:
        values.append(values[up])
    return torch.tensor(values, dtype=torch.long)
