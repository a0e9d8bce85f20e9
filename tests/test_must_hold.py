"""The facts the design is built on and the duties it must keep, one by one, by number."""

import ast
import inspect
import json
import sys
import tomllib
from fractions import Fraction
from itertools import product
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from attrs import frozen
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import (
    BYTES,
    SPLITTING,
    Mixed,
    a_module,
    a_network,
    a_problem,
    a_registry,
    bytes_of,
    configure,
    some_data,
    some_parts,
    the_balls,
    write_inputs,
)

import advrepair
from advrepair.cli import main
from advrepair.core import bounding, patching, pipeline, sections, shards
from advrepair.core.attacking import Problem
from advrepair.core.bounding import Bounder
from advrepair.core.errors import SoundnessError, UsageError
from advrepair.core.files import read_tensors
from advrepair.core.patching import PatchBank, patch_template
from advrepair.core.properties import robustness
from advrepair.core.training import Trained, train
from advrepair.core.types import Box, LinearBound, SplitPlan
from advrepair.plugins.refiners.none import NoRefiner
from advrepair.plugins.verifiers.deeppoly import DeepPoly
from advrepair.testing.networks import fully_connected
from advrepair.testing.oracle import exact_rows

ROOT = Path(advrepair.__file__).parent
INDICATORS = ("property-guided", "untargeted-label", "targeted-label")


@frozen
class Vague(DeepPoly):
    """Says -1000 of everything, and is of no help to a gradient."""

    name: ClassVar[str] = "vague"
    rigorous: ClassVar[bool] = False

    def prepare(self, network, rounding=None):
        """As DeepPoly."""
        inner = super().prepare(network, rounding)

        def bound(params, box, C, d):
            known = inner(params, box, C, d)
            return LinearBound(0 * known.A, 0 * known.b - 1000.0, known.magnitude)

        return bound


@frozen
class Unsound(DeepPoly):
    """Bounds that are far too high."""

    name: ClassVar[str] = "unsound"

    def prepare(self, network, rounding=None):
        """As DeepPoly."""
        inner = super().prepare(network, rounding)

        def bound(params, box, C, d):
            known = inner(params, box, C, d)
            return LinearBound(known.A, known.b + 100.0, known.magnitude)

        return bound


@pytest.fixture(scope="module")
def registry():
    return a_registry(Vague, Unsound)


@pytest.fixture
def run(tmp_path, registry):
    """Run on the tiny problem into a folder below tmp_path."""
    network, data = write_inputs(tmp_path)

    def _run(name, *layers, **options):
        configuration = configure(registry, network, data, *layers)
        return pipeline.run(configuration, registry, tmp_path / name, **options)

    return _run


def trained(parts, only=None, **budget):
    """Train in place, all patches or one; returns the epochs of each patch."""
    result = Trained.nothing_yet(len(parts.repaired.bank))
    result.settled[torch.arange(len(parts.bank)) != only] = only is not None
    budget = sections.Training(**budget)
    train(parts.bank, parts.worklist, parts.bounder, NoRefiner(), budget, result)
    return result.epochs


def repair(**options):
    x, y = some_data()
    return advrepair.repair(a_network(), x, y, **{"epsilon": 0.1, "count": 6} | options)


def inside(box, points=20, seed=0):
    """Points of every box, its corners included: [B,N,*S]."""
    generator = torch.Generator().manual_seed(seed)
    share = torch.rand(len(box), points, *box.input_shape, generator=generator)
    share[:, : points // 2] = share[:, : points // 2].round()
    lower, upper = box.lower.unsqueeze(1), box.upper.unsqueeze(1)
    x = torch.lerp(lower, upper, share.to(lower.dtype))
    return torch.minimum(torch.maximum(x, lower), upper)


# Facts


@pytest.mark.parametrize("epochs", [1, 40])
def test_fact_1_the_network_is_bounded_once_per_box_whatever_the_epochs(epochs):
    asked = []

    @frozen
    class Counting(DeepPoly):
        """Notes how many boxes it is asked for."""

        name: ClassVar[str] = "counting"

        def prepare(self, network, rounding=None):
            inner = super().prepare(network, rounding)
            base = len(network.operations) > 4  # the patch is affine

            def bound(params, box, C, d):
                if base:
                    asked.append(len(box))
                return inner(params, box, C, d)

            return bound

    parts = some_parts(
        a_problem(count=9, epsilon=0.3),
        indicator=Mixed(),
        verifier=Counting(),
        certifier=Counting(),
    )
    pieces = len(parts.worklist.owner)  # boxes, and what they share
    steps = trained(parts, epochs=epochs, rounds=2, split=0)
    least = bounding._LEAST  # to which fewer boxes are filled up
    assert int(steps.max()) == 2 * epochs and asked == [max(pieces, least)]
    split = SplitPlan(torch.tensor([0, 4]), torch.tensor([0, 0]))
    parts.worklist.split(split, parts.bounder)
    assert asked == [max(pieces, least), least]
    parts.certificate()
    assert asked == [max(pieces, least), least]


@settings(max_examples=20)
@given(st.integers(0, 2**31), st.sampled_from([(), (4,)]))
def test_fact_1_bounds_of_the_network_and_of_a_patch_add_up(seed, hidden):
    parts = some_parts(hidden=hidden, level="real")
    generator = torch.Generator().manual_seed(seed)
    stack = parts.repaired.bank.stack
    random = {n: 0.3 * torch.randn(t.shape, generator=generator) for n, t in stack.items()}
    parts.repaired.bank.put(torch.arange(6), random)
    margin = parts.proof().margin
    double = {n: t.double() for n, t in a_network().tensors.items()}
    for i, x in enumerate(inside(parts.properties.box, seed=seed).double()):
        weights = {n: t[i].double() for n, t in random.items()}
        y = parts.repaired.base.apply_tensors(double, x)
        y = y + parts.repaired.bank.template.apply_tensors(weights, x)
        assert ((y @ parts.properties.C[i].double().T).amin(1) >= margin[i] - 1e-12).all()


@pytest.mark.parametrize("optimiser", ["polyak", "adam"])
@pytest.mark.parametrize("hidden", [(), (5,)])
def test_fact_2_training_all_patches_at_once_is_training_each_alone(hidden, optimiser):
    problem = a_problem(count=9, epsilon=0.08)
    options = {"optimiser": optimiser, "lr": 1.0 if optimiser == "polyak" else 0.05}

    def some():
        return some_parts(problem, hidden=hidden, indicator=Mixed())

    together = some()
    steps = trained(together, **options, fallback=False)
    assert len(set(steps.tolist())) > 1
    alone = some()
    own = [trained(alone, only=i, **options, fallback=False)[i] for i in range(len(steps))]
    assert own == steps.tolist()
    for name, t in together.repaired.bank.stack.items():
        assert torch.allclose(t, alone.repaired.bank.stack[name], atol=1e-5)


def test_fact_2_a_proved_patch_leaves_the_batch(monkeypatch):
    flying, stored = [], []
    patched, put = Bounder.patched, PatchBank.put

    def count(self, stack, batch):
        flying.append(len(next(iter(stack.values()))))
        return patched(self, stack, batch)

    def note(self, index, stack):
        stored.extend(index.tolist())
        put(self, index, stack)

    monkeypatch.setattr(Bounder, "patched", count)
    monkeypatch.setattr(PatchBank, "put", note)
    parts = some_parts(a_problem(count=9, epsilon=0.08), indicator=Mixed(), hidden=(5,))
    steps = trained(parts, epochs=100, rounds=1, fallback=False)
    assert len(set(steps.tolist())) > 1 and flying[0] == 3
    assert flying == [int((steps >= i).sum()) for i in range(len(flying))]
    assert sorted(stored) == [0, 1, 2]  # each is written once, with its proof


@given(st.integers(0, 2**31), st.integers(1, 4))
def test_fact_3_a_row_is_least_at_centre_minus_radius(seed, size):
    generator = torch.Generator().manual_seed(seed)
    lower = torch.randn(2, size, generator=generator, dtype=torch.float64)
    width = torch.rand(2, size, generator=generator, dtype=torch.float64)
    box = Box(lower, lower + width * (width > 0.2))
    A = torch.randn(2, 3, size, generator=generator, dtype=torch.float64)
    bound = LinearBound(A, torch.randn(2, 3, generator=generator, dtype=torch.float64))
    found, rigorous = bound.minimum(box), bound.minimum_rigorous(box)
    for i in range(2):
        faces = list(zip(box.lower[i].tolist(), box.upper[i].tolist(), strict=True))
        for j in range(3):
            rows = [Fraction(a) for a in A[i, j].tolist()]
            exact = Fraction(bound.b[i, j].item()) + min(
                sum((a * Fraction(v) for a, v in zip(rows, corner, strict=True)), Fraction(0))
                for corner in product(*faces)
            )
            assert abs(Fraction(found[i, j].item()) - exact) < Fraction(1, 10**13)
            assert 0 <= exact - Fraction(rigorous[i, j].item()) < Fraction(1, 10**12)


@pytest.mark.parametrize("indicator", INDICATORS)
@pytest.mark.parametrize("hidden", [[], [5]])
def test_fact_4_a_repair_on_boxes_does_not_fail(indicator, hidden, run, tmp_path):
    """The verifier is useless and the budget as small as can be: constant patches, and told so."""
    layer = {
        "plan": {"indicator": indicator, "verifier": "vague"},
        "patch": {"hidden": hidden},
        "training": {"epochs": 1, "rounds": 1, "split": 0},
    }
    report = run("out", layer)
    assert report["properties"]["certified"] == report["properties"]["constant"] == 6
    assert any("constant patch (training gave up)" in note for note in report["notes"])
    stated = json.loads((tmp_path / "out" / "certificate.json").read_text())
    assert all(each["constant"] for each in stated["properties"])
    deployed, problem = advrepair.load(tmp_path / "out"), a_problem()
    assert not problem.properties.violated(deployed(problem.x_adv)).any()


@given(st.integers(0, 2**31))
def test_fact_5_the_bound_of_an_affine_patch_is_exact(seed):
    generator = torch.Generator().manual_seed(seed)
    template = patch_template(fully_connected(1, (3, 4)), ())
    params = {n: torch.randn(t.shape, generator=generator) for n, t in template.tensors.items()}
    params = {n: t.double() for n, t in params.items()}
    lower = torch.randn(1, 3, generator=generator).double()
    box = Box(lower, lower + torch.rand(1, 3, generator=generator).double())
    C = torch.randn(1, 5, 4, generator=generator, dtype=torch.float64)
    bound = DeepPoly().prepare(template)(params, box, C, torch.zeros(1, 5).double())
    assert torch.allclose(bound.A[0], C[0] @ params["linear0.weight"], atol=1e-12)
    faces = zip(box.lower[0].tolist(), box.upper[0].tolist(), strict=True)
    corners = torch.tensor(list(product(*faces)), dtype=torch.float64)
    exact = (template.apply_tensors(params, corners) @ C[0].T).amin(0)
    assert torch.allclose(bound.minimum(box)[0], exact, atol=1e-12)


# Duties


def faces(node):
    """Whether an expression speaks of a face of a box."""
    names = {each.id for each in ast.walk(node) if isinstance(each, ast.Name)}
    names |= {each.attr for each in ast.walk(node) if isinstance(each, ast.Attribute)}
    return bool(names & {"lower", "upper", "box_lower", "box_upper"})


def compared(path):
    """Functions in which a face of a box is compared with something."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef):
            for inner in ast.walk(node):
                order = isinstance(inner, ast.Compare) and any(
                    isinstance(op, ast.Lt | ast.LtE | ast.Gt | ast.GtE) for op in inner.ops
                )
                if order and faces(inner):
                    found.append((path.name, node.name))
    return found


def test_duty_1_there_is_one_membership_test():
    allowed = {
        ("box.py", "checked"),  # an inverted box
        ("box.py", "holds"),
        ("membership.py", "_met"),
        ("membership.py", "_near"),  # the same in a few coordinates, before
        ("membership.py", "candidates"),
        ("box.py", "to"),  # precisions
        ("areas.py", "areas"),  # which regions meet a part of a box that is verified
        ("inputs.py", "read_properties"),  # a region beyond the input range
        ("inputs.py", "refuse_outside"),  # a region beyond the range of a file
        ("properties.py", "demands"),  # an inverted box
        ("refuting.py", "thin"),  # faces with no float between them
        ("verifying.py", "_bound"),  # an area that has no inside
        ("violations.py", "inner"),  # faces with no float between them
        ("views.py", "_ball"),  # are all boxes balls of one radius?
        ("views.py", "__call__"),  # clamps, with another gradient than Box.clamp
    }
    paths = [*(ROOT / "core").glob("*.py"), *(ROOT / "cli").glob("*.py"), ROOT / "api.py"]
    for kind in ("allocators", "attacks", "indicators"):
        paths += (ROOT / "plugins" / kind).glob("*.py")
    found = {where for path in paths for where in compared(path)}
    assert found <= allowed, found - allowed
    assert {("box.py", "holds"), ("membership.py", "_met")} <= found


@given(st.integers(0, 2**31), st.floats(1e-4, 0.4))
def test_duty_1_what_float32_computes_at_the_radius_is_inside(seed, epsilon):
    x = torch.rand(3, 4, generator=torch.Generator().manual_seed(seed))
    box = Box.around(x, epsilon)
    for sign in (-1, 1):
        face = x + sign * epsilon
        assert box.holds(face).all() and torch.equal(box.first(face)[:1], torch.tensor([0]))


def test_duty_1_faces_count_and_one_step_further_does_not():
    repaired = repair(indicator="property-guided", settings={"plan": {"allocator": "none"}}).network
    box = repaired.box
    far = torch.full_like(box.lower, torch.inf)
    logits = torch.zeros(len(box), 4)
    home = torch.eye(len(box), dtype=torch.bool)
    assert torch.equal(repaired.route(box.lower, logits), home)
    assert torch.equal(repaired.route(box.upper, logits), home)
    # One coordinate is enough to be outside.
    for axis in (0, 5):
        for faces, away in ((box.lower, -far), (box.upper, far)):
            x = faces.clone()
            x[:, axis] = torch.nextafter(faces, away)[:, axis]
            assert not repaired.route(x, logits).any()
            assert torch.equal(repaired(x), repaired.base(x))


@pytest.mark.parametrize("indicator", INDICATORS)
def test_duty_2_inside_a_box_exactly_one_patch_is_on(indicator):
    result = repair(indicator=indicator)
    repaired = result.network
    for i, x in enumerate(inside(repaired.box)):
        gates = repaired.route(x, repaired.base(x))
        assert (gates.sum(1) == 1).all() and gates[:, repaired.patch[i]].all()


def test_duty_2_overlapping_boxes_with_one_demand_route_to_the_first():
    network = a_network()
    x, y = some_data()
    near = x[:1] + 0.01
    centres, labels = torch.cat([x[:1], near]), y[:1].repeat(2)
    parts = some_parts(Problem(the_balls(network, centres, labels, 0.1), centres, labels), network)
    trained(parts)
    gates = parts.repaired.route(centres, network(centres))
    assert gates.tolist() == [[True, False]] * 2
    found = parts.certificate()
    assert all(status == "certified" for status in found.status)
    for points in inside(parts.repaired.box):  # the second box too, whichever patch is on
        out = parts.repaired(points)
        assert (out.argmax(1) == labels[0]).all()


def test_duty_2_contradictory_demands_are_refused_before_training():
    x, y = some_data()
    twice = torch.cat([x[:4], x[:1] + 0.01])
    labels = torch.cat([y[:4], (y[:1] + 1) % 4])
    x_adv = inside(Box.around(twice, 0.1, (0.0, 1.0)), 2)[:, 0]
    stages = []
    with pytest.raises(UsageError) as error:
        advrepair.repair(
            Wrong(), twice, labels, epsilon=0.1, x_adv=x_adv, progress=lambda *s: stages.append(s)
        )
    first, second = (f"x[{i}] (label {int(labels[i])})" for i in (0, 4))
    assert f"{first} and {second} overlap and cannot both hold" in str(error.value)
    assert "training" not in {stage for stage, *_ in stages}


class Wrong(torch.nn.Module):
    """Undecided about everything, so every demand is broken."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(6, 4)
        with torch.no_grad():
            self.layer.weight.zero_()
            self.layer.bias.zero_()

    def forward(self, x):
        return self.layer(x)


@pytest.mark.parametrize("indicator", INDICATORS)
def test_duty_3_the_deployed_function_is_one_of_x_alone(indicator):
    repaired = repair(indicator=indicator, settings={"patch": {"hidden": [4]}}).network
    x = torch.cat([some_data(40)[0], inside(repaired.box, 6).flatten(0, 1)])
    whole = repaired(x)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    assert torch.allclose(repaired(x[order]), whole[order], atol=1e-5)
    single = torch.cat([repaired(row[None]) for row in x])
    assert torch.allclose(single, whole, atol=1e-5)
    assert torch.equal(single.argmax(1), whole.argmax(1))
    gates = repaired.route(x, repaired.base(x))
    alone = torch.cat([repaired.route(row[None], repaired.base(row[None])) for row in x])
    assert torch.equal(gates, alone)


def test_duty_3_nothing_else_can_be_handed_in():
    repaired = repair().network
    assert list(inspect.signature(repaired.forward).parameters) == ["x"]
    x = some_data(5)[0]
    with pytest.raises(TypeError):
        repaired(x, x)
    before = {name: t.clone() for name, t in repaired.state_dict().items()}
    attributes = set(vars(repaired))
    first = repaired(x)
    repaired(torch.rand(9, 6))
    assert torch.equal(repaired(x), first) and set(vars(repaired)) == attributes
    assert all(torch.equal(t, before[name]) for name, t in repaired.state_dict().items())


@pytest.mark.parametrize("indicator", ["untargeted-label", "targeted-label"])
def test_duty_4_inside_the_box_decides_and_outside_the_query(indicator):
    result = repair(indicator=indicator)
    repaired, problem = result.network, result.problem
    x_adv, label = problem.x_adv, problem.properties.label
    logits = repaired.base(x_adv)
    assert (logits.argmax(1) != label).all()
    gates = repaired.route(x_adv, logits)
    assert torch.equal(gates.float().argmax(1), repaired.patch)
    by_query = repaired.allocator.allocate(x_adv, logits, repaired.centres)
    assert (by_query != gates).any(1).any()  # the query's own label is the wrong one
    assert not problem.properties.violated(repaired(x_adv)).any()
    x = some_data(60)[0]
    outside = x[repaired.box.first(x) < 0]
    logits = repaired.base(outside)
    chosen = repaired.allocator.allocate(outside, logits, repaired.centres)
    assert torch.equal(repaired.route(outside, logits), chosen) and chosen.any()


def volume(lower, upper):
    result = Fraction(1)
    for a, b in zip(lower, upper, strict=True):
        result *= Fraction(b) - Fraction(a)
    return result


def test_duty_5_the_pieces_of_a_certificate_cover_its_boxes(run, tmp_path):
    report = run("out", SPLITTING, {"problem": {"count": 12}})
    arrays, _ = read_tensors(tmp_path / "out" / "certificate.safetensors")
    assert report["properties"]["pieces"] == len(arrays["piece.node"]) > 12
    parents, dims, cuts = (arrays[f"tree.{name}"].tolist() for name in ("parent", "dim", "cut"))
    faces = {}
    for node, parent in enumerate(parents):
        if parent < 0:
            faces[node] = [arrays["box.lower"][node].tolist(), arrays["box.upper"][node].tolist()]
            continue
        first = parents.index(parent) == node
        lower, upper = (list(side) for side in faces[parent])
        assert lower[dims[parent]] < cuts[parent] < upper[dims[parent]]
        (upper if first else lower)[dims[parent]] = cuts[parent]
        faces[node] = [lower, upper]
    leaves = [node for node in faces if dims[node] < 0]
    assert sorted(arrays["piece.node"].tolist()) == leaves
    owner = arrays["tree.owner"].tolist()
    for i in range(12):
        total = sum(volume(*faces[node]) for node in leaves if owner[node] == i)
        assert total == volume(*faces[i])


@settings(max_examples=15)
@given(st.integers(0, 2**31))
def test_duty_5_a_piece_is_never_worse_off_than_its_parent(seed):
    parts = some_parts()
    generator = torch.Generator().manual_seed(seed)
    for _ in range(3):
        list_ = parts.worklist
        piece = (torch.rand(len(list_.owner), generator=generator) < 0.5).nonzero()[:, 0]
        if not len(piece):
            continue
        before, dim = list_.proof, torch.randint(6, (len(piece),), generator=generator)
        list_.split(SplitPlan(piece, dim), parts.bounder)
        children = list_.box[torch.arange(len(list_.owner) - 2 * len(piece), len(list_.owner))]
        own = list_.proof[-2 * len(piece) :].minimum(children)
        assert (own >= before[piece.repeat(2)].minimum(children) - 1e-12).all()


def test_duty_6_training_stops_on_the_proof_not_on_data(run, tmp_path):
    x, y = (t.numpy() for t in some_data())
    for name, labels in (("a", y[40:]), ("b", (y[40:] + 1) % 4)):
        np.savez(
            tmp_path / "data.npz", x_train=x[:40], y_train=y[:40], x_test=x[40:], y_test=labels
        )
        report = run(name)
        assert report["metrics"]["DD"] is not None
    assert bytes_of(tmp_path / "a") == bytes_of(tmp_path / "b")


def test_duty_6_the_budget_ends_it_and_unknown_is_not_repaired(run, tmp_path):
    layer = {
        "plan": {"verifier": "vague"},
        "training": {"epochs": 1, "rounds": 1, "fallback": False},
        "problem": {"epsilon": 0.05},
        "pgd": {"steps": 20},
    }
    report = run("out", layer)
    counts = report["properties"]
    assert counts["certified"] == 0 and counts["falsified"] + counts["unknown"] == 6
    assert report["metrics"]["RSR"] == 0.0
    stated = json.loads((tmp_path / "out" / "certificate.json").read_text())
    assert all(each["margin"] <= 0 for each in stated["properties"])


def test_duty_6_unknown_is_told_and_fails_require_certified(tmp_path, capsys, monkeypatch):
    """The verifier says of nothing that it holds; nobody attacks: all is unknown."""
    plant(tmp_path, monkeypatch, Vague)
    write_inputs(tmp_path)
    arguments = ["run", "net.onnx", "--data", "data.npz", "--count", "6", "--verifier", "vague"]
    arguments += ["--set", "training.epochs=1", "--set", "training.rounds=1"]
    arguments += ["--set", "training.fallback=false", "--set", "certification.attack=false"]
    assert main([*arguments, "--out", "a"]) == 0
    counts = json.loads((tmp_path / "a" / "report.json").read_text())["properties"]
    assert (counts["certified"], counts["unknown"], counts["total"]) == (0, 6, 6)
    out, _ = capsys.readouterr()
    assert "0 of 6 properties certified" in out and "6 unknown" in out
    assert "do not count it as repaired" in " ".join(out.split())
    assert main([*arguments, "--out", "b", "--require-certified"]) == 1
    assert "not every property is certified" in capsys.readouterr().err
    assert (tmp_path / "b" / "certificate.json").exists()


def rows_at(properties, index, outputs):
    """The least row of a property, exactly, for outputs [N,K] as computed."""
    rows = [[Fraction(c) for c in row] for row in properties.C[index].tolist()]
    for output in outputs.tolist():
        exact = [Fraction(v) for v in output]
        yield min(sum(c * v for c, v in zip(row, exact, strict=True)) for row in rows)


@pytest.mark.parametrize("hidden", [(), (5,)])
@pytest.mark.parametrize("scale", [1.0, 1e5])
def test_duty_7_the_deployed_function_is_never_below_its_margin(scale, hidden):
    """Also where float32 rounds by more than the margin aimed at."""
    network = a_network()
    last = network.operations[-1].tensors.values()
    tensors = {n: t * scale if n in last else t for n, t in network.tensors.items()}
    network = type(network)(network.operations, tensors, network.input_shape)
    parts = some_parts(a_problem(network), network, hidden)
    trained(parts)
    margin = parts.proof().margin.tolist()
    assert all(value > 0 for value in margin)
    for i, points in enumerate(inside(parts.properties.box, 60)):
        for order in (points, points.flip(0), points[:1]):
            lows = rows_at(parts.properties, i, parts.repaired(order))
            assert min(lows) >= Fraction(margin[i])


def test_duty_7_rounding_is_not_forgotten():
    """Where rounding in float32 matters the real function's margin would be too much to claim."""
    network = a_network()
    last = network.operations[-1].tensors.values()
    tensors = {n: t * 1e5 if n in last else t for n, t in network.tensors.items()}
    network = type(network)(network.operations, tensors, network.input_shape)
    parts = some_parts(a_problem(network), network)
    trained(parts)
    real = some_parts(parts.problem, network, level="real")
    real.repaired.bank.put(torch.arange(6), parts.repaired.bank.stack)
    deployed = parts.proof().margin
    exact = real.proof().margin
    double = {n: t.double() for n, t in tensors.items()}
    off = 0.0
    for i, points in enumerate(inside(parts.properties.box, 60)):
        weights = {n: t[i].double() for n, t in parts.repaired.bank.stack.items()}
        y = network.apply_tensors(double, points.double())
        y = y + parts.repaired.bank.template.apply_tensors(weights, points.double())
        C = parts.properties.C[i].double()
        wrong = (parts.repaired(points).double() - y) @ C.T
        off = max(off, wrong.abs().max().item())
    assert off > 1e-3
    assert ((exact - deployed) > off).all()


def test_duty_7_the_real_function_is_never_below_its_margin_and_comes_near():
    """Without hidden layers the bound is tight: a corner is as low as stated."""
    network = fully_connected(5, (2, 3))
    x = torch.tensor([[0.3, 0.4], [0.7, 0.6]])
    label = (network(x).argmax(1) + 1) % 3
    properties = robustness(x, label, 0.05, 3)
    parts = some_parts(Problem(properties, x, label), network, level="real")
    trained(parts)
    margin = parts.proof().margin.tolist()
    stack = parts.repaired.bank.stack
    for i in range(2):
        lows = []
        faces = list(
            zip(properties.box.lower[i].tolist(), properties.box.upper[i].tolist(), strict=True)
        )
        template = parts.repaired.bank.template
        patch = type(template)(
            template.operations, {n: t[i] for n, t in stack.items()}, template.input_shape
        )
        for corner in product(*faces):
            point = torch.tensor(corner)
            zero = torch.zeros(len(properties.d[i]))
            own = exact_rows(network, point, properties.C[i], properties.d[i])
            more = exact_rows(patch, point, properties.C[i], zero)
            lows.append(min(a + b for a, b in zip(own, more, strict=True)))
        assert 0 <= min(lows) - Fraction(margin[i]) < Fraction(1, 10**9)


def test_duty_7_an_unsound_verifier_is_caught_on_certified_boxes(run):
    with pytest.raises(
        SoundnessError, match=r"is certified with margin .* and an attack falsifies"
    ):
        run("out", {"plan": {"verifier": "unsound"}})


def plant(folder, monkeypatch, component):
    """Install a verifier of this file as a distribution of its own, and work in the folder."""
    source = inspect.getsource(component)
    (folder / "advrepair_planted.py").write_text(
        "from typing import ClassVar\nfrom attrs import frozen\n"
        "from advrepair import LinearBound, hookimpl\n"
        "from advrepair.plugins.verifiers.deeppoly import DeepPoly\n\n"
        f"{source}\n@hookimpl\ndef advrepair_components():\n    return [{component.__name__}]\n"
    )
    info = folder / "advrepair_planted-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: advrepair-planted\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[advrepair]\nplanted = advrepair_planted\n")
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, "advrepair_planted", raising=False)
    monkeypatch.chdir(folder)


def test_duty_7_an_unsound_plugin_ends_with_exit_code_4(tmp_path, monkeypatch, capsys):
    plant(tmp_path, monkeypatch, Unsound)
    write_inputs(tmp_path)
    arguments = ["run", "net.onnx", "--data", "data.npz", "--count", "3", "--out", "out"]
    assert main([*arguments, "--verifier", "unsound"]) == 4
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("error: x[") and "a proof is wrong" in line
    assert not (tmp_path / "out").exists()


HOW = {
    "plain": {},
    "hidden": {"patch": {"hidden": [5]}},
    "labels": {"plan": {"indicator": "untargeted-label"}},
    "labels, hidden": {"plan": {"indicator": "untargeted-label"}, "patch": {"hidden": [5]}},
    "interval": {"plan": {"verifier": "interval"}},
    "adam": {"training": {"optimiser": "adam", "lr": 0.05}, "patch": {"hidden": [5]}},
    "splits": SPLITTING,
}


@pytest.mark.parametrize("how", HOW)
def test_duty_8_twice_is_the_same(how, run, tmp_path):
    run("a", HOW[how])
    run("b", HOW[how])
    assert bytes_of(tmp_path / "a") == bytes_of(tmp_path / "b")


@pytest.mark.parametrize("at_once", [1, 2])
@pytest.mark.parametrize("how", HOW)
def test_duty_8_chunks_change_no_byte(how, at_once, run, tmp_path, monkeypatch):
    run("a", HOW[how])
    monkeypatch.setattr(shards, "_PATCHES_AT_ONCE", at_once)
    monkeypatch.setattr(patching, "_CHUNK_BYTES", 1)
    monkeypatch.setattr(bounding, "_CACHE_BYTES", 1 if at_once == 1 else 20_000)
    run("b", HOW[how])
    one, other = bytes_of(tmp_path / "a"), bytes_of(tmp_path / "b")
    assert [name for name in BYTES if one[name] != other[name]] == []


@pytest.mark.parametrize("how", HOW)
def test_duty_8_another_memory_changes_no_byte(how, run, tmp_path):
    run("a", HOW[how])
    run("b", HOW[how], {"run": {"memory": 1e-3}})
    one, other = bytes_of(tmp_path / "a"), bytes_of(tmp_path / "b")
    assert [name for name in BYTES if one[name] != other[name]] == []


def test_duty_8_a_memory_that_is_far_too_small_is_refused(run, tmp_path):
    with pytest.raises(UsageError, match=r"run\.memory is .* GiB at a time; raise it"):
        run("b", {"run": {"memory": 1e-6}})
    assert not (tmp_path / "b").exists()


def test_duty_8_run_toml_repeats_the_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_inputs(tmp_path)
    arguments = ["run", "net.onnx", "--data", "data.npz", "--epsilon", "0.09", "--count", "5"]
    arguments += ["--indicator", "targeted-label", "--set", "patch.hidden=[4]", "--seed", "7"]
    assert main([*arguments, "--out", "a"]) == 0
    assert main(["run", "--config", "a/run.toml", "--out", "b"]) == 0
    assert bytes_of(tmp_path / "a") == bytes_of(tmp_path / "b")
    assert (tmp_path / "a/run.toml").read_text() == (tmp_path / "b/run.toml").read_text()
    assert tomllib.loads((tmp_path / "b/run.toml").read_text())["run"]["seed"] == 7


@pytest.mark.parametrize("how", HOW)
def test_duty_8_an_interrupted_run_resumes_to_the_same(how, run, tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "_PATCHES_AT_ONCE", 1)
    run("a", HOW[how])

    def stop(stage, done, total):
        if stage == "training" and done == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run("b", HOW[how], progress=stop)
    assert (tmp_path / "b.partial").exists() and not (tmp_path / "b").exists()
    run("b", HOW[how], resume=True)
    assert bytes_of(tmp_path / "a") == bytes_of(tmp_path / "b")


@pytest.mark.parametrize("hidden", [[], [5]])
def test_duty_8_the_order_of_the_data_changes_no_patch(hidden):
    x, y = some_data()
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(1))
    settings_ = {"patch": {"hidden": hidden}}
    one = advrepair.repair(a_network(), x, y, epsilon=0.06, settings=settings_)
    other = advrepair.repair(a_network(), x[order], y[order], epsilon=0.06, settings=settings_)
    ids = {name: i for i, name in enumerate(other.problem.properties.identifiers())}
    place = torch.tensor([ids[name] for name in one.problem.properties.identifiers()])
    assert len(place) > 8 and place.tolist() != list(range(len(place)))
    for name, t in one.network.bank.stack.items():
        assert torch.equal(t, other.network.bank.stack[name][place])


def test_duty_8_another_seed_is_another_patch():
    one, other = (repair(seed=seed, settings={"patch": {"hidden": [5]}}) for seed in (0, 1))
    for name in ("linear0.weight", "linear1.weight"):
        assert not torch.equal(one.network.bank.stack[name], other.network.bank.stack[name])


@pytest.mark.parametrize("indicator", INDICATORS)
@pytest.mark.parametrize(
    "layer", [{}, {"patch": {"hidden": [5]}}, {"training": {"fallback": False}}]
)
def test_duty_9_constant_bias_stands_beside_every_result(indicator, layer, run):
    report = run("out", {"plan": {"indicator": indicator}}, layer)
    trivial = report["baseline"]["constant-bias"]
    assert set(trivial) == {"certified", *report["metrics"]}
    assert trivial["certified"] == 1.0 and trivial["RSR"] == 1.0
    assert trivial["RGR"] is not None
    nothing = report["baseline"]["none"]
    assert (nothing["certified"], nothing["RSR"], nothing["RGR"]) == (0.0, 0.0, 0.0)


def test_duty_9_and_in_the_table_of_the_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_inputs(tmp_path)
    assert main(["run", "net.onnx", "--data", "data.npz", "--count", "3", "--out", "out"]) == 0
    out = capsys.readouterr().out
    (line,) = [line for line in out.splitlines() if line.strip().startswith("constant-bias")]
    assert "3/3" in line and "100.0 %" in line


def test_duty_10_epsilon_is_in_input_units_and_may_be_a_fraction(run, tmp_path):
    report = run("out", {"problem": {"epsilon": "20/255", "count": 2}})
    assert report["problem"]["epsilon"] == 20 / 255
    arrays, _ = read_tensors(tmp_path / "out" / "certificate.safetensors")
    width = arrays["box.upper"].double() - arrays["box.lower"].double()
    assert width.max().item() == pytest.approx(40 / 255, abs=1e-6)


def test_duty_10_normalisation_belongs_to_the_network():
    """A network that normalises first: the balls are those of the raw input."""
    plain = a_module()
    shift = torch.nn.BatchNorm1d(6, affine=False)
    with torch.no_grad():
        shift.running_mean.copy_(torch.full((6,), 0.5))
        shift.running_var.copy_(torch.full((6,), 0.25))
    module = torch.nn.Sequential(shift, *plain).eval()
    x = some_data()[0]
    y = module(x).argmax(1)
    result = advrepair.repair(module, x, y, epsilon=0.05, count=3)
    box, center = result.network.box, result.problem.properties.center
    assert torch.equal(box.lower, Box.around(center, 0.05, (0.0, 1.0)).lower)
    assert result.report["properties"]["certified"] == 3


def test_duty_10_balls_and_attacks_stay_in_the_range():
    result = repair(epsilon=0.15, count=5, input_range=(0.0, 1.0))
    box = result.network.box
    assert box.lower.min() == 0 and box.upper.max() <= 1
    assert result.problem.x_adv.min() >= 0 and result.problem.x_adv.max() <= 1
    free = repair(epsilon=0.15, count=5, input_range=())
    assert free.network.box.lower.min() < 0


@pytest.mark.parametrize("input_range", [(0.0, 0.9), (0.1, 1.0)])
def test_duty_10_data_outside_the_range_is_an_error(input_range):
    with pytest.raises(UsageError, match="outside the input range"):
        repair(input_range=input_range)
