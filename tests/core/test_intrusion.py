"""Patches that act in their boxes only: as small as can be there, proved, and zero elsewhere."""

import pytest
import torch
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st
from problems import (
    Mixed,
    a_network,
    a_problem,
    a_registry,
    bytes_of,
    configure,
    some_data,
    some_parts,
)
from problems import write_inputs as files

from advrepair import checker
from advrepair.core import detecting, intrusion, pipeline
from advrepair.core.attacking import uniform
from advrepair.core.bounding import Batch
from advrepair.core.constant import proved_patches
from advrepair.core.finding import others_of
from advrepair.core.inputs import read_inputs
from advrepair.core.intrusion import halved, one_label, propose_specific, representable
from advrepair.core.patching import patch_template
from advrepair.core.solving import Solver, are_constant
from advrepair.core.training import Trained
from advrepair.core.types import LinearBound
from advrepair.plugins.indicators.property_guided import PropertyGuided
from advrepair.plugins.indicators.targeted_label import TargetedLabel
from advrepair.plugins.refiners.gradient_width import GradientWidth

SHAPES = [(), (2,), (5,), (1, 1), (3, 2), (4, 3, 2)]
seeds = st.integers(0, 2**31)


def proposed(parts, others=None, margin=0.01):
    result = Trained.nothing_yet(len(parts.bank))
    given = some_data(200) if others is None else others
    propose_specific(parts.bank, parts.worklist, parts.bounder, given, margin, result)
    return result


def outputs(parts, x):
    """Of every patch at points of its own, [Q,n,K] from [Q,n,*S]."""
    return torch.func.vmap(parts.bank.template.apply_tensors)(parts.bank.stack, x)


def inside(parts, count=64):
    noise = torch.Generator().manual_seed(1)
    return torch.stack([uniform(parts.properties.box, noise) for _ in range(count)], 1)


@pytest.mark.parametrize("level", ["deployed-float32", "real"])
@pytest.mark.parametrize("hidden", SHAPES)
def test_what_is_settled_is_proved_with_the_weights_that_are_stored(hidden, level):
    parts = some_parts(hidden=hidden, level=level)
    result = proposed(parts)
    assert bool(result.settled.all()) and not bool(result.epochs.any())
    assert bool((parts.margins() > 0).all()) and not bool(are_constant(parts.bank).any())
    kept = torch.cat([margin for _, margin, _ in result.proofs])
    nodes = torch.cat([node for node, _, _ in result.proofs])
    assert torch.allclose(kept, parts.margins()[nodes])


def needs(parts):
    """Half of what N's rows lack most: no patch has a smaller largest output."""
    return (-parts.worklist.least()).amax(1).clamp(min=0) / 2


@pytest.mark.parametrize("hidden", [each for each in SHAPES if each])
def test_hidden_patches_add_the_least_constant_in_the_box_and_nothing_elsewhere(hidden):
    parts = some_parts(hidden=hidden)
    proposed(parts)
    there = outputs(parts, inside(parts))
    assert torch.allclose(there, there[:, :1].expand_as(there), rtol=1e-5, atol=1e-6)
    most, least = there[:, 0].abs().amax(1).double(), needs(parts)
    assert bool((most >= least).all()) and bool((most <= least + 0.011).all())
    x, _ = some_data(300)
    away = outputs(parts, x.expand(len(parts.bank), *x.shape)).abs().amax(2)
    assert float((away > 1e-4 * most[:, None]).double().mean()) < 0.6  # six inputs: not far off
    far = outputs(parts, 100 * (x - 0.5).expand(len(parts.bank), *x.shape)).abs().amax(2)
    if len(hidden) > 1:
        on = far > 0
        assert bool((~on).any())  # exactly zero, not only small


def test_affine_patches_grow_by_half_at_most():
    parts = some_parts()
    proposed(parts)
    weight, bias = parts.bank.stack["linear0.weight"], parts.bank.stack["linear0.bias"]
    box = parts.properties.box
    middle = (weight @ box.center[:, :, None])[:, :, 0] + bias
    most = (middle.abs() + (weight.abs() @ box.radius[:, :, None])[:, :, 0]).amax(1)
    assert bool((most.double() <= 1.5 * (needs(parts) + 0.011)).all())
    assert bool((weight != 0).flatten(1).any(1).all())


def a_batch(own, C):
    rows = LinearBound(torch.zeros(len(own), C.shape[1], 1).double(), own)
    group = torch.arange(C.shape[1]).expand(len(own), -1)
    return Batch(None, rows, C, group, torch.ones(1, len(own), dtype=torch.bool), own)


@given(seeds, st.integers(2, 6), st.integers(1, 3))
def test_halved_gives_every_row_its_slack_and_is_the_least(seed, outputs, pieces):
    noise = torch.Generator().manual_seed(seed)
    label = int(torch.randint(outputs, (1,), generator=noise))
    eye = torch.eye(outputs)
    C = torch.stack([eye[label] - eye[k] for k in range(outputs) if k != label])
    C = C.expand(pieces, -1, -1)
    own = 5 * torch.randn(pieces, outputs - 1, generator=noise, dtype=torch.float64)
    slack = torch.tensor([0.25]).double()
    value = halved(a_batch(own, C), torch.tensor([label]), slack)
    after = own + C.double() @ value[0]
    assert bool((after >= 0.25 - 1e-12).all())
    least = (0.25 - own).amax().clamp(min=0) / 2
    assert float(value.abs().max()) == pytest.approx(float(least), abs=1e-12)


@pytest.mark.parametrize("steps", [0, 1, 6])
@pytest.mark.parametrize("hidden", [(), (2,), (2, 2)])
def test_every_step_of_the_search_gives_patches_that_are_proved(hidden, steps, monkeypatch):
    monkeypatch.setattr(detecting, "STEPS", steps)
    parts = some_parts(hidden=hidden)
    assert bool(proposed(parts).settled.all()) and bool((parts.margins() > 0).all())


@pytest.mark.parametrize("indicator", [PropertyGuided(), TargetedLabel()])
@pytest.mark.parametrize("hidden", [(), (2,), (2, 2)])
def test_the_last_bit_does_not_depend_on_the_other_patches(hidden, indicator):
    whole = some_parts(a_problem(count=20), hidden=hidden, indicator=indicator)
    proposed(whole)
    for chosen in ([0], [2, 1], [1, 2, 3]):
        parts = some_parts(a_problem(count=20), hidden=hidden, indicator=indicator)
        result = Trained.nothing_yet(len(parts.bank))
        result.settled[:] = True
        result.settled[chosen] = False
        given = (parts.bank, parts.worklist, parts.bounder, some_data(200), 0.01, result)
        propose_specific(*given)
        for name, found in parts.bank.stack.items():
            assert torch.equal(found[chosen], whole.bank.stack[name][chosen]), name


@pytest.mark.parametrize("hidden", [(), (3,)])
def test_a_patch_that_does_not_suffice_is_not_kept(hidden, monkeypatch):
    """Planted: the label is lowered. Nothing may be stored or called settled."""
    parts = some_parts(hidden=hidden)
    before = {name: t.clone() for name, t in parts.bank.stack.items()}
    right = intrusion.halved
    monkeypatch.setattr(intrusion, "halved", lambda *given: -right(*given))
    result = proposed(parts)
    assert not bool(result.settled.any()) and not result.proofs
    assert all(torch.equal(before[name], t) for name, t in parts.bank.stack.items())


@pytest.mark.parametrize("hidden", [(2,), (2, 2)])
def test_a_detector_that_is_on_in_its_box_is_found_out(hidden, monkeypatch):
    """Planted: the reach of the middle of the box instead of all of it."""
    parts, right = some_parts(hidden=hidden), intrusion.fitted

    def short(box, patches, x, free):
        found = right(box, patches, x, free)
        return evolve(found, reach=found.reach - found.dip / 2)

    monkeypatch.setattr(intrusion, "fitted", short)
    result = proposed(parts)
    assert not bool(result.settled.all())
    batch = parts.worklist.batch(torch.arange(len(parts.bank)), rigorous=True)
    margins = parts.bounder.margins(parts.bank.stack, batch)
    proved = proved_patches(margins, batch.group, batch.real)
    assert bool(proved[result.settled].all())


def test_one_hidden_unit_is_left_to_the_training():
    parts = some_parts(hidden=(1,))
    assert not representable(parts.bank.template)
    assert not bool(proposed(parts).settled.any())
    assert all(representable(patch_template(a_network(), each)) for each in SHAPES)


def test_patches_of_several_labels_are_left_to_the_training():
    parts = some_parts(indicator=Mixed())
    label = one_label(parts.worklist, torch.arange(len(parts.bank)))
    for patch, found in enumerate(label.tolist()):
        served = parts.properties.label[parts.worklist.owner[parts.worklist.patch == patch]]
        assert found == (int(served[0]) if len(served.unique()) == 1 else -1)
    assert bool((label < 0).any())
    assert proposed(parts).settled.tolist() == (label >= 0).tolist()


def test_demands_that_are_not_about_a_label_are_left_alone():
    parts = some_parts()
    parts.worklist.properties.C[0, 0] *= 2
    parts.worklist.properties.label[1] = -1
    assert one_label(parts.worklist, torch.arange(6))[:2].tolist() == [-1, -1]


@pytest.mark.parametrize("hidden", SHAPES)
def test_a_patch_may_serve_several_boxes(hidden):
    parts = some_parts(hidden=hidden, indicator=TargetedLabel())
    assert len(parts.bank) < len(parts.properties)
    assert bool(proposed(parts).settled.all()) and bool((parts.margins() > 0).all())


def test_without_other_inputs_nothing_is_proposed():
    x, y = some_data(10)
    assert not bool(proposed(some_parts(), (x[:0], y[:0])).settled.any())


# As an objective of a run ---------------------------------------------------------------

INTRUSION = {"training": {"objective": "intrusion"}, "plan": {"allocator": "none"}}


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    return files(tmp_path_factory.mktemp("files"))


@pytest.mark.parametrize("hidden", [[], [2], [3, 2]])
def test_a_run_certifies_all_and_the_checker_agrees(hidden, asked, tmp_path):
    plan = configure(a_registry(), *asked, INTRUSION, {"patch": {"hidden": hidden}})
    report = pipeline.run(plan, a_registry(), tmp_path / "run")
    assert report["properties"]["certified"] == report["properties"]["total"] == 6
    assert report["properties"]["constant"] == 0 and report["patches"]["mean_epochs"] == 0
    verdict = checker.check(tmp_path / "run")
    assert verdict.word == "VALID" and verdict.certified == 6, verdict.line


def test_the_bytes_do_not_depend_on_the_workers(asked, tmp_path):
    found = []
    for workers in (1, 3):
        layer = {"in-process": {"workers": workers}}
        plan = configure(a_registry(), *asked, INTRUSION, layer)
        pipeline.run(plan, a_registry(), tmp_path / str(workers))
        found.append(bytes_of(tmp_path / str(workers)))
    assert found[0] == found[1]


def test_other_inputs_are_those_to_repair_drawn_by_the_seed_alone(asked):
    plan = configure(a_registry(), *asked, INTRUSION)
    data = read_inputs(plan.problem).data
    assert data is not None
    found = others_of(data.repair, plan)
    assert found is not None
    every = {tuple(row) for row in data.repair.images().tolist()}
    assert {tuple(row) for row in found[0].tolist()} <= every
    with torch.no_grad():
        assert torch.equal(found[1], a_network()(found[0]).argmax(1))
    again = others_of(data.repair, evolve(plan, problem=evolve(plan.problem, count=2)))
    assert again is not None and torch.equal(found[0], again[0])
    assert others_of(data.repair, configure(a_registry(), *asked)) is None


def test_other_inputs_are_part_of_what_an_outcome_depends_on():
    parts, (x, y) = some_parts(), some_data(20)
    plan = configure(a_registry(), "net.onnx", "data.npz", INTRUSION).training
    solvers = [
        Solver(parts.bounder, GradientWidth(), plan, 0, None, others)
        for others in (None, (x, y), (x + 1e-3, y), (x, (y + 1) % 4))
    ]
    assert len({each.settings() for each in solvers}) == 4
