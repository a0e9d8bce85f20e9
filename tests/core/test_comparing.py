"""Comparisons: each method alone, whatever it does; what is done is not done again."""

from __future__ import annotations

import csv
import io
import json
import shutil
import sys
from pathlib import Path

import methods
import pytest
import torch
from problems import entries, write_inputs

from advrepair.core import comparing, comparison_table, isolation
from advrepair.core.comparing import Comparison
from advrepair.core.config import read_toml
from advrepair.core.errors import UsageError
from advrepair.core.files import read_json
from advrepair.core.network import load_network
from advrepair.core.registry import Registry
from advrepair.core.statistics import Share

FAILING = ["hangs", "hogs", "dies", "errs", "refuses", "infeasible"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a network, data with unseen inputs, and the failing methods installed."""
    folder = tmp_path_factory.mktemp("comparing")
    network, data = write_inputs(folder)
    arrays = dict(torch_data())
    write_inputs(folder, **arrays)
    methods.install(folder)
    sys.path.insert(0, str(folder))
    yield network, data
    sys.path.remove(str(folder))
    sys.modules.pop("advrepair_failing", None)


def torch_data():
    from problems import some_data

    x, y = some_data(100)
    yield "x_train", x[:60].numpy()
    yield "y_train", y[:60].numpy()
    yield "x_test", x[60:].numpy()
    yield "y_test", y[60:].numpy()


def comparison(place, folder, names, *layers) -> Comparison:
    network, data = place
    asked = {
        "problem": {"network": str(network), "data": str(data), "count": 4, "epsilon": 0.1},
        "evaluation": {"scope": "full", "samples": 2, "limit": 10},
        "comparison": {"methods": names, "seconds": 6.0, "memory": 1.0},
    }
    return Comparison.resolved(Registry.load(), [asked, *layers], folder)


@pytest.fixture(scope="module")
def found(place, tmp_path_factory):
    """Everything compared: what failed, what was said, and the folder."""
    folder = tmp_path_factory.mktemp("out") / "cmp"
    said, told = [], []
    patch = pytest.MonkeyPatch()
    patch.setattr(isolation, "GRACE", 0.5)
    whole = comparison(place, folder, ["none", "constant-bias", *FAILING, "advrepair"]).run(
        lambda *step: told.append(step), say=said.append
    )
    patch.undo()
    return whole, folder, said, told


def rows(whole):
    return {row["method"]: row for row in whole["rows"]}


def test_a_method_that_fails_says_why_and_stops_no_other(found) -> None:
    whole, *_ = found
    ends = {name: (row["status"], row["reason"]) for name, row in rows(whole).items()}
    assert list(ends) == whole["methods"] == ["none", "constant-bias", *FAILING, "advrepair"]
    assert ends["hangs"] == ("timeout", "it was ended: it did not stop within 6 s")
    assert ends["dies"] == ("failed", "exit code 7: licence expired")
    assert ends["errs"] == ("failed", "KeyError: 'no such key'")
    assert ends["refuses"] == ("refused", "refuses takes no task at all")
    assert ends["infeasible"] == ("infeasible", "two points contradict each other")
    assert ends["none"] == ("not_repaired", None)
    assert ends["advrepair"] == ends["constant-bias"] == ("repaired", None)
    if sys.platform.startswith("linux"):
        assert ends["hogs"] == ("out_of_memory", "it was ended: it took more than 1 GiB")


def test_only_what_is_applied_has_figures(found) -> None:
    for row in found[0]["rows"]:
        figures = [v for v in row["figures"].values() if v is not None]
        assert bool(figures) == (row["method"] in ("none", "constant-bias", "advrepair"))
        assert (row["model"] is None) == (not figures)


def test_the_figures_are_those_of_the_model(found) -> None:
    known = rows(found[0])
    ours, none = known["advrepair"]["figures"], known["none"]["figures"]
    assert (ours["certified"], ours["RSR"], ours["RGR"], ours["DSR"]) == (1.0,) * 4
    assert (none["certified"], none["RSR"], none["RGR"], none["DSR"]) == (0.0,) * 4
    assert none["DD"] == 0.0 and none["DGSR-oracle"] is None and ours["DGSR-oracle"] is not None
    counts = known["advrepair"]["counts"]
    assert (counts["RSR"], counts["DSR"], counts["DGSR-query"]) == (4, 4, 10)
    low, high = Share(4, 4).interval
    assert known["advrepair"]["intervals"]["RSR"] == [low, high]


def test_the_file_of_a_model_computes_it(found, place) -> None:
    folder = found[1]
    network = load_network(place[0])
    again = load_network(folder / "methods" / "none" / "model.onnx")
    x = torch.rand(5, 6)
    assert torch.allclose(again(x), network(x), atol=1e-6)
    assert rows(found[0])["none"]["model_bytes"] == (
        (folder / "methods" / "none" / "model.onnx").stat().st_size
    )


def test_what_is_printed_is_kept_beside_the_row(found) -> None:
    folder = found[1] / "methods"
    assert (folder / "errs" / "log.txt").read_text().splitlines()[0] == "solver 1.0"
    assert not (folder / "none" / "log.txt").exists()


def test_progress_and_a_line_for_each_method(found) -> None:
    _, _, said, told = found
    assert [line.split(":")[0] for line in said] == found[0]["methods"]
    assert "advrepair: repaired; RSR 100.0 %, DD" in said[-1]
    stages = {stage for stage, *_ in told}
    assert {"attack", "other counterexamples", "advrepair: training"} <= stages


def test_the_files(found) -> None:
    whole, folder, *_ = found
    top = {path.name for path in folder.iterdir()}
    assert top == {
        "compare.toml",
        "comparison.csv",
        "comparison.json",
        "comparison.md",
        "manifest.json",
        "methods",
        "problem.safetensors",
    }
    assert read_json(folder / "comparison.json") == json.loads(json.dumps(whole))
    table = list(csv.DictReader(io.StringIO((folder / "comparison.csv").read_text())))
    assert [row["method"] for row in table] == whole["methods"]
    by_name = {row["method"]: row for row in table}
    assert by_name["advrepair"]["RSR"] == "1.0" and by_name["hangs"]["RSR"] == ""
    assert by_name["errs"]["distribution"] == "advrepair-failing 0.3"
    page = (folder / "comparison.md").read_text()
    assert "| hangs | timeout | none | - | - |" in page and "- errs: failed: KeyError" in page


def test_costs_are_those_of_the_repair(found) -> None:
    known = rows(found[0])
    assert known["hangs"]["seconds"]["repair"] == 6.0
    assert 0 < known["advrepair"]["seconds"]["repair"] < 60
    if sys.platform.startswith("linux"):
        assert known["hogs"]["peak_memory_bytes"] > 2**30
        assert 2**26 < known["advrepair"]["peak_memory_bytes"] < 2**30


# Going on ------------------------------------------------------------------------------


@pytest.fixture
def copied(found, tmp_path, monkeypatch):
    """A copy of the comparison, and the methods that are tried from now on."""
    folder = tmp_path / "cmp"
    shutil.copytree(found[1], folder)
    tried = []

    def run(self, function, path, name):
        tried.append(name)
        raise KeyboardInterrupt

    monkeypatch.setattr(comparing.Alone, "run", run)
    return folder, tried


EVERY = ["none", "constant-bias", *FAILING, "advrepair"]


def test_what_is_done_is_not_done_again(copied, found, place) -> None:
    folder, tried = copied
    assert comparison(place, folder, EVERY).run(resume=True) == found[0]
    assert tried == []
    few = comparison(place, folder, ["advrepair", "none"]).run(resume=True)
    assert [row["method"] for row in few["rows"]] == ["advrepair", "none"]


CHANGES = [
    (["none", "errs"], {"errs": {"message": "other"}}, "errs"),
    (["none", "errs"], {"comparison": {"seconds": 3.0}}, "none"),
    (["none", "errs"], {"comparison": {"memory": 2.0}}, "none"),
]


@pytest.mark.parametrize(("names", "layer", "redone"), CHANGES)
def test_what_has_changed_is_done_again(copied, place, names, layer, redone) -> None:
    folder, tried = copied
    with pytest.raises(KeyboardInterrupt):
        comparison(place, folder, names, layer).run(resume=True)
    assert tried == [redone]
    assert not (folder / "methods" / redone / "result.json").exists()


def test_what_was_interrupted_is_done_again(copied, place) -> None:
    folder, tried = copied
    path = folder / "methods" / "none" / "result.json"
    row = read_json(path)
    del row["complete"]
    path.write_text(json.dumps(row))
    with pytest.raises(KeyboardInterrupt):
        comparison(place, folder, EVERY).run(resume=True)
    assert tried == ["none"]


def test_another_problem_is_another_comparison(copied, place) -> None:
    folder, tried = copied
    other = comparison(place, folder, EVERY, {"problem": {"epsilon": 0.2}})
    with pytest.raises(UsageError, match="was configured differently"):
        other.run(resume=True)
    with pytest.raises(UsageError, match="use --force, --resume or another"):
        other.run()
    before = entries(folder)
    with pytest.raises(UsageError, match="the attack finds"):
        comparison(place, folder, EVERY, {"problem": {"count": 10_000}}).run(force=True)
    assert entries(folder) == before  # what is there goes when its successor is sure
    with pytest.raises(KeyboardInterrupt):
        other.run(force=True)
    assert tried == ["none"] and not (folder / "methods" / "advrepair").exists()


def test_other_files_under_the_same_name_are_told(copied, place) -> None:
    folder, _ = copied
    _, data = place
    kept = data.read_bytes()
    try:
        arrays = dict(torch_data())
        write_inputs(data.parent, **{**arrays, "y_test": arrays["y_test"][::-1].copy()})
        with pytest.raises(UsageError, match="begun with other inputs or versions"):
            comparison(place, folder, EVERY).run(resume=True)
    finally:
        data.write_bytes(kept)


def test_a_folder_of_others_is_left_alone(place, tmp_path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    for flags in ({}, {"force": True}, {"resume": True}):
        with pytest.raises(UsageError, match="is no comparison"):
            comparison(place, tmp_path / "mine", ["none"]).run(**flags)
    assert entries(tmp_path / "mine") == ["thesis.tex"]


def test_its_configuration_repeats_it(found, place) -> None:
    stored = read_toml(found[1] / "compare.toml")
    again = Comparison.resolved(Registry.load(), [stored], Path("other"))
    assert again.as_layer() == stored
    assert [method.name for method in again.methods] == EVERY


# Which methods -------------------------------------------------------------------------


def test_all_are_all_that_are_installed(place) -> None:
    every = comparison(place, Path("x"), ["all"])
    names = [method.name for method in every.methods]
    assert names[:3] == ["none", "constant-bias", "advrepair"]
    assert set(FAILING) <= set(names)
    one = comparison(place, Path("x"), ["advrepair", "advrepair", "none"])
    assert [method.name for method in one.methods] == ["advrepair", "none"]


@pytest.mark.parametrize(
    ("names", "layer", "message"),
    [
        (["advrepiar"], {}, "unknown method 'advrepiar': did you mean 'advrepair'?"),
        ([], {}, "methods is empty"),
        (["errs"], {"errs": {"mesage": "x"}}, "did you mean 'message'"),
        (["errs"], {"errs": {"message": 3}}, "errs.message is 3"),
        (["none"], {"comparison": {"seconds": 0}}, "comparison.seconds is 0"),
    ],
)
def test_bad_choices_are_refused(place, names, layer, message) -> None:
    with pytest.raises(UsageError, match=message):
        comparison(place, Path("x"), names, layer)


def test_a_plugin_that_cannot_be_loaded_stops_nothing(place, tmp_path, monkeypatch) -> None:
    broken = tmp_path / "site"
    broken.mkdir()
    monkeypatch.syspath_prepend(broken)
    (broken / "advrepair_broken.py").write_text("raise ImportError('no licence')")
    info = broken / "advrepair_broken-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: advrepair-broken\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[advrepair]\nbroken = advrepair_broken\n")
    whole = comparison(place, tmp_path / "x", ["all"])
    assert "advrepair" in [method.name for method in whole.methods]


# The table -----------------------------------------------------------------------------


def test_what_is_not_all_is_not_shown_as_all() -> None:
    assert comparison_table.percent(0.9999) == "99.9" and comparison_table.percent(1.0) == "100.0"
    assert comparison_table.percent(-0.0001) == "0.0" and comparison_table.percent(None) == "-"


def test_columns_nobody_has_are_left_out(found) -> None:
    whole = found[0]
    assert comparison_table.head(whole)[3:-2] == (
        "certified", "RSR", "RGR", "DD", "DSR", "DGSR-query", "DGSR-certified", "DGSR-oracle"
    )  # fmt: skip
    few = {**whole, "rows": [rows(whole)["hangs"], rows(whole)["none"]]}
    assert "DGSR-oracle" not in comparison_table.head(few)
    assert all(len(line) == len(comparison_table.head(few)) for line in comparison_table.lines(few))


def test_every_word_of_the_table_is_explained(found) -> None:
    whole = found[0]
    known = {name for name, _ in comparison_table.legend(whole)}
    used = {row["status"] for row in whole["rows"]}
    assert used <= known and set(comparison_table.head(whole)[3:]) <= known
