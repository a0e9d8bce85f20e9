"""Large networks: small residual networks through ONNX, and the table of the benchmark."""

import argparse
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from advrepair import checker
from advrepair.cli import app
from advrepair.core.files import read_json
from advrepair.core.network import load_network
from benchmarks import cifar_models, large

GIVEN = argparse.Namespace(model="resnet18", weights=Path("w.pt"), samples=1, limit=100)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A network of VNN-COMP's size as an ONNX file, and images that it is right on."""
    torch.manual_seed(0)
    module = cifar_models.resnet2b().eval()
    folder = tmp_path_factory.mktemp("resnet")
    path = folder / "net.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # this exporter is deprecated; files of it are everywhere
        blank = torch.zeros(1, *cifar_models.INPUT_SHAPE)
        torch.onnx.export(module, (blank,), path, dynamo=False)
    x = torch.rand(40, *cifar_models.INPUT_SHAPE, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        y = load_network(path)(x).argmax(1)
    np.savez(folder / "data.npz", x=x.numpy(), y=y.numpy())
    return path, folder / "data.npz"


@pytest.mark.parametrize("way", ["cap", "proved"])
def test_a_small_residual_network_is_repaired_from_its_onnx_file(way, files, tmp_path):
    options = {"cap": ["--set", "training.objective=cap"], "proved": ["--at", "auto"]}[way]
    arguments = ["run", str(files[0]), "--data", str(files[1]), "--epsilon", "4/255"]
    arguments += ["--count", "2", "--allocator", "none", "--set", "evaluation.samples=1"]
    done = CliRunner().invoke(app, [*arguments, *options, "--out", str(tmp_path / "run")])
    assert done.exit_code == 0, done.output
    assert read_json(tmp_path / "run" / "report.json")["properties"]["certified"] == 2
    assert checker.check(tmp_path / "run").word == "VALID"


@pytest.mark.parametrize("way", ["cap", "sampled", "proved", "paper"])
def test_the_commands_of_a_cell_are_what_a_user_would_type(way):
    run, evaluate, check = large.commands(GIVEN, "4/255", 50, way, "$ADVREPAIR_DATA")
    assert run[:5] == [
        "advrepair", "run", "w.pt", "--factory", "benchmarks.cifar_models:resnet18"
    ]  # fmt: skip
    assert "$ADVREPAIR_DATA/cifar10/cifar10_lossless.npz" in run and run[-1] == "--out"
    assert (evaluate[1], check[1]) == ("evaluate", "check")


def test_the_table_has_a_line_for_each_cell():
    rates = {name: None for name in large._RATES} | {"RSR": 1.0, "RGR": 0.5}
    properties = dict.fromkeys(large._STATES, 0) | {"empirical": 2, "falsified": 3}
    report = {
        "properties": properties,
        "metrics": rates,
        "features": {"missed": {"searched": 0.72}},
    }
    report["seconds"] = {"bounds": 1.0, "training": 2.25}
    cell = {
        "model": "resnet18", "radius": "4/255", "count": 5, "way": "sampled", "report": report,
        "verdict": {"verdict": "VALID"}, "seconds": {"run": 61.2, "check": 6.04},
    }  # fmt: skip
    other = {**cell, "count": 2, "report": {**report, "features": {"missed": None}}}
    head, _, *lines = large.page([cell, other]).splitlines()
    assert [line.split(" | ")[2] for line in lines] == ["2", "5"]
    cells = lines[1].strip("| ").split(" | ")
    assert len(cells) == len(head.strip("| ").split(" | "))
    assert cells[4:7] == ["2 empirical, 3 falsified", "100.0", "50.0"]
    assert cells[-4:] == ["72.0", "61", "3.2", "6.0 VALID"]
