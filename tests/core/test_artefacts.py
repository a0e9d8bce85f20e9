"""The run folder: whole or not at all, and read back bit for bit."""

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch
from problems import BYTES, a_network, a_registry, entries, some_data, some_parts, untold

from advrepair.core.artefacts import (
    Checkpoint,
    Folder,
    file_digest,
    manifest,
    read_json,
    read_repaired,
    read_tensors,
    write_certificate,
    write_json,
    write_repaired,
    write_tensors,
    write_text,
)
from advrepair.core.certification import certify
from advrepair.core.constant import constant_patches
from advrepair.core.errors import UsageError
from advrepair.core.patching import attach
from advrepair.core.registry import Registry
from advrepair.core.types import SplitPlan
from advrepair.plugins.allocators.cosine import Cosine
from advrepair.plugins.allocators.label_pair import LabelPair
from advrepair.plugins.allocators.nearest import Nearest
from advrepair.plugins.allocators.none import NoAllocator
from advrepair.plugins.indicators.targeted_label import TargetedLabel


@pytest.fixture
def folder(tmp_path):
    return Folder(tmp_path / "run")


MANIFEST = {"inputs": {"data": "1"}, "versions": {"torch": "2"}}


def a_run(path: Path, text="a = 1\n"):
    path.mkdir()
    write_json(path / "manifest.json", MANIFEST)
    (path / "run.toml").write_text(text)
    (path / "mine").write_text("x")


def test_a_new_folder_is_claimed_beside_its_place(folder, tmp_path):
    assert folder.claim("a = 1\n", MANIFEST, force=False, resume=False) is False
    assert entries(tmp_path) == ["run.partial", "run.partial/manifest.json", "run.partial/run.toml"]
    folder.discard()
    assert entries(tmp_path) == []


@pytest.mark.parametrize(
    ("state", "flags", "outcome"),
    [
        ("run", {}, "run holds a run: use --force, --resume or another --out"),
        ("run", {"resume": True}, True),
        ("run", {"force": True}, False),
        ("other run", {"resume": True}, "was configured differently: resume it with --config"),
        ("partial", {}, r"run.partial holds an interrupted run: use --force"),
        ("partial", {"resume": True}, False),
        ("partial", {"force": True}, False),
        ("other partial", {"resume": True}, "was configured differently"),
        ("folder", {}, "run exists and is no run folder: choose another --out"),
        ("folder", {"resume": True}, "is no run folder"),
        ("folder", {"force": True}, "is no run folder"),
        ("file", {}, "is no run folder"),
        ("file", {"force": True}, "is no run folder"),
        ("file", {"resume": True}, "is no run folder"),
        ("foreign partial", {}, "run.partial exists and is no run folder"),
        ("foreign partial", {"resume": True}, "run.partial exists and is no run folder"),
        ("foreign partial", {"force": True}, "run.partial exists and is no run folder"),
    ],
)
def test_claims(state, flags, outcome, folder, tmp_path):
    place = folder.partial if "partial" in state else folder.path
    if state == "file":
        place.write_text("x")
    elif state in ("folder", "foreign partial"):
        place.mkdir()
        (place / "mine").write_text("x")
    else:
        a_run(place, "b = 1\n" if "other" in state else "a = 1\n")
    before = entries(tmp_path)
    options = {"force": False, "resume": False} | flags
    if isinstance(outcome, str):
        with pytest.raises(UsageError, match=outcome):
            folder.claim("a = 1\n", MANIFEST, **options)
        assert entries(tmp_path) == before
    else:
        assert folder.claim("a = 1\n", MANIFEST, **options) is outcome
        assert state == "file" or (place / "mine").exists() is not (
            "partial" in state and (options["force"])
        )


def test_a_run_that_is_replaced_stays_until_the_new_one_is_complete(folder, tmp_path):
    a_run(folder.path)
    folder.claim("b = 1\n", MANIFEST, force=True, resume=False)
    assert (folder.path / "mine").exists()
    (folder.partial / "new").write_text("x")
    folder.publish()
    assert entries(tmp_path) == ["run", "run/manifest.json", "run/new", "run/run.toml"]
    assert (folder.path / "run.toml").read_text() == "b = 1\n"


def test_a_place_that_cannot_be_written_to(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UsageError, match=r"cannot write to .*run\.partial: Not a directory"):
        Folder(tmp_path / "file" / "run").claim("", MANIFEST, force=False, resume=False)
    assert entries(tmp_path) == ["file"]


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    write_json(path, {"b": 1, "a": [2]})
    assert path.read_text() == '{\n "a": [\n  2\n ],\n "b": 1\n}\n'
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "\udcff")
    assert json.loads(path.read_text()) == {"b": 1, "a": [2]}

    def broken(tensors, file, metadata):
        Path(file).write_bytes(b"half")
        raise OSError("disk full")

    write_tensors(tmp_path / "t", {"x": torch.ones(2)}, {})
    monkeypatch.setattr(safetensors.torch, "save_file", broken)
    with pytest.raises(OSError, match="disk full"):
        write_tensors(tmp_path / "t", {"x": torch.zeros(2)}, {})
    monkeypatch.undo()
    assert read_tensors(tmp_path / "t")[0]["x"].tolist() == [1, 1]


def test_tensors_and_header_come_back(tmp_path):
    tensors = {"a": torch.rand(2, 3).T, "b": torch.tensor([-1, 2])}
    write_tensors(tmp_path / "t", tensors, {"format": 1, "x": ["y"]})
    found, header = read_tensors(tmp_path / "t")
    assert header == {"format": 1, "x": ["y"]}
    assert all(torch.equal(found[name], t) for name, t in tensors.items())
    again = (tmp_path / "t").read_bytes()
    write_tensors(tmp_path / "t", dict(reversed(tensors.items())), {"x": ["y"], "format": 1})
    assert (tmp_path / "t").read_bytes() == again


def test_what_is_no_part_of_a_run_is_refused(tmp_path):
    with pytest.raises(UsageError, match="does not exist: is its folder a complete run"):
        read_tensors(tmp_path / "no")
    (tmp_path / "garbage").write_bytes(b"garbage")
    safetensors.torch.save_file({"x": torch.ones(1)}, tmp_path / "foreign")
    for name in ("garbage", "foreign"):
        with pytest.raises(UsageError, match="not readable as part of a run"):
            read_tensors(tmp_path / name)
    write_tensors(tmp_path / "future", {}, {"format": 99})
    with pytest.raises(UsageError, match="has format 99: this version reads 2"):
        read_repaired(tmp_path / "future", Registry.load())


def a_repaired(allocator, hidden):
    parts = some_parts()
    assignment = TargetedLabel().assign(parts.properties)
    network = a_network()
    repaired = attach(network, parts.properties, assignment, allocator, hidden, 0)
    generator = torch.Generator().manual_seed(0)
    stack = repaired.bank.stack
    repaired.bank.put(
        torch.arange(len(assignment)),
        {n: torch.randn(t.shape, generator=generator) for n, t in stack.items()},
    )
    return repaired


@pytest.mark.parametrize("hidden", [(), (5, 3)])
@pytest.mark.parametrize(
    "allocator", [Cosine(top=2), LabelPair(), Nearest(within=0.3), NoAllocator()]
)
def test_the_deployed_function_comes_back_bit_for_bit(allocator, hidden, tmp_path):
    repaired = a_repaired(allocator, hidden)
    write_repaired(tmp_path / "r.safetensors", repaired)
    found = read_repaired(tmp_path / "r.safetensors", Registry.load())
    assert found.allocator == allocator
    assert found.assignment.names == repaired.assignment.names
    x = torch.cat([some_data(50)[0], repaired.box.lower, repaired.box.upper, repaired.box.center])
    assert torch.equal(found(x), repaired(x))
    assert torch.equal(found.route(x, found.base(x)), repaired.route(x, repaired.base(x)))
    assert found.base.digest() == repaired.base.digest()
    write_repaired(tmp_path / "again", found)
    assert file_digest(tmp_path / "again") == file_digest(tmp_path / "r.safetensors")


def a_certificate(path, **options):
    parts = some_parts(hidden=(4,), **options)
    parts.worklist.split(SplitPlan(torch.tensor([1]), torch.tensor([2])), parts.bounder)
    stack, _ = constant_patches(torch.arange(6), parts.worklist, parts.bounder)
    parts.repaired.bank.put(torch.tensor([0, 1]), {n: t[:2] for n, t in stack.items()})
    found = certify(parts.repaired, parts.worklist, parts.bounder, parts.problem, None, 0, untold)
    path.mkdir()
    write_repaired(path / "repaired.safetensors", parts.repaired)
    write_certificate(path, found, parts.properties, parts.repaired)
    return found, parts


def test_a_certificate_says_what_holds_and_of_which_files(tmp_path):
    found, parts = a_certificate(tmp_path / "a")
    stated = json.loads((tmp_path / "a" / "certificate.json").read_text())
    assert (stated["level"], stated["certifier"]["name"]) == ("deployed-float32", "deeppoly")
    assert stated["certifier"]["version"] == stated["versions"]["advrepair"]
    assert stated["network"] == a_network().digest()
    for name, digest in stated["files"].items():
        assert digest == file_digest(tmp_path / "a" / name)
    rows = stated["properties"]
    assert [row["status"] for row in rows] == ["certified"] * 2 + ["unknown"] * 4
    assert [row["margin"] for row in rows] == found.margin.tolist()
    assert [row["pieces"] for row in rows] == [1, 2, 1, 1, 1, 1]
    assert [row["constant"] for row in rows] == [True] * 2 + [False] * 4
    assert [row["name"] for row in rows] == list(parts.properties.names)
    assert [row["id"] for row in rows] == list(parts.properties.identifiers())
    arrays, _ = read_tensors(tmp_path / "a" / "certificate.safetensors")
    assert torch.equal(arrays["box.lower"], parts.properties.box.lower)
    assert torch.equal(arrays["piece.margin"], found.proof.margin)
    assert arrays["tree.slope"].shape == (8, a_network().units)
    assert arrays["piece.slope"].shape == (7, 4) and len(arrays["multiplier.piece"]) == 0
    assert arrays["tree.parent"].tolist() == [-1] * 6 + [1, 1]


def test_a_certificate_has_no_time_path_or_machine_in_it(tmp_path):
    for name in ("a", "b"):
        a_certificate(tmp_path / name)
    for name in BYTES:
        one, other = ((tmp_path / where / name).read_bytes() for where in ("a", "b"))
        assert one == other and str(tmp_path).encode() not in one


def test_another_memory_gives_the_same_certificate(tmp_path):
    a_certificate(tmp_path / "a")
    a_certificate(tmp_path / "b", memory=2**20)
    for name in BYTES:
        one, other = ((tmp_path / where / name).read_bytes() for where in ("a", "b"))
        assert one == other, name


def test_checkpoints(tmp_path):
    kept = Checkpoint(tmp_path)
    assert kept.load("a") is None and kept.names("patches") == []
    kept.save("patches-2", {"x": torch.ones(1)})
    kept.save("patches-10", {"x": torch.zeros(1)})
    kept.save("other", {"y": torch.ones(2)})
    assert kept.names("patches") == ["patches-10", "patches-2"]
    assert kept.load("patches-10")["x"].tolist() == [0]
    (tmp_path / "run.toml").write_text("")
    kept.clear()
    assert entries(tmp_path) == ["run.toml"]


def test_a_manifest_says_what_it_ran_on():
    found = manifest(a_registry(), {"network": "abc"}, 7)
    assert found["versions"].keys() >= {"advrepair", "torch", "numpy", "python"}
    assert found["inputs"] == {"network": "abc"} and found["seed"] == 7
    plugins = {(p["kind"], p["name"]): p["version"] for p in found["plugins"]}
    assert plugins["verifier", "deeppoly"] and ("indicator", "mixed") in plugins
    assert found["hardware"]["device"] == "cpu"
    json.dumps(found)


@pytest.mark.parametrize("place", ["path", "partial"])
@pytest.mark.parametrize("key", ["inputs", "versions"])
def test_other_inputs_or_versions_are_not_resumed(key, place, folder):
    a_run(getattr(folder, place))
    changed = MANIFEST | {key: {"data": "2"}}
    with pytest.raises(UsageError, match=f"begun with other {key}"):
        folder.claim("a = 1\n", changed, force=False, resume=True)
    assert folder.claim("a = 1\n", changed, force=True, resume=False) is False


def test_reading_json(tmp_path):
    (tmp_path / "report.json").write_text('{"a": 1}')
    assert read_json(tmp_path / "report.json") == {"a": 1}
    (tmp_path / "report.json").write_text("{")
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(UsageError, match=r"report\.json cannot be read"):
            read_json(folder / "report.json")


def test_what_is_resumed_survives_an_error(folder):
    folder.claim("a = 1\n", MANIFEST, force=False, resume=False)
    Checkpoint(folder.partial).save("x", {"a": torch.ones(1)})
    again = Folder(folder.path)
    assert again.claim("a = 1\n", MANIFEST, force=False, resume=True) is False
    again.discard()
    assert Checkpoint(folder.partial).names("x") == ["x"]
    folder.discard()
    assert not folder.partial.exists()


def test_a_damaged_checkpoint_is_as_good_as_none(folder):
    folder.claim("a = 1\n", MANIFEST, force=False, resume=False)
    kept = Checkpoint(folder.partial)
    kept.save("x", {"a": torch.ones(1)})
    (folder.partial / "checkpoint-x.safetensors").write_bytes(b"short")
    assert kept.load("x") is None
