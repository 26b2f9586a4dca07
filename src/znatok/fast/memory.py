"""The C library's allocator, told to keep what is freed, within limits."""

import ctypes
import os
import sys
from pathlib import Path
from typing import Any

MMAP_THRESHOLD, TRIM_THRESHOLD = -3, -1  # glibc's numbers for mallopt
SLACK = 128 << 20  # bytes; holes between blocks of changing sizes may take so much before they are given back


def keep_freed_memory() -> bool:
    """Make glibc reuse large blocks instead of giving them back; return whether it was told.

    By default every large tensor is mapped anew, and each of its pages is zeroed by the kernel on first touch: for the
    intermediate tensors of a training step that can cost more time than the arithmetic on them.
    """
    mallopt = _glibc("mallopt")
    return mallopt is not None and bool(mallopt(MMAP_THRESHOLD, 1 << 30)) and bool(mallopt(TRIM_THRESHOLD, 2**31 - 1))


class Holes:
    """Gives memory back when the holes in it have grown: batches of changing length leave ever more of them.

    The measure is the first step's memory, then what is left each time: what is in use, such as the optimiser's state,
    is no hole. Giving back costs the next step its page faults, so it is done rarely.
    """

    def __init__(self) -> None:
        self._measure: int | None = None

    def close(self) -> bool:
        """Call after a step; return whether memory was given back."""
        resident = resident_bytes()
        if self._measure is None:
            self._measure = resident
        trim = _glibc("malloc_trim")
        if trim is None or resident <= self._measure + SLACK:
            return False
        trim(0)
        self._measure = resident_bytes()
        return True


def resident_bytes() -> int:
    """Return the memory this process has in RAM now; 0 where the system does not say."""
    statm = Path("/proc/self/statm")
    return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if statm.is_file() else 0


def _glibc(name: str) -> Any:
    """Return a function of glibc, or None where the C library is another one."""
    if not sys.platform.startswith("linux"):
        return None
    try:
        return getattr(ctypes.CDLL(None), name)
    except (OSError, AttributeError):
        return None
