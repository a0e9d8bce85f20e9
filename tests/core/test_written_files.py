"""Files written whole or not at all."""

import errno
import json

import pytest
import torch

from advrepair.core.errors import UsageError
from advrepair.core.files import (
    Blocks,
    read_json,
    read_tensors,
    write_json,
    write_tensors,
    write_text,
)


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"b": 1, "a": [2]})
    assert path.read_text() == '{\n "a": [\n  2\n ],\n "b": 1\n}\n'
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "\udcff")
    assert json.loads(path.read_text()) == {"b": 1, "a": [2]}

    def broken():
        yield torch.zeros(1)
        raise OSError(errno.ENOSPC, "disk full")

    write_tensors(tmp_path / "t", {"x": torch.ones(2)}, {})
    with pytest.raises(OSError, match="disk full"):
        write_tensors(tmp_path / "t", {"x": Blocks(torch.float32, (2,), broken)}, {})
    with pytest.raises(ValueError, match="not the size that was announced"):
        short = Blocks(torch.float32, (2,), lambda: iter([torch.zeros(1)]))
        write_tensors(tmp_path / "t", {"x": short}, {})
    with pytest.raises(ValueError, match="not the size that was announced"):
        long = Blocks(torch.float32, (2,), lambda: iter([torch.zeros(3)]))
        write_tensors(tmp_path / "t", {"x": short, "y": long}, {})  # as long as both together
    with pytest.raises(ValueError, match="not the type that was announced"):
        wide = Blocks(torch.float32, (2,), lambda: iter([torch.zeros(1, dtype=torch.float64)]))
        write_tensors(tmp_path / "t", {"x": wide}, {})
    assert read_tensors(tmp_path / "t")[0]["x"].tolist() == [1, 1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "t"]


def test_tensors_and_header_come_back(tmp_path):
    tensors = {"a": torch.rand(2, 3).T, "b": torch.tensor([-1, 2])}
    write_tensors(tmp_path / "t", tensors, {"format": 1, "x": ["y"]})
    found, header = read_tensors(tmp_path / "t")
    assert header == {"format": 1, "x": ["y"]}
    assert all(torch.equal(found[name], t) for name, t in tensors.items())
    again = (tmp_path / "t").read_bytes()
    write_tensors(tmp_path / "t", dict(reversed(tensors.items())), {"x": ["y"], "format": 1})
    assert (tmp_path / "t").read_bytes() == again


def test_reading_json(tmp_path):
    (tmp_path / "report.json").write_text('{"a": 1}')
    assert read_json(tmp_path / "report.json") == {"a": 1}
    (tmp_path / "report.json").write_text("{")
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(UsageError, match=r"report\.json cannot be read"):
            read_json(folder / "report.json")
