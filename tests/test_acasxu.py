"""The second job on real data: property files of ACAS Xu, through the command line."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

import advrepair
from advrepair.cli import main
from advrepair.core.files import read_tensors

DATA = os.environ.get("ADVREPAIR_DATA")
pytestmark = pytest.mark.skipif(not DATA, reason="ADVREPAIR_DATA is not set: no data to repair on")
ACASXU = Path(DATA or ".") / "acasxu"


def arguments(network: str, *properties: str) -> list[str]:
    files = [str(ACASXU / "onnx" / f"ACASXU_run2a_{network}_batch_2000.onnx")]
    for each in properties:
        files += ["--property", str(ACASXU / "vnnlib" / f"{each}.vnnlib")]
    return ["run", *files, "--decision", "argmin", "--json", "--out"]


def repaired(folder: Path, network: str, *properties: str) -> dict[str, Any]:
    """The report of a run whose certificate the independent checker confirms."""
    assert main([*arguments(network, *properties), str(folder)]) == 0
    assert main(["check", str(folder)]) == 0
    return json.loads((folder / "report.json").read_text())


def right(folder: Path, name: str) -> torch.Tensor:
    """Whether the deployed function never has output 0 as its largest on some inputs."""
    arrays, _ = read_tensors(folder / "evaluation.safetensors")
    deployed = advrepair.load(folder)
    with torch.no_grad():
        before, after = deployed.base(arrays[name]), deployed(arrays[name])
    assert (before.argmax(1) == 0).all()  # no ties among 5,000 inputs
    return (after[:, 1:] > after[:, :1]).any(1)


@pytest.mark.parametrize("network", ["2_1", "5_3"])
def test_what_is_violated_is_repaired(network: str, tmp_path: Path) -> None:
    """N5,3 breaks the property where 500,000 random inputs of the box miss it."""
    folder = tmp_path / "run"
    report = repaired(folder, network, "prop_2")
    (demand,) = report["demands"]
    found = demand["status"], demand["held"], demand["patched"]
    assert found == ("certified", False, True)
    metrics = report["metrics"]
    assert (metrics["certified"], metrics["RSR"], metrics["RGR"]) == (1.0, 1.0, 1.0)
    assert metrics["FDD"] == 0.0 and metrics["fidelity"] >= 0.99
    assert right(folder, "x_adv").sum() == 500
    assert right(folder, "unseen").sum() == 5000
    # Most of the box is proved without a patch, and none is on there.
    assert report["screening"]["proved"][-1] > 0.9 and report["screening"]["regions"] > 0


def test_what_holds_is_left_alone(tmp_path: Path) -> None:
    report = repaired(tmp_path / "run", "1_1", "prop_3")
    (demand,) = report["demands"]
    found = demand["status"], demand["held"], demand["patched"]
    assert found == ("certified", True, False)
    assert report["patches"]["count"] == 0
    assert report["metrics"]["FDD"] == 0.0 and report["metrics"]["fidelity"] == 1.0
    assert report["screening"]["proved"][-1] == 1.0
    deployed = advrepair.load(tmp_path / "run")
    x = torch.rand(100, *deployed.base.input_shape) - 0.5
    assert torch.equal(deployed(x), deployed.base(x))


def test_two_properties_of_one_box(tmp_path: Path) -> None:
    """Property 1 holds and property 2 does not; the patch of the second keeps the first."""
    folder = tmp_path / "run"
    report = repaired(folder, "2_1", "prop_1", "prop_2")
    assert [each["status"] for each in report["demands"]] == ["certified"] * 2
    assert [each["held"] for each in report["demands"]] == [True, False]
    assert report["metrics"]["FDD"] == 0.0 and report["metrics"]["fidelity"] >= 0.99
    assert right(folder, "unseen").all()
    arrays, _ = read_tensors(folder / "evaluation.safetensors")
    with torch.no_grad():
        assert (advrepair.load(folder)(arrays["unseen"])[:, 0] < 3.991125645861615).all()


@pytest.mark.parametrize("first", ["prop_5", "prop_9"])
def test_contradictions_are_refused(first: str, tmp_path: Path, capsys: Any) -> None:
    """An output that must be the smallest on a box where it must never be."""
    folder = tmp_path / "run"
    assert main([*arguments("1_1", first, "prop_7"), str(folder)]) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert "overlap and cannot both hold" in said and first in said and "prop_7" in said
    assert list(tmp_path.iterdir()) == []


def test_a_file_of_another_network_is_refused(tmp_path: Path, capsys: Any) -> None:
    network = str(Path(DATA or ".") / "mnist" / "nets" / "fnn_small.onnx")
    asked = ["run", network, *arguments("1_1", "prop_2")[2:], str(tmp_path / "run")]
    assert main(asked) == 2
    (said,) = capsys.readouterr().err.strip().splitlines()
    assert "declares 5 inputs, the network takes 784" in said
    assert list(tmp_path.iterdir()) == []


def test_a_nnet_file_in_physical_units_is_repaired_and_normalised_units_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Property 2 for the same network in the units of its .nnet file; see the folder's README."""
    network = str(ACASXU / "nnet" / "ACASXU_run2a_2_1_batch_2000.nnet")
    scaled = str(ACASXU / "vnnlib" / "prop_2.vnnlib")
    asked = ["run", network, "--decision", "argmin", "--json", "--out", str(tmp_path / "run")]
    for command in ([*asked, "--property", scaled], ["verify", network, scaled]):
        assert main(command) == 2
        error = capsys.readouterr().err
        assert "X_3 from 0.45 to 0.5 leaves the range" in error and error.count("\n") == 1
    faces = ((55947.691, 60760), (-3.141593, 3.141593), (-3.141593, 3.141593))
    faces += ((1145, 1200), (0, 60))
    lines = [f"(declare-const X_{i} Real)" for i in range(5)]
    lines += [f"(declare-const Y_{i} Real)" for i in range(5)]
    for i, (low, high) in enumerate(faces):
        lines.append(f"(assert (and (>= X_{i} {low}) (<= X_{i} {high})))")
    lines += [f"(assert (<= Y_{j} Y_0))" for j in range(1, 5)]
    physical = tmp_path / "physical.vnnlib"
    physical.write_text("\n".join(lines))
    assert main([*asked, "--property", str(physical), "--set", "screening.pieces=500"]) == 0
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["properties"]["certified"] == 1 and report["metrics"]["RSR"] == 1.0
    assert main(["check", str(tmp_path / "run")]) == 0
