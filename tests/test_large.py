"""Large networks: small residual networks through ONNX, and the table of the benchmark."""

import argparse
import json
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
from benchmarks import cifar_models, large, large_page

PAGE = Path(__file__).parents[1] / "docs" / "large-networks.md"
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


def cell(way="sampled", count=5, missed=None, metrics=None, certified=0):
    """A cell as it is kept."""
    rates = dict.fromkeys(large_page.RATES) | {"RSR": 1.0, "RGR": 0.5} | (metrics or {})
    states = {"certified": certified, "empirical": 2, "falsified": 3, "unknown": 0}
    report = {
        "properties": states, "metrics": rates, "peak_memory_bytes": 2**30,
        "features": {"missed": missed}, "seconds": {"bounds": 1.0, "training": 2.25},
    }  # fmt: skip
    return {
        "model": "resnet18", "radius": "4/255", "count": count, "way": way, "report": report,
        "verdict": {"verdict": "VALID", "margin": 0.01 if certified else None},
        "seconds": {"run": 61.2, "check": 6.04},
    }  # fmt: skip


def test_tables_have_a_line_for_each_cell_and_the_columns_in_use():
    first = cell(missed={"searched": 0.72})
    other = {**cell(count=2), "radius": "16/255"}
    head, text, *rest = large_page.sections([cell("paper", count=50), other, first])
    assert (head, rest[0]) == ("### resnet18, 4/255", "### resnet18, 16/255")
    names, _, *lines = ([c.strip() for c in line.strip("| ").split(" | ")]
                        for line in text.splitlines())  # fmt: skip
    shown = [dict(zip(names, line, strict=True)) for line in lines]
    assert [line["way"] for line in shown] == ["sampled", "paper"]
    assert {"margin", "changed", "DSR"}.isdisjoint(names)
    assert shown[0]["states"] == "2 empirical, 3 falsified"
    assert [line["missed"] for line in shown] == ["72.0", "-"]
    assert [line["run s (paper)"] for line in shown] == ["61", "61 (266)"]
    assert (shown[0]["repair s"], shown[0]["check s"]) == ("3.2", "6.0 VALID")


def test_a_margin_is_said_of_what_is_certified():
    at = large_page.HEAD.index("margin")
    assert [row[at] for row in large_page.rows([cell(certified=2), cell()])] == ["0.01", "-"]


def test_large_networks_of_the_page_are_the_records():
    text = PAGE.read_text(encoding="utf-8")
    records = [read_json(path) for path in large._RECORDS.glob("*.json")]
    assert records and large_page.filled(text, records) == text
    with pytest.raises(ValueError, match="a page needs the lines"):
        large_page.filled("no marks", records)


def test_a_cell_is_computed_and_names_no_path(files, tmp_path, monkeypatch):
    data = tmp_path / "cifar10"
    data.mkdir()
    (data / "cifar10_lossless.npz").symlink_to(files[1])
    monkeypatch.setenv("ADVREPAIR_DATA", str(tmp_path))
    given = argparse.Namespace(model="resnet2b", weights=files[0], samples=1, limit=0)
    monkeypatch.setattr(large, "_FACTORY", [])  # an ONNX file has none
    found = large.compute(given, "4/255", 2, "cap")
    assert found["report"]["properties"]["certified"] == 2
    assert found["verdict"]["verdict"] == "VALID"
    assert found["changed"] > 0
    assert str(tmp_path) not in json.dumps(found) and str(files[0].parent) not in json.dumps(found)
    assert found["commands"][0].startswith("advrepair run net.onnx --data $ADVREPAIR_DATA/cifar10/")
