"""What goes along with long work: progress, a clock, and checkpoints."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from attrs import define, field

from advrepair.core.run_folder import Checkpoint

Progress = Callable[[str, int, int], None]


def silent(stage: str, done: int, total: int) -> None:
    """Progress for nobody."""


def untold(line: str) -> None:
    """A line for nobody."""


@define
class Work:
    """What goes along with a repair: progress, clock, and checkpoints if there is a folder.

    say: told in one line what was found, when a run goes on.
    """

    progress: Progress = silent
    checkpoint: Checkpoint | None = None
    seconds: dict[str, float] = field(factory=dict)
    started: float = field(factory=time.perf_counter)
    say: Callable[[str], None] = untold

    @contextmanager
    def stage(self, name: str, total: int) -> Iterator[Callable[[int], None]]:
        """Time a stage; yields a function that is told how many more are done."""
        begin, done = time.perf_counter(), 0

        def advance(more: int) -> None:
            nonlocal done
            done += more
            self.progress(name, done, total)

        self.progress(name, 0, total)
        yield advance
        self.progress(name, total, total)
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - begin
