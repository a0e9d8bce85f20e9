"""The memory of this process: what it took at most, and how it is given back."""

import ctypes
import os
import sys
from pathlib import Path

_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1  # of mallopt(3)
# Of torch's allocator, of C++, and of Python where a thread gets no stack.
_NO_MEMORY = ("can't allocate memory", "not enough memory", "bad_alloc", "start new thread")


def out_of_memory(error: BaseException) -> bool:
    """Whether memory was refused; torch says so in words, on the CPU without a class."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    text = str(error).lower()
    if isinstance(error, OSError):
        return "cannot allocate memory" in text
    return any(words in text for words in _NO_MEMORY)


def peak_memory() -> int | None:
    """Largest resident memory of this process so far, in bytes; None where unknown."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak) * (1 if sys.platform == "darwin" else 1024)


def resident_memory() -> int:
    """Resident memory of this process now, in bytes; its peak so far where that is all there is."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return peak_memory() or 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def peak_of(process: int) -> int:
    """Largest resident memory of another process so far, in bytes; 0 where unknown.

    As the system counts it for the program that runs now: what ``getrusage`` says begins with
    the memory of whoever started it.
    """
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024
    except (OSError, ValueError, IndexError, StopIteration):
        return 0


def available_memory() -> int | None:
    """Memory that this process could still take, in bytes; None where unknown.

    What the system has left, or what the group of processes that it belongs to may have.
    """
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    known = {name: value.split() for name, _, value in (line.partition(":") for line in lines)}
    if "MemAvailable" not in known:
        return None
    left, group = int(known["MemAvailable"][0]) * 1024, Path("/sys/fs/cgroup")
    try:
        most = (group / "memory.max").read_text().strip()
        used = (group / "memory.current").read_text().strip()
    except OSError:
        return left
    return left if most == "max" else min(left, max(0, int(most) - int(used)))


def keep_freed_memory() -> None:
    """Have glibc keep freed arrays for the next ones instead of returning each to the system.

    Bounding takes and frees arrays of megabytes all the time; fetching their pages anew
    costs about half of it. For programs that own their process: the setting is global.
    Elsewhere than on glibc nothing happens.
    """
    if not sys.platform.startswith("linux"):
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return
    mallopt(_MMAP_THRESHOLD, 2**30)
    mallopt(_TRIM_THRESHOLD, 2**30)
