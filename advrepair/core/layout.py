"""Which patch is on where: regions made of pieces, and what must be proved about each.

A box whose pieces N proves alone is left alone; where it needs a patch, the pieces that are
open become regions. The first region that holds an input decides, so that regions with a patch
stand first, and behind them every box as a region of its own.
"""

from __future__ import annotations

import torch
from attrs import define, frozen
from torch import Tensor

from advrepair.core.box import Box, concatenated
from advrepair.core.types import LinearBound, PropertySet, Regions


@define(eq=False)
class SplitTree:
    """How boxes were cut: node i < P is box i; a cut node has two later children.

    A later node without a parent is the part of a box that a region of another property takes.

    owner: property of each node. parent: -1 for a root. dim: flat dimension of the cut, -1
    for a leaf. cut: where. The child with the lower half comes first. A dimension s >= S is
    a cut by the sign of ReLU input s - S, units of N before those of the patch.
    """

    owner: list[int]
    parent: list[int]
    dim: list[int]
    cut: list[float]

    @classmethod
    def of(cls, owner: list[int]) -> SplitTree:
        """Leaves without parents; owner: property of each."""
        return cls(list(owner), [-1] * len(owner), [-1] * len(owner), [0.0] * len(owner))

    @classmethod
    def roots(cls, count: int) -> SplitTree:
        """One leaf a box."""
        return cls.of(list(range(count)))

    def children(self) -> list[list[int]]:
        """Of every node its two children, or none."""
        below: list[list[int]] = [[] for _ in self.owner]
        for child, parent in enumerate(self.parent):
            if parent >= 0:
                below[parent].append(child)
        return below

    def first(self, node: int) -> bool:
        """Whether a node is the half below the cut of its parent; halves stand side by side."""
        return node + 1 < len(self.parent) and self.parent[node + 1] == self.parent[node]

    def plant(self, owner: int) -> int:
        """A node without a parent, behind all others; returns it."""
        self.owner.append(owner)
        self.parent.append(-1)
        self.dim.append(-1)
        self.cut.append(0.0)
        return len(self.owner) - 1

    def bisect(self, node: int, dim: int, cut: float) -> tuple[int, int]:
        """Cut a leaf; returns its children."""
        self.dim[node], self.cut[node] = dim, cut
        first = len(self.owner)
        self.owner += [self.owner[node]] * 2
        self.parent += [node] * 2
        self.dim += [-1, -1]
        self.cut += [0.0, 0.0]
        return first, first + 1


@frozen(eq=False)
class Pieces:
    """Parts that cover the boxes. box: W of them. owner, node: [W], property and leaf.

    open: [.], the parts that were not proved when they were made. proof: N's rows on them,
    rigorous, if they are known. history: after each round of cutting the number of pieces, the
    share of the volume that is proved, and seconds.
    """

    tree: SplitTree
    box: Box
    owner: Tensor
    node: Tensor
    open: Tensor
    proof: LinearBound | None = None
    history: tuple[tuple[int, float, float], ...] = ()

    @classmethod
    def roots(cls, properties: PropertySet) -> Pieces:
        """Each box in one piece."""
        every = torch.arange(len(properties))
        tree = SplitTree.roots(len(properties))
        return cls(tree, properties.box, every, every.clone(), every.clone())

    def behind(self, properties: PropertySet, before: int) -> Pieces:
        """The same where so many other properties, one piece each, stand before these."""
        roots, count = before, len(properties) - before
        old, first = self.tree, torch.arange(roots)
        # Boxes are the first nodes, so those of the others come in front of everything.
        tree = SplitTree(
            list(range(before)) + [owner + before for owner in old.owner],
            [-1] * before + [-1 if n < count else up + before for n, up in enumerate(old.parent)],
            [-1] * before + old.dim,
            [0.0] * before + old.cut,
        )
        return Pieces(
            tree,
            concatenated(properties.box[:before], self.box),
            torch.cat([first, self.owner + before]),
            torch.cat([first, self.node + before]),
            torch.cat([first, self.open + before]),
            history=self.history,
        )


@frozen(eq=False)
class Layout:
    """The regions of a repair, and the node of the tree whose box each of them is, [R].

    shared: [E,2], a node without a parent and a region: the node's box is what the region has
    of another property's box, and the region's patch has to serve that property there too.
    """

    regions: Regions
    node: Tensor
    shared: Tensor

    @classmethod
    def nothing(cls, properties: PropertySet) -> Layout:
        """Every box a region without a patch."""
        every = torch.arange(len(properties))
        regions = Regions(properties.box, torch.full_like(every, -1))
        return cls(regions, every, torch.zeros(0, 2, dtype=torch.long))


@frozen(eq=False)
class Roots:
    """What regions have of the boxes of other properties, as pieces. home: [.]."""

    box: Box
    owner: Tensor
    node: Tensor
    home: Tensor


def lay_out(
    properties: PropertySet, tree: SplitTree, node: Tensor, box: Box, needy: Tensor, patch: Tensor
) -> tuple[Layout, Tensor, Roots]:
    """Regions for the pieces that need a patch; the region of every piece, [W]; and new roots.

    node, box: of the pieces, [W]. needy: bool [W], N alone is not proved there. patch: [P],
    -1 for a property that is left alone. A box in one piece that has a patch is one region.
    """
    open_ = _open_nodes(tree, node, needy, patch)
    inner = [above >= 0 and open_[above] for above in tree.parent]
    patched = [n for n, whole in enumerate(open_) if whole and not inner[n]]
    patched.sort(key=lambda n: (tree.owner[n], n))
    nodes = patched + [n for n in range(len(properties)) if not open_[n]]
    number = {n: i for i, n in enumerate(nodes)}
    homes: list[int] = []
    for n, above in enumerate(tree.parent):
        homes.append(number[n] if n in number else homes[above])
    home = torch.tensor(homes)[node]
    owner = torch.tensor(tree.owner, dtype=torch.long)[nodes]
    chosen = torch.where(torch.arange(len(nodes)) < len(patched), patch[owner], -1)
    faces = _hull(box, home, len(nodes))
    plain = (torch.tensor(nodes) < len(properties)).nonzero()[:, 0]
    for ours, whole in zip((faces.lower, faces.upper), _faces(properties.box), strict=True):
        ours[plain] = whole[owner[plain]]
    layout = Layout(
        Regions(faces, chosen), torch.tensor(nodes), torch.zeros(0, 2, dtype=torch.long)
    )
    property_, region = _foreign(properties, layout, tree)
    other = ~_same_demand(properties, property_, owner[region])
    property_, region = property_[other], region[other]
    shared = torch.tensor([tree.plant(p) for p in property_.tolist()], dtype=torch.long)
    asked, held = properties.box[property_], faces[region]
    common = Box(torch.maximum(asked.lower, held.lower), torch.minimum(asked.upper, held.upper))
    layout = Layout(layout.regions, layout.node, torch.stack([shared, region], 1))
    return layout, home, _copied(tree, common, property_, shared, region, layout.node)


def routed(proved: Tensor, layout: Layout, properties: PropertySet, tree: SplitTree) -> Tensor:
    """Properties that hold for the deployed function, given which pieces are proved: bool [P].

    proved: bool [P], every piece of the property, and every part of its box that a region of
    another demand has, is proved for the patch of the region it lies in.
    Sound: let f be the first region that holds a point of box i. If f is one of i, the point
    lies in a piece of i that has f as its region, since the regions below f in the tree stand
    before f. If f has no patch, neither has any region of i at that point, as those with a
    patch stand first. Else f belongs to j: what it has of box i is proved for i on its own, or
    j demands the same and is proved, or all of box i has the patch of f.
    """
    property_, region = _foreign(properties, layout, tree)
    owner = torch.tensor(tree.owner, dtype=torch.long)[layout.node][region]
    lost = _same_demand(properties, property_, owner) & ~proved[owner]
    holds = proved.clone()
    holds[property_[lost]] = False
    return holds


def _copied(
    tree: SplitTree, box: Box, owner: Tensor, shared: Tensor, region: Tensor, node: Tensor
) -> Roots:
    """Shared nodes, cut as the regions they are part of were cut before."""
    below = tree.children()
    faces, nodes, source = [], [], []
    for i, (planted, home) in enumerate(zip(shared.tolist(), region.tolist(), strict=True)):
        start = torch.stack([box.lower[i].flatten(), box.upper[i].flatten()])
        waiting = [(int(node[home]), planted, start)]
        while waiting:
            old, new, (low, high) = waiting.pop()
            if not below[old]:
                faces.append(torch.stack([low, high]))
                nodes.append(new)
                source.append(i)
                continue
            dim, cut = tree.dim[old], tree.cut[old]
            if cut <= low[dim] or cut >= high[dim]:  # all of it lies on one side
                waiting.append((below[old][int(cut <= low[dim])], new, torch.stack([low, high])))
                continue
            upper, lower = high.clone(), low.clone()
            upper[dim] = lower[dim] = cut
            halves = tree.bisect(new, dim, cut)
            sides = (torch.stack([low, upper]), torch.stack([lower, high]))
            waiting += list(zip(below[old], halves, sides, strict=True))
    shape = (len(nodes), *box.input_shape)
    both = torch.stack(faces) if faces else box.lower.new_zeros(0, 2, box.lower[0:1].numel())
    parts = Box(both[:, 0].reshape(shape), both[:, 1].reshape(shape))
    which = torch.tensor(source, dtype=torch.long)
    return Roots(parts, owner[which], torch.tensor(nodes, dtype=torch.long), region[which])


def _open_nodes(tree: SplitTree, node: Tensor, needy: Tensor, patch: Tensor) -> list[bool]:
    """Nodes all of whose leaves need a patch and get one."""
    open_ = [False] * len(tree.owner)
    served = (patch >= 0).tolist()
    for n, needs in zip(node.tolist(), needy.tolist(), strict=True):
        open_[n] = served[tree.owner[n]] and (needs or tree.parent[n] < 0)
    for n, below in reversed(list(enumerate(tree.children()))):
        if below:
            open_[n] = all(open_[child] for child in below)
    return open_


def _hull(box: Box, home: Tensor, count: int) -> Box:
    """The least box around the pieces of each region, [R,*S]; the pieces fill it."""
    where = home.view(-1, *[1] * (box.lower.dim() - 1)).expand_as(box.lower)
    empty = box.lower.new_zeros(count, *box.input_shape)
    return Box(
        empty.scatter_reduce(0, where, box.lower, "amin", include_self=False),
        empty.scatter_reduce(0, where, box.upper, "amax", include_self=False),
    )


def _faces(box: Box) -> tuple[Tensor, Tensor]:
    return box.lower, box.upper


def _foreign(properties: PropertySet, layout: Layout, tree: SplitTree) -> tuple[Tensor, Tensor]:
    """Pairs of a property and a region of another one whose patch its points may meet."""
    regions = layout.regions
    property_, region = regions.box.meets(properties.box).T
    last = torch.full((len(properties),), -1)
    root = layout.node < len(properties)
    last[layout.node[root]] = root.nonzero()[:, 0]
    owner = torch.tensor(tree.owner, dtype=torch.long)[layout.node]
    keep = (regions.patch[region] >= 0) & (owner[region] != property_)
    keep &= region < last[property_]
    keep &= regions.patch[region] != regions.patch[last[property_]]
    return property_[keep], region[keep]


def _same_demand(properties: PropertySet, i: Tensor, j: Tensor) -> Tensor:
    same = torch.ones_like(i, dtype=torch.bool)
    for part in (properties.C, properties.d, properties.group):
        same &= (part[i] == part[j]).flatten(1).all(1)
    return same
