"""``--resume``: from any working directory, without other flags, or with some that agree."""

import tomllib
from pathlib import Path

import pytest
from problems import bytes_of, entries, write_inputs

from advrepair.cli import main
from advrepair.core import pipeline
from advrepair.core.inputs import anchored
from advrepair.core.sections import Problem

RUN = ["run", "net.onnx", "--data", "data.npz", "--count", "4", "--seed", "5"]


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """The working directory, with a complete run ``whole`` and an interrupted one ``a``."""
    monkeypatch.chdir(tmp_path)
    write_inputs(tmp_path)
    assert main([*RUN, "--out", "whole"]) == 0

    def stop(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as interrupted:
        interrupted.setattr(pipeline, "certify", stop)
        assert main([*RUN, "--out", "a"]) == 130
    assert not Path("a").exists() and Path("a.partial").exists()
    return tmp_path


def test_it_goes_on_with_what_was_configured(place, capsys):
    assert main(["run", "--resume", "--out", "a"]) == 0
    assert "resuming: 4 of 4 patches are done" in capsys.readouterr().out
    assert bytes_of(place / "a") == bytes_of(place / "whole")


@pytest.mark.parametrize(
    "flags",
    [
        ["net.onnx"],
        ["--data", "./data.npz", "--seed", "5"],
        ["--config", "a.partial/run.toml"],
        ["--set", "run.memory=1", "--set", "in-process.workers=3"],
    ],
)
def test_flags_that_agree(flags, place):
    assert main(["run", *flags, "--resume", "--out", "a"]) == 0
    assert bytes_of(place / "a") == bytes_of(place / "whole")


@pytest.mark.parametrize("flags", [["--seed", "6"], ["other.onnx"], ["--set", "training.lr=3"]])
def test_flags_that_do_not_agree(flags, place, capsys):
    (place / "other.onnx").write_bytes((place / "net.onnx").read_bytes())
    before = entries(place)
    capsys.readouterr()
    assert main(["run", *flags, "--resume", "--out", "a"]) == 2
    line = "a.partial was configured differently: leave --config and flags out to resume it"
    assert line in capsys.readouterr().err
    assert entries(place) == before


def test_from_another_working_directory(place, monkeypatch):
    stored = tomllib.loads((place / "a.partial" / "run.toml").read_text())["problem"]
    assert stored["network"] == str(place / "net.onnx") and stored["data"] == str(
        place / "data.npz"
    )
    (place / "elsewhere").mkdir()
    monkeypatch.chdir(place / "elsewhere")
    flags = ["../net.onnx", "--data", "../data.npz"]
    assert main(["run", *flags, "--resume", "--out", "../a"]) == 0
    assert bytes_of(place / "a") == bytes_of(place / "whole")
    assert main(["run", "--config", "../a/run.toml", "--out", "again"]) == 0
    assert bytes_of(place / "elsewhere" / "again") == bytes_of(place / "whole")


def test_nothing_to_go_on_with(place, capsys):
    before = entries(place)
    capsys.readouterr()
    assert main(["run", "--resume", "--out", "new/b"]) == 2
    assert "new/b holds nothing to go on with: say again what" in capsys.readouterr().err
    assert entries(place) == before
    assert main([*RUN, "--resume", "--out", "new/b"]) == 0
    assert bytes_of(place / "new" / "b") == bytes_of(place / "whole")


def test_the_folder_of_the_network_is_found(place):
    (place / "runs").mkdir()
    (place / "a.partial").rename(place / "runs" / "net.partial")
    assert main(["run", "net.onnx", "--resume"]) == 0
    assert bytes_of(place / "runs" / "net") == bytes_of(place / "whole")


def test_the_demo_stays_the_demo(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert anchored(Problem()) == Problem()
    (tmp_path / "digits").write_text("a file of that name")
    assert anchored(Problem()).network == str(tmp_path / "digits")
    asked = anchored(Problem(network="n.nnet", property=("p.vnnlib", "/q.vnnlib")))
    assert asked.property == (str(tmp_path / "p.vnnlib"), "/q.vnnlib") and asked.data == ""
