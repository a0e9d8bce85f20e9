"""The program in processes of its own that are killed, starved or interrupted where a test says.

Importing torch takes longer than a small repair. So one process imports it, and forks a fresh
one for every command: what runs, and what is killed, is the real program.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from attrs import frozen

STEPS = ("replace", "rename", "unlink", "mkdir", "rmdir")


@frozen
class Ended:
    """How a command ended. code: minus the signal if one killed it. steps: on the disk."""

    code: int
    out: str
    err: str
    steps: int
    seconds: float


class Programs:
    """Runs commands in a folder, one after the other; first an undisturbed one."""

    def __init__(self, folder: Path, undisturbed: Sequence[str]) -> None:
        import advrepair

        path = os.pathsep.join(
            [str(Path(advrepair.__file__).parents[1]), str(Path(__file__).parent)]
        )
        self.folder = folder
        self._server = subprocess.Popen(
            [sys.executable, __file__, *undisturbed],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __call__(self, arguments: Sequence[str], **trouble: Any) -> Ended:
        """Run ``advrepair``; trouble: see :func:`_child`, and

        kill_after, signal: seconds after which a signal is sent, SIGKILL if none is named.
        """
        assert self._server.stdin is not None and self._server.stdout is not None
        self._server.stdin.write(json.dumps([list(arguments), trouble]) + "\n")
        self._server.stdin.flush()
        return Ended(**json.loads(self._server.stdout.readline()))

    def close(self) -> None:
        """End the process that forks."""
        assert self._server.stdin is not None and self._server.stdout is not None
        self._server.stdin.close()
        self._server.wait()
        self._server.stdout.close()


class Steps:
    """Counts what is done on the disk; something happens at the n-th step."""

    def __init__(self, at: int, error: int | None) -> None:
        self.at, self.error, self.count = at, error, 0

    def take(self) -> bool:
        """Whether this is the one."""
        self.count += 1
        return self.count == self.at

    def happen(self, *path: Any) -> None:
        """The disk is full, or the process ends."""
        if self.error is not None:
            raise OSError(self.error, os.strerror(self.error), *path)
        os.kill(os.getpid(), signal.SIGKILL)

    def install(self) -> None:
        """From now on every step on the disk is counted."""
        from advrepair.core import files

        for name in STEPS:
            setattr(os, name, self._counted(getattr(os, name)))
        files.open = self._open  # type: ignore[attr-defined]

    def _counted(self, function: Any) -> Any:
        def step(*arguments: Any, **options: Any) -> Any:
            if self.take():
                self.happen(str(arguments[0]))
            return function(*arguments, **options)

        return step

    def _open(self, path: Path, mode: str = "r") -> Any:
        import io

        if mode != "wb":
            return open(path, mode)
        if self.take():
            self.happen(str(path))
        steps = self

        class Writer(io.BufferedWriter):
            """A step for each file: half of what is written first gets through."""

            begun = False

            def write(self, data: Any) -> int:
                first, self.begun = not self.begun, True
                if not (first and steps.take()):
                    return super().write(data)
                super().write(bytes(data)[: len(data) // 2])
                self.flush()
                steps.happen()
                return 0

        return Writer(io.FileIO(path, "wb"))


def _child(arguments: list[str], trouble: dict[str, Any], place: Path) -> int:
    """One command.

    at: the step on the disk at which the process is killed, or fails with error, an errno.
    largest: bytes that a file may have. memory: bytes that the process may still take.
    raises: what the first shard ends with. slow: seconds that every shard takes longer.
    """
    import resource

    from advrepair.cli import main
    from advrepair.core.solving import Solver

    steps = Steps(trouble.get("at", 0), trouble.get("error"))
    steps.install()
    if "largest" in trouble:
        resource.setrlimit(resource.RLIMIT_FSIZE, (trouble["largest"],) * 2)
    if "memory" in trouble:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        used = pages * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + trouble["memory"],) * 2)
    if "slow" in trouble or "raises" in trouble:
        solve = Solver.__call__

        def slower(self: Solver, shard: Any) -> Any:
            if "raises" in trouble:
                raise RuntimeError(trouble["raises"])
            time.sleep(trouble["slow"])
            return solve(self, shard)

        Solver.__call__ = slower  # type: ignore[method-assign]
    sys.argv = ["advrepair", *arguments]
    code = main()
    place.write_text(str(steps.count))
    return code


def _fork(arguments: list[str], trouble: dict[str, Any], place: Path) -> dict[str, Any]:
    begin = time.monotonic()
    names = {name: place / name for name in ("out", "err", "steps")}
    child = os.fork()
    if not child:
        for number, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(names[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        code = 1
        try:
            code = _child(arguments, trouble, names["steps"])
        except BaseException:
            sys.excepthook(*sys.exc_info())  # type: ignore[arg-type]
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            threading._shutdown()  # type: ignore[attr-defined]  # as at every end: waits for threads
            os._exit(code)
    if "kill_after" in trouble:
        until = begin + trouble["kill_after"]
        while time.monotonic() < until and not os.waitid(
            os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT
        ):
            time.sleep(min(0.005, max(0.0, until - time.monotonic())))
        os.kill(child, trouble.get("signal", signal.SIGKILL))
    _, status = os.waitpid(child, 0)
    steps = names["steps"].read_text() if names["steps"].exists() else "0"
    names["steps"].unlink(missing_ok=True)
    return {
        "code": os.waitstatus_to_exitcode(status),
        "out": names["out"].read_text(),
        "err": names["err"].read_text(),
        "steps": int(steps or 0),  # empty: killed after the file was opened, before the number
        "seconds": time.monotonic() - begin,
    }


def _serve(warm: list[str]) -> None:
    import tempfile
    from functools import cache
    from importlib import metadata

    from advrepair.cli import main
    from advrepair.core.registry import Registry

    # What is installed does not change; looking for it takes longer than a small repair.
    metadata.version = cache(metadata.version)
    metadata.packages_distributions = cache(metadata.packages_distributions)
    Registry.load = cache(Registry.load)  # type: ignore[method-assign]
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have it ignored
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    main([*warm, "--json"])  # imports everything
    with tempfile.TemporaryDirectory() as place:
        for line in sys.stdin:
            arguments, trouble = json.loads(line)
            replies.write(json.dumps(_fork(arguments, trouble, Path(place))) + "\n")
            replies.flush()


if __name__ == "__main__":
    _serve(sys.argv[1:])
