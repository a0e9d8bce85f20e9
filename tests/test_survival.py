"""Runs survive: kills, a full disk, no memory, Ctrl-C, and a second process on the folder.

The program runs in processes of its own (:mod:`surviving`) and is stopped at every step that it
takes on the disk, or at random moments. What is there afterwards is compared byte by byte with
an undisturbed run.
"""

import errno
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest
from problems import bytes_of, entries, write_inputs
from surviving import Ended, Programs

from advrepair.core.files import is_sealed

FILES = [
    "certificate.json",
    "certificate.safetensors",
    "evaluation.safetensors",
    "manifest.json",
    "repaired.safetensors",
    "report.html",
    "report.json",
    "run.toml",
]
RUN = ["run", "net.onnx", "--data", "data.npz", "--count", "10", "--set", "evaluation.samples=1"]
AGAIN = "go on with --resume"
NUMBERS = count()


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with a network, data, and the run ``whole`` that nothing disturbed."""
    folder = tmp_path_factory.mktemp("survival")
    write_inputs(folder)
    return folder


@pytest.fixture(scope="module")
def program(place) -> Iterator[Programs]:
    programs = Programs(place, [*RUN, "--out", "whole"])
    yield programs
    programs.close()


@pytest.fixture
def out(place, request) -> Iterator[Path]:
    """A folder to write to that no other test uses; in the end nothing else may be left."""
    below = place / f"{request.node.originalname}-{next(NUMBERS)}"
    yield below / "a"
    left = {path.parts[0] for path in map(Path, entries(below))}
    assert left <= {"a", "b"}, left


def is_whole(out: Path, whole: Path) -> None:
    """The run is complete, the same as another, and nothing else is left."""
    assert bytes_of(out) == bytes_of(whole)
    assert entries(out) == FILES
    assert [path.name for path in out.parent.iterdir() if path.name.startswith("a.")] == []


def published_is_complete(out: Path) -> None:
    """At any moment the folder is absent or holds a whole run, and nothing of the work."""
    if out.exists():
        assert set(entries(out)) - {"report.html", "report.html.tmp"} == set(FILES) - {
            "report.html"
        }


def resume(program: Programs, out: Path, *flags: str, **trouble) -> Ended:
    """As a user would: without flags; with all of them where nothing was begun yet."""
    ended = program(["run", "--resume", "--out", str(out)], **trouble)
    if ended.code == 2 and "holds nothing to go on with" in ended.err:
        ended = program([*RUN, *flags, "--resume", "--out", str(out)], **trouble)
    return ended


def remove(out: Path) -> None:
    for left in out.parent.glob("a*"):
        subprocess.run(["rm", "-r", str(left)], check=True)


def steps_of(program: Programs, command: list[str]) -> int:
    """How many there are when the folder above is there."""
    Path(command[-1]).parent.mkdir(exist_ok=True)
    ended = program(command)
    assert ended.code == 0, ended.err
    return ended.steps


def one_line(ended: Ended, code: int, *words: str) -> None:
    lines = [line for line in ended.err.splitlines() if "  " not in line]  # those are progress
    assert ended.code == code and len(lines) == 1, (ended.code, ended.err)
    assert all(word in lines[0] for word in words), lines[0]


def test_a_kill_at_every_step_on_the_disk(program, place, out):
    command = [*RUN, "--out", str(out)]
    steps = steps_of(program, command)
    is_whole(out, place / "whole")
    assert steps > 40
    for at in range(1, steps + 1):
        remove(out)
        assert program(command, at=at).code == -signal.SIGKILL
        published_is_complete(out)
        if at % 7 == 0:  # and killed once more
            resume(program, out, at=random.Random(at).randrange(1, 40))
            published_is_complete(out)
        ended = resume(program, out)
        assert ended.code == 0, (at, ended.err)
        is_whole(out, place / "whole")


def test_a_kill_while_a_run_is_replaced(program, place, out):
    """At any moment the old run or the new one is there, and can be gone on with."""
    old, new = place / "whole", place / "other"
    assert program([*RUN, "--seed", "3", "--set", "patch.hidden=[3]", "--out", str(new)]).code == 0
    flags = ["--seed", "3", "--set", "patch.hidden=[3]"]
    command = [*RUN, *flags, "--force", "--out", str(out)]
    program([*RUN, "--out", str(out)])
    steps = steps_of(program, command)
    for at in [*range(1, 10), *range(steps - 24, steps + 1)]:
        remove(out)
        subprocess.run(["cp", "-r", str(old), str(out)], check=True)
        assert program(command, at=at).code == -signal.SIGKILL
        published_is_complete(out)
        found = next(path for path in (out, out.with_name("a.old")) if path.exists())
        assert bytes_of(found) in (bytes_of(old), bytes_of(new))
        ended = program(["run", "--resume", "--out", str(out)])
        assert ended.code == 0, (at, ended.err)
        if bytes_of(out) == bytes_of(old):  # the new one had not begun
            assert entries(out) == FILES and at < 10
            assert program(command).code == 0
        is_whole(out, new)


@pytest.mark.parametrize("way", range(3))
def test_kills_at_random_moments(way, program, place, out):
    flags = [
        ["--set", "in-process.workers=2", "--count", "30"],
        ["--set", "patch.hidden=[5]", "--set", "in-process.workers=2"],
        ["--indicator", "targeted-label", "--set", "training.split=2", "--count", "20"],
    ][way]
    whole, chance, kills = place / f"whole{way}", random.Random(way), 0
    took = program([*RUN, *flags, "--out", str(whole)]).seconds
    slow = {"slow": 0.02}  # so that there is time between the shards
    while kills < 9:
        remove(out)
        ended = program(
            [*RUN, *flags, "--out", str(out)], kill_after=chance.random() * took, **slow
        )
        while ended.code != 0:
            assert ended.code == -signal.SIGKILL, ended.err
            kills += 1
            published_is_complete(out)
            if chance.random() < 0.3:
                damage(out.with_name("a.partial"), chance)
            last = chance.random() < 0.4
            trouble = {} if last else {"kill_after": chance.random() * took}
            ended = resume(program, out, *flags, **trouble, **slow)
        is_whole(out, whole)


def damage(partial: Path, chance: random.Random) -> None:
    """A bit of a checkpoint changes, or its end is lost."""
    kept = sorted(partial.glob("checkpoint-*")) if partial.exists() else []
    if not kept:
        return
    path = chance.choice(kept)
    content = bytearray(path.read_bytes())
    content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    path.write_bytes(content[: chance.choice([len(content), chance.randrange(len(content))])])


def shards_of(program: Programs, out: Path, wanted: int) -> list[Path]:
    """The checkpoints of a run that is killed as soon as there are as many as wanted."""
    for at in range(12, 40):
        remove(out)
        program([*RUN, "--out", str(out)], at=at)
        kept = sorted(out.with_name("a.partial").glob("checkpoint-shard-*.safetensors"))
        if len(kept) == wanted:
            return kept
    raise AssertionError("no such moment")


def test_a_damaged_checkpoint_is_worked_again(program, place, out):
    """A weight of another value, or a margin, would be certified as it stands."""
    kept = shards_of(program, out, 2)
    for path in kept:
        assert is_sealed(path)
        content = bytearray(path.read_bytes())
        content[-5] ^= 64
        path.write_bytes(content)
    ended = resume(program, out)
    assert "resuming: 0 of 10 patches are done" in ended.out
    is_whole(out, place / "whole")


def test_a_resume_says_what_it_found(program, place, out):
    assert "resuming" not in program([*RUN, "--out", str(out)]).out
    shards_of(program, out, 1)
    ended = resume(program, out)
    assert ended.out.splitlines().count("resuming: 8 of 10 patches are done") == 1
    is_whole(out, place / "whole")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_a_full_disk_at_every_step(number, program, place, out):
    command, text = [*RUN, "--out", str(out)], errno.errorcode[number]
    steps = steps_of(program, command)
    every = range(1, steps + 1) if text == "ENOSPC" else range(1, steps + 1, 9)
    cure = "mend that and" if text == "EROFS" else "free some space and"
    for at in every:
        remove(out)
        ended = program(command, at=at, error=number)
        if ended.code:
            again = AGAIN if out.with_name("a.partial").exists() or out.exists() else "try again"
            one_line(ended, 2, "error: cannot write to ", f"; {cure} {again}")
            assert not list(out.parent.rglob("*.tmp"))
        published_is_complete(out)
        if at % 8 == 1:
            ended = resume(program, out)
            assert ended.code == 0, (at, ended.err)
            is_whole(out, place / "whole")
    assert resume(program, out).code == 0


@pytest.mark.parametrize("largest", [1000, 3000, 20_000])
def test_a_file_that_may_not_grow(largest, program, place, out):
    ended = program([*RUN, "--out", str(out)], largest=largest)
    one_line(ended, 2, "cannot write to", "File too large; free some space and")
    assert not list(out.parent.rglob("*.tmp"))
    assert resume(program, out).code == 0
    is_whole(out, place / "whole")


@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize(
    "words",
    [
        "[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory: you "
        "tried to allocate 4 bytes. Error code 12 (Cannot allocate memory)",
        "DefaultCPUAllocator: not enough memory: you tried to allocate 4 bytes.",
    ],
)
def test_no_memory_in_a_shard(words, workers, program, place, out):
    command = [*RUN, "--set", f"in-process.workers={workers}", "--out", str(out)]
    one_line(program(command, raises=words), 2, "out of memory: lower run.memory", AGAIN)
    flags = ["--set", "run.memory=0.5", "--set", "in-process.workers=1"]
    assert program(["run", *flags, "--resume", "--out", str(out)]).code == 0
    is_whole(out, place / "whole")


def test_no_memory_at_all(program, place, out):
    """The system refuses: what the process had when it began is all it gets, and little more."""
    command = [*RUN, "--set", "patch.hidden=[2000,2000]", "--out", str(out)]
    one_line(program(command, memory=2**25), 2, "out of memory: lower run.memory", AGAIN)
    remove(out)


@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted_in_the_middle_of_a_shard(number, code, workers, program, place, out):
    command = [*RUN, "--set", f"in-process.workers={workers}", "--out", str(out)]
    ended = program(command, slow=20, kill_after=2.5, signal=number)
    one_line(ended, code, f"interrupted: {AGAIN}")
    assert ended.seconds < 5
    assert resume(program, out).code == 0
    is_whole(out, place / "whole")


def test_one_of_many_processes_wins(place, out):
    command = [sys.executable, "-m", "advrepair", *RUN, "--out", str(out)]
    root = Path(__file__).parents[1]
    several = [
        subprocess.Popen(
            command,
            cwd=place,
            env={"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", "PATH": ""},
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
        )
        for _ in range(5)
    ]
    ended = [(each.communicate()[1], each.returncode) for each in several]
    assert sorted(code for _, code in ended) == [0, 2, 2, 2, 2], ended
    refused = [f"{out} is in use by process {each.pid}: wait" for each in several]
    refused.append(f"{out} holds a run: use --force")  # by one that came late
    for line, code in ended:
        assert code == 0 or any(words in line for words in refused), line
    assert any("is in use by" in line for line, _ in ended)
    is_whole(out, place / "whole")
