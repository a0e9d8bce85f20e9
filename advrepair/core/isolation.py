"""A function in a process of its own, with a limit on its memory and on the time of a part.

Whatever the function does, running forever, taking all memory, or ending the process, becomes a
word; whoever asked goes on.
"""

from __future__ import annotations

import enum
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from attrs import define, frozen

from advrepair.core.errors import AdvrepairError
from advrepair.core.memory import peak_of

GRACE = 5.0  # seconds beyond its limit in which a function may still end by itself
_POLL = 0.1
_LINES = 400  # characters of a message
Progress = Callable[[str, int, int], None]


class How(enum.StrEnum):
    """How a process ended."""

    DONE = "done"
    TIMEOUT = "timeout"
    MEMORY = "memory"
    CRASHED = "crashed"


@frozen
class Ended:
    """How a process ended. peak: bytes it had at most by the end of the limited part."""

    how: How
    peak: int
    said: str = ""


@frozen(eq=False)
class Line:
    """What a function has to talk to whoever runs it."""

    connection: Connection

    def progress(self, stage: str, done: int, total: int) -> None:
        """Say how far it is."""
        self.connection.send(("progress", stage, done, total))

    def limited(self, on: bool) -> None:
        """The part begins, or ends, for which the time is limited."""
        self.connection.send(("limited", on))


@define(eq=False)
class Alone:
    """Runs functions, one at a time. seconds: for the limited part; memory: in bytes.

    log: a file for whatever is printed by the function, or by libraries.
    """

    seconds: float
    memory: int
    log: Path
    progress: Progress
    _began: float | None = None
    _peak: int = 0
    _part: int = 0

    def run(self, function: Callable[..., None], *arguments: Any) -> Ended:
        """``function(line, *arguments)`` in a new process, until it ends or has to.

        function and arguments can be pickled. An AdvrepairError is raised here as it was there,
        any other error is the end ``crashed``, with its last line.
        """
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe(duplex=False)
        whole = (theirs, str(self.log), function, arguments)
        process = context.Process(target=_child, args=whole, daemon=True)
        self._began, self._peak, self._part = None, 0, 0
        process.start()
        theirs.close()
        try:
            return self._watched(process, ours)
        finally:
            process.kill()
            process.join()
            ours.close()

    @property
    def peak(self) -> int:
        """Bytes it had at most by the end of the limited part, or by now."""
        return self._part or self._peak

    def _watched(self, process: BaseProcess, line: Connection) -> Ended:
        while True:
            try:
                heard = line.recv() if line.poll(_POLL) else None
            except EOFError:
                process.join()
                return self._gone(process.exitcode)
            if (how := self._over(process)) is not None:
                return Ended(how, self.peak)
            if heard is not None and (ended := self._heard(heard)) is not None:
                return ended

    def _heard(self, message: tuple[Any, ...]) -> Ended | None:
        kind, *rest = message
        if kind == "progress":
            self.progress(*rest)
        elif kind == "limited":
            self._began = time.perf_counter() if rest[0] else None
            self._part = 0 if rest[0] else self._peak
        elif kind == "raise":
            raise rest[0]
        elif kind == "done":
            return Ended(How.DONE, self.peak)
        return None

    def _over(self, process: BaseProcess) -> How | None:
        """Whether a limit is exceeded."""
        if process.pid is not None:
            self._peak = max(self._peak, peak_of(process.pid))
        if self._peak > self.memory:
            return How.MEMORY
        late = self._began is not None and time.perf_counter() - self._began > self.seconds + GRACE
        return How.TIMEOUT if late else None

    def _gone(self, code: int | None) -> Ended:
        """The process ended without a word: the system took it, or a library ended it."""
        if code == -signal.SIGKILL:
            return Ended(How.MEMORY, self.peak, "the system ended the process")
        name = signal.Signals(-code).name if code is not None and code < 0 else f"exit code {code}"
        return Ended(How.CRASHED, self.peak, ": ".join(filter(None, [name, last_line(self.log)])))


def last_line(path: Path) -> str:
    """The last line of a text file that is not empty, cut to a length; empty if there is none."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:_LINES] if lines else ""


def _child(
    connection: Connection, log: str, function: Callable[..., None], arguments: tuple[Any, ...]
) -> None:
    """The other process: what is printed goes to the log, what happens is told."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent is told, and ends this one
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _print_to(log)
    try:
        function(Line(connection), *arguments)
    except AdvrepairError as error:
        connection.send(("raise", error))
    else:
        connection.send(("done",))


def _end_with_parent() -> None:
    """A parent that is killed cannot end this process: it does so itself."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)


def _print_to(log: str) -> None:
    """Whatever is printed from now on, by libraries too, goes to a file."""
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    for stream in (1, 2):
        os.dup2(handle, stream)
    os.close(handle)
    for writer in (sys.stdout, sys.stderr):
        if hasattr(writer, "reconfigure"):
            writer.reconfigure(line_buffering=True)
