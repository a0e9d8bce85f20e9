"""``advrepair evaluate``: a finished run under attack, its report, and what stops it."""

import json
import os

import numpy as np
import pytest
import torch

import advrepair
from advrepair.cli import main
from advrepair.core import assessment
from advrepair.core.errors import UsageError
from advrepair.core.locking import alone
from advrepair.core.reporting import METRICS
from advrepair.core.threats import THREATS
from advrepair.demo import IMAGES, NETWORK

FAST = ["--set", "pgd.steps=5", "--limit", "20"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("evaluate") / "digits"
    assert main(["run", "--count", "5", "--json", "--out", str(place)]) == 0
    return place


def report_of(folder):
    return json.loads((folder / "report.json").read_text())


def test_it_measures_everything_and_keeps_the_certificate(folder, capsys):
    before = {p.name: p.read_bytes() for p in folder.iterdir() if p.name.startswith("cert")}
    assert main(["evaluate", str(folder), *FAST]) == 0
    shown = capsys.readouterr().out
    assert (
        all(name in shown for name in ("DGSR-query", "DGSR-certified", "DGSR-oracle"))
        and "attacked: 20 unseen inputs" in shown
    )
    report = report_of(folder)
    for rates in (report["metrics"], *report["baseline"].values()):
        assert list(rates) == sorted(METRICS)
        assert [name for name, rate in rates.items() if rate is None] == ["fidelity"]
    assert report["metrics"]["certified"] == report["metrics"]["DSR"] == 1.0
    assert report["baseline"]["none"]["RSR"] == report["baseline"]["none"]["DSR"] == 0.0
    asked = report["evaluation"]
    assert asked["attack"] == {"name": "pgd", "options": {"restarts": 1, "step": 2.5, "steps": 5}}
    assert (asked["epsilon"], asked["limit"], asked["seed"]) == (0.1, 20, 0)
    assert set(asked["threats"]["repair"]) == set(THREATS)
    low, high = report["intervals"]["DGSR-query"]
    assert low <= report["metrics"]["DGSR-query"] <= high
    assert report["counts"]["DGSR-query"] == 20
    assert {"repair", "constant-bias"} == set(report["lookup"])
    assert before == {name: (folder / name).read_bytes() for name in before}
    assert not (folder / "evaluation.partial").exists()
    assert main(["check", str(folder)]) == 0


def test_the_deployed_function_is_what_is_attacked(folder, capsys):
    """Accuracy and drawdown computed by hand from the loaded network."""
    assert main(["evaluate", str(folder), *FAST, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    images = np.load(IMAGES)
    network = advrepair.load(folder)
    x = torch.from_numpy(images["x_test"]).float()
    x = (x / 255 if images["x_test"].dtype == np.uint8 else x).view(-1, *network.base.input_shape)
    y = torch.from_numpy(images["y_test"].astype(np.int64))
    with torch.no_grad():
        ours, theirs = network(x).argmax(1), network.base(x).argmax(1)
    lost = float((theirs == y).double().mean() - (ours == y).double().mean())
    assert report["metrics"]["DD"] == pytest.approx(lost, abs=1e-12)
    assert report["metrics"]["FDD"] == pytest.approx(float((ours != theirs).double().mean()))


def test_radius_attack_seed_and_data(folder, tmp_path, capsys):
    images = dict(np.load(IMAGES))
    few = {name: images[name][:12] for name in ("x_test", "y_test")}
    np.savez(tmp_path / "few.npz", **few, x_train=images["x_train"], y_train=images["y_train"])
    flags = ["--data", str(tmp_path / "few.npz"), "--epsilon", "8/255", "--seed", "3"]
    assert main(["evaluate", str(folder), *flags, "--set", "pgd.steps=3", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["counts"]["DGSR-query"] == 12 and report["evaluation"]["seed"] == 3
    assert report["evaluation"]["epsilon"] == pytest.approx(8 / 255)


def test_the_attack_of_the_paper_is_stamped_weak(folder, capsys):
    pytest.importorskip("pyautoattack")
    assert main(["evaluate", str(folder), "--preset", "paper", "--limit", "4", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["evaluation"]["attack"]["options"]["version"] == "paper"
    assert report["flags"][0]["name"] == "weak attack"


def test_a_run_can_be_evaluated_in_full_at_once(tmp_path, capsys):
    flags = ["--count", "3", "--evaluate", "full", "--set", "evaluation.limit=10"]
    place = tmp_path / "run"
    assert main(["run", *flags, "--set", "pgd.steps=5", "--out", str(place), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["metrics"]["DGSR-query"] is not None and report["counts"]["DGSR-query"] == 10
    assert not list(place.glob("*partial*")) and not list(place.glob("checkpoint*"))


def error(arguments, capsys):
    assert main(arguments) == 2
    text = capsys.readouterr().err
    assert text.count("\n") == 1 and text.startswith("error: ")
    return text


def test_what_cannot_be_evaluated(folder, tmp_path, capsys):
    assert "holds no complete run" in error(["evaluate", str(tmp_path)], capsys)
    assert "preset is 'weak'" in error(["evaluate", str(folder), "--preset", "weak"], capsys)
    assert "attack" in error(["evaluate", str(folder), "--attack", "nonsense"], capsys)
    images = np.load(IMAGES)
    np.savez(tmp_path / "none.npz", x=images["x_train"][:9], y=images["y_train"][:9])
    text = error(["evaluate", str(folder), "--data", str(tmp_path / "none.npz")], capsys)
    assert "no x_test and y_test" in text
    run = advrepair.load(folder)
    same = run.centres.x.view(-1, *images["x_test"].shape[1:]).numpy()
    np.savez(
        tmp_path / "same.npz", x_train=images["x_train"], y_train=images["y_train"],
        x_test=same, y_test=run.centres.label.numpy(),
    )  # fmt: skip
    text = error(["evaluate", str(folder), "--data", str(tmp_path / "same.npz")], capsys)
    assert "x_test row 0 is a repaired input" in text
    assert not (folder / "evaluation.partial").exists()


def test_what_an_attack_needs_is_looked_for_first(folder, tmp_path, monkeypatch, capsys):
    """Before any long work, and nothing is left behind."""
    from advrepair.core import attacking
    from advrepair.plugins.attacks import autoattack

    def absent():
        raise UsageError("attack autoattack needs a package that is not installed")

    monkeypatch.setattr(autoattack, "_library", absent)
    monkeypatch.setattr(attacking, "find_counterexamples", None)
    assert "not installed" in error(["evaluate", str(folder), "--attack", "autoattack"], capsys)
    flags = ["--evaluate", "full", "--evaluation-attack", "autoattack"]
    assert "not installed" in error(["run", *flags, "--out", str(tmp_path / "run")], capsys)
    assert not list(tmp_path.iterdir())
    assert not (folder / "evaluation.partial").exists()


def test_another_evaluation_does_not_take_the_parts_of_this_one(folder, monkeypatch, capsys):
    from advrepair.core import assessment

    honest, calls = assessment.Assessor._oracle, []

    def interrupted(self, subject, epsilon):
        raise KeyboardInterrupt

    monkeypatch.setattr(assessment.Assessor, "_oracle", interrupted)
    assert main(["evaluate", str(folder), *FAST, "--json"]) == 130
    partial = folder / "evaluation.partial"
    kept = len(list(partial.glob("checkpoint-*")))
    assert kept == 2 * len(THREATS)
    monkeypatch.setattr(assessment.Assessor, "_oracle", honest)
    each = assessment.Assessor._hits
    monkeypatch.setattr(assessment.Assessor, "_hits", lambda *a: calls.append(a) or each(*a))
    assert main(["evaluate", str(folder), *FAST, "--json"]) == 0
    goes_on = len(calls)
    assert main(["evaluate", str(folder), *FAST, "--seed", "1", "--json"]) == 0
    assert len(calls) - goes_on == goes_on + kept
    capsys.readouterr()


@pytest.mark.parametrize("command", [["evaluate", *FAST], ["report"], ["run", "--force", "--out"]])
def test_a_folder_that_another_process_works_on_is_refused(command, folder, capsys):
    before = {path: path.read_bytes() for path in folder.iterdir()}
    with alone(folder):
        assert main([*command, str(folder)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"error: {folder} is in use by process {os.getpid()}: wait")
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize(
    ("trouble", "code", "line"),
    [
        (KeyboardInterrupt(), 130, "interrupted: give the same command again"),
        (MemoryError(), 2, "error: out of memory: lower run.memory"),
        (OSError(28, "No space left", "x"), 2, "error: cannot write to x: No space left; free"),
    ],
)
def test_what_stops_it_is_one_line(trouble, code, line, folder, monkeypatch, capsys):
    def stop(*arguments):
        raise trouble

    with monkeypatch.context() as stopping:
        stopping.setattr(assessment.Assessor, "_oracle", stop)
        assert main(["evaluate", str(folder), *FAST, "--json"]) == code
    err = capsys.readouterr().err
    assert err.startswith(line) and err.count("\n") == 1
    assert (folder / "evaluation.partial").exists()
    assert not folder.with_name(folder.name + ".lock").exists()
    assert main(["evaluate", str(folder), *FAST, "--json"]) == 0
    assert not (folder / "evaluation.partial").exists()


def test_from_another_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.onnx").write_bytes(NETWORK.read_bytes())
    (tmp_path / "data.npz").write_bytes(IMAGES.read_bytes())
    assert main(["run", "net.onnx", "--data", "data.npz", "--count", "3", "--out", "a"]) == 0
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert main(["evaluate", "../a", *FAST]) == 0
