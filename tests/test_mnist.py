"""The main job on real data: every ball of three MNIST networks at three radii."""

import json
import os
from pathlib import Path

import pytest
import torch

import advrepair
from advrepair.cli import main
from advrepair.core import pipeline
from advrepair.core.config import resolve
from advrepair.core.data import load_data
from advrepair.core.files import read_json
from advrepair.core.finding import find_problem
from advrepair.core.guarantees import guarantees
from advrepair.core.inputs import read_inputs
from advrepair.core.registry import Registry
from advrepair.core.work import Work

DATA = os.environ.get("ADVREPAIR_DATA")
pytestmark = pytest.mark.skipif(not DATA, reason="ADVREPAIR_DATA is not set: no data to repair on")
MNIST = Path(DATA or ".") / "mnist"
NETWORKS = ("fnn_small", "fnn_big", "cnn")
RADII = (0.05, 0.1, 0.3)


def repaired_inputs(rows: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """The inputs around which a run repaired, and their labels."""
    data = load_data(MNIST / "mnist.npz", (1, 28, 28), torch.float32, (0.0, 1.0), 10).repair
    index = torch.tensor([int(name.removeprefix("x_train[").removesuffix("]")) for name in rows])
    return data.images(index), data.labels[index]


def counterexamples(network: str, epsilon: float) -> tuple[torch.Tensor, torch.Tensor]:
    """The x_adv that a run of seed 0 repairs, and their labels."""
    layer = {
        "problem": {
            "network": str(MNIST / "nets" / f"{network}.onnx"),
            "data": str(MNIST / "mnist.npz"),
            "epsilon": epsilon,
        }
    }
    plan = resolve(Registry.load(), [layer])
    problem = find_problem(read_inputs(plan.problem), plan, Work(), 50)
    return problem.x_adv, problem.properties.label


@pytest.mark.parametrize("epsilon", RADII)
@pytest.mark.parametrize("network", NETWORKS)
def test_every_ball_is_certified(network: str, epsilon: float, tmp_path: Path) -> None:
    layer = {
        "problem": {
            "network": str(MNIST / "nets" / f"{network}.onnx"),
            "data": str(MNIST / "mnist.npz"),
            "epsilon": epsilon,
            "count": 50,
        },
        "evaluation": {"samples": 2},
    }
    registry = Registry.load()
    report = pipeline.run(resolve(registry, [layer]), registry, tmp_path / "out")
    counts = report["properties"]
    assert (counts["certified"], counts["total"]) == (50, 50)
    assert report["metrics"]["RSR"] == 1.0 and report["metrics"]["RGR"] == 1.0
    assert report["metrics"]["DD"] is not None
    assert report["baseline"]["constant-bias"]["certified"] == 1.0
    deployed = advrepair.load(tmp_path / "out")
    x_adv, label = counterexamples(network, epsilon)
    with torch.no_grad():
        assert torch.equal(deployed(x_adv).argmax(1), label)
        assert (deployed.base(x_adv).argmax(1) != label).all()


@pytest.mark.parametrize(
    ("network", "epsilon", "indicator", "verifier"),
    [
        ("fnn_small", "0.1", "property-guided", ["--verifier", "deeppoly"]),
        ("fnn_small", "0.1", "targeted-label", ["--verifier", "deeppoly"]),
        ("cnn", "0.05", "untargeted-label", []),
    ],
)
def test_the_commands_of_the_readers(
    network: str, epsilon: str, indicator: str, verifier: list[str], tmp_path: Path, capsys
) -> None:
    out = tmp_path / "a"
    arguments = ["run", str(MNIST / "nets" / f"{network}.onnx")]
    arguments += ["--data", str(MNIST / "mnist.npz"), "--epsilon", epsilon, "--count", "50"]
    arguments += ["--indicator", indicator, *verifier, "--out", str(out)]
    assert main([*arguments, "--set", "evaluation.samples=2"]) == 0
    shown = capsys.readouterr().out
    report = json.loads((out / "report.json").read_text())
    counts = report["properties"]
    assert counts["total"] == 50
    assert f"{counts['certified']} of 50 properties certified" in shown
    assert max(map(len, shown.splitlines())) <= 100
    unproved = 50 - counts["certified"]
    assert counts["falsified"] + counts["unknown"] == unproved
    if indicator == "property-guided":
        assert unproved == 0
    stated = json.loads((out / "certificate.json").read_text())["properties"]
    certified = [row["name"] for row in stated if row["status"] == "certified"]
    assert len(certified) == counts["certified"] > 0
    deployed = advrepair.load(out)
    x, label = repaired_inputs(certified)
    with torch.no_grad():
        assert torch.equal(deployed(x).argmax(1), label)


def test_unseen_images_are_proved_with_the_kernel(tmp_path: Path) -> None:
    """Images that nobody repaired keep their label in whole balls, and accuracy is kept."""
    points = ["kernel.points=10000", "kernel.attacked=60"]
    flags = [flag for each in points for flag in ("--set", each)]
    folder, network = tmp_path / "run", MNIST / "nets" / "fnn_small.onnx"
    data = ["--data", str(MNIST / "mnist.npz"), "--epsilon", "0.1", "--count", "20"]
    run = ["run", str(network), *data, "--allocator", "kernel", *flags, "--json"]
    assert main([*run, "--out", str(folder)]) == 0
    report = read_json(folder / "report.json")
    assert report["properties"]["certified"] == 20 and report["metrics"]["DD"] <= 0.005
    layer = [{"evaluation": {"limit": 200}}]
    found = guarantees(folder, layer, [0.05, 0.1], Registry.load())
    shares = [(each.repaired.value, each.unrepaired.value) for each in found]
    assert shares[0][0] > 0.5 and shares[1][0] > 0.35
    assert shares[0][1] < 0.1 and shares[1][1] == 0


def test_patches_behind_the_convolution_are_certified(tmp_path: Path) -> None:
    """By proved faces of 3,136 features; and with boxes of samples nothing is."""
    files = [str(MNIST / "nets" / "cnn.onnx"), "--data", str(MNIST / "mnist.npz")]
    asked = ["run", *files, "--epsilon", "0.05", "--count", "5", "--at", "auto"]
    asked += ["--allocator", "none", "--set", "evaluation.samples=1"]
    proved, sampled = tmp_path / "proved", tmp_path / "sampled"
    assert main([*asked, "--out", str(proved), "--require-certified"]) == 0
    report = read_json(proved / "report.json")
    assert (report["properties"]["certified"], report["properties"]["constant"]) == (5, 0)
    assert (report["features"]["count"], report["features"]["boxes"]) == (3136, "proved")
    assert main(["check", str(proved)]) == 0
    assert main([*asked, "--out", str(sampled), "--set", "patch.boxes=sampled"]) == 0
    report = read_json(sampled / "report.json")
    assert report["properties"]["certified"] == 0 and report["properties"]["empirical"] == 5
    assert report["features"]["missed"]["corners"] > 0.1
