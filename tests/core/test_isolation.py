"""A process of its own: whatever happens in it becomes a word."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from advrepair.core import isolation
from advrepair.core.errors import SoundnessError, UsageError
from advrepair.core.isolation import Alone, How, Line, last_line

MIB = 2**20


def says(line: Line, answer: str) -> None:
    print(f"said {answer}")
    line.progress("stage", 1, 2)
    with open(answer, "w") as file:
        file.write(str(os.getpid()))


def raises(line: Line, error: Exception) -> None:
    raise error


def leaves(line: Line, code: int) -> None:
    os.write(2, b"a library gave up\n")
    os._exit(code)


def is_killed(line: Line, number: int) -> None:
    os.kill(os.getpid(), number)
    time.sleep(60)


def sleeps(line: Line, path: str) -> None:
    with open(path, "w") as file:
        file.write(str(os.getpid()))
    line.limited(True)
    time.sleep(600)


def takes_its_time_later(line: Line) -> None:
    line.limited(True)
    line.limited(False)
    time.sleep(1.0)


def grows(line: Line) -> None:
    held = []
    while True:
        held.append(bytearray(os.urandom(1)) * (16 * MIB))
        time.sleep(0.01)


def grows_after_the_part(line: Line) -> None:
    line.limited(True)
    time.sleep(0.3)
    line.limited(False)
    held = bytearray(b"x") * (200 * MIB)
    time.sleep(0.4)
    del held


@pytest.fixture
def alone(tmp_path, monkeypatch):
    """Runs a function with limits; progress is kept in a list."""
    monkeypatch.setattr(isolation, "GRACE", 0.3)

    def make(seconds=60.0, memory=4096 * MIB):
        told = []
        found = Alone(seconds, memory, tmp_path / "log.txt", lambda *step: told.append(step))
        return found, told

    return make


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def test_it_is_another_process_that_prints_elsewhere(alone, tmp_path, capfd) -> None:
    run, told = alone()
    ended = run.run(says, str(tmp_path / "answer"))
    assert ended.how is How.DONE and told == [("stage", 1, 2)]
    assert int((tmp_path / "answer").read_text()) != os.getpid()
    assert (tmp_path / "log.txt").read_text() == f"said {tmp_path / 'answer'}\n"
    assert capfd.readouterr() == ("", "")
    if sys.platform.startswith("linux"):
        assert MIB < ended.peak < 2048 * MIB


@pytest.mark.parametrize("error", [UsageError("no such layer"), SoundnessError("wrong")])
def test_our_own_errors_arrive_as_they_were_raised(alone, error) -> None:
    with pytest.raises(type(error), match=str(error)):
        alone()[0].run(raises, error)


def test_any_other_error_is_an_end_with_its_last_line(alone) -> None:
    ended = alone()[0].run(raises, ValueError("no such shape"))
    assert (ended.how, ended.said) == (How.CRASHED, "exit code 1: ValueError: no such shape")


def test_a_library_that_ends_the_process(alone) -> None:
    ended = alone()[0].run(leaves, 3)
    assert (ended.how, ended.said) == (How.CRASHED, "exit code 3: a library gave up")


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_a_process_that_is_killed(alone) -> None:
    ended = alone()[0].run(is_killed, signal.SIGKILL)
    assert ended.how is How.MEMORY and "the system ended" in ended.said
    ended = alone()[0].run(is_killed, signal.SIGSEGV)
    assert ended.how is How.CRASHED and ended.said.startswith("SIGSEGV")


def test_the_time_of_a_part_is_limited(alone, tmp_path) -> None:
    begin = time.perf_counter()
    ended = alone(seconds=0.2)[0].run(sleeps, str(tmp_path / "pid"))
    assert ended.how is How.TIMEOUT and time.perf_counter() - begin < 20
    assert gone(int((tmp_path / "pid").read_text()))


def test_other_parts_take_their_time(alone) -> None:
    assert alone(seconds=0.1)[0].run(takes_its_time_later).how is How.DONE


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="no /proc")
def test_memory_is_limited(alone) -> None:
    ended = alone(memory=300 * MIB)[0].run(grows)
    assert ended.how is How.MEMORY and not ended.said
    assert 300 * MIB < ended.peak < 800 * MIB


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="no /proc")
def test_the_peak_is_that_of_the_part(alone) -> None:
    ended = alone()[0].run(grows_after_the_part)
    assert ended.how is How.DONE and ended.peak < 200 * MIB


def test_who_stops_waiting_ends_the_process(alone, tmp_path) -> None:
    run, _ = alone()

    def stop(*step):
        raise KeyboardInterrupt

    run.progress = stop
    with pytest.raises(KeyboardInterrupt):
        run.run(says, str(tmp_path / "answer"))


def test_the_last_line(tmp_path) -> None:
    path = tmp_path / "log"
    assert last_line(path) == ""
    path.write_text("one\n two \n\n")
    assert last_line(path) == "two"
    path.write_bytes(b"\xff" * 1000)
    assert len(last_line(path)) == 400


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_a_process_does_not_outlive_whoever_started_it(tmp_path) -> None:
    path = tmp_path / "pid"
    parent = subprocess.Popen([sys.executable, __file__, str(path)])
    try:
        _wait(lambda: path.exists() and path.read_text())
        child = int(path.read_text())
        assert not gone(child)
    finally:
        parent.kill()
        parent.wait()
    _wait(lambda: gone(child))


def _wait(until, seconds=20.0) -> None:
    end = time.monotonic() + seconds
    while not until():
        assert time.monotonic() < end
        time.sleep(0.05)


if __name__ == "__main__":
    Alone(600.0, 2**40, Path(sys.argv[1]).with_name("log"), print).run(sleeps, sys.argv[1])
