"""The checker knows a cap when it sees one, and nothing else for one."""

import json

import numpy as np
import pytest
import torch
from folders import FILES, edited, verdict

import advrepair
from advrepair.testing.networks import convolutional

LABELS = 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    network = convolutional(11)
    x = torch.rand(80, *network.input_shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        y = network(x).argmax(1)
    given = {"training": {"objective": "cap"}, "plan": {"allocator": "none"}}
    given["evaluation"] = {"samples": 1}
    done = advrepair.repair(network, x, y, epsilon=0.1, count=LABELS, settings=given)
    place = tmp_path_factory.mktemp("caps") / "run"
    done.save(place)
    return place


def test_caps_are_valid_and_few_numbers_are_looked_at(folder):
    claim = json.loads((folder / FILES[0]).read_text())
    assert [each["status"] for each in claim["properties"]] == ["certified"] * LABELS
    found = verdict(folder)
    assert (found.word, found.certified) == ("VALID", LABELS), found.line
    assert found.margin == pytest.approx(0.01)


def more_margin(claim, proof, stored):
    proof["piece.margin"] = proof["piece.margin"] * 1.001
    for each in claim["properties"]:
        each["margin"] = float(proof["piece.margin"].max())


def another_label(claim, proof, stored):
    """Each patch is the cap of the next label."""
    for name in ("patch/linear1.weight", "patch/linear2.weight"):
        outputs = stored[name].shape[1]
        parts = stored[name].reshape(len(stored[name]), outputs, -1, outputs)
        stored[name] = np.roll(parts, (1, 1), (1, 3)).reshape(stored[name].shape)
    stored["patch/linear1.bias"] = np.roll(stored["patch/linear1.bias"], 1, 1)


def no_room_for_rounding(claim, proof, stored):
    name = "patch/linear1.weight"
    stored[name] = np.sign(stored[name])


def one_weight_off(claim, proof, stored):
    label = claim["properties"][0]["label"]
    stored["patch/linear1.weight"][0, (label + 1) % 3, (label + 2) % 3] += np.float32(1e-3)


def a_bias_below(claim, proof, stored):
    stored["patch/linear1.bias"] = -stored["patch/linear1.bias"]


def wild_outputs(claim, proof, stored):
    name = max(n for n in stored if n.startswith("base/") and n.endswith("weight"))
    stored[name] = stored[name] * np.float32(2.0**110)


@pytest.mark.parametrize(
    "edit",
    [
        more_margin, another_label, no_room_for_rounding, one_weight_off, a_bias_below,
        wild_outputs,
    ],
)  # fmt: skip
def test_what_is_no_cap_or_claims_more_is_not_confirmed(edit, folder, tmp_path):
    assert verdict(edited(folder, tmp_path / "copy", edit)).word == "INCOMPLETE"


def test_caps_that_see_an_earlier_layer_are_not_valid(folder, tmp_path):
    def earlier(claim, proof, stored):
        operations = stored["header"]["base"]["operations"]
        stored["header"]["at"] = operations[-2]["name"]

    assert verdict(edited(folder, tmp_path / "copy", earlier)).word != "VALID"


def test_a_last_node_called_auto_is_read_alike_by_both_programs(folder, tmp_path):
    def rename(claim, proof, stored):
        operations = stored["header"]["base"]["operations"]
        operations[-1]["name"] = stored["header"]["at"] = "auto"

    place = edited(folder, tmp_path / "copy", rename)
    assert verdict(place).word == "VALID"
    x = torch.rand(50, *advrepair.load(folder).base.input_shape)
    x = torch.cat([x, advrepair.load(folder).center])
    with torch.no_grad():
        assert torch.equal(advrepair.load(place)(x), advrepair.load(folder)(x))


def test_two_nodes_of_one_name_are_refused(folder, tmp_path):
    def double(claim, proof, stored):
        operations = stored["header"]["base"]["operations"]
        operations.insert(1, dict(operations[0]))

    place = edited(folder, tmp_path / "copy", double)
    assert verdict(place).word == "INVALID"
    with pytest.raises(advrepair.UsageError, match="two nodes are called"):
        advrepair.load(place)
