"""The run folder: there when it is complete, and never half."""

import json
from pathlib import Path

import pytest
import torch
from problems import a_registry, entries

from advrepair.core.errors import UsageError
from advrepair.core.files import (
    write_json,
)
from advrepair.core.run_folder import Checkpoint, Folder, manifest


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
        ("other run", {"resume": True}, "was configured differently: leave --config and flags out"),
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


def test_checkpoints(tmp_path):
    kept = Checkpoint(tmp_path)
    assert kept.load("a") is None
    kept.save("patches-2", {"x": torch.ones(1)})
    kept.save("patches-10", {"x": torch.zeros(1)})
    kept.save("other", {"y": torch.ones(2)})
    assert kept.load("patches-10")["x"].tolist() == [0]
    (tmp_path / "run.toml").write_text("")
    (tmp_path / "repaired.safetensors.tmp").write_text("left by a run that was killed")
    kept.clear()
    assert entries(tmp_path) == ["run.toml"]


def test_a_manifest_says_what_it_ran_on():
    found = manifest(a_registry(), {"network": "abc"}, 7, "cpu")
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


def test_what_is_resumed_survives_an_error(folder):
    folder.claim("a = 1\n", MANIFEST, force=False, resume=False)
    Checkpoint(folder.partial).save("x", {"a": torch.ones(1)})
    again = Folder(folder.path)
    assert again.claim("a = 1\n", MANIFEST, force=False, resume=True) is False
    again.discard()
    assert Checkpoint(folder.partial).load("x") is not None
    folder.discard()
    assert not folder.partial.exists()


def test_a_damaged_checkpoint_is_as_good_as_none(folder):
    folder.claim("a = 1\n", MANIFEST, force=False, resume=False)
    kept = Checkpoint(folder.partial)
    kept.save("x", {"a": torch.ones(1)})
    (folder.partial / "checkpoint-x.safetensors").write_bytes(b"short")
    assert kept.load("x") is None


def test_one_changed_bit_makes_a_checkpoint_as_good_as_none(tmp_path):
    kept, path = Checkpoint(tmp_path), tmp_path / "checkpoint-x.safetensors"
    kept.save("x", {"a": torch.ones(3), "b": torch.zeros(2, dtype=torch.bool)})
    whole = path.read_bytes()
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        assert kept.load("x") is None, place
        path.write_bytes(whole[:place])
        assert kept.load("x") is None, place
    path.write_bytes(whole)
    assert kept.load("x")["a"].tolist() == [1, 1, 1]
    path.rename(tmp_path / "checkpoint-y.safetensors")  # one thing taken for another
    assert kept.load("y") is None


def test_a_folder_of_the_first_or_last_moments_is_ours(folder):
    folder.partial.mkdir()
    (folder.partial / "run.toml.tmp").write_text("a =")
    assert folder.claim("a = 1\n", MANIFEST, force=False, resume=False) is False
    assert folder.began
    (folder.partial / "run.toml").unlink()
    assert Folder(folder.path).claim("b = 1\n", MANIFEST, force=False, resume=True) is False


def test_memory_and_executor_may_change(folder):
    before = '[run]\nmemory = 2\n[plan]\nexecutor = "in-process"\n[in-process]\nworkers = 2\n'
    folder.claim(before, MANIFEST, force=False, resume=False)
    after = '[run]\nmemory = 1\n[plan]\nexecutor = "other"\n[other]\nx = 2\n'
    for text in (after, before):
        assert Folder(folder.path).claim(text, MANIFEST, force=False, resume=True) is False
    with pytest.raises(UsageError, match="was configured differently"):
        folder.claim("[run]\nseed = 1\n", MANIFEST, force=False, resume=True)
