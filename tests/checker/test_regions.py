"""Regions of several properties that overlap: who changes one gets no VALID for what is false."""

import json

import folders
import numpy as np
import pytest
import torch
from folders import FILES, digest, edited, rehash, verdict, write
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import advrepair
from advrepair.core.properties import demands
from advrepair.testing.networks import fully_connected

FACES = torch.tensor(
    [[[0.3, 0.0], [1.0, 1.0]], [[0.25, 0.4], [0.8, 1.0]], [[0.2, 0.7], [0.5, 0.95]]]
)
ABOVE = (-0.35, -0.78, -0.78)
QUICK = {
    "screening": {"pieces": 120},
    "evaluation": {"samples": 1, "examples": 20, "inputs": 100},
}


def points(lower, upper, count, seed):
    """Corners of a box and points in it: [n,2]."""
    noise = torch.Generator().manual_seed(seed)
    corners = torch.cartesian_prod(*torch.stack([lower, upper], 1))
    return torch.cat([corners, lower + torch.rand(count, 2, generator=noise) * (upper - lower)])


def asked():
    """Outputs 0 and 1, and 1 again, lie above numbers that the network misses in a part.

    The first two overlap and demand different things, the first and the third too; the second
    and the third demand the same.
    """
    C = torch.zeros(3, 1, 3)
    for i, output in enumerate((0, 1, 1)):
        C[i, 0, output] = 1
    d, group = -torch.tensor(ABOVE)[:, None], torch.zeros(3, 1, dtype=torch.long)
    return demands(FACES[:, 0], FACES[:, 1], C, d, group)


@pytest.fixture(scope="module", params=["deeppoly", "zonotope"])
def folder(request, tmp_path_factory):
    """A repair with patches on parts of boxes, and parts of one box in regions of another."""
    network = fully_connected(3, (2, 8, 8, 3))
    chosen = {**QUICK, "plan": {"certifier": request.param}}
    done = advrepair.repair(network, properties=asked(), settings=chosen)
    place = tmp_path_factory.mktemp("regions") / "run"
    done.save(place)
    return place


def answers(folder):
    """Whether the demand of every certified property holds at many points of its box."""
    network, claim = advrepair.load(folder), json.loads((folder / FILES[0]).read_text())
    proof, _ = folders.read(folder, FILES[1])
    good = True
    for i, each in enumerate(claim["properties"]):
        if each["status"] == "certified":
            low, high = (torch.tensor(proof[f"box.{side}"][i]) for side in ("lower", "upper"))
            regions = torch.cat([network.box_lower, network.box_upper])
            x = torch.cat([points(low, high, 3000, 7), regions.clamp(low, high)])
            with torch.no_grad():
                y = network(x).double()
            rows = y @ torch.tensor(proof["C"][i]).double().T + torch.tensor(proof["d"][i]).double()
            good &= bool((rows > 0).all())
    return good


def test_properties_that_overlap_are_certified_and_checked(folder):
    claim, (proof, _) = json.loads((folder / FILES[0]).read_text()), folders.read(folder, FILES[1])
    stored, _ = folders.read(folder, FILES[2])
    assert [each["status"] for each in claim["properties"]] == ["certified"] * 3
    found = verdict(folder)
    assert (found.word, found.certified) == ("VALID", 3), found.line
    assert found.margin > 0
    # Otherwise nothing here is tested.
    assert len(proof["shared.node"]) > 0
    assert {*stored["region/patch"].tolist()} >= {-1, 0, 1}
    assert (proof["tree.dim"] >= 0).sum() > 20
    assert len(stored["region/patch"]) > 6
    assert answers(folder)


def test_the_network_alone_breaks_every_demand(folder):
    network, proof = advrepair.load(folder).base, folders.read(folder, FILES[1])[0]
    for i, (low, high) in enumerate(FACES):
        rows = network(points(low, high, 3000, 1)) @ torch.tensor(proof["C"][i]).T
        assert bool((rows + torch.tensor(proof["d"][i]) <= 0).any())


# Each edit gets the claim, the arrays of the certificate, and those of the repaired network.


def reorder(proof, stored, order):
    """Regions in another order, told alike everywhere."""
    for name in ("region/lower", "region/upper", "region/patch"):
        stored[name] = stored[name][order]
    proof["region.node"] = proof["region.node"][order]
    place = np.argsort(order)
    proof["shared.region"] = place[proof["shared.region"]]


def wider_region(claim, proof, stored):
    stored["region/upper"][0] += np.float32(0.05)


def thinner_region(claim, proof, stored):
    """The rest of it would get no patch, or another."""
    stored["region/upper"][0] -= np.float32(1e-3)


def region_by_one_float(claim, proof, stored):
    face = stored["region/lower"]
    face[0] = np.nextafter(face[0], np.float32(9))


def wider_box(claim, proof, stored):
    proof["box.upper"][1] += np.float32(0.5)


def wider_box_and_region(claim, proof, stored):
    root = proof["region.node"].tolist().index(1)
    proof["box.upper"][1] += np.float32(0.5)
    stored["region/upper"][root] += np.float32(0.5)


def no_region_for_a_box(claim, proof, stored):
    keep = proof["region.node"] != 2
    for name in ("region/lower", "region/upper", "region/patch"):
        stored[name] = stored[name][keep]
    proof["region.node"] = proof["region.node"][keep]


def exchanged_weights(claim, proof, stored):
    for name in [name for name in stored if name.startswith("patch/")]:
        stored[name] = stored[name][::-1].copy()


def one_patch_more(stored, value=-1.0):
    """A patch that lowers every output; returns its number."""
    for name in [name for name in stored if name.startswith("patch/")]:
        stored[name] = np.concatenate([stored[name], 0 * stored[name][:1]])
    stored["patch/linear0.bias"][-1] = value
    stored["header"]["patches"].append("more")
    return len(stored["patch/linear0.bias"]) - 1


def another_patch(claim, proof, stored):
    stored["region/patch"][0] = one_patch_more(stored)


def another_patch_for_the_last(claim, proof, stored):
    stored["region/patch"][(stored["region/patch"] >= 0).sum() - 1] = one_patch_more(stored)


def another_patch_in_all_that_is_open_to_it(claim, proof, stored):
    """Nobody certifies property 0 any more, whose regions come first in those of the others."""
    claim["properties"][0]["status"] = "unknown"
    mine = (proof["tree.owner"][proof["region.node"]] == 0) & (stored["region/patch"] >= 0)
    stored["region/patch"][mine] = one_patch_more(stored)


def no_patch_in_front(claim, proof, stored):
    stored["region/patch"][0] = -1


def no_patch_at_the_end(claim, proof, stored):
    stored["region/patch"][0] = -1
    reorder(proof, stored, np.argsort(stored["region/patch"] < 0, kind="stable"))


def a_patch_for_the_rest_of_a_box(claim, proof, stored):
    root = proof["region.node"].tolist().index(0)
    stored["region/patch"][root] = 0
    reorder(proof, stored, np.argsort(stored["region/patch"] < 0, kind="stable"))


def boxes_first(claim, proof, stored):
    """The whole boxes, without a patch, come before the parts that need one."""
    reorder(proof, stored, np.argsort(stored["region/patch"] >= 0, kind="stable"))


def moved_nodes(claim, proof, stored):
    proof["region.node"][:2] = proof["region.node"][1::-1]


def the_node_above(claim, proof, stored):
    """The region is as large as the node above, which was proved in part without the patch."""
    node = int(proof["region.node"][0])
    proof["region.node"][0] = proof["tree.parent"][node]


def one_node_twice(claim, proof, stored):
    """The first of both decides; a look at the last would miss it."""
    for name in ("region/lower", "region/upper", "region/patch"):
        stored[name] = np.concatenate([stored[name][:1], stored[name]])
    stored["region/patch"][0] = one_patch_more(stored)
    proof["region.node"] = np.concatenate([proof["region.node"][:1], proof["region.node"]])
    proof["shared.region"] = proof["shared.region"] + 1


def one_node_twice_by_a_negative_number(claim, proof, stored):
    one_node_twice(claim, proof, stored)
    proof["region.node"][0] -= len(proof["tree.owner"])


def negative_nodes(claim, proof, stored):
    proof["region.node"] = proof["region.node"] - len(proof["tree.owner"])


def a_node_that_is_none(claim, proof, stored):
    proof["region.node"][0] = len(proof["tree.owner"])


def nodes_of_bytes(claim, proof, stored):
    proof["region.node"] = proof["region.node"].astype(np.uint8)


def nodes_of_fractions(claim, proof, stored):
    proof["region.node"] = proof["region.node"].astype(np.float64)


def a_region_behind_one_that_holds_it(claim, proof, stored):
    """A half of a region of its own, with another patch, which is never on."""
    node = int(proof["region.node"][0])
    below = (proof["tree.parent"] == node).nonzero()[0]
    child = int(below[0]) if len(below) else node
    place = len(stored["region/patch"]) - 3
    proof["region.node"] = np.insert(proof["region.node"], place, child)
    for name in ("region/lower", "region/upper"):
        stored[name] = np.insert(stored[name], place, stored[name][0], 0)
    stored["region/patch"] = np.insert(stored["region/patch"], place, 1)


def roots_of(proof):
    """Of every node the one above all."""
    top = np.arange(len(proof["tree.owner"]))
    for node, above in enumerate(proof["tree.parent"].tolist()):
        if above >= 0:
            top[node] = top[above]
    return top


def without(proof, gone):
    """Some nodes are gone, with all that is told of them; gone: bool of every node."""
    number = np.cumsum(~gone) - 1
    pieces = ~gone[proof["piece.node"]]
    for name in [name for name in proof if name.startswith("tree.")]:
        proof[name] = proof[name][~gone]
    up = proof["tree.parent"]
    proof["tree.parent"] = np.where(up < 0, up, number[up])
    for name in ("piece.node", "piece.margin", "piece.slope"):
        proof[name] = proof[name][pieces]
    proof["piece.node"] = number[proof["piece.node"]]
    keep = ~gone[proof["shared.node"]]
    for name in ("shared.node", "shared.region"):
        proof[name] = proof[name][keep]
    proof["shared.node"] = number[proof["shared.node"]]
    proof["region.node"] = number[proof["region.node"]]


def margins_again(claim, proof):
    """What the JSON says of the margins that are left."""
    owner = proof["tree.owner"][proof["piece.node"]]
    for i, each in enumerate(claim["properties"]):
        each["margin"] = float(proof["piece.margin"][owner == i].min())


def no_shared_parts(claim, proof, stored):
    """What regions of others have of a box is proved nowhere."""
    without(proof, np.isin(roots_of(proof), proof["shared.node"]))
    margins_again(claim, proof)


def one_shared_part_less(claim, proof, stored):
    without(proof, roots_of(proof) == proof["shared.node"][-1])
    margins_again(claim, proof)


def roots_without_a_region(claim, proof, stored):
    for name in ("shared.node", "shared.region"):
        proof[name] = proof[name][:0]


def shared_with_the_region_before(claim, proof, stored):
    proof["shared.region"] = np.maximum(proof["shared.region"] - 1, 0)


def shared_with_a_box_without_a_patch(claim, proof, stored):
    proof["shared.region"][:] = len(stored["region/patch"]) - 1


def shared_with_no_region(claim, proof, stored):
    proof["shared.region"][:] = len(stored["region/patch"])


def shared_with_another_property(claim, proof, stored):
    top, planted = roots_of(proof), proof["shared.node"][0]
    proof["tree.owner"][top == planted] = (proof["tree.owner"][planted] + 1) % 3


def a_box_as_a_shared_part(claim, proof, stored):
    """The whole of box 0 is said to be what the first region has of it."""
    proof["shared.node"] = np.append(proof["shared.node"], 0)
    proof["shared.region"] = np.append(proof["shared.region"], 0)


def a_region_that_is_a_shared_part(claim, proof, stored):
    proof["region.node"][0] = proof["shared.node"][0]


def slopes_of_fewer_units(claim, proof, stored):
    proof["tree.slope"] = proof["tree.slope"][:, :-1]


def slopes_told_of_the_patch(claim, proof, stored):
    """Columns of N are among those of the patch: their sum is as before."""
    moved = np.zeros((len(proof["piece.slope"]), 1), np.uint8)
    proof["piece.slope"] = np.hstack([proof["piece.slope"], moved])
    proof["tree.slope"] = proof["tree.slope"][:, :-1]


def a_smaller_patch(claim, proof, stored):
    stored["patch/linear0.bias"] = stored["patch/linear0.bias"] / 2


def a_larger_demand(claim, proof, stored):
    proof["d"] -= np.float32(0.5)


EDITS = [
    wider_region, thinner_region, region_by_one_float, wider_box, wider_box_and_region,
    no_region_for_a_box, exchanged_weights, another_patch, another_patch_for_the_last,
    another_patch_in_all_that_is_open_to_it, no_patch_in_front,
    no_patch_at_the_end, a_patch_for_the_rest_of_a_box, boxes_first,
    moved_nodes, the_node_above, one_node_twice, one_node_twice_by_a_negative_number,
    negative_nodes, a_node_that_is_none, nodes_of_bytes, nodes_of_fractions,
    a_region_behind_one_that_holds_it, no_shared_parts, one_shared_part_less,
    roots_without_a_region, shared_with_the_region_before, shared_with_a_box_without_a_patch,
    shared_with_no_region, shared_with_another_property, a_box_as_a_shared_part,
    a_region_that_is_a_shared_part, slopes_of_fewer_units, slopes_told_of_the_patch,
    a_smaller_patch, a_larger_demand,
]  # fmt: skip


@pytest.mark.parametrize("edit", EDITS, ids=lambda edit: edit.__name__)
def test_a_changed_region_with_new_hashes(edit, folder, tmp_path):
    changed = edited(folder, tmp_path / "changed", edit)
    found = verdict(changed)
    assert found.word in ("INVALID", "INCOMPLETE"), found.line
    assert found.line.startswith(f"{found.word}: ")


def test_the_same_regions_in_another_order_that_is_as_good(folder, tmp_path):
    """So it is not the order alone that is refused: boxes without a patch change places."""

    def boxes(claim, proof, stored):
        plain = (stored["region/patch"] < 0).nonzero()[0]
        order = np.arange(len(stored["region/patch"]))
        order[plain] = plain[::-1]
        reorder(proof, stored, order)

    def parts(claim, proof, stored):
        """Each part of a box in a region of another is proved, whichever comes first."""
        patch = stored["region/patch"]
        order = [(patch >= 0).nonzero()[0][::-1], (patch < 0).nonzero()[0]]
        reorder(proof, stored, np.concatenate(order))

    for edit in (boxes, parts):
        changed = edited(folder, tmp_path / "changed", edit)
        assert verdict(changed).word == "VALID" and answers(changed)


def test_a_property_rests_on_one_with_the_same_demand_only_if_that_is_certified(folder, tmp_path):
    words = []
    for taken in range(3):

        def edit(claim, proof, stored, taken=taken):
            claim["properties"][taken]["status"] = "unknown"

        found = verdict(edited(folder, tmp_path / "changed", edit))
        words.append(found.word)
        assert found.word == "VALID" or "overlaps it" in found.line
    assert words == ["VALID", "INVALID", "INVALID"]


def test_what_the_others_have_of_a_box_is_their_own_affair(folder, tmp_path):
    """Property 0 is not certified: the others hold where its regions, which come first, lie."""

    def edit(claim, proof, stored):
        claim["properties"][0]["status"] = "unknown"
        margins = [(proof["tree.owner"][proof["piece.node"]] == i) for i in range(3)]
        proof["piece.margin"][margins[0]] = -1.0

    changed = edited(folder, tmp_path / "changed", edit)
    assert verdict(changed).certified == 2
    assert verdict(changed).word == "VALID" and answers(changed)


ARRAYS = (
    "region.node", "shared.node", "shared.region", "tree.owner", "tree.parent", "tree.dim",
    "tree.cut", "box.lower", "box.upper", "piece.node",
    "region/lower", "region/upper", "region/patch",
)  # fmt: skip


@given(st.data())
@settings(max_examples=100, suppress_health_check=list(HealthCheck), deadline=None)
def test_what_is_valid_after_a_random_change_holds(folder, data):
    random = data.draw(st.randoms(use_true_random=False))

    def change(claim, proof, stored):
        for _ in range(random.randint(1, 2)):
            name = random.choice(ARRAYS)
            arrays = proof if name in proof else stored
            array = arrays[name].copy()
            flat = array.reshape(-1)
            i, j = (random.randrange(len(flat)) for _ in range(2))
            if random.random() < 0.5:
                flat[i] = flat[j]
            elif array.dtype.kind == "i":
                flat[i] += random.choice((-1, 1))
            else:
                flat[i] += array.dtype.type(random.choice((-0.1, 0.1)))
            arrays[name] = array
            if name.startswith("box.") and random.random() < 0.5:
                root = proof["region.node"].tolist().index(i // 2)
                face = stored[name.replace("box.", "region/")]
                face[root] = array[i // 2]

    changed = edited(folder, folder.with_name("random"), change)
    found = verdict(changed)
    assert found.word in ("VALID", "INVALID", "INCOMPLETE")
    if found.word == "VALID":
        assert answers(changed)


def operation(name, kind, source, **tensors):
    parts = {"name": name, "kind": kind, "inputs": [source], "shape": [1]}
    return {**parts, "tensors": tensors, "settings": {}}


def forged(place, hidden, weight, patches, region_patch, nodes):
    """One box [-1, 1] and the claim that weight times (the ReLU of) x, and 1, is above 0.

    Without slopes; patches are constants.
    """
    before = [operation("r", "relu", "input")] if hidden else []
    last = operation("y", "linear", "r" if hidden else "input", weight="w", bias="b")
    patch = [operation("p", "linear", "input", weight="w", bias="b")]
    header = {
        "format": 3,
        "base": {"input_shape": [1], "operations": [*before, last]},
        "patch": {"input_shape": [1], "operations": patch},
        "patches": [f"patch {i}" for i in range(len(patches))],
    }
    low, high = np.float32([[-1]]), np.float32([[1]])
    regions = len(region_patch)
    stored = {
        "base/w": np.float32([[weight]]),
        "base/b": np.float32([1]),
        "patch/w": np.zeros((len(patches), 1, 1), np.float32),
        "patch/b": np.float32(patches).reshape(-1, 1),
        "region/lower": low.repeat(regions, 0),
        "region/upper": high.repeat(regions, 0),
        "region/patch": np.int64(region_patch),
        "centres/patch": np.int64([-1]),
        "centres/label": np.int64([-1]),
    }
    none = np.zeros(0, np.int64)
    proof = {
        "C": np.float32([[[1]]]),
        "d": np.float32([[0]]),
        "group": np.int64([[0]]),
        "box.lower": low,
        "box.upper": high,
        "region.node": np.int64(nodes),
        "shared.node": none,
        "shared.region": none,
        "piece.node": np.int64([0]),
        "piece.margin": np.float64([0.05]),
        "piece.slope": np.zeros((1, 0), np.uint8),
        "tree.owner": np.int64([0]),
        "tree.parent": np.int64([-1]),
        "tree.dim": np.int64([-1]),
        "tree.cut": np.zeros(1),
        "tree.slope": np.zeros((1, 0), np.uint8),
        "multiplier.piece": none,
        "multiplier.unit": none,
        "multiplier.value": np.zeros((0, 1), np.float32),
    }
    one = {"label": -1, "patch": -1, "status": "certified", "margin": 0.05}
    claim = {"format": 3, "level": "deployed-float32", "network": digest(header, stored)}
    claim |= {"files": {}, "properties": [one]}
    place.mkdir()
    write(place, FILES[1], proof, {"format": 3})
    write(place, FILES[2], stored, header)
    rehash(place, claim)
    return place


def test_a_network_without_patches(tmp_path):
    good = verdict(forged(tmp_path / "good", False, 0.5, [], [-1], [0]))
    assert good.word == "VALID" and 0.49 < good.margin <= 0.5
    bad = verdict(forged(tmp_path / "bad", False, 2.0, [], [-1], [0]))
    assert bad.word == "INCOMPLETE"


def test_a_network_without_patches_needs_slopes_of_all_its_units(tmp_path):
    """An array without columns stretches to any size; 1 - 100 relu(x) is not above 0."""
    assert verdict(forged(tmp_path / "run", True, -100.0, [], [-1], [0])).word == "INVALID"


@pytest.mark.parametrize("nodes", [[-1, 0], [0, 0], [0, -1]])
def test_two_regions_of_one_node(nodes, tmp_path):
    """The first has a patch that adds -5, and it is the one that is on."""
    place = forged(tmp_path / "run", False, 0.5, [-5, 1], [0, 1], nodes)
    assert verdict(place).word == "INVALID"


def test_a_constant_patch_that_is_on_in_front(tmp_path):
    assert verdict(forged(tmp_path / "good", False, 2.0, [2], [0], [0])).word == "VALID"
    assert verdict(forged(tmp_path / "bad", False, 2.0, [0.5], [0], [0])).word == "INCOMPLETE"


def halved(claim, proof, stored):
    """The box is cut at 0, and both halves are regions with the good patch, behind the whole."""
    proof["tree.owner"], proof["tree.parent"] = np.int64([0] * 3), np.int64([-1, 0, 0])
    proof["tree.dim"], proof["tree.cut"] = np.int64([0, -1, -1]), np.zeros(3)
    proof["tree.slope"], proof["piece.slope"] = np.zeros((3, 0), np.uint8), np.zeros((2, 0), "u1")
    proof["piece.node"], proof["piece.margin"] = np.int64([1, 2]), np.float64([0.05] * 2)
    proof["region.node"] = np.int64([0, 1, 2])
    stored["region/lower"], stored["region/upper"] = (
        np.float32([[-1], [-1], [0]]),
        np.float32([[1], [0], [1]]),
    )


def test_a_region_in_front_of_those_inside_it(tmp_path):
    place = forged(tmp_path / "run", False, 0.5, [-5, 1], [0, 1, 1], [0, 0, 0])
    assert verdict(edited(place, tmp_path / "changed", halved)).word == "INVALID"


def twice(claim, proof, stored):
    """The same box again, with a demand that N alone does not meet; it comes second."""
    for name in ("C", "d", "group", "box.lower", "box.upper", "piece.margin", "piece.slope"):
        proof[name] = proof[name].repeat(2, 0)
    proof["d"][1] = -1
    for name in ("tree.owner", "tree.parent", "tree.dim", "tree.cut", "tree.slope"):
        proof[name] = proof[name].repeat(2, 0)
    proof["tree.owner"] = proof["piece.node"] = np.int64([0, 1])
    for name in ("centres/patch", "centres/label"):
        stored[name] = stored[name].repeat(2, 0)
    claim["properties"] = [dict(each) for each in claim["properties"] * 2]


def test_a_box_without_a_patch_in_front_of_one_that_needs_it(tmp_path):
    place = forged(tmp_path / "run", False, 0.5, [3], [-1, 0], [0, 1])
    assert verdict(edited(place, tmp_path / "changed", twice)).word == "INVALID"
