"""Work on a run folder that others may stop: the user, the system, a full disk, no more memory.

Each is one line that says how to go on; what was done is kept.
"""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from advrepair.core.errors import UsageError
from advrepair.core.memory import out_of_memory

INTERRUPTED, TERMINATED = 130, 143


class Stopped(Exception):
    """Somebody stopped the work; its message is the line to show."""

    def __init__(self, line: str, code: int) -> None:
        super().__init__(line)
        self.code = code


class _Terminated(KeyboardInterrupt):
    """SIGTERM, which ends the work as Ctrl-C does."""


@contextmanager
def at_work(folder: Path, again: str) -> Iterator[None]:
    """Work on a folder, alone, until it is done or something stops it.

    again: how the user goes on. Raises UsageError at once if another process has the folder,
    and if disk or memory is full; Stopped after Ctrl-C and SIGTERM.
    """
    from advrepair.core.files import FULL, cannot_write
    from advrepair.core.locking import alone

    try:
        with _terminable(), alone(folder):
            yield
    except KeyboardInterrupt as error:
        code = TERMINATED if isinstance(error, _Terminated) else INTERRUPTED
        raise Stopped(f"interrupted: {again}", code) from None
    except (MemoryError, RuntimeError, OSError) as error:
        if out_of_memory(error):
            raise UsageError(
                "out of memory: lower run.memory or the workers of the executor (--set) and "
                f"{again}, or start again with smaller patches"
            ) from None
        if isinstance(error, OSError) and (error.filename is not None or error.errno in FULL):
            raise UsageError(cannot_write(error, again)) from None
        raise


@contextmanager
def _terminable() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # signals go there alone
        yield
        return

    def stop(number: int, frame: FrameType | None) -> NoReturn:
        raise _Terminated

    before: Any = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def leave(code: int) -> int:
    """End the process at once if threads are still at work that nobody waits for any more."""
    busy = [t for t in threading.enumerate() if t is not threading.main_thread() and not t.daemon]
    if code and busy:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code
