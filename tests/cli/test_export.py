"""``advrepair export``: files that compute what the run folder does, or none."""

import shutil

import numpy as np
import onnx
import pytest
import torch
from problems import entries

import advrepair
from advrepair.cli import main
from advrepair.core import exporting
from advrepair.core.files import file_digest, read_json, write_json
from advrepair.core.torch_export import load_exported_program, load_torchscript
from advrepair.demo import IMAGES

onnxruntime = pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run with an allocator, and one without."""
    place = tmp_path_factory.mktemp("export")
    for name in ("cosine", "none"):
        flags = ["--allocator", name, "--json", "--out", str(place / name)]
        assert main(["run", "--count", "4", *flags]) == 0
    return place


@pytest.fixture
def here(runs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def images(network, count=100):
    x = torch.from_numpy(np.load(IMAGES)["x_test"][:count])
    x = x.float() / 255 if x.dtype == torch.uint8 else x.float()
    return x.view(-1, *network.base.input_shape)


def about(path):
    return {each.key: each.value for each in onnx.load(path).metadata_props}


def test_three_files_compute_the_deployed_function(runs, here, capsys):
    files = ["--onnx", "net.onnx", "--torchscript", "net.pt", "--torch-export", "net.pt2"]
    assert main(["export", str(runs / "cosine"), *files]) == 0
    captured = capsys.readouterr()
    assert captured.err == "" and entries(here) == ["net.onnx", "net.pt", "net.pt2"]
    assert captured.out.count("every decision agrees") == 3
    assert "net.onnx: ONNX, routed, " in captured.out and " MB" in captured.out
    network = advrepair.load(runs / "cosine")
    x = images(network)
    session = onnxruntime.InferenceSession("net.onnx", providers=["CPUExecutionProvider"])
    outputs = [
        torch.from_numpy(session.run(None, {"input": x.numpy()})[0]),
        load_torchscript((here / "net.pt").read_bytes())(x),
        load_exported_program((here / "net.pt2").read_bytes())(x),
    ]
    for y in outputs:
        assert torch.allclose(y, network(x), rtol=1e-4, atol=1e-4)


def test_the_file_says_where_it_comes_from(runs, here):
    assert main(["export", str(runs / "none"), "--onnx", "net.onnx"]) == 0
    facts, folder = about("net.onnx"), runs / "none"
    assert facts["advrepair.version"] == advrepair.__version__
    assert facts["advrepair.form"] == "routed"
    assert facts["advrepair.sha256.network"] == advrepair.load(folder).base.digest()
    for name in ("repaired.safetensors", "certificate.json", "certificate.safetensors"):
        assert facts[f"advrepair.sha256.{name}"] == file_digest(folder / name)
    lines = facts["advrepair.specification"].splitlines()
    rows = read_json(folder / "certificate.json")["properties"]
    assert [line.split(": ")[1] for line in lines] == [row["demand"] for row in rows]
    assert facts["advrepair.certified"].startswith("4 of 4 properties, level ")


def test_many_properties_are_counted_by_demand(runs, here, monkeypatch):
    monkeypatch.setattr(exporting, "_ROWS", 3)
    assert main(["export", str(runs / "none"), "--onnx", "net.onnx"]) == 0
    first, *rest = about("net.onnx")["advrepair.specification"].splitlines()
    assert first == "4 properties"
    assert sum(int(line.split(" times: ")[0]) for line in rest) == 4


def test_the_form_relu(runs, here, capsys):
    flags = ["--form", "relu", "--shell", "0.01"]
    assert main(["export", str(runs / "none"), "--onnx", "net.onnx", *flags]) == 0
    shown = capsys.readouterr().out
    assert "shell 0.0078125, input range 0 to 1" in shown and "every decision agrees" in shown
    facts = about("net.onnx")
    assert facts["advrepair.shell"] == "0.0078125" and facts["advrepair.form"] == "relu"
    assert facts["advrepair.input_range"] == "[0.0, 1.0]"
    network, ours = advrepair.load(runs / "none"), advrepair.load_network("net.onnx")
    x = torch.cat([network.box.center, network.box.lower, network.box.upper])
    assert torch.allclose(ours(x), network(x), rtol=1e-4, atol=1e-4)
    ranged = ["--form", "relu", "--input-range=-1,2", "--force"]
    assert main(["export", str(runs / "none"), "--onnx", "net.onnx", *ranged]) == 0
    assert about("net.onnx")["advrepair.input_range"] == "[-1.0, 2.0]"


def test_a_run_without_a_range_has_no_form_relu(runs, here, capsys):
    shutil.copytree(runs / "none", "run")
    text = (here / "run" / "run.toml").read_text().splitlines()
    at = next(i for i, line in enumerate(text) if line.startswith("input_range"))
    end = next(i for i in range(at, len(text)) if text[i].rstrip().endswith("]"))
    text[at : end + 1] = ["input_range = []"]
    (here / "run" / "run.toml").write_text("\n".join(text))
    assert main(["export", "run", "--onnx", "net.onnx", "--form", "relu"]) == 2
    assert "give --input-range LOW,HIGH" in capsys.readouterr().err
    flags = ["--form", "relu", "--input-range", "0,1"]
    assert main(["export", "run", "--onnx", "net.onnx", *flags]) == 0


BAD = {
    "nothing": ([], "nothing to write"),
    "same": (["--onnx", "a", "--torchscript", "./a"], "the same name"),
    "form": (["--onnx", "a", "--form", "x"], "form is 'x': choose one of routed, relu"),
    "shell": (["--onnx", "a", "--shell", "1"], "go with --form relu"),
    "range": (["--onnx", "a", "--input-range", "0,1"], "go with --form relu"),
    "relu": (["--torchscript", "a", "--form", "relu"], "--form relu is for ONNX"),
    "no shell": (["--onnx", "a", "--form", "relu", "--shell", "0"], "--shell is 0.0"),
    "thin": (["--onnx", "a", "--form", "relu", "--shell", "1e-9"], "use a wider one"),
    "no range": (["--onnx", "a", "--input-range", "0"], "write LOW,HIGH, two numbers"),
    "wrong range": (["--onnx", "a", "--input-range", "1,0"], "LOW must be below HIGH"),
    "exists": (["--onnx", "there"], "there exists: use --force, or another name"),
    "a folder": (["--onnx", "folder"], "folder is a folder: name a file"),
    "no folder": (["--onnx", "no/a.onnx"], "cannot write to no/a.onnx"),
}


@pytest.mark.parametrize("flags, message", BAD.values(), ids=BAD)
def test_what_is_refused_leaves_nothing(flags, message, runs, here, capsys):
    (here / "there").write_text("mine")
    (here / "folder").mkdir()
    assert main(["export", str(runs / "none"), *flags]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1
    assert message in captured.err and captured.err.startswith("error: ")
    assert entries(here) == ["folder", "there"] and (here / "there").read_text() == "mine"


def test_no_run_no_export(here, capsys):
    assert main(["export", "nowhere", "--onnx", "a.onnx"]) == 2
    assert "nowhere holds no complete run" in capsys.readouterr().err


def test_an_allocator_has_no_form_relu(runs, here, capsys):
    flags = ["--onnx", "a.onnx", "--form", "relu"]
    assert main(["export", str(runs / "cosine"), *flags]) == 2
    assert "allocator 'cosine' cannot be exported with --form relu" in capsys.readouterr().err
    assert entries(here) == []


def test_a_changed_folder_is_refused(runs, here, capsys):
    shutil.copytree(runs / "none", "run")
    certificate = read_json(here / "run" / "certificate.json")
    certificate["files"]["repaired.safetensors"] = "0" * 64
    write_json(here / "run" / "certificate.json", certificate)
    assert main(["export", "run", "--onnx", "a.onnx"]) == 2
    assert "was changed after it was certified" in capsys.readouterr().err


def test_force_replaces_a_file(runs, here):
    (here / "a.onnx").write_text("mine")
    assert main(["export", str(runs / "none"), "--onnx", "a.onnx", "--force"]) == 0
    assert about("a.onnx") and entries(here) == ["a.onnx"]


def test_a_file_that_decides_otherwise_is_not_written(runs, here, capsys, monkeypatch):
    written = exporting.routed_model

    def wrong(repaired, about=None):
        repaired.patch = repaired.patch.roll(1)
        try:
            return written(repaired, about)
        finally:
            repaired.patch = repaired.patch.roll(-1)

    monkeypatch.setattr(exporting, "routed_model", wrong)
    (here / "a.onnx").write_text("mine")
    flags = ["--onnx", "a.onnx", "--torchscript", "a.pt", "--force"]
    assert main(["export", str(runs / "none"), *flags]) == 1
    captured = capsys.readouterr()
    assert "inputs otherwise than the repaired network" in captured.err and captured.out == ""
    assert entries(here) == ["a.onnx"] and (here / "a.onnx").read_text() == "mine"


def test_without_onnxruntime_it_says_so(runs, here, capsys, monkeypatch):
    monkeypatch.setattr(exporting, "runtime", lambda: None)
    for form in ("routed", "relu"):
        assert main(["export", str(runs / "none"), "--onnx", form, "--form", form]) == 0
        assert "not checked: onnxruntime is not installed" in capsys.readouterr().out
