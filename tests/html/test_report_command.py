"""``advrepair report``: writes, says where, and refuses in one line what is no run."""

import json

import pytest
from pages import FILES, change, copy, image_run

from advrepair.cli import main


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return image_run(tmp_path_factory.mktemp("command") / "run", 3)


@pytest.fixture
def run(made, tmp_path):
    return copy(made, tmp_path / "run")


@pytest.fixture
def refused(capsys):
    def _refused(folder, message, *arguments):
        capsys.readouterr()
        assert main(["report", str(folder), *arguments]) == 2
        out, err = capsys.readouterr()
        assert out == "" and len(err.splitlines()) == 1 and err.startswith("error: "), err
        assert message in err and "Traceback" not in err, err

    return _refused


def test_it_says_where_it_wrote(run, tmp_path, capsys):
    assert main(["report", str(run)]) == 0
    assert capsys.readouterr().out == f"{run / 'report.html'}\n"
    other = tmp_path / "other.html"
    assert main(["report", str(run), "--out", str(other)]) == 0
    assert capsys.readouterr().out == f"{other}\n" and other.exists()


def test_no_folder(tmp_path, refused):
    refused(tmp_path / "none", "no such folder: name a run folder")
    (tmp_path / "file").write_text("x")
    refused(tmp_path / "file", "no such folder")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "report.json cannot be read")


@pytest.mark.parametrize("name", [*FILES, "evaluation.safetensors"])
@pytest.mark.parametrize("content", [None, b"", b"[]", b"{}", b"\xff\xfe", b'{"properties": 3}'])
def test_a_file_that_is_missing_or_no_part_of_a_run(name, content, run, refused):
    (run / "report.html").unlink()
    (run / name).unlink()
    if content is not None:
        (run / name).write_bytes(content)
    refused(run, name)
    assert not (run / "report.html").exists()


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("report.json", "problem", None),
        ("report.json", "metrics", [1]),
        ("report.json", "baseline", 3),
        ("report.json", "notes", "note"),
        ("report.json", "properties", {"total": "many"}),
        ("certificate.json", "properties", [3]),
        ("certificate.json", "properties", [{"name": "x"}]),
        ("certificate.json", "files", []),
        ("certificate.json", "level", 3),
    ],
)
def test_a_file_with_something_else_in_it(name, key, value, run, refused):
    change(run, name, lambda content: content.update({key: value}))
    refused(run, name)


def test_files_of_two_runs(run, refused):
    change(run, "certificate.json", lambda content: content["properties"].pop())
    refused(run, "do not belong together")


@pytest.mark.parametrize("name", ["repaired.safetensors", "certificate.safetensors"])
def test_a_file_that_was_changed(name, run, refused):
    content = (run / name).read_bytes()
    (run / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    refused(run, f"{name} was changed after it was certified: repair again")


def test_a_place_that_cannot_be_written_to(run, tmp_path, refused):
    refused(run, "it is a folder", "--out", str(tmp_path))
    refused(run, "cannot write to", "--out", str(tmp_path / "no" / "a.html"))
    refused(run, "cannot write to", "--out", str(tmp_path / ("x" * 300)))


def test_a_repair_saved_in_python_has_a_page_too(tmp_path, capsys):
    import numpy as np

    import advrepair
    from advrepair.core.network import load_network
    from advrepair.demo import IMAGES, NETWORK

    with np.load(IMAGES) as data:
        x, y = data["x_train"], data["y_train"]
    advrepair.repair(load_network(NETWORK), x, y, epsilon=0.1, count=3).save(tmp_path / "mine")
    assert main(["report", str(tmp_path / "mine")]) == 0
    assert "saved from Python" in (tmp_path / "mine" / "report.html").read_text()


def test_what_a_run_prints_does_not_change(tmp_path, capsys):
    assert main(["run", "--count", "2", "--json", "--out", str(tmp_path / "run")]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["properties"]["total"] == 2
    assert err.startswith("estimate: 2 patches") and err.count("\n") == 1
