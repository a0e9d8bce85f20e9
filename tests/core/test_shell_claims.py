"""What holds for the relu form: proved where it is said so, and refuted where a patch does harm."""

import pytest
import torch
from problems import a_network, some_data

import advrepair
from advrepair.core.box import Box
from advrepair.core.exporting import Request, export
from advrepair.core.files import read_json, read_tensors
from advrepair.core.options import build
from advrepair.core.patching import constant_stack
from advrepair.core.registry import Registry
from advrepair.core.relu_form import make_shells
from advrepair.core.rounding import Rounding
from advrepair.core.shell_claims import Bounder, carried_over, patch_range, read_proved
from advrepair.plugins.verifiers.zonotope import Zonotope

PIECES = {"screening": {"pieces": 600}}


def a_property(network):
    """An output is not the largest, in a box where it is in some places."""
    points = some_data(network=network)[0]
    share = torch.rand(500, 6, generator=torch.Generator().manual_seed(0))
    for x in points:
        lower, upper = (x - 0.2).clamp(0, 1)[None], (x + 0.2).clamp(0, 1)[None]
        with torch.no_grad():
            said = network(lower + share * (upper - lower)).argmax(1)
        worst, count = said.bincount(minlength=4).argsort()[-2], said.bincount(minlength=4)
        if 5 <= int(count[worst]) <= 60:
            break
    worst = int(worst)
    others = [k for k in range(4) if k != worst]
    C = torch.eye(4)[others] - torch.eye(4)[worst]
    return advrepair.demands(lower, upper, C[None], torch.zeros(1, 3), torch.zeros(1, 3).long())


@pytest.fixture(scope="module")
def repaired():
    network = a_network()
    return advrepair.repair(network, properties=a_property(network), settings=PIECES)


def claims(result, shells, bounder):
    """As the export makes them, from the certificate on disk."""
    arrays = {}
    certified = torch.tensor([s is advrepair.Status.CERTIFIED for s in result.certificate.status])
    from advrepair.core.artefacts import _arrays

    arrays = _arrays(result.certificate, result.problem.properties)
    proved = read_proved(arrays, certified, result.problem.properties, result.network.patch)
    return proved, carried_over(result.network, shells, proved, bounder)


def a_bounder(result):
    network = result.network
    return Bounder(
        network.base,
        network.bank.template,
        Zonotope(),
        Zonotope(),
        Rounding("deployed-float32"),
        2**30,
    )


def test_pieces_come_back_as_they_were(repaired):
    shells = make_shells(repaired.network)
    proved, _ = claims(repaired, shells, a_bounder(repaired))
    box = proved.properties.box
    volume = (proved.box.upper - proved.box.lower).double().prod(1).sum()
    assert volume == pytest.approx(float((box.upper - box.lower).double().prod()), rel=1e-5)
    assert set(proved.patch.tolist()) == {-1, 0}


def test_what_is_said_to_hold_is_met_for_every_part_of_the_patch(repaired):
    shells = make_shells(repaired.network, 2.0**-7)
    bounder = a_bounder(repaired)
    proved, holds = claims(repaired, shells, bounder)
    assert bool(holds.all())
    noise = torch.Generator().manual_seed(0)
    alone = (proved.patch < 0).nonzero()[:, 0]
    regions = repaired.network.box[repaired.network.patch >= 0]
    wide = Box(regions.lower - shells.width, regions.upper + shells.width)
    piece = wide.meets(proved.box[alone])[:, 0].unique()
    box = proved.box[alone[piece]]
    for _ in range(50):
        x = box.lower + (box.upper - box.lower) * torch.rand(box.lower.shape, generator=noise)
        gates = torch.ones(len(x), 1, dtype=torch.bool)
        with torch.no_grad():
            y = repaired.network.base(x)
            added = repaired.network.bank.add_to(torch.zeros_like(y), x, gates)
        part = added * torch.rand(y.shape, generator=noise).round()
        asked = repaired.problem.properties[torch.zeros(len(x), dtype=torch.long)]
        assert not bool(asked.violated(y + part).any())


def test_a_patch_that_does_harm_in_its_shell_loses_the_property(repaired):
    """Every output but the right one falls: inside it is no matter, in the shell it is."""
    import copy

    other = copy.deepcopy(repaired)
    template = other.network.bank.template
    with torch.no_grad():
        worst = other.problem.properties.C[0].sum(0).argmin()
    value = torch.full((1, 4), -50.0)
    value[0, worst] = -100.0
    other.network.bank.put(torch.tensor([0]), constant_stack(template, value))
    shells = make_shells(other.network, 2.0**-7)
    _, holds = claims(other, shells, a_bounder(other))
    assert not bool(holds.any())


def test_the_range_of_a_patch_holds_every_output(repaired):
    box = repaired.problem.properties.box
    low, high, most = patch_range(repaired.network, 0, box, a_bounder(repaired))
    x = box.lower + (box.upper - box.lower) * torch.rand(200, box.lower.shape[1])
    gates = torch.ones(200, 1, dtype=torch.bool)
    with torch.no_grad():
        added = repaired.network.bank.add_to(torch.zeros(200, 4), x, gates)
    assert bool((added >= low).all() and (added <= high).all() and (added.abs() <= most).all())


def test_the_export_says_how_many(repaired, tmp_path):
    folder = tmp_path / "run"
    repaired.save(folder)
    (folder / "run.toml").write_text("[problem]\ninput_range = [0.0, 1.0]\n")
    found = export(folder, Request(onnx=tmp_path / "a.onnx", form="relu"), Registry.load())
    assert "1 of 1 certified properties hold in the shells too" in found[0].notes
    assert read_json(folder / "certificate.json")["certifier"]["name"] == "zonotope"
    assert read_tensors(folder / "certificate.safetensors")[1]["format"] == 3
    assert build(Zonotope, {}, "zonotope") == Zonotope()
