"""The C library's allocator, told to keep what is freed, within limits."""

import ctypes
import os
import sys
from pathlib import Path
from typing import Any

MMAP_THRESHOLD, TRIM_THRESHOLD = -3, -1  # glibc's numbers for mallopt
SLACK = 128 << 20  # bytes; holes between blocks of changing sizes may take so much before they are given back
SHAPES = 256  # of products, whose compiled code is kept; a pack of a dozen examples has about a hundred
BESIDE = SLACK + SHAPES * 640_000  # bytes that a training takes beside its tensors: holes and compiled products


def keep_freed_memory() -> bool:
    """Make glibc reuse large blocks instead of giving them back; return whether it was told.

    By default every large tensor is mapped anew, and each of its pages is zeroed by the kernel on first touch: for the
    intermediate tensors of a training step that can cost more time than the arithmetic on them.
    """
    mallopt = _glibc("mallopt")
    return mallopt is not None and bool(mallopt(MMAP_THRESHOLD, 1 << 30)) and bool(mallopt(TRIM_THRESHOLD, 2**31 - 1))


def keep_few_shapes() -> None:
    """Limit what oneDNN remembers; call before the first product, and let the user's own limits stand.

    It compiles a product anew for each shape and keeps the code of 1,024 of them, and torch's layer above it keeps what
    belongs to as many: 0.63 MB a shape in bfloat16 where the processor has AMX. Texts differ in length, so both fill
    up, and being small they stand between large blocks and part the memory that is free (docs/experiments.md).
    """
    for name in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
        os.environ.setdefault(name, str(SHAPES))


class Holes:
    """Gives memory back when the holes in it have grown: batches of changing length leave ever more of them.

    Allowed is what was left when memory was last given back, what one pack was seen to need above that, and some slack.
    Giving back costs the next pack its page faults, so it is done no more often.
    """

    def __init__(self) -> None:
        self._left = self._need = 0
        self._fresh = False  # memory was given back, and one pack computed since

    def close(self) -> bool:
        """Call after a pack; return whether memory was given back."""
        resident = resident_bytes()
        if self._fresh:
            self._need, self._fresh = max(self._need, resident - self._left), False
        if resident <= self._left + self._need + SLACK or not give_back():
            return False
        self._left, self._fresh = resident_bytes(), True
        return True


def give_back() -> bool:
    """Give what is free back to the system; return whether the C library can."""
    trim = _glibc("malloc_trim")
    if trim is None:
        return False
    trim(0)
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
