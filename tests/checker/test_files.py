"""Files that are not what they seem: a reason, never a crash or a large allocation."""

import hashlib
import json
import os
import pickle
import shutil
import struct
import tracemalloc

import numpy as np
import pytest
import safetensors.numpy
from folders import edited, repaired, verdict
from hypothesis import given
from hypothesis import strategies as st

from advrepair.checker.files import Malformed, parse_json, parse_tensors


def stored(header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


META = {"advrepair": "{}"}


def entry(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def test_it_reads_what_safetensors_writes():
    arrays = {
        "a": np.arange(6, dtype=np.float32).reshape(2, 3),
        "b": np.array([1.5, -0.0]),
        "c": np.array([[2**62]]),
        "d": np.array([True, False]),
        "e": np.zeros((0, 3)),
    }
    data = safetensors.numpy.save(arrays, {"advrepair": '{"format": 1}'})
    found, header = parse_tensors(data, "x")
    assert header == {"format": 1}
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype
        assert found[name].shape == array.shape
        assert found[name].tobytes() == array.tobytes()


EIGHT = b"\0" * 8
BROKEN = {
    "empty": b"",
    "seven bytes": b"\0" * 7,
    "no header": struct.pack("<Q", 0),
    "a header longer than the file": struct.pack("<Q", 2**63) + b"{}",
    "a pickle": pickle.dumps({"a": np.zeros(2)}),
    "no JSON": stored(b"{"),
    "no text": stored(b"\xff\xfe\xfd"),
    "deep JSON": stored(b"[" * 100_000),
    "a long number": stored(b'{"a": ' + b"9" * 10_000 + b"}"),
    "the same key twice": stored(b'{"__metadata__": {"advrepair": "{}"}, "a": 1, "a": 1}'),
    "bytes of none": stored({"__metadata__": META, "a": entry()}, EIGHT + b"!"),
    "two arrays in one place": stored({"__metadata__": META, "a": entry(), "b": entry()}, EIGHT),
    "beyond the end": stored({"__metadata__": META, "a": entry(offsets=(4, 12))}, EIGHT),
    "backwards": stored({"__metadata__": META, "a": entry(offsets=(8, 0))}, EIGHT),
    "negative": stored({"__metadata__": META, "a": entry(offsets=(-8, 0))}, EIGHT),
    "a huge shape": stored({"__metadata__": META, "a": entry(shape=(2**62, 4))}, EIGHT),
    "a shape of true": stored({"__metadata__": META, "a": entry(shape=(True, 2))}, EIGHT),
    "a shape of fractions": stored({"__metadata__": META, "a": entry(shape=(2.0,))}, EIGHT),
    "half precision": stored({"__metadata__": META, "a": entry("F16", (4,))}, EIGHT),
    "a list as dtype": stored({"__metadata__": META, "a": entry(["F32"])}, EIGHT),
    "no metadata": stored({"a": entry()}, EIGHT),
    "a list": stored([1, 2]),
}


@pytest.mark.parametrize("name", BROKEN)
@pytest.mark.parametrize("file", ["repaired.safetensors", "certificate.safetensors"])
def test_malformed_tensors_are_invalid(name, file, tmp_path, folder):
    target = shutil.copytree(folder, tmp_path / "run")
    (target / file).write_bytes(BROKEN[name])
    claim = json.loads((target / "certificate.json").read_text())
    claim["files"][file] = hashlib.sha256(BROKEN[name]).hexdigest()
    (target / "certificate.json").write_text(json.dumps(claim))
    found = verdict(target)
    assert found.word == "INVALID"
    assert "\n" not in found.line


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return repaired(tmp_path_factory.mktemp("files") / "run")


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "7", "{}", '{"files": 3}', "[" * 10**6])
def test_malformed_json_is_invalid(text, tmp_path, folder):
    target = shutil.copytree(folder, tmp_path / "run")
    (target / "certificate.json").write_text(text)
    assert verdict(target).word == "INVALID"


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(data):
    for text in (data, stored(data), stored({"__metadata__": META, "a": entry()}, data)):
        try:
            parse_tensors(text, "x")
        except (Malformed, LookupError, TypeError, ValueError, AttributeError):
            continue


def test_a_repeated_key_is_refused():
    with pytest.raises(Malformed, match="repeated"):
        parse_json('{"status": "unknown", "status": "certified"}', "x")


def test_a_pipe_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "certificate.json")
    with pytest.raises(FileNotFoundError):
        verdict(tmp_path)


def test_a_reason_is_one_short_line(tmp_path, folder):
    target = shutil.copytree(folder, tmp_path / "run")
    claim = json.loads((target / "certificate.json").read_text())
    claim["level"] = "\ud800 a line\nof " + 10_000 * "words "
    (target / "certificate.json").write_text(json.dumps(claim))
    line = verdict(target).line
    assert line.startswith("INVALID: level ")
    assert len(line.encode()) < 400
    assert line.count("\n") == 0


def structure(*operations, shape=(4,)):
    keys = ("name", "kind", "shape", "settings")
    listed, last = [], "input"
    for operation in operations:
        listed.append({**dict(zip(keys, operation, strict=True)), "inputs": [last], "tensors": {}})
        last = operation[0]
    return {"input_shape": list(shape), "operations": listed}


ONE, WINDOW = [1, 1], {"kernel_size": [1000, 1000], "stride": [1, 1]}
LARGE = {
    "input": structure(("a", "relu", [2**21], {}), shape=(2**21,)),
    "many axes": structure(("a", "relu", [2**10] * 3, {}), shape=[2**10] * 3),
    "padded": structure(("a", "pad", [2**40], {"pad": [2**40, 0]})),
    "padded a little": structure(("a", "pad", [2**20 + 1], {"pad": [2**20 - 3, 0]})),
    "two axes": structure(("a", "pad", [2**19 + 1] * 2, {"pad": [2**19] * 4}), shape=ONE),
    "a name of a shape": structure(("a", "reshape", [2**60], {})),
    "windows": structure(("a", "avg_pool2d", [1, 25, 25], WINDOW), shape=(1, 1024, 1024)),
}


@pytest.mark.parametrize("name", LARGE)
def test_sizes_beyond_the_limits_are_incomplete(name, tmp_path, folder):
    def large(claim, proof, stored):
        stored["header"]["base"] = LARGE[name]

    target = edited(folder, tmp_path / "run", large)
    tracemalloc.start()
    found = verdict(target)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.word == "INCOMPLETE", found.line
    assert peak < 2**26


def test_a_file_beyond_the_limit_is_incomplete(tmp_path, folder):
    target = shutil.copytree(folder, tmp_path / "run")
    with open(target / "repaired.safetensors", "r+b") as file:
        file.truncate(2**32 + 1)  # a hole: it takes no place
    assert verdict(target).word == "INCOMPLETE"
