"""``advrepair certify``, and runs with an allocator that answers outside the boxes."""

import json

import numpy as np
import pytest
import torch
from problems import bytes_of

import advrepair
from advrepair.cli import main
from advrepair.core.config import read_toml, resolve
from advrepair.core.finding import make_bounder
from advrepair.core.properties import robustness
from advrepair.core.registry import Registry
from advrepair.core.unseen import least_margins
from advrepair.demo import IMAGES

FIT = ["--set", "kernel.ramp=[]", "--set", "kernel.blur=0.0", "--set", "kernel.points=300"]
# The demo network is right on all held-out inputs: a kernel that may lose none hardly counts.
FIT += ["--set", "kernel.drawdown=0.02"]
KERNEL = ["--count", "4", "--allocator", "kernel", *FIT, "--json"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("certify") / "digits"
    assert main(["run", *KERNEL, "--out", str(place)]) == 0
    return place


def test_more_is_proved_of_the_repair_than_of_the_network(folder, capsys):
    assert main(["certify", str(folder), "--epsilon", "0.02,1/20", "--limit", "60", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [each["epsilon"] for each in found] == [0.02, 0.05]
    for each in found:
        assert each["repaired"]["share"] > each["unrepaired"]["share"]
        assert each["repaired"]["count"] == 60
    assert found[0]["repaired"]["share"] >= found[1]["repaired"]["share"]
    assert main(["certify", str(folder), "--epsilon", "0.02", "--limit", "60"]) == 0
    shown = capsys.readouterr().out
    assert "0.02" in shown and "Of 60 unseen inputs" in shown


def test_the_report_says_what_was_fitted(folder, capsys):
    report = json.loads((folder / "report.json").read_text())
    told = report["allocator"]
    assert told["name"] == "kernel" and told["smooth"] is True
    assert told["fitted"]["points"] == 300 and told["fitted"]["weight"] > 0
    assert report["routing"]["adversarial"] > 0.5
    assert main(["check", str(folder)]) == 0
    assert "VALID" in capsys.readouterr().out


def test_the_same_run_gives_the_same_bytes(folder, tmp_path):
    assert main(["run", *KERNEL, "--out", str(tmp_path / "again")]) == 0
    assert bytes_of(tmp_path / "again") == bytes_of(folder)


def test_it_is_attacked_and_proved_in_an_evaluation(folder, capsys):
    assert main(["evaluate", str(folder), "--limit", "20", "--epsilon", "0.02", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    ours, plain = report["metrics"], report["baseline"]["none"]
    assert plain["DGSR-certified"] <= ours["DGSR-certified"] <= ours["DGSR-query"]
    assert report["metrics"]["DSR"] == 1.0


def test_its_files_compute_the_same(folder, tmp_path, capsys):
    onnxruntime = pytest.importorskip("onnxruntime")
    files = ["--onnx", str(tmp_path / "a.onnx"), "--torch-export", str(tmp_path / "a.pt2")]
    assert main(["export", str(folder), *files]) == 0
    assert capsys.readouterr().out.count("every decision agrees") == 2
    model = advrepair.load(folder)
    x = torch.from_numpy(np.load(IMAGES)["x_test"][:50]).float().view(-1, *model.base.input_shape)
    x = x / x.max()
    session = onnxruntime.InferenceSession(tmp_path / "a.onnx", providers=["CPUExecutionProvider"])
    outputs = torch.from_numpy(session.run(None, {"input": x.numpy()})[0])
    with torch.no_grad():
        torch.testing.assert_close(outputs, model(x), rtol=1e-3, atol=1e-3)
    assert main(["export", str(folder), "--onnx", str(tmp_path / "b.onnx"), "--form", "relu"]) == 2
    assert "allocator 'kernel' cannot be exported with --form relu" in capsys.readouterr().err


# Behind a layer --------------------------------------------------------------------------------

LAYER = ["--at", "Relu_2", *KERNEL]


@pytest.fixture(scope="module")
def layered(tmp_path_factory):
    """A kernel that sees features."""
    place = tmp_path_factory.mktemp("layered") / "digits"
    assert main(["run", *LAYER, "--out", str(place)]) == 0
    return place


def some_images(model, count):
    x = (
        torch.from_numpy(np.load(IMAGES)["x_test"][:count])
        .float()
        .view(-1, *model.base.input_shape)
    )
    return x / x.max()


def test_a_kernel_of_features_is_a_function_of_them(layered, tmp_path, capsys):
    model = advrepair.load(layered)
    x = some_images(model, 60)
    width = model.front.outputs
    assert model.centres.fitted["map"].shape[0] == width != x.flatten(1).shape[1]
    smooth = model.smooth(x)
    with torch.no_grad():
        seen = model.front(x)
        ours = model.allocator.outputs(seen, model.tail(seen), model.centres)
        torch.testing.assert_close(model(x)[smooth], ours[smooth])
        assert int(smooth.sum()) > 50
        right = float((model(x).argmax(1) == model.base(x).argmax(1)).float().mean())
    assert right > 0.9 and not torch.equal(ours, model.base(x))
    assert main(["check", str(layered)]) == 0 and "VALID" in capsys.readouterr().out
    assert main(["run", *LAYER, "--out", str(tmp_path / "again")]) == 0
    assert bytes_of(tmp_path / "again") == bytes_of(layered)


def test_files_of_a_kernel_of_features_compute_the_same(layered, tmp_path, capsys):
    pytest.importorskip("onnxruntime")
    files = ["--onnx", str(tmp_path / "a.onnx"), "--torch-export", str(tmp_path / "a.pt2")]
    assert main(["export", str(layered), *files]) == 0
    assert capsys.readouterr().out.count("every decision agrees") == 2


def test_command_and_function_prove_the_same_of_features(layered, capsys):
    """Both bound the layers before by the same verifier, to the last bit."""
    assert main(["certify", str(layered), "--epsilon", "0.01", "--limit", "60", "--json"]) == 0
    (told,) = json.loads(capsys.readouterr().out)
    model, label = advrepair.load(layered), np.load(IMAGES)["y_test"][:60]
    least = advrepair.certify(model, some_images(model, 60), 0.01, label)
    assert 0 < told["repaired"]["share"] == float((least > 0).double().mean()) < 1
    plan = resolve(Registry.load(), [read_toml(layered / "run.toml")])
    bounder = make_bounder(model.base, plan, model)
    x = some_images(model, 60)
    asked = robustness(x, torch.from_numpy(label).long(), 0.01, 10, clip=(0.0, 1.0))
    assert torch.equal(least_margins(model, bounder, asked), least)


@pytest.mark.parametrize("epsilon", [0.0005, 0.01, 0.1])
def test_no_input_of_a_ball_lies_below_what_a_kernel_of_features_proves(layered, epsilon):
    model = advrepair.load(layered)
    x, noise = some_images(model, 50), torch.Generator().manual_seed(0)
    with torch.no_grad():
        label = model(x).argmax(1)
    least = advrepair.certify(model, x, epsilon, label)
    assert int((least > 0).sum()) > (30 if epsilon < 0.001 else -1)
    seen = torch.full((len(x),), torch.inf, dtype=torch.float64)
    for turn in range(200):
        move = 2 * torch.rand(x.shape, generator=noise) - 1
        move = epsilon * (move.sign() if turn % 2 else move)
        with torch.no_grad():
            y = model((x + move).clamp(0, 1).double().float()).double()
        own = y.gather(1, label[:, None])
        rest = y.scatter(1, label[:, None], -torch.inf)
        seen = torch.minimum(seen, own[:, 0] - rest.amax(1))
    assert (least <= seen).all()


@pytest.mark.parametrize("radii", ["0", "a", "0.1,,0.2", "1/0", "-1", "inf"])
def test_a_radius_that_is_none_is_refused(folder, radii, capsys):
    assert main(["certify", str(folder), "--epsilon", radii]) == 2
    assert "write radii above 0" in capsys.readouterr().err


def test_a_kernel_without_labelled_inputs_is_refused(tmp_path, capsys):
    spec = tmp_path / "p.vnnlib"
    lines = [f"(declare-const X_{i} Real)" for i in range(64)]
    lines += [f"(declare-const Y_{i} Real)" for i in range(10)]
    lines += [f"(assert (>= X_{i} 0.0))\n(assert (<= X_{i} 0.1))" for i in range(64)]
    lines += ["(assert (<= Y_0 Y_1))"]
    spec.write_text("\n".join(lines))
    flags = ["--property", str(spec), "--allocator", "kernel", "--out", str(tmp_path / "run")]
    assert main(["run", *flags]) == 2
    assert "remembers labelled inputs: name them with --data" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_folder_without_a_run_is_refused(tmp_path, capsys):
    assert main(["certify", str(tmp_path)]) == 2
    assert "holds no complete run" in capsys.readouterr().err
