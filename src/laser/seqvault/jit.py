"""How this store compiles its kernels: without the interpreter lock, cached on disk where there is a place for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import njit, types


def kernel(function: Callable[..., Any]) -> Any:
    """Compile on first call, releasing the interpreter lock, and keep the machine code for the next process.

    Numba caches beside the source, or in the user's cache directory when the installation is read-only; with neither
    at hand (a service account without a home) it refuses, and we compile once in each process instead.
    """
    try:
        return njit(cache=True, nogil=True)(function)
    except RuntimeError:
        return njit(nogil=True)(function)


pread = types.ExternalFunction("pread", types.int64(types.int32, types.intp, types.uint64, types.int64))
"""libc's ``pread(fd, address, bytes, offset)``, resolved by name so that kernels that call it can be cached."""

fadvise = types.ExternalFunction("posix_fadvise", types.int32(types.int32, types.int64, types.int64, types.int32))
"""libc's ``posix_fadvise(fd, offset, bytes, advice)``."""

WILLNEED = 3
"""``POSIX_FADV_WILLNEED``: start reading these pages now."""

memmove = types.ExternalFunction("memmove", types.intp(types.intp, types.intp, types.intp))
"""libc's ``memmove(to, from, bytes)``."""
