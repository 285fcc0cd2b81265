"""Reuse of freed CPU memory."""

from __future__ import annotations

import ctypes

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # malloc.h


def keep_memory() -> bool:
    """Make this process keep the memory of freed CPU tensors instead of returning it to the system.

    By default glibc maps new memory for every large tensor, and the system clears each page on first access, which
    takes a tenth or more of the time of a network on large images. The process then stays at its peak size. This
    affects all libraries in the process, but only tensors that the main thread allocates.

    Returns:
        Whether it took effect: False without glibc.
    """
    library = ctypes.CDLL(None)
    if not hasattr(library, "gnu_get_libc_version"):
        return False
    # never trim the heap, and never allocate outside of it
    return bool(library.mallopt(M_TRIM_THRESHOLD, -1)) and bool(library.mallopt(M_MMAP_MAX, 0))
