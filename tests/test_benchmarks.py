"""The benchmarks compute what they say they compute, and see what they look for."""

import json
import subprocess
import sys

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from advrepair import checker
from advrepair.core.graph import INPUT, STEPS, Network, Operation
from advrepair.core.patching import PatchBank, patch_template
from advrepair.testing.networks import NETWORKS, Sketch, fully_connected

pytest.importorskip("onnxruntime")
from benchmarks import certificates, edits, evaluations, exploits, onnx_graph, startup, tampering
from benchmarks.contents import Content

LEVELS = sorted(onnx_graph.LEVELS)


def run(model: bytes, level: str, threads: int, **feed: np.ndarray) -> torch.Tensor:
    """The single output of a model."""
    session = onnx_graph.open_session(model, level, threads)
    return torch.from_numpy(session.run(None, feed)[0])


def every_kind() -> Network:
    """Operations and settings that the networks of advrepair.testing do not have."""
    sketch = Sketch(0, (2, 5, 6)).apply("pad", pad=(1, 0, 2, 1)).scale()
    sketch.conv2d(4, 3, stride=2, padding=1).relu().avg_pool2d(2)
    sketch.apply("permute", axes=(1, 2, 0)).flatten()
    drawn = sketch.finish()
    noise, last = torch.Generator().manual_seed(1), drawn.operations[-1].name
    tensors = drawn.tensors | {
        "wide": torch.randn(4, 4, generator=noise),
        "factor": torch.randn(4, generator=noise),
        "taps": torch.randn(4, 2, 2, 1, generator=noise),
        "narrow": torch.randn(3, 12, generator=noise),
    }
    settings = {"stride": (1, 2), "padding": (2, 0), "dilation": (2, 1), "groups": 2}
    operations = [
        *drawn.operations,
        Operation("rows", "reshape", (last,), (4, 4)),
        Operation("last axis", "linear", ("rows",), (4, 4), {"weight": "wide"}),
        Operation("factor", "scale", ("last axis",), (4, 4), {"weight": "factor"}),
        Operation("shift", "scale", ("factor",), (4, 4), {"bias": "factor"}),
        Operation("sum", "add", ("shift", "rows"), (4, 4)),
        Operation("image", "reshape", ("sum",), (4, 4, 1)),
        Operation("groups", "conv2d", ("image",), (4, 6, 1), {"weight": "taps"}, settings),
        Operation(
            "half", "avg_pool2d", ("groups",), (4, 3, 1), {}, {"kernel_size": (2, 1), "stride": 2}
        ),
        Operation("flat", "reshape", ("half",), (12,)),
        Operation("scores", "linear", ("flat",), (3,), {"weight": "narrow"}),
    ]
    return Network(operations, tensors, drawn.input_shape)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("name", [*NETWORKS, "every kind"])
def test_onnxruntime_agrees_with_torch(name, threads, level):
    network = every_kind() if name == "every kind" else NETWORKS[name](3)
    model = onnx_graph.network_model(network)
    for batch in (1, 7, 40):
        x = torch.randn(batch, *network.input_shape, generator=torch.Generator().manual_seed(batch))
        found = run(model, level, threads, **{INPUT: x.numpy()})
        assert torch.allclose(found, network(x), rtol=1e-4, atol=1e-5)


def test_every_operation_kind_is_among_them():
    networks = [every_kind(), *(make(0) for make in NETWORKS.values())]
    kinds = {op.kind for network in networks for op in network.operations}
    assert kinds == set(STEPS)


@pytest.mark.parametrize("hidden", [(), (5, 4)])
def test_the_sum_is_that_of_the_deployed_function(hidden):
    base = fully_connected(2)
    template, noise = patch_template(base, hidden), torch.Generator().manual_seed(0)
    stack = {n: torch.randn(3, *t.shape, generator=noise) for n, t in template.tensors.items()}
    bank, x = PatchBank(template, stack), torch.randn(7, 3, generator=noise)
    patch = torch.tensor([2, 0, 1, 1, 0, 2, 2])
    gates = torch.nn.functional.one_hot(patch, 3).bool()
    feed = {INPUT: x.numpy(), **onnx_graph.patch_feed(template, stack, patch)}
    found = run(onnx_graph.repaired_model(base, template), "all", 1, **feed)
    assert torch.allclose(found, bank.add_to(base(x), x, gates), rtol=1e-4, atol=1e-5)


def rewritten(network: Network, level: str, path) -> bool:
    """Whether onnxruntime stores other numbers than the network does."""
    options = onnx_graph.onnxruntime.SessionOptions()
    options.graph_optimization_level = onnx_graph.LEVELS[level]
    options.optimized_model_filepath, options.log_severity_level = str(path), 4
    model = onnx_graph.network_model(network)
    onnx_graph.onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    stored = [numpy_helper.to_array(each) for each in onnx.load(path).graph.initializer]
    left = {float(v) for each in stored if each.dtype == np.float32 for v in each.ravel()}
    known = {float(v) for each in network.tensors.values() for v in each.flatten()}
    if any(op.kind == "gelu" for op in network.operations):  # it is written out
        given = onnx.load_from_string(model).graph.initializer
        known |= {float(v) for each in given for v in numpy_helper.to_array(each).ravel()}
    return not left <= known | {0.0}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("level", LEVELS)
def test_a_session_is_within_the_assumptions_if_it_keeps_the_weights(name, level, tmp_path):
    network = NETWORKS[name](1)
    if onnx_graph.within_assumptions(network, level):
        assert not rewritten(network, level, tmp_path / "optimised.onnx")


def test_a_scale_is_folded_into_the_weights_before_it(tmp_path):
    network = NETWORKS["batch normalised"](1)
    assert rewritten(network, "all", tmp_path / "optimised.onnx")
    assert not onnx_graph.within_assumptions(network, "all")
    assert onnx_graph.within_assumptions(network, "off")


@pytest.mark.parametrize("order", ["shuffled", "negative first", "negative last"])
@pytest.mark.parametrize("name", NETWORKS)
def test_another_order_of_the_sums_gives_nearly_the_same(name, order):
    network = NETWORKS[name](3)
    x = torch.randn(1, *network.input_shape, generator=torch.Generator().manual_seed(0))
    found = evaluations.reordered(network, network.tensors, x, order, 0)
    assert torch.allclose(found, network(x), rtol=1e-4, atol=1e-5)


def test_an_order_decides_what_a_sum_loses():
    terms = np.array([1.0, 2.0**-24, -1.0, 2.0**-24], np.float32).reshape(1, 4, 1)
    sums = {order: evaluations.in_order(terms, order, None) for order in evaluations.ORDERS[1:]}
    assert sums["negative first"] == 1.0 - (1 - 2.0**-23)
    assert sums["negative last"] == 0.0


def exit_code(monkeypatch, program, *arguments):
    """Of a benchmark's own command line."""
    monkeypatch.setattr(sys, "argv", ["benchmark", *map(str, arguments)])
    return program.main()


@pytest.mark.parametrize("network", ["fully connected", "convolutional", "batch normalised"])
@pytest.mark.parametrize("size", [1e6, 1e8])
def test_a_large_constant_is_not_broken(network, size, monkeypatch, capsys):
    arguments = ("--constant", size, "--network", network, "--seconds", 0, "--json")
    assert exit_code(monkeypatch, exploits, *arguments) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["certified"] == 6 and found["broken"] == 0 and found["smallest_distance"] >= 0
    outside = {way["name"] for way in found["ways"] if not way["counted"]}
    assert bool(outside) == (network == "batch normalised")
    assert all("onnxruntime" in name and "rewriting off" not in name for name in outside)


@pytest.fixture
def a_lie(tmp_path):
    """Proved for real numbers, where nothing is lost, and called a proof about float32."""
    exploits.constant_folder(tmp_path, "fully connected", 1e8, "real")
    claim = json.loads((tmp_path / "certificate.json").read_text())
    claim["level"] = exploits.LEVEL
    (tmp_path / "certificate.json").write_text(json.dumps(claim))
    return tmp_path


def test_a_broken_claim_is_seen_in_every_way(a_lie, monkeypatch, capsys):
    assert exit_code(monkeypatch, exploits, a_lie, "--seconds", 0, "--json") == 4
    found = json.loads(capsys.readouterr().out)
    assert all(way["broken"] for way in found["ways"])


def test_a_margin_that_is_not_reached_is_seen(tmp_path, monkeypatch, capsys):
    exploits.constant_folder(tmp_path, "fully connected", 1.0, exploits.LEVEL)
    claim = json.loads((tmp_path / "certificate.json").read_text())
    claim["properties"][0]["margin"] += 100
    (tmp_path / "certificate.json").write_text(json.dumps(claim))
    assert exit_code(monkeypatch, exploits, tmp_path, "--seconds", 0) == 4
    assert " 0 broken" in capsys.readouterr().out


def test_the_rounding_bound_is_not_exceeded(tmp_path):
    exploits.constant_folder(tmp_path, "convolutional", 1e4, exploits.LEVEL)
    found = certificates.account(tmp_path, rounds=20)
    assert 0 < found["observed"] < found["rounding_bound"] and found["share"] < 1
    assert found["margin_real"] > found["margin_float32"]


@pytest.fixture
def folder(tmp_path):
    exploits.constant_folder(tmp_path, "fully connected", 10.0, exploits.LEVEL)
    return tmp_path


def test_tampering_is_counted(folder, monkeypatch, capsys):
    assert exit_code(monkeypatch, tampering, folder, "--count", 60, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert sum(found["total"].values()) == 60 and not found["bad"]
    assert found["total"]["INVALID"] > 20


def test_a_checker_that_believes_everything_is_found_out(folder, monkeypatch):
    monkeypatch.setattr(checker, "check", lambda folder: checker.Verdict())
    found = tampering.attempt(folder, 60, 0, limit=10.0)
    assert found["failed"] and found["total"]["VALID, wrong"] > 2


def test_a_checker_that_crashes_or_hangs_is_found_out(folder, monkeypatch):
    def crash(folder):
        raise KeyError("no such key")

    def hang(folder):
        while True:
            pass

    monkeypatch.setattr(checker, "check", crash)
    assert tampering.attempt(folder, 3, 0, limit=10.0)["total"] == {"crash": 3}
    monkeypatch.setattr(checker, "check", hang)
    assert tampering.attempt(folder, 3, 0, limit=0.05)["total"] == {"too slow": 3}


@pytest.mark.parametrize("edit", edits.EDITS, ids=lambda edit: edit.__name__)
def test_every_edit_can_be_made_and_changes_something(edit, folder):
    source, changed = Content.read(folder), 0
    for seed in range(8):
        content = Content.read(folder)
        edit(content, np.random.default_rng(seed))
        changed += repr(content) != repr(source)
    # A certificate need not speak about single ReLUs.
    assert changed or edit is edits.multipliers


def test_every_start_is_timed(monkeypatch, capsys):
    assert exit_code(monkeypatch, startup, "--starts", 1) is None
    _, *rows = capsys.readouterr().out.splitlines()
    assert len(rows) == len(startup.COMMANDS)
    for row, (command, (_, target)) in zip(rows, startup.COMMANDS.items(), strict=True):
        assert row.startswith(command) and (f"target {target} s" in row) == (target is not None)


def test_a_command_that_fails_is_not_timed():
    with pytest.raises(subprocess.CalledProcessError):
        startup.seconds(["-m", "advrepair", "plugins", "nonsense"], 1)


def test_the_reference_is_least_and_keeps_its_promises():
    pytest.importorskip("scipy")
    from benchmarks.intrusion_lp import least_intrusion

    noise = np.random.default_rng(0)
    A, b, C = noise.normal(size=(2, 4)), -np.array([3.0, 2.0]), np.array([[1.0, -1, 0], [1, 0, -1]])
    box, others = (np.full(4, 0.4), np.full(4, 0.6)), noise.uniform(size=(5, 4))
    found = least_intrusion(A, b, C, box, others, 0.01)
    assert found is not None
    center, radius = np.full(4, 0.5), np.full(4, 0.1)
    half = (0.01 - (A @ center - np.abs(A) @ radius + b)).max() / 2
    constant = 2 * half  # the largest output in the box, and again at every other input
    assert half - 1e-6 <= found.largest(radius) <= found.value <= constant + 1e-6
    goal = found.largest(radius) + np.abs(found(others, center)).max(1).mean()
    assert goal == pytest.approx(found.value, abs=1e-6)
    corners = center + radius * (2 * noise.integers(0, 2, size=(200, 4)) - 1)
    assert (corners @ A.T + b + found(corners, center) @ C.T >= 0.01 - 1e-6).all()
    assert least_intrusion(A, b, 0 * C, box, others, 0.01) is None
