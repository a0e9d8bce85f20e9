"""Whole runs on files: what they leave, and what an error or an interruption leaves."""

import json
import os
import tomllib
from typing import ClassVar

import numpy as np
import pytest
import torch
from attrs import frozen
from problems import (
    BYTES,
    SPLITTING,
    a_network,
    a_problem,
    a_registry,
    bytes_of,
    configure,
    entries,
    some_data,
    write_inputs,
)

from advrepair.api import load, repair
from advrepair.core import finding, pipeline
from advrepair.core.config import read_toml, resolve
from advrepair.core.errors import UsageError
from advrepair.core.files import file_digest
from advrepair.core.graph import Network
from advrepair.core.interfaces import Attack
from advrepair.core.reporting import METRICS
from advrepair.core.solving import Solver

FILES = sorted([*BYTES, "evaluation.safetensors", "manifest.json", "report.json", "run.toml"])


@frozen
class Once(Attack):
    """Finds the lower corner of each ball, whatever it is asked for."""

    name: ClassVar[str] = "once"

    def perturb(self, model, properties, start, generator):
        return properties.box.lower


@pytest.fixture(scope="module")
def registry():
    return a_registry(Once)


@pytest.fixture
def run(tmp_path, registry):
    """Run on the tiny problem into a folder below tmp_path."""
    network, data = write_inputs(tmp_path)

    def _run(name, *layers, **options):
        configuration = configure(registry, network, data, *layers)
        return pipeline.run(configuration, registry, tmp_path / name, **options)

    return _run


def test_a_run_leaves_its_files_and_nothing_else(run, tmp_path):
    before = entries(tmp_path)
    told = []
    report = run("out", progress=lambda *step: told.append(step))
    assert sorted(set(entries(tmp_path)) - set(before)) == ["out", *(f"out/{f}" for f in FILES)]
    stored = json.loads((tmp_path / "out" / "report.json").read_text())
    assert stored == report
    assert report["properties"]["certified"] == report["properties"]["total"] == 6
    metrics = report["metrics"]
    assert set(metrics) == set(METRICS) and metrics["DD"] is metrics["DGSR-query"] is None
    assert metrics["certified"] == metrics["RSR"] == 1.0
    seconds = dict(report["seconds"])
    total = seconds.pop("total")
    assert seconds.pop("branch and bound") == 0  # deeppoly does not search
    assert seconds.pop("screening") == 0  # no property files
    assert set(seconds) == {"attack", "bounds", "training", "certification", "evaluation"}
    assert all(value > 0 for value in seconds.values()) and sum(seconds.values()) <= total
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["inputs"]["network"] == file_digest(tmp_path / "net.onnx")
    assert manifest["inputs"]["data"] == file_digest(tmp_path / "data.npz")
    assert tomllib.loads((tmp_path / "out" / "run.toml").read_text())["problem"]["count"] == 6
    stages = [stage for stage, *_ in told]
    assert list(dict.fromkeys(stages)) == list(seconds)
    for stage in seconds:
        steps = [(done, total) for name, done, total in told if name == stage]
        assert steps == sorted(steps) and steps[-1][0] == steps[-1][1] > 0


def test_the_stored_function_is_the_certified_one(run, tmp_path):
    run("out")
    deployed, problem = load(tmp_path / "out"), a_problem()
    assert not problem.properties.violated(deployed(problem.x_adv)).any()
    stated = json.loads((tmp_path / "out" / "certificate.json").read_text())
    assert [p["name"] for p in stated["properties"]] == list(problem.properties.names)


def test_its_configuration_repeats_it(run, tmp_path, registry):
    run("a", SPLITTING)
    again = resolve(registry, [read_toml(tmp_path / "a" / "run.toml")])
    pipeline.run(again, registry, tmp_path / "b")
    assert bytes_of(tmp_path / "a") == bytes_of(tmp_path / "b")
    assert (tmp_path / "b" / "run.toml").read_text() == (tmp_path / "a" / "run.toml").read_text()


def test_resuming_a_complete_run_does_no_work(run, tmp_path):
    report = run("out")
    told = []
    assert run("out", resume=True, progress=lambda *step: told.append(step)) == report
    assert told == []


def test_force_replaces_a_run(run, tmp_path):
    run("out")
    first = bytes_of(tmp_path / "out")
    run("out", {"problem": {"count": 3}}, force=True)
    assert bytes_of(tmp_path / "out") != first
    assert [name for name in entries(tmp_path) if name.startswith("out.")] == []


@pytest.mark.parametrize("stage", ["attack", "bounds", "training", "certification", "evaluation"])
def test_an_interruption_keeps_the_work_for_a_resume(stage, run, tmp_path):
    run("whole")

    def stop(name, done, total):
        if name == stage and done == total:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run("out", progress=stop)
    assert not (tmp_path / "out").exists() and (tmp_path / "out.partial" / "run.toml").exists()
    with pytest.raises(UsageError, match="holds an interrupted run: use --force, --resume"):
        run("out")
    with pytest.raises(UsageError, match="was configured differently"):
        run("out", {"run": {"seed": 1}}, resume=True)
    run("out", resume=True)
    assert bytes_of(tmp_path / "out") == bytes_of(tmp_path / "whole")
    assert sorted(entries(tmp_path / "out")) == FILES and not (tmp_path / "out.partial").exists()


def test_what_is_done_is_not_done_again(run, monkeypatch):
    def stop(name, done, total):
        if name == "certification":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run("out", progress=stop)
    asked = []
    monkeypatch.setattr(finding, "find_counterexamples", lambda *a: asked.append("attack"))
    monkeypatch.setattr(Solver, "__call__", lambda *a: asked.append("shard"))
    report = run("out", resume=True)
    assert asked == []
    assert report["properties"]["certified"] == 6 and report["patches"]["mean_epochs"] > 0


def test_a_complete_run_is_only_put_in_its_place(run, tmp_path, monkeypatch):
    """The kill came between the report and the last rename, when no checkpoint is left."""

    def killed(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as killing:
        killing.setattr(os, "rename", killed)
        with pytest.raises(KeyboardInterrupt):
            run("out")
    assert sorted(entries(tmp_path / "out.partial")) == FILES
    monkeypatch.setattr(finding, "find_counterexamples", None)
    monkeypatch.setattr(Solver, "__call__", None)
    told = []
    report = run("out", resume=True, progress=lambda *step: told.append(step))
    assert report["properties"]["certified"] == 6 and told == []
    assert sorted(entries(tmp_path / "out")) == FILES and not (tmp_path / "out.partial").exists()


def test_counterexamples_of_the_data_are_used(run, tmp_path, monkeypatch):
    problem, (x, y) = a_problem(), some_data()
    x_adv = x.clone()
    x_adv[problem.row] = problem.x_adv
    np.savez(tmp_path / "data.npz", x=x.numpy(), y=y.numpy(), x_adv=x_adv.numpy())
    monkeypatch.setattr(finding, "find_counterexamples", None)
    report = run("out")
    assert report["properties"]["certified"] == 6 and report["seconds"]["attack"] == 0
    stated = json.loads((tmp_path / "out" / "certificate.json").read_text())
    assert [p["name"] for p in stated["properties"]] == [f"x[{i}]" for i in problem.row.tolist()]


def test_test_data_give_a_drawdown(run, tmp_path):
    x, y = (t.numpy() for t in some_data())
    np.savez(tmp_path / "data.npz", x_train=x[:40], y_train=y[:40], x_test=x[40:], y_test=y[40:])
    report = run("out")
    assert report["metrics"]["DD"] is not None and report["baseline"]["none"]["DD"] == 0
    assert report["baseline"]["constant-bias"]["DD"] is not None


def test_no_further_counterexample_leaves_rgr_unmeasured(run):
    """The attack always comes back with the same point."""
    report = run("out", {"plan": {"attack": "once"}, "problem": {"count": 1}})
    assert report["metrics"]["RSR"] == 1.0 and report["metrics"]["RGR"] is None


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ({"problem": {"count": 999}}, "the attack finds"),
        ({"problem": {"epsilon": 0.3, "count": 20}}, "cannot both hold"),
        ({"problem": {"input_range": [0, 0.5]}}, "outside the input range"),
    ],
)
def test_an_error_of_the_user_leaves_nothing(layer, message, run, tmp_path):
    before = entries(tmp_path)
    with pytest.raises(UsageError, match=message):
        run("out", layer)
    assert entries(tmp_path) == before


def test_an_error_of_the_user_leaves_no_folder_above_either(run, tmp_path):
    before = entries(tmp_path)
    with pytest.raises(UsageError, match="the attack finds"):
        run("deep/er/out", {"problem": {"count": 999}})
    assert entries(tmp_path) == before


def test_an_error_of_the_user_does_not_touch_the_run_that_was_there(run, tmp_path):
    run("out")
    before = bytes_of(tmp_path / "out")
    with pytest.raises(UsageError, match="the attack finds"):
        run("out", {"problem": {"count": 999}}, force=True)
    assert bytes_of(tmp_path / "out") == before


def test_a_float64_network_stays_one(tmp_path):
    network = a_network()
    tensors = {name: t.double() for name, t in network.tensors.items()}
    double = Network(network.operations, tensors, (6,))
    x, y = some_data()
    level = {"certification": {"level": "deployed-float32"}}
    with pytest.raises(UsageError, match="float64: use --level deployed-float64"):
        repair(double, x.double(), y, epsilon=0.1, count=4, settings=level)
    result = repair(double, x.double(), y, epsilon=0.1, count=4)
    assert result.certificate.level == "deployed-float64"
    assert result.network(x.double()).dtype == torch.float64
    assert result.report["properties"]["certified"] == 4
    result.save(tmp_path / "out")
    assert torch.equal(load(tmp_path / "out")(x.double()), result.network(x.double()))
