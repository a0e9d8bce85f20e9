"""The checker follows patches that see a layer, on its own."""

import json

import folders
import numpy as np
import pytest
import torch
from folders import FILES, edited, verdict

import advrepair
from advrepair.checker.files import Malformed
from advrepair.checker.front import faces, parted
from advrepair.core import parting
from advrepair.core.box import Box
from advrepair.testing.networks import convolutional, residual

EPSILON = 0.1


def repaired(folder, network, at="auto", **options):
    """Balls of a small network, whose patches see a layer."""
    x = torch.rand(80, *network.input_shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        y = network(x).argmax(1)
    given = {"patch": {"at": at, **options}, "evaluation": {"samples": 1}}
    given["plan"] = {"allocator": "none"}
    done = advrepair.repair(network, x, y, epsilon=EPSILON, count=4, settings=given)
    done.save(folder)
    return done


@pytest.fixture(scope="module", params=["convolutional", "residual"])
def folder(request, tmp_path_factory):
    network, at = (convolutional(11), "auto") if request.param == "convolutional" else (None, "")
    if network is None:
        network = residual(10)
        at = parting.places(network)[-2]
    place = tmp_path_factory.mktemp("front") / "run"
    repaired(place, network, at)
    return place


def test_what_is_certified_is_valid_and_holds(folder):
    claim = json.loads((folder / FILES[0]).read_text())
    assert [each["status"] for each in claim["properties"]] == ["certified"] * 4
    found = verdict(folder)
    assert (found.word, found.certified) == ("VALID", 4), found.line
    network = advrepair.load(folder)
    assert network.bank.template.input_shape == network.tail.input_shape
    noise = torch.Generator().manual_seed(5)
    box = Box.around(network.center, EPSILON, (0.0, 1.0))
    for _ in range(50):
        share = torch.rand(box.lower.shape, generator=noise).round()
        with torch.no_grad():
            y = network(box.clamp(box.lower + share * (box.upper - box.lower)))
        assert torch.equal(y.argmax(1), network.centres.label)


def test_a_layer_of_another_name_is_not_valid(folder, tmp_path):
    def rename(claim, proof, stored):
        stored["header"]["at"] = "nowhere"

    def forget(claim, proof, stored):
        stored["header"]["at"] = ""

    def earlier(claim, proof, stored):
        stored["header"]["at"] = stored["header"]["base"]["operations"][0]["name"]

    for edit in (rename, forget, earlier):
        assert verdict(edited(folder, tmp_path / "copy", edit)).word == "INVALID"


def test_a_margin_that_the_features_do_not_give_is_not_confirmed(folder, tmp_path):
    def more(claim, proof, stored):
        proof["piece.margin"] = proof["piece.margin"] + 1e3
        proof["piece.margin"] = proof["piece.margin"] + 1e3
        owner = proof["tree.owner"][proof["piece.node"]]
        for i, each in enumerate(claim["properties"]):
            each["margin"] = float(proof["piece.margin"][owner == i].min())

    assert verdict(edited(folder, tmp_path / "copy", more)).word == "INCOMPLETE"


def test_a_front_that_was_changed_is_not_confirmed(folder, tmp_path):
    """Weights before the layer count, too: a patch is proved for these features alone."""

    def change(claim, proof, stored):
        name = min(n for n in stored if n.startswith("base/") and n.endswith("weight"))
        stored[name] = stored[name] * np.float32(40)
        claim["network"] = folders.digest(stored["header"], stored)

    assert verdict(edited(folder, tmp_path / "copy", change)).word == "INCOMPLETE"


@pytest.mark.parametrize("seed", range(8))
def test_faces_of_the_checker_hold_the_features(seed):
    network = convolutional(seed)
    parts, structure = parting.parted(network, "auto"), network.structure()
    tensors = {name: t.numpy() for name, t in network.tensors.items()}
    front, tail = parted(structure, parts.at, tensors)
    assert tail.sizes[0] == parts.front.outputs == front.sizes[-1]
    noise = torch.Generator().manual_seed(seed)
    box = Box.around(torch.randn(3, *network.input_shape, generator=noise), 0.2)
    flat = [face.flatten(1).double().numpy() for face in (box.lower, box.upper)]
    low, high = faces(front, "deployed-float32", (flat[0], flat[1]))
    for _ in range(40):
        share = torch.rand(box.lower.shape, generator=noise)
        share = share.round() if _ % 2 else share
        with torch.no_grad():
            z = parts.front(box.clamp(box.lower + share * (box.upper - box.lower))).double().numpy()
        assert ((low <= z) & (z <= high)).all()


def test_a_node_that_reads_past_the_layer_is_refused():
    network = residual(0)
    structure = network.structure()
    tensors = {name: t.numpy() for name, t in network.tensors.items()}
    places = parting.places(network)
    for op in network.operations[:-1]:
        if op.name in places:
            parted(structure, op.name, tensors)
        else:
            with pytest.raises(Malformed, match="reads past"):
                parted(structure, op.name, tensors)


def test_sampled_boxes_certify_nothing(tmp_path):
    done = repaired(tmp_path / "run", convolutional(11), boxes="sampled")
    report = done.report
    assert report["properties"]["certified"] == 0 and report["properties"]["empirical"] == 4
    assert report["metrics"]["certified"] == 0
    assert all(each["certified"] in (0, None) for each in report["baseline"].values())
    assert report["features"]["boxes"] == "sampled"
    assert 0 <= report["features"]["missed"]["anywhere"] <= 1
    found = verdict(tmp_path / "run")
    assert (found.word, found.certified, found.ignored) == ("VALID", 0, 4)

    def promote(claim, proof, stored):
        for i, each in enumerate(claim["properties"]):
            each["status"] = "certified"
            each["margin"] = float(proof["piece.margin"][proof["piece.node"] == i].min())

    assert verdict(edited(tmp_path / "run", tmp_path / "copy", promote)).word != "VALID"
    x = done.network.center
    margins = advrepair.certify(done.network, x, EPSILON, label=done.network.centres.label)
    proved = margins > 0  # by bounds, not by samples
    assert not bool(proved.all())
