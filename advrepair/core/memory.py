"""The memory of this process: what it took at most, and how it is given back."""

import ctypes
import sys

_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1  # of mallopt(3)


def peak_memory() -> int | None:
    """Largest resident memory of this process so far, in bytes; None where unknown."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak) * (1 if sys.platform == "darwin" else 1024)


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
