"""Networks with other functions than ReLU go all the way: repaired, proved, checked, exported."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import advrepair
from advrepair.cli import main
from advrepair.core.files import read_json
from advrepair.core.onnx_writer import network_model
from advrepair.core.torch_export import load_exported_program
from advrepair.core.tracing import trace
from advrepair.demo import IMAGES

ACTIVATIONS = {"tanh": nn.Tanh, "gelu": nn.GELU, "sigmoid": nn.Sigmoid}


def train(module: nn.Sequential, x: torch.Tensor, y: torch.Tensor, rate: float, steps: int) -> None:
    noise = torch.Generator().manual_seed(0)
    optimiser = torch.optim.Adam(module.parameters(), rate)
    for _ in range(steps):
        some = torch.randint(len(x), (256,), generator=noise)
        optimiser.zero_grad()
        F.cross_entropy(module(x[some]), y[some]).backward()
        optimiser.step()


def digits(kind: str) -> nn.Sequential:
    """Convolutions, a max pool and three functions of a kind, trained on the demo's images."""
    torch.manual_seed(0)
    act, data = ACTIVATIONS[kind], np.load(IMAGES)
    module = nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1), act(), nn.MaxPool2d(2), nn.Conv2d(6, 8, 3), act(),
        nn.Flatten(), nn.Linear(32, 24), act(), nn.Linear(24, 10),
    )  # fmt: skip
    x, y = torch.tensor(data["x_train"]).float() / 255, torch.tensor(data["y_train"]).long()
    train(module, x, y, rate=0.01, steps=150)
    with torch.no_grad():
        right = module(torch.tensor(data["x_test"]).float() / 255).argmax(1).numpy()
    assert (right == data["y_test"]).mean() > 0.75
    return module


@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_a_trained_network_is_repaired_proved_checked_and_exported(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    module = digits(kind)
    Path("net.onnx").write_bytes(network_model(trace(module, (1, 8, 8))))
    flags = ["--data", str(IMAGES), "--epsilon", "0.1", "--count", "10", "--allocator", "none"]
    assert main(["run", "net.onnx", *flags, "--out", "run"]) == 0
    assert read_json(Path("run/report.json"))["properties"]["certified"] == 10
    capsys.readouterr()
    assert main(["check", "run"]) == 0
    assert capsys.readouterr().out.startswith("VALID: 10 properties certified")
    network = advrepair.load("run")
    assert [op.kind for op in network.base.operations].count(kind) == 3
    assert main(["export", "run", "--onnx", "fixed.onnx", "--torch-export", "fixed.pt2"]) == 0
    x = torch.tensor(np.load(IMAGES)["x_test"]).float() / 255
    x = torch.cat([x, network.box.center, network.box.lower, network.box.upper])
    with torch.no_grad():
        expected = network(x)
        assert not torch.equal(expected, network.base(x)), "patches are on somewhere"
        exported = load_exported_program(Path("fixed.pt2").read_bytes())(x)
    session = onnxruntime.InferenceSession("fixed.onnx", providers=["CPUExecutionProvider"])
    for y in (torch.from_numpy(session.run(None, {"input": x.numpy()})[0]), exported):
        torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)
    assert main(["export", "run", "--onnx", "relu.onnx", "--form", "relu"]) == 2
    assert f"({kind}) cannot be exported with --form relu" in capsys.readouterr().err


def test_the_layer_is_refused_by_name_before_long_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The approximation by tanh, from a file with the operator."""
    factory = "test_other_functions:by_tanh"
    weights = tmp_path / "net.pt"
    torch.save(by_tanh().state_dict(), weights)
    flags = ["--data", str(IMAGES), "--factory", factory, "--out", str(tmp_path / "run")]
    assert main(["run", str(weights), *flags]) == 2
    captured = capsys.readouterr()
    assert "'2' (GELU): approximate='tanh' is another function" in captured.err
    assert captured.err.count("\n") == 1 and not (tmp_path / "run").exists()


def by_tanh() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.GELU("tanh"), nn.Linear(8, 10))


@pytest.mark.parametrize("certifier", ["deeppoly", "branch-and-bound"])
def test_a_property_over_many_pieces_is_confirmed(
    certifier: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """GELUs among ReLUs, on boxes from wide to narrow; no line of a GELU is in the certificate."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(1)
    x = torch.rand(600, 2)
    y = (((x - 0.5) ** 2).sum(1) > 0.1).long()
    module = nn.Sequential(
        nn.Linear(2, 12), nn.GELU(), nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 12), nn.GELU(),
        nn.Linear(12, 2),
    )  # fmt: skip
    train(module, x, y, rate=0.02, steps=200)
    Path("net.onnx").write_bytes(network_model(trace(module, (2,))))
    faces = [f"(assert (>= X_{i} 0.3))\n(assert (<= X_{i} 0.8))" for i in range(2)]
    names = [f"(declare-const {name} Real)" for name in ("X_0", "X_1", "Y_0", "Y_1")]
    Path("p.vnnlib").write_text("\n".join([*names, *faces, "(assert (>= Y_1 Y_0))"]))
    flags = ["--property", "p.vnnlib", "--certifier", certifier, "--out", "run"]
    assert main(["run", "net.onnx", *flags, "--set", "screening.pieces=400"]) == 0
    (found,) = read_json(Path("run/certificate.json"))["properties"]
    assert found["status"] == "certified" and found["pieces"] > 100
    assert main(["check", "run"]) == 0
