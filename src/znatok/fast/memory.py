"""The C library's allocator, told to keep what is freed."""

import ctypes
import sys

MMAP_THRESHOLD, TRIM_THRESHOLD = -3, -1  # glibc's numbers for mallopt


def keep_freed_memory() -> bool:
    """Make glibc reuse large blocks instead of giving them back; return whether it was told.

    By default every large tensor is mapped anew, and each of its pages is zeroed by the kernel on first touch: for the
    intermediate tensors of a training step that can cost more time than the arithmetic on them.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return False
    return bool(mallopt(MMAP_THRESHOLD, 1 << 30)) and bool(mallopt(TRIM_THRESHOLD, 2**31 - 1))
