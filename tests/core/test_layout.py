"""Regions: what the router does at every point, also on faces, follows from what is proved."""

import pytest
import torch
from attrs import frozen
from hypothesis import given
from hypothesis import strategies as st

from advrepair.core.box import Box, concatenated
from advrepair.core.layout import Layout, Pieces, SplitTree, lay_out, routed
from advrepair.core.types import PropertySet

SIZE = 4  # boxes lie on a grid 0, 1 .. 4 in two dimensions; points on halves of it


def properties_of(boxes, kinds):
    """Properties of one row: their kind is the row's coefficient."""
    lower, upper = (torch.tensor([b[side] for b in boxes]).float() for side in (0, 1))
    count = len(boxes)
    none = torch.full((count,), -1)
    return PropertySet(
        Box(lower, upper),
        torch.tensor(kinds).float().view(-1, 1, 1),
        torch.zeros(count, 1),
        torch.zeros(count, 1, dtype=torch.long),
        none,
        none,
        lower,
        tuple(f"property {i}" for i in range(count)),
    )


@frozen(eq=False)
class Scene:
    """Properties, how their boxes are cut, and which pieces need a patch."""

    properties: PropertySet
    kinds: list
    tree: SplitTree
    node: list
    box: Box
    needy: torch.Tensor
    patch: torch.Tensor

    def laid_out(self):
        """The layout, the region of every piece, and the new roots."""
        node = torch.tensor(self.node)
        return lay_out(self.properties, self.tree, node, self.box, self.needy, self.patch)


def cut(random, tree, pieces, often):
    """Cut some pieces, [node, lower, upper], at a face of the grid, which may be their own."""
    for _ in range(often):
        if not pieces:
            return
        node, lower, upper = pieces.pop(random.randrange(len(pieces)))
        dim = random.randrange(2)
        place = random.randint(lower[dim], upper[dim])
        low, high = tree.bisect(node, dim, float(place))
        pieces.append((low, lower, [place if k == dim else upper[k] for k in (0, 1)]))
        pieces.append((high, [place if k == dim else lower[k] for k in (0, 1)], upper))


@st.composite
def scenes(draw, most=4):
    """One to four boxes that overlap or touch, of two kinds of demand."""
    random = draw(st.randoms(use_true_random=False))
    count = random.randint(1, most)
    boxes = []
    for _ in range(count):
        pairs = [sorted(random.choices(range(SIZE + 1), k=2)) for _ in (0, 1)]
        boxes.append(([p[0] for p in pairs], [p[1] for p in pairs]))
    kinds = [random.choice((1, 2)) for _ in boxes]
    tree = SplitTree.roots(count)
    pieces = [(i, *boxes[i]) for i in range(count)]
    cut(random, tree, pieces, random.randint(0, 6))
    random.shuffle(pieces)
    share = random.choice((0.3, 0.7, 1.0))
    return Scene(
        properties_of(boxes, kinds),
        kinds,
        tree,
        [node for node, *_ in pieces],
        Box(*(torch.tensor([p[side] for p in pieces]).float() for side in (1, 2))),
        torch.tensor([random.random() < share for _ in pieces]),
        torch.tensor([random.choice((-1, 0, 0, 1)) for _ in boxes]),
    )


def grid():
    """Every point, on faces and between them: [n,2]."""
    steps = torch.arange(2 * SIZE + 1) / 2
    return torch.cartesian_prod(steps, steps)


def meant(box):
    """Which points lie in which box: bool [B,n]."""
    x = grid()
    return ((box.lower[:, None] <= x) & (x <= box.upper[:, None])).all(2)


@given(scenes(), st.integers(0, 15))
def test_what_is_called_proved_follows_at_every_point(scene, mask):
    """mask: of which properties every piece is proved."""
    layout, home, roots = scene.laid_out()
    serving = layout.regions.patch[torch.cat([home, roots.home])].tolist()
    owner = [scene.tree.owner[n] for n in scene.node] + roots.owner.tolist()
    proved = torch.tensor([bool(mask >> i & 1) for i in range(len(scene.kinds))])
    known = set()
    inside = meant(concatenated(scene.box, roots.box))
    for piece, (mine, patch) in enumerate(zip(owner, serving, strict=True)):
        if proved[mine]:
            points = inside[piece].nonzero()[:, 0].tolist()
            known |= {(scene.kinds[mine], patch, point) for point in points}
    holds = routed(proved, layout, scene.properties, scene.tree)
    assert not bool((holds & ~proved).any())
    x, within = grid(), meant(scene.properties.box)
    first = layout.regions.box.first(x)
    for i in holds.nonzero()[:, 0].tolist():
        for point in within[i].nonzero()[:, 0].tolist():
            patch = int(layout.regions.patch[first[point]])
            assert (scene.kinds[i], patch, point) in known, (i, x[point].tolist(), patch)


@given(scenes())
def test_where_all_is_proved_all_is_routed(scene):
    layout, _, _ = scene.laid_out()
    every = torch.ones(len(scene.kinds), dtype=torch.bool)
    assert bool(routed(every, layout, scene.properties, scene.tree).all())


@given(scenes())
def test_a_patch_is_on_where_a_piece_needs_it_and_nowhere_else(scene):
    layout, home, _ = scene.laid_out()
    for piece, node in enumerate(scene.node):
        mine = int(scene.patch[scene.tree.owner[node]])
        whole = scene.tree.parent[node] < 0
        want = mine if bool(scene.needy[piece]) or whole else -1
        assert int(layout.regions.patch[home[piece]]) == want


@given(scenes())
def test_regions_are_filled_by_their_pieces_and_those_without_a_patch_stand_last(scene):
    layout, home, _ = scene.laid_out()
    regions, inside = layout.regions, meant(scene.box)
    plain = regions.patch < 0
    assert not bool((plain[:-1] & ~plain[1:]).any())
    boxes = meant(regions.box)
    for number, node in enumerate(layout.node.tolist()):
        filled = inside[home == number].any(0)
        if bool(plain[number]):
            i = scene.tree.owner[node]
            assert i == node and torch.equal(boxes[number], meant(scene.properties.box)[i])
        else:
            assert torch.equal(boxes[number], filled)
    assert len(set(layout.node.tolist())) == len(layout.node)


@given(scenes())
def test_roots_are_what_regions_have_of_other_boxes(scene):
    before = len(scene.tree.owner)
    layout, _, roots = scene.laid_out()
    tree, planted = scene.tree, layout.shared[:, 0].tolist()
    assert planted == list(range(before, before + len(planted)))
    below = tree.children()
    leaves = [n for n in range(before, len(tree.owner)) if not below[n]]
    assert sorted(roots.node.tolist()) == leaves
    asked, held = meant(scene.properties.box), meant(layout.regions.box)
    parts, top = meant(roots.box), []
    for node in roots.node.tolist():
        while tree.parent[node] >= 0:
            node = tree.parent[node]
        top.append(node)
    for root, region in layout.shared.tolist():
        mine, i = torch.tensor(top) == root, tree.owner[root]
        assert tree.parent[root] == -1 and i != tree.owner[layout.node[region]]
        assert bool((roots.home[mine] == region).all()) and bool((roots.owner[mine] == i).all())
        assert torch.equal(parts[mine].any(0), asked[i] & held[region])


@given(scenes())
def test_the_tree_says_where_its_new_leaves_are(scene):
    """As somebody reads it who has nothing but boxes, faces of regions and cuts."""
    layout, _, roots = scene.laid_out()
    tree, region = scene.tree, dict(layout.shared.tolist())
    for e, node in enumerate(roots.node.tolist()):
        lower, upper = (
            face[tree.owner[node]].tolist()
            for face in (scene.properties.box.lower, scene.properties.box.upper)
        )
        while (above := tree.parent[node]) >= 0:
            dim, cut = tree.dim[above], tree.cut[above]
            if tree.parent.index(above) == node:  # the lower half comes first
                upper[dim] = min(upper[dim], cut)
            else:
                lower[dim] = max(lower[dim], cut)
            node = above
        faces = layout.regions.box[region[node]]
        assert roots.box.lower[e].tolist() == torch.tensor(lower).maximum(faces.lower).tolist()
        assert roots.box.upper[e].tolist() == torch.tensor(upper).minimum(faces.upper).tolist()


def two(kinds, patch, needy=(True, True)):
    """Boxes [0,2] and [1,3] of the first coordinate, in one piece each."""
    boxes = [([0, 0], [2, 1]), ([1, 0], [3, 1])]
    properties = properties_of(boxes, kinds)
    return Scene(
        properties,
        list(kinds),
        SplitTree.roots(2),
        [0, 1],
        properties.box,
        torch.tensor(needy),
        torch.tensor(patch),
    )


def holding(scene, proved):
    """What is routed; and the roots that were planted for it."""
    layout, _, roots = scene.laid_out()
    found = routed(torch.tensor(proved), layout, scene.properties, scene.tree)
    return found.tolist(), roots.owner.tolist()


@pytest.mark.parametrize("proved", [(True, True), (True, False), (False, True)])
def test_another_demand_is_proved_for_the_patch_that_comes_first(proved):
    # Only the second meets a patch that is not its own, that of the first.
    assert holding(two((1, 2), (0, 1)), proved) == (list(proved), [1])


def test_the_same_demand_rests_on_the_proof_of_the_first():
    assert holding(two((1, 1), (0, 1)), [True, True]) == ([True, True], [])
    assert holding(two((1, 1), (0, 1)), [False, True]) == ([False, False], [])
    assert holding(two((1, 1), (0, 1)), [True, False]) == ([True, False], [])


def test_one_patch_for_both_needs_nothing():
    assert holding(two((1, 2), (0, 0)), [False, True]) == ([False, True], [])


def test_a_box_without_a_patch_meets_those_that_have_one():
    assert holding(two((1, 2), (-1, 0)), [True, True]) == ([True, True], [0])
    assert holding(two((1, 1), (-1, 0)), [True, False]) == ([False, False], [])


def test_a_part_of_a_box_meets_the_same_patch_where_it_has_none_itself():
    """The patch of both is one, but on the other half of the box N alone is proved."""
    scene = two((1, 2), (0, 0))
    low, high = scene.tree.bisect(1, 0, 2.0)
    lower, upper = ([[0.0, 0.0], [1.0, 0.0], [2.0, 0.0]], [[2.0, 1.0], [2.0, 1.0], [3.0, 1.0]])
    box, node = Box(torch.tensor(lower), torch.tensor(upper)), torch.tensor([0, low, high])
    needy = torch.tensor([True, False, True])
    layout, home, roots = lay_out(
        scene.properties, scene.tree, node, box, needy, torch.tensor([0, 0])
    )
    assert layout.regions.patch.tolist() == [0, 0, -1]
    assert layout.regions.patch[home].tolist() == [0, -1, 0]
    assert (roots.owner.tolist(), roots.home.tolist()) == ([1], [0])


def test_nothing_is_a_region_for_every_box():
    scene = two((1, 2), (0, 1))
    layout = Layout.nothing(scene.properties)
    assert layout.regions.patch.tolist() == [-1, -1]
    assert layout.node.tolist() == [0, 1]
    assert layout.shared.shape == (0, 2)


@given(scenes(most=3), st.integers(1, 3))
def test_pieces_behind_other_properties(scene, before):
    """Owners, parents and nodes move with their boxes, and the others are the first nodes."""
    extra = properties_of([([0, 0], [1, 1])] * before, [1] * before)
    owner = torch.tensor([scene.tree.owner[n] for n in scene.node])
    pieces = Pieces(scene.tree, scene.box, owner, torch.tensor(scene.node), owner[:1])
    asked = scene.properties
    both = PropertySet(
        concatenated(extra.box, asked.box),
        *(
            torch.cat([getattr(extra, n), getattr(asked, n)])
            for n in ("C", "d", "group", "label", "target", "center")
        ),
        extra.names + asked.names,
    )
    found = pieces.behind(both, before)
    tree, old = found.tree, scene.tree
    assert torch.equal(found.box.lower, torch.cat([extra.box.lower, scene.box.lower]))
    assert found.node[:before].tolist() == found.owner[:before].tolist() == list(range(before))
    assert found.node[before:].tolist() == [n + before for n in scene.node]
    assert found.open.tolist() == [*range(before), *(owner[:1] + before).tolist()]
    assert tree.owner == [*range(before), *(o + before for o in old.owner)]
    assert tree.parent[before:] == [-1 if up < 0 else up + before for up in old.parent]
    assert (tree.dim[before:], tree.cut[before:]) == (old.dim, old.cut)
    for row, node in enumerate(found.node.tolist()):
        assert tree.owner[node] == int(found.owner[row])
