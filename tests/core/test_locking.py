"""One process at a time on a folder, and no trace of it afterwards."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from problems import entries

from advrepair.core.errors import UsageError
from advrepair.core.locking import alone

HOLD = """
import sys, time
from pathlib import Path
from advrepair.core.locking import alone
with alone(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""
# Adds one to a number many times; without a lock that holds, some are lost.
COUNT = """
import sys, time
from pathlib import Path
from advrepair.core.errors import UsageError
from advrepair.core.locking import alone
number, done = Path(sys.argv[1] + ".number"), 0
while done < int(sys.argv[2]):
    try:
        with alone(Path(sys.argv[1])):
            value = int(number.read_text())
            time.sleep(0.0005)
            number.write_text(str(value + 1))
            done += 1
    except UsageError:
        pass
"""


def start(code: str, *arguments: object, **options) -> subprocess.Popen[str]:
    root = str(Path(__file__).parents[2])
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, env={**os.environ, "PYTHONPATH": root}, text=True, **options)


def test_it_leaves_nothing(tmp_path):
    handles = Path("/proc/self/fd")
    before = len(entries(handles)) if handles.exists() else 0
    with alone(tmp_path / "some" / "where" / "a"):
        assert entries(tmp_path) == ["some", "some/where", "some/where/a.lock"]
        with alone(tmp_path / "some" / "where" / "b"):  # another folder
            pass
    assert entries(tmp_path) == []
    assert before == (len(entries(handles)) if handles.exists() else 0)


def test_after_an_error_too_and_what_was_made_stays(tmp_path):
    with pytest.raises(ZeroDivisionError), alone(tmp_path / "some" / "a"):
        (tmp_path / "some" / "a").mkdir()
        raise ZeroDivisionError
    assert entries(tmp_path) == ["some", "some/a"]


def test_a_second_one_is_refused_by_any_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path)
    with alone(tmp_path / "a"):
        for name in ("a", "link/a"):
            with pytest.raises(
                UsageError, match=f"{name} is in use by process {os.getpid()}: wait"
            ):
                alone(Path(name)).__enter__()


def test_a_kill_ends_it(tmp_path):
    holder = start(HOLD, tmp_path / "a", stdout=subprocess.PIPE)
    assert holder.stdout is not None and holder.stdout.readline() == "held\n"
    with pytest.raises(UsageError, match=f"in use by process {holder.pid}"):
        alone(tmp_path / "a").__enter__()
    holder.kill()
    holder.communicate()
    assert entries(tmp_path) == ["a.lock"]
    with alone(tmp_path / "a"):
        assert (tmp_path / "a.lock").read_text() == f"{os.getpid()}\n"
    assert entries(tmp_path) == []


def test_no_two_hold_it_while_files_come_and_go(tmp_path):
    """The file is deleted as the lock is given up; others have it open at that moment."""
    (tmp_path / "a.number").write_text("0")
    several = [start(COUNT, tmp_path / "a", 40) for _ in range(3)]
    assert [each.wait(100) for each in several] == [0] * 3
    assert (tmp_path / "a.number").read_text() == "120"
    assert entries(tmp_path) == ["a.number"]


def test_a_place_that_cannot_be_written_to(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UsageError, match=r"cannot write to .*file/a: Not a directory; mend that"):
        alone(tmp_path / "file" / "a").__enter__()
    assert entries(tmp_path) == ["file"]
