"""One process at a time on a run folder.

The lock is the operating system's, on a file beside the folder: it ends with the process that
holds it, however that ends. The file goes when the work is over.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from advrepair.core.errors import UsageError
from advrepair.core.files import cannot_write

_TRIES = 50
_PAUSE = 0.02  # seconds; a file that goes just as it is opened is no other process at work


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Hold a run folder, which need not exist; folders above it are made, and removed if empty.

    Raises UsageError at once if another process holds it, or if nothing can be written there.
    """
    path = Path(f"{os.path.realpath(folder)}.lock")
    made = [above for above in path.parents if not above.exists()]
    try:
        lock = _acquired(path, folder)
    except OSError as error:
        _remove_empty(made)
        if isinstance(error, FileExistsError):  # a file where a folder is needed
            error = NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        raise UsageError(cannot_write(error, path=folder)) from None
    try:
        with suppress(OSError):
            path.write_text(f"{os.getpid()}\n", encoding="ascii")
        yield
    finally:
        # While it is held: who opened the file before sees that it has no name any more.
        with suppress(OSError):
            path.unlink()
        lock.release()
        _remove_empty(made)


def _acquired(path: Path, folder: Path) -> FileLock:
    for _ in range(_TRIES):
        lock = FileLock(path, timeout=0)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            lock.acquire()
            return lock
        except Timeout:
            if path.exists():
                break
        except FileNotFoundError:  # the folder above was removed just now
            pass
        time.sleep(_PAUSE)
    raise UsageError(
        f"{folder} is in use by {_holder(path)}: wait until it has ended, or choose another folder"
    )


def _holder(path: Path) -> str:
    """Which process has the lock, if its file says so."""
    with suppress(OSError):
        number = path.read_text(encoding="ascii", errors="replace").strip()
        if number.isdecimal():
            return f"process {number}"
    return "another process"


def _remove_empty(folders: list[Path]) -> None:
    for each in folders:
        with suppress(OSError):
            each.rmdir()
