"""Memory that is freed, kept for what is allocated next."""

from __future__ import annotations

import ctypes

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # malloc.h


def keep_memory() -> bool:
    """Let this process keep the memory of freed CPU tensors for the next ones, instead of returning it to the system.

    By default glibc maps every large tensor anew, and the system clears each page of it when it is first touched: a
    network on large images spends a tenth of its time there, or more. Afterwards the process stays as large as it
    once was. It holds for all libraries in the process, and for tensors that its main thread allocates.

    Returns:
        Whether it is so now: False with another C library than glibc, where nothing changes.
    """
    library = ctypes.CDLL(None)
    if not hasattr(library, "gnu_get_libc_version"):
        return False
    # never trim the heap, and take nothing from outside of it
    return bool(library.mallopt(M_TRIM_THRESHOLD, -1)) and bool(library.mallopt(M_MMAP_MAX, 0))
