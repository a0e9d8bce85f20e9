"""What does not fit is refused before any work, and what would fit is named, and does."""

import re

import pytest

from advrepair.cli import main
from advrepair.core import room
from advrepair.core.config import resolve
from advrepair.core.estimate import estimate
from advrepair.core.inputs import read_inputs
from advrepair.core.registry import Registry

REGISTRY = Registry.load()
HIDDEN = ["--set", "patch.hidden=[256,256]"]


def refused(arguments, capsys):
    assert main(["run", *arguments]) == 2
    said = capsys.readouterr().err.strip()
    assert said.startswith("error: ") and "\n" not in said
    return said


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_too_little_disk_is_refused_and_the_count_named_fits(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(room, "free_disk", lambda folder: 20 * 2**20)
    said = refused(HIDDEN, capsys)
    assert "of disk, and 20 MiB are left" in said
    count = int(re.search(r"--count (\d+)", said)[1])
    assert 0 < count < 50
    assert list(tmp_path.iterdir()) == []
    assert main(["run", *HIDDEN, "--count", str(count), "--dry-run"]) == 0
    refused([*HIDDEN, "--count", str(count + 2), "--dry-run"], capsys)


def test_the_smaller_patch_named_fits(monkeypatch, capsys):
    monkeypatch.setattr(room, "free_disk", lambda folder: 20 * 2**20)
    hidden = re.search(r"--set (patch\.hidden=\S+)", refused(HIDDEN, capsys))[1]
    assert main(["run", "--set", hidden, "--dry-run"]) == 0


def test_too_little_memory_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(room, "available_memory", lambda: 2**22)
    assert "of memory, and 4.0 MiB are left" in refused([], capsys)
    assert list(tmp_path.iterdir()) == []


def test_a_system_that_does_not_tell_its_memory_refuses_nothing(monkeypatch):
    monkeypatch.setattr(room, "available_memory", lambda: None)
    assert main(["run", "--dry-run"]) == 0


def test_the_run_memory_named_is_enough(capsys):
    said = refused(["--set", "run.memory=0.00001"], capsys)
    named = re.search(r"--set (run\.memory=[\d.]+)", said)[1]
    assert main(["run", "--set", named, "--dry-run"]) == 0


def test_an_absurd_patch_is_refused_before_it_is_made(capsys):
    said = refused(["--set", "patch.hidden=[1000000000,1000000000]"], capsys)
    assert "make patch.hidden smaller" in said


def test_time_is_no_reason_to_refuse(tmp_path):
    plan = resolve(REGISTRY, [{"pgd": {"steps": 10**9}}])
    found = estimate(read_inputs(plan.problem), plan)
    assert sum(found.seconds.values()) > 3600
    room.refuse(found, tmp_path / "not there" / "yet")
