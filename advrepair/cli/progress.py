"""How far a run is: a bar with the time left in a terminal, plain lines elsewhere."""

import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Self, TextIO

import attrs
from rich import progress as rich_progress
from rich.console import Console
from rich.text import Text

from advrepair.cli.show import console, seconds

LOG_EVERY = 3.0

ProgressFn = Callable[[str, int, int], None]


def progress(silent: bool = False) -> AbstractContextManager[ProgressFn]:
    """The progress that fits stderr: a bar in a terminal, lines elsewhere."""
    if silent:
        return nullcontext(lambda stage, done, total: None)
    screen = console(sys.stderr)
    return TerminalProgress(screen) if screen.is_interactive else LogProgress()


@attrs.define
class Stage:
    """A stage under way. total: 0 when unknown."""

    name: str
    started: float
    done: int = 0
    total: int = 0
    finished: bool = False

    @property
    def count(self) -> str:
        """How far it is: ``30/50``, or ``30`` when the total is unknown."""
        return f"{self.done}/{self.total}" if self.total else str(self.done or "")

    def eta(self, now: float) -> str:
        """Time left at the pace so far, or nothing when that is unknown."""
        if not 0 < self.done < self.total:
            return ""
        return f"eta {seconds((now - self.started) / self.done * (self.total - self.done))}"


class StageProgress(ABC):
    """Follows ``progress(stage, done, total)`` and says when a stage moves and ends.

    A stage ends when it is done, when another begins, or with the ``with`` block.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self._stage: Stage | None = None

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Say how far a stage is; total 0 means unknown."""
        current, over = self._stage, bool(total) and done >= total
        if current is None or current.name != stage or (current.finished and not over):
            self._finish()
            current = self._stage = Stage(stage, self.clock())
        if current.finished:
            return
        current.done, current.total = done, total
        if over:
            self._finish()
        else:
            self.move(current)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._finish()

    def _finish(self) -> None:
        if self._stage is not None and not self._stage.finished:
            self._stage.finished = True
            took = seconds(self.clock() - self._stage.started)
            self.end(_joined(self._stage.name, self._stage.count, took))

    @abstractmethod
    def move(self, stage: Stage) -> None:
        """A stage has begun or moved."""

    @abstractmethod
    def end(self, line: str) -> None:
        """A stage has ended; line says which, how much and how long."""


class TerminalProgress(StageProgress):
    """A bar with the time left; a finished stage leaves one line with its seconds."""

    def __init__(self, screen: Console, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(clock)
        self._bar = rich_progress.Progress(
            rich_progress.TextColumn("{task.description}", markup=False),
            rich_progress.BarColumn(),
            rich_progress.TextColumn("{task.fields[left]}", markup=False),
            console=screen,
            transient=True,
            refresh_per_second=4,
        )
        self._task: rich_progress.TaskID | None = None

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        super().__exit__(kind, *rest)
        self._bar.stop()

    def move(self, stage: Stage) -> None:
        """Move the bar."""
        if self._task is None:
            self._task = self._bar.add_task(stage.name, total=None, left="")
        left = _joined(stage.count, stage.eta(self.clock()))
        self._bar.update(self._task, completed=stage.done, total=stage.total or None, left=left)

    def end(self, line: str) -> None:
        """Put the line in the bar's place."""
        if self._task is not None:
            self._bar.remove_task(self._task)
            self._task = None
        self._bar.console.print(Text(line))


class LogProgress(StageProgress):
    """Plain lines, at most one in LOG_EVERY seconds, and one at the end of each stage."""

    def __init__(
        self, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        super().__init__(clock)
        self._stream = stream or sys.stderr
        self._begun = self._written = clock()
        self._held: list[str] = []

    def move(self, stage: Stage) -> None:
        """Write a line when the last is old enough."""
        now = self.clock()
        if now - self._written >= LOG_EVERY:
            self.end(_joined(stage.name, stage.count, stage.eta(now)))

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        super().__exit__(kind, *rest)
        if kind is None:
            self._write()

    def end(self, line: str) -> None:
        """Write the line; a run that fails in its first seconds shows its error alone."""
        self._held.append(line)
        if self.clock() - self._begun >= LOG_EVERY:
            self._write()

    def _write(self) -> None:
        self._written = self.clock()
        for line in self._held:
            print(line, file=self._stream, flush=True)
        self._held.clear()


def _joined(*parts: str) -> str:
    return "  ".join(part for part in parts if part)
