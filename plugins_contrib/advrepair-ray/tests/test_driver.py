"""The command line: a driver that is killed, one that is interrupted, and what they leave."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from contextlib import suppress
from pathlib import Path

import pytest
from work import FILES, until

# Four shards, of most of a second each: whoever waits for the first still meets the others.
PROBLEM = (
    *("--count", "40", "--set", "patch.hidden=[32]", "--set", "training.optimiser=adam"),
    *("--set", "training.lr=0.001", "--set", "training.clamp=false"),
    *("--set", "training.epochs=600", "--set", "training.rounds=1"),
)
RAY = ("--executor", "ray", "--set", "executor.in_flight=1")


def start(folder: Path, *arguments: str) -> tuple[subprocess.Popen[str], str]:
    """``advrepair run`` in a folder, and a mark that its processes bear."""
    mark = uuid.uuid4().hex
    command = [sys.executable, "-m", "advrepair", "run", *PROBLEM, "--out", "out", *arguments]
    process = subprocess.Popen(
        command,
        cwd=folder,
        env={**os.environ, "ADVREPAIR_TEST_MARK": mark},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    return process, mark


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Exit code and output."""
    shown, _ = process.communicate(timeout=120)
    return process.returncode, shown


def finished(folder: Path, process: subprocess.Popen[str], mark: str) -> dict[str, bytes]:
    """The files of a run that goes well."""
    code, shown = ended(process)
    assert code == 0, shown
    until(lambda: not running(mark))
    return {name: (folder / "out" / name).read_bytes() for name in FILES}


def running(mark: str) -> list[str]:
    """Processes that began with a mark in their environment."""
    found = []
    for each in Path("/proc").iterdir():
        try:
            if each.name.isdecimal() and mark.encode() in (each / "environ").read_bytes():
                found.append(each.name)
        except OSError:
            continue
    return found


def killed(mark: str) -> list[str]:
    """Those that were running a moment ago; they are killed."""
    found = running(mark)
    for pid in found:
        with suppress(ProcessLookupError):
            os.kill(int(pid), signal.SIGKILL)
    return found


def shards(folder: Path) -> list[str]:
    """Those that lie on disk."""
    return sorted(path.stem for path in (folder / "out.partial").rglob("*shard-*.safetensors"))


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs /proc")
def test_a_killed_driver_is_resumed(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    plain = start(here)
    process, mark = start(there, *RAY)
    until(lambda: len(shards(there)) >= 1 or process.poll() is not None)
    process.send_signal(signal.SIGKILL)
    code, shown = ended(process)
    assert code == -signal.SIGKILL, shown
    until(lambda: not killed(mark))  # Ray's own processes take their time to notice
    done = shards(there)
    assert 1 <= len(done) < 4
    assert finished(there, *start(there, *RAY, "--resume")) == finished(here, *plain)


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs /proc")
def test_an_interrupted_driver_ends_what_it_started(tmp_path: Path) -> None:
    process, mark = start(tmp_path, *RAY)
    until(lambda: bool(shards(tmp_path)) or process.poll() is not None)
    time.sleep(0.3)  # sent at once it was lost twice; why is not known
    process.send_signal(signal.SIGINT)
    code, shown = ended(process)
    assert code == 130, shown
    until(lambda: not running(mark))
    assert shards(tmp_path)
